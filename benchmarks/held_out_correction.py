"""Can errors on labelled scans that a network has not learnt from tell how to mend pseudo-labels? Designs A and B of a
feedback that pools what one step of Meta Pseudo Labels sees of it.

    python benchmarks/held_out_correction.py --data FOLDER --output FOLDER [--steps 1000] [--subsets 3]

Each labelled scan is held back from a network of its own (a fold), which predicts it. So there are as many predictions
with true errors as labels, all that few labels can tell. All folds together label a pool of scans whose labels are
hidden (`ensemble`: the mean of their logits), and these labels are mended by what the held-back scans say:

  numbers         design A: a bias and a least probability of each organ, the best ones on the held-back scans; a number
                  moves only where the gain over these scans is more than twice its standard error
  numbers_oracle  the best ones on the pool by its hidden labels: what design A could reach
  network         design B: a small network sees the scan and the logits, and learns what to add to them to be right on
                  the held-back scans; how much of it is added (0, 1/4, 1/2 or 1) is chosen on scans that this network
                  has not learnt from either
  network_oracle  the same with the part that is best on the pool by its hidden labels: what design B could reach

Said of each is the mean Dice of the pool's labels, that of a student that learns from them (as in
pseudo_label_ladder.py), and of the network, whether it knows which doubtful voxels are wrong (the area under the ROC
curve, as in feedback_information.py). `curve` says how good numbers are that were chosen on more scans: on n of the
pool by their hidden labels, for the others.

What is done is not done again. Writes benchmarks/results/held_out_correction.json after every run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from feedback_information import roc_area
from few_labels import SETS, Subset, id_list, keep_row, made_run, mean_dice, organ_dice
from pseudo_label_ladder import BIASES, DOUBTFUL, LEAST, Decision, Labelled, best_decision, gain, quality_of
from semiseg import predict_run
from semiseg.data.reviews import PSEUDO_LABELS
from semiseg.files import read_json, write_json
from semiseg.io.file_kinds import label_map, probability_map
from semiseg.io.scans import read_grid, read_volume, write_label
from semiseg.randomness import Draw
from semiseg.run_folder import prepared_settings
from semiseg.scoring.label_efficiency import verdict
from semiseg.types import FloatArray, LabelArray

RESULTS = Path(__file__).resolve().parent / "results" / "held_out_correction.json"
PARTS = (0.0, 0.25, 0.5, 1.0)
"""Of what the network adds to the logits."""
FEATURES = 16
CORRECTION_STEPS = 300
CURVE = (4, 8, 16, 32)
DRAWS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--set", dest="name", choices=[*SETS], default="hippocampus")
    parser.add_argument("--subsets", type=int, default=3)
    parser.add_argument("--first-subset", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000, help="of each fold's network, and of each student")
    parser.add_argument("--pool", type=int, default=60, help="scans with hidden labels, 36 or more")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for number in range(arguments.first_subset, arguments.first_subset + arguments.subsets):
        Correction.of(arguments, number).measure()
    rows = read_json(arguments.results)
    print_table([row for row in rows if (row["set"], row["steps"]) == (arguments.name, arguments.steps)])


@dataclass(frozen=True)
class Correction:
    """The runs of one subset."""

    arguments: argparse.Namespace
    subset: Subset
    number: int

    @staticmethod
    def of(arguments: argparse.Namespace, number: int) -> Correction:
        folder = arguments.output / f"{arguments.name}_{arguments.steps}_steps" / f"subset_{number}"
        subset = Subset.of(arguments.name, number, data=arguments.data, folder=folder, pool=arguments.pool)
        return Correction(arguments, subset, number)

    def measure(self) -> None:
        found = self.subset.folder / "labels" / "quality.json"
        if not found.exists():
            write_json(found, self._mended())
        for way, quality in read_json(found).items():
            scores: dict[str, float] = {}
            if way != "curve":
                taught = str(found.parent / way)
                settings = self.subset.settings(
                    self.arguments.steps, method__name="supervised", data__teacher_labels=taught
                )
                test = made_run(self.subset.folder / f"student_{way}", settings)
                scores = {case: round(mean_dice(values), 4) for case, values in sorted(test.items())}
            row = {
                "set": self.arguments.name,
                "steps": self.arguments.steps,
                "subset": self.number,
                "seed": 0,
                "way": way,
                **({"dice": round(float(np.mean(list(scores.values()))), 4)} if scores else {}),
                **quality,
                **({"cases": scores} if scores else {}),
            }
            keep_row(self.arguments.results, row, ("set", "steps", "subset", "way"))
            print({key: value for key, value in row.items() if key != "cases"}, flush=True)

    def _mended(self) -> dict[str, dict[str, Any]]:
        """Write the labels of each way; how good they are."""
        organs = self.subset.dataset.labels.organs
        held, pool = self._predicted()
        numbers, oracle = certain_decision(held, len(organs)), best_decision(pool, len(organs))
        part, network = chosen_network(held, list(organs))
        added = [network(scan) for scan in pool]
        by_part = self._by_part(pool, added, list(organs))
        best = max(PARTS, key=lambda part: by_part[str(part)])
        ways = {
            "ensemble": ([scan.q.argmax(0).astype(np.uint8) for scan in pool], {}),
            "numbers": ([numbers.labels(scan.q) for scan in pool], said(numbers)),
            "numbers_oracle": ([oracle.labels(scan.q) for scan in pool], said(oracle)),
            "network": (
                corrected(pool, added, part),
                {"part": part, **knowledge(pool, added), "by_part": by_part},
            ),
            "network_oracle": (corrected(pool, added, best), {"part": best}),
        }
        folder, found = self.subset.folder / "labels", {}
        for way, (labels, more) in ways.items():
            for scan, label in zip(pool, labels, strict=True):
                image = self._image(scan.case)
                write_label(label_map(folder / way, scan.case), label, read_grid(image), image)
            write_json(folder / way / "names.json", {name: value for value, name in organs.items()})
            found[way] = quality_of(pool, labels, list(organs)) | more
        return found | {"curve": curve(pool, len(organs))}

    def _by_part(self, pool: Sequence[Predicted], added: Sequence[FloatArray], organs: list[int]) -> dict[str, float]:
        """Mean Dice of the pool's labels with each part of the correction, for understanding alone."""
        return {
            str(part): mean_of(
                pool, [changed(scan.q, part * one) for scan, one in zip(pool, added, strict=True)], organs
            )
            for part in PARTS
        }

    def _image(self, case: str) -> Path:
        return next(one.images[0] for one in self.subset.dataset.cases if one.id == case)

    def _predicted(self) -> tuple[list[Predicted], list[Predicted]]:
        """The labelled scans, each predicted by the network that has not learnt from it, and the pool, predicted by
        all of these together."""
        logits: dict[str, list[FloatArray]] = {}
        for fold, held in enumerate(self.subset.labelled):
            run = self.subset.folder / f"fold_{fold}"
            others = [case for case in self.subset.labelled if case != held]
            settings = self.subset.settings(
                self.arguments.steps,
                method__name="supervised",
                data__label_list=str(id_list(self.subset.folder, others, f"fold_{fold}")),
            )
            made_run(run, settings)
            if not (run / PSEUDO_LABELS / "predictions.jsonl").exists():
                wanted = replace(prepared_settings(run).predict, probabilities=True)
                predict_run.predict_unlabelled(run, settings=wanted, quiet=True)
            for case in (held, *self.subset.pool):
                q = read_volume([probability_map(label_map(run / PSEUDO_LABELS, case))]).array
                logits.setdefault(case, []).append(np.log(np.maximum(q, 1e-6)))
        return tuple(  # type: ignore[return-value]  # two of them
            [self._scan(case, logits[case]) for case in cases] for cases in (self.subset.labelled, self.subset.pool)
        )

    def _scan(self, case: str, logits: Sequence[FloatArray]) -> Predicted:
        q = changed(np.ones(1, dtype=np.float32), np.mean(logits, axis=0))
        image = read_volume([self._image(case)]).array[0].astype(np.float32)
        normal = (image - image.mean()) / image.std()
        return Predicted(case, q, q.argmax(0).astype(np.uint8), self.subset.truth(case), normal)


