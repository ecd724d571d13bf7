"""How many held-out scans does feedback need before it tells right pseudo-labels from wrong ones?

    semiseg prepare HIDDEN --data FOLDER --set data.labelled=160 ...   (the plan of RUN)
    python benchmarks/feedback_curve.py --run RUN --hidden HIDDEN

RUN and HIDDEN are as for feedback_information.py, and so is what feedback says of a voxel: `s` above 0 says that the
teacher's second choice would have helped the student more than its first. It is measured on 2 to 32 scans that RUN left
out (`data.exclude`, as in the runs of pseudo_label_ladder.py), and looked at where the teacher's first choice has a
probability below 0.8: of each voxel, summed over each connected component of such voxels with one first choice, and
summed over all such voxels of a class in a patch. A component or class is wrong where the second choice is right more
often than the first. Beside the area under the ROC curve (AUC) stands the share of right signs, as the mean of that
where the first choice is right and that where the second is: 0.5 knows nothing. Intervals are over patches. Writes
benchmarks/results/feedback_curve.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import label as components_of

from feedback_information import DOUBTFUL, feedback_at, patches_of, roc_area
from gradient_cosine import restored
from semiseg.data.roles import of_role, read_run_cases
from semiseg.files import write_json
from semiseg.io.store import open_case
from semiseg.methods.base import Batch

HELD_OUT = (2, 4, 8, 16, 32)
DRAWS = 500
"""Of the patches, behind each interval."""
RESULTS = Path(__file__).parent / "results" / "feedback_curve.json"
Flat = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--hidden", type=Path, required=True)
    parser.add_argument("--patches", type=int, default=60, help="unlabelled patches")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    method, session = restored(arguments.run, steps=1)
    with_labels = of_role(read_run_cases(arguments.hidden / "cases.jsonl"), "labelled")
    stored = {case.id: open_case(arguments.hidden / "store" / case.id) for case in with_labels}
    cases = read_run_cases(arguments.run / "cases.jsonl")
    looked_at = [stored[case.id] for case in of_role(cases, "unlabelled")]
    learnt_from = {case.id for case in of_role(cases, "labelled", "unlabelled")}
    others = [case for id, case in stored.items() if id not in learnt_from]
    if len(others) < HELD_OUT[-1]:
        parser.error(f"{len(others)} scans were left out of RUN (data.exclude): {HELD_OUT[-1]} are needed")
    generator = np.random.default_rng(0)
    found: dict[tuple[str, int], list[Flat]] = {}
    for number in range(arguments.patches):
        image, truth = patches_of([looked_at[generator.integers(len(looked_at))]], session.plan.patch, generator)
        with torch.no_grad():
            q = method.soft_labels(image, method.teacher.network).exp()
        plain = (q.log() * method.temperature).softmax(1)  # of the teacher's logits as they are
        first, second = q.topk(2, dim=1).indices.unbind(1)
        counts = ((truth == first) | (truth == second)) & (plain.amax(1) < DOUBTFUL)
        held_out = generator.permutation(len(others))[: HELD_OUT[-1]]
        total = torch.zeros_like(q)
        for pair in range(HELD_OUT[-1] // 2):
            two = [others[i] for i in held_out[2 * pair : 2 * pair + 2]]
            batch = Batch(*patches_of(two, session.plan.patch, generator))
            total += feedback_at(method, image, q, batch)
            if (scans := 2 * (pair + 1)) in HELD_OUT:
                s = (total.gather(1, first[:, None]) - total.gather(1, second[:, None]))[0, 0]
                where, right = counts[0].numpy(), (truth == second)[0].numpy().astype(float)
                for kind, sums, wrong in _regions(s.double().numpy(), where, right, first[0].numpy()):
                    found.setdefault((kind, scans), []).append(np.stack([sums, wrong], axis=1))
        print(f"{number + 1} of {arguments.patches}", flush=True)
    rows = [_row(kind, scans, of_patches) for (kind, scans), of_patches in found.items()]
    rows.sort(key=lambda row: (row["of"], row["held_out_scans"]))
    write_json(arguments.results, {"patches": arguments.patches, "rows": rows})
    for row in rows:
        shown = [f"{name} {'{:.3f} [{:.3f}, {:.3f}]'.format(*row[name])}" for name in ("AUC", "right_signs")]
        print(f"{row['of']:12}{row['held_out_scans']:3} scans {row['number']:7}  " + "  ".join(shown))


def _regions(
    s: Flat, where: NDArray[np.bool_], right: Flat, first: NDArray[np.int64]
) -> Iterator[tuple[str, Flat, Flat]]:
    """The sums of `s` over voxels, components and classes, and whether the second choice is right there more often
    than the first; regions where both are right as often are left out."""
    yield "voxel", s[where], right[where]
    for kind in ("component", "class"):
        sums: list[Flat] = []
        shares: list[Flat] = []
        for value in np.unique(first[where]):
            chosen = where & (first == value)
            regions, count = components_of(chosen) if kind == "component" else (chosen.astype(int), 1)
            sizes, of_s, of_right = (
                np.bincount(regions.ravel(), weights=weight, minlength=count + 1)[1:]
                for weight in (None, s.ravel(), right.ravel())
            )
            sums.append(of_s.astype(np.float64))
            shares.append(of_right / sizes)
        if sums:
            share = np.concatenate(shares)
            clear = share != 0.5
            yield kind, np.concatenate(sums)[clear], (share[clear] > 0.5).astype(float)


def _row(kind: str, scans: int, of_patches: list[Flat]) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(of_patches), (DRAWS, len(of_patches)))
    drawn = np.array([_known(np.concatenate([of_patches[i] for i in draw])) for draw in draws])
    area, signs = _known(np.concatenate(of_patches))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0).round(4).tolist()
    return {
        "of": kind,
        "held_out_scans": scans,
        "number": sum(map(len, of_patches)),
        "AUC": [round(area, 4), low[0], high[0]],
        "right_signs": [round(signs, 4), low[1], high[1]],
    }


def _known(pairs: Flat) -> tuple[float, float]:
    """AUC and share of right signs."""
    s, wrong = pairs[:, 0], pairs[:, 1] > 0
    signs = (float((s[wrong] > 0).mean()) + float((s[~wrong] < 0).mean())) / 2
    return roc_area(s, wrong), signs


if __name__ == "__main__":
    main()
