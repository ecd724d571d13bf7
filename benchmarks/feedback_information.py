"""Does dense feedback know which pseudo-labels are wrong?

    semiseg prepare HIDDEN --recipe docs/lab/studies/recipes/hippocampus.toml --data FOLDER --set data.labelled=160
    python benchmarks/feedback_information.py --run RUN --hidden HIDDEN

RUN: trained by mpl or pseudo_label, with a teacher. HIDDEN: the same cases prepared with all their labels, by the same
plan; training never saw them. On patches of unlabelled scans the teacher's label of a voxel is its first choice, and
feedback says whether the second would have helped the student more: `s = dJ/dq_first - dJ/dq_second` is above 0 then.
It knows something if `s` is larger where the second choice is the true label than where the first is: the area under
the ROC curve (AUC) is 0.5 if it knows nothing. Beside it stands the teacher's own doubt, `q_second - q_first`.
Feedback is measured on the scans that the run has labels of, as training does, and on others, whose labels neither
network has seen; each time as a mean over several labelled batches. Writes
benchmarks/results/feedback_information.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from gradient_cosine import restored
from semiseg.data.roles import of_role, read_run_cases
from semiseg.files import write_json
from semiseg.geometry import Box
from semiseg.io.store import OpenCase, open_case
from semiseg.losses import pseudo_label_loss
from semiseg.methods.base import Batch
from semiseg.methods.feedback import dense_feedback, labelled_gradient_at, sgd_probe
from semiseg.methods.mpl import MetaPseudoLabels
from semiseg.methods.optimiser import gradients_of
from semiseg.models.layers import batch_statistics_only
from semiseg.types import Shape

DOUBTFUL = 0.8
"""Voxels whose first choice has less than this are looked at apart: there a correction is to be had."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--hidden", type=Path, required=True)
    parser.add_argument("--patches", type=int, default=60, help="unlabelled patches")
    parser.add_argument("--batches", type=int, default=8, help="labelled batches of two that feedback is a mean over")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    method, session = restored(arguments.run, steps=1)
    cases = read_run_cases(arguments.run / "cases.jsonl")
    labelled, unlabelled = (
        [open_case(arguments.hidden / "store" / case.id) for case in of_role(cases, role)]
        for role in ("labelled", "unlabelled")
    )
    unlabelled = [case for case in unlabelled if case.label is not None]
    generator = np.random.default_rng(0)
    order = generator.permutation(len(unlabelled))
    half = len(order) // 2
    looked_at, others = ([unlabelled[i] for i in part] for part in (order[:half], order[half:]))
    patch = session.plan.patch
    found: dict[str, list[NDArray[np.float64]]] = {"own": [], "others": [], "doubt": [], "second": [], "first": []}
    for number in range(arguments.patches):
        image, truth = patches_of([looked_at[number % half]], patch, generator)
        own = [patches_of(_two(labelled, generator), patch, generator) for _ in range(arguments.batches)]
        foreign = [patches_of(_two(others, generator), patch, generator) for _ in range(arguments.batches)]
        rows = _voxels(method, image, truth, own, foreign)
        for name, values in rows.items():
            found[name].append(values)
        print(f"{number + 1} of {arguments.patches}", flush=True)
    voxels = {name: np.concatenate(values) for name, values in found.items()}
    result = {
        "run": arguments.run.name,
        "patches": arguments.patches,
        "batches": arguments.batches,
        "all voxels": _areas(voxels, np.ones(len(voxels["doubt"]), dtype=bool)),
        f"first choice below {DOUBTFUL}": _areas(voxels, voxels["first"] < DOUBTFUL),
    }
    write_json(Path(__file__).parent / "results" / "feedback_information.json", result)
    print(json.dumps(result, indent=1))


def _two(cases: list[OpenCase], generator: np.random.Generator) -> list[OpenCase]:
    return [cases[i] for i in generator.choice(len(cases), 2, replace=False)]


def patches_of(cases: list[OpenCase], patch: Shape, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Images `(B, C, D, H, W)` and labels `(B, D, H, W)`, a patch of each case."""
    images, labels = [], []
    for case in cases:
        z, y, x = (int(generator.integers(max(0, n - p) + 1)) for n, p in zip(case.meta.shape_zyx, patch, strict=True))
        box = Box((z, y, x), (z + patch[0], y + patch[1], x + patch[2]))
        images.append(case.read_image(box))
        labels.append(case.read_label(box))
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels).astype(np.int64))


def _voxels(
    method: MetaPseudoLabels,
    image: Tensor,
    truth: Tensor,
    own: list[tuple[Tensor, Tensor]],
    foreign: list[tuple[Tensor, Tensor]],
) -> dict[str, NDArray[np.float64]]:
    """Of every voxel whose true label is the teacher's first or second choice."""
    with torch.no_grad():
        q = method.soft_labels(image, method.teacher.network).exp()
    values, choices = q.topk(2, dim=1)
    first, second = choices[:, 0], choices[:, 1]
    counts = (truth == first) | (truth == second)
    rows = {
        "second": (truth == second)[counts],
        "first": values[:, 0][counts],
        "doubt": (values[:, 1] - values[:, 0])[counts],
    }
    for name, batches in (("own", own), ("others", foreign)):
        d = torch.stack([feedback_at(method, image, q, Batch(*batch)) for batch in batches]).mean(0)
        s = d.gather(1, first[:, None])[:, 0] - d.gather(1, second[:, None])[:, 0]
        rows[name] = s[counts]
    return {name: value.double().numpy() for name, value in rows.items()}


def feedback_at(method: MetaPseudoLabels, image: Tensor, q: Tensor, labelled: Batch) -> Tensor:
    """`dJ/dq`, as training measures it."""
    start = {name: value.detach() for name, value in method.student.optimiser.parameters.items()}
    with batch_statistics_only(method.student.network):
        loss = pseudo_label_loss(q, method.student.network(image))
        probe = sgd_probe(start, gradients_of(loss, method.student.optimiser.parameters), method.probe_rate)
    _, g_plus = labelled_gradient_at(method.student.network, probe, labelled.images, labelled.labels, None)
    return dense_feedback(method.student.network, start, image, q, None, g_plus, rate=method.probe_rate)


def _areas(voxels: dict[str, NDArray[np.float64]], among: NDArray[np.bool_]) -> dict[str, float]:
    second = voxels["second"][among] > 0
    found = {"voxels": int(among.sum()), "second choice is right": round(float(second.mean()), 4)}
    for name in ("own", "others", "doubt"):
        found[f"AUC {name}"] = round(roc_area(voxels[name][among], second), 4)
    return found


def roc_area(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the chance that a positive one scores higher (Mann-Whitney, ties count half)."""
    ranks, count = rankdata(scores), int(positive.sum())
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(ranks) - count)))


if __name__ == "__main__":
    main()