@dataclass(frozen=True)
class Predicted(Labelled):
    """And the scan `(Z, Y, X)`, of mean 0 and standard deviation 1."""

    image: FloatArray


def changed(q: FloatArray, added: FloatArray) -> FloatArray:
    """The probabilities when something is added to the logits."""
    logits = np.log(np.maximum(q, 1e-12)) + added
    grown = np.exp(logits - logits.max(0))
    return np.asarray(grown / grown.sum(0), dtype=np.float32)


def corrected(scans: Sequence[Labelled], added: Sequence[FloatArray], part: float) -> list[LabelArray]:
    """The most probable labels when a part of what is added counts."""
    pairs = zip(scans, added, strict=True)
    return [changed(scan.q, part * one).argmax(0).astype(np.uint8) for scan, one in pairs]


def mean_of(scans: Sequence[Labelled], q: Sequence[FloatArray], organs: list[int]) -> float:
    """Mean Dice of the most probable labels."""
    pairs = zip(scans, q, strict=True)
    found = [mean_dice(organ_dice(one.argmax(0).astype(np.uint8), scan.true, organs)) for scan, one in pairs]
    return round(float(np.mean(found)), 4)


def certain_decision(scans: Sequence[Labelled], organs: int) -> Decision:
    """The best one by these scans, number by number; a number moves only where the gain is more than twice its standard
    error over the scans."""

    def dice(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        decision = Decision(*numbers)
        values = [mean_dice(organ_dice(decision.labels(scan.q), scan.true, [*range(1, organs + 1)])) for scan in scans]
        return np.array(values)

    numbers = np.zeros((2, organs))
    best = dice(numbers)
    while True:
        before = best
        for kind, grid in enumerate((BIASES, LEAST)):
            for organ in range(organs):
                for value in grid:
                    tried = numbers.copy()
                    tried[kind, organ] = value
                    gains = (found := dice(tried)) - best
                    if gains.mean() > 2 * gains.std(ddof=1) / np.sqrt(len(gains)):
                        best, numbers = found, tried
        if best is before:
            return Decision(*numbers)


def said(decision: Decision) -> dict[str, Any]:
    return {"bias": decision.bias.tolist(), "least": decision.least.tolist()}


def curve(pool: Sequence[Labelled], organs: int) -> dict[str, Any]:
    """Mean Dice that numbers gain on the other scans of the pool when chosen on n of them, over a few draws."""
    values = [*range(1, organs + 1)]
    found = {}
    for count in CURVE:
        gains = []
        for number in range(DRAWS):
            order = Draw(seed=number).generator(f"{count} scans of the pool").permutation(len(pool))
            chosen, others = ([pool[i] for i in part] for part in (order[:count], order[count:]))
            decision = best_decision(chosen, organs)
            gains += [
                mean_dice(organ_dice(decision.labels(scan.q), scan.true, values))
                - mean_dice(organ_dice(scan.given, scan.true, values))
                for scan in others
            ]
        found[str(count)] = round(float(np.mean(gains)), 4)
    return {"gain_on_others": found}


class CorrectionNetwork(nn.Module):
    """What to add to the logits, from the scan and the logits: `(B, 1 + K, D, H, W)` to `(B, K, D, H, W)`. Nothing,
    before it learns."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, reach in ((1 + classes, 1), (FEATURES, 2), (FEATURES, 4)):
            layers += [
                nn.Conv3d(channels, FEATURES, 3, padding=reach, dilation=reach),
                nn.InstanceNorm3d(FEATURES, affine=True),
                nn.LeakyReLU(0.01),
            ]
        last = nn.Conv3d(FEATURES, classes, 1)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]

    def __call__(self, scan: Predicted | Tensor) -> Any:
        """Of a scan, as an array."""
        if isinstance(scan, Tensor):
            return super().__call__(scan)
        with torch.no_grad():
            return super().__call__(seen(scan))[0].numpy()


def seen(scan: Predicted) -> Tensor:
    logits = np.log(np.maximum(scan.q, 1e-6))
    return torch.from_numpy(np.concatenate([scan.image[None], logits]).astype(np.float32))[None]


def trained_network(scans: Sequence[Predicted], classes: int) -> CorrectionNetwork:
    """Cross-entropy and Dice on whole scans, one in each step, whose grey values are changed a little."""
    torch.manual_seed(0)
    network = CorrectionNetwork(classes)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=CORRECTION_STEPS)
    shown = [(seen(scan), torch.from_numpy(scan.true.astype(np.int64))[None]) for scan in scans]
    for step in range(CORRECTION_STEPS):
        x, true = shown[step % len(shown)]
        x = x.clone()
        x[:, 0] = x[:, 0] * (1 + 0.2 * torch.randn(1)) + 0.2 * torch.randn(1) + 0.1 * torch.randn_like(x[:, 0])
        logits = x[:, 1:] + network(x)
        q = logits.softmax(1)
        there = nn.functional.one_hot(true, classes).movedim(-1, 1).float()
        both, all_of = (q * there).sum((0, 2, 3, 4)), (q + there).sum((0, 2, 3, 4))
        loss = nn.functional.cross_entropy(logits, true) + 1 - (2 * both / all_of)[1:].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def chosen_network(held: Sequence[Predicted], organs: list[int]) -> tuple[float, CorrectionNetwork]:
    """The part of the correction that is best on scans that the correcting network has not learnt from, and the network
    of all of them."""
    q: dict[float, list[FloatArray]] = {part: [] for part in PARTS}
    for left, scan in enumerate(held):
        added = trained_network([one for i, one in enumerate(held) if i != left], len(organs) + 1)(scan)
        for part in PARTS:
            q[part].append(changed(scan.q, part * added))
    best = max(PARTS, key=lambda part: mean_of(held, q[part], organs))
    return best, trained_network(held, len(organs) + 1)


def knowledge(pool: Sequence[Predicted], added: Sequence[FloatArray]) -> dict[str, float]:
    """Of voxels whose most probable class has less than DOUBTFUL and whose true one is the first or the second: whether
    what is added says which. And the same of the doubt itself."""
    scores, doubts, right = [], [], []
    for scan, one in zip(pool, added, strict=True):
        order = np.argsort(-scan.q, axis=0)
        first, second = order[:1], order[1:2]
        among = (scan.q.max(0) < DOUBTFUL) & ((scan.true == first[0]) | (scan.true == second[0]))
        difference = np.take_along_axis(one, second, 0) - np.take_along_axis(one, first, 0)
        doubt = np.take_along_axis(scan.q, second, 0) - np.take_along_axis(scan.q, first, 0)
        scores.append(difference[0][among])
        doubts.append(doubt[0][among])
        right.append((scan.true == second[0])[among])
    second_is_right = np.concatenate(right)
    return {
        "AUC": round(roc_area(np.concatenate(scores).astype(np.float64), second_is_right), 4),
        "AUC doubt": round(roc_area(np.concatenate(doubts).astype(np.float64), second_is_right), 4),
    }


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Of each way: Dice of the pool's labels, of the student on test cases, and the difference to the ensemble's."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["way"], []).append(row)
    for way, found in groups.items():
        if way == "curve":
            means = {n: np.mean([row["gain_on_others"][n] for row in found]) for n in found[0]["gain_on_others"]}
            print("numbers chosen on n scans gain on the others:", {n: round(float(v), 4) for n, v in means.items()})
            continue
        labels, dice = (float(np.mean([row[key] for row in found])) for key in ("labels", "dice"))
        auc = f", AUC {np.mean([row['AUC'] for row in found]):.3f}" if "AUC" in found[0] else ""
        against = ""
        if way != "ensemble":
            both, alone = gain(found, groups["ensemble"])
            ends = f"[{both['low']:+.4f}, {both['high']:+.4f}], over cases [{alone['low']:+.4f}, {alone['high']:+.4f}]"
            against = f", student {both['mean']:+.4f} {ends}: {verdict(both)}"
        print(f"{way:16} labels {labels:.4f}, student {dice:.4f}{auc}{against}")


if __name__ == "__main__":
    main()
