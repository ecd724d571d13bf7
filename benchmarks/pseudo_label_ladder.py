"""How much better could pseudo-labels be, and of which kind, for a student to gain by it? A ladder of oracles.

    python benchmarks/pseudo_label_ladder.py --data FOLDER --output FOLDER [--steps 1000] [--seeds 1] [--only WAY...]

A teacher learns from few labels and labels a pool of other training scans, whose own labels are hidden. Students learn
from random weights, half of each batch the few labels and half the pool, in whose labels the hidden truth replaces

  nothing       the teacher's labels as they are
  worst_fifth   the whole label of the fifth of the scans with the lowest Dice
  bias          what a bias and a threshold of each organ decide otherwise, the best ones by the hidden truth
  doubtful      voxels whose most probable class has a probability below 0.8
  everything    all: the ceiling

Each is what a perfect feedback of that kind could tell the teacher. `labels` is the few labels alone with the steps of
teacher and student together. Feedback itself is measured where the student begins with random weights and sees no true
label before its fine-tuning, the last fifth of its steps: `fresh`, whose teacher, the same, stands still, and with
feedback to it `fresh_dense`, every fourth step, and `fresh_scalar`, every step.

Runs are made by steps. What is done is not done again: the same command goes on. Writes
benchmarks/results/pseudo_label_ladder.json after every run, and prints a table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from few_labels import SETS, Subset, keep_row, made_run, mean_dice, organ_dice
from semiseg import predict_run
from semiseg.data.reviews import PSEUDO_LABELS
from semiseg.files import read_json, write_json
from semiseg.io.file_kinds import label_map, probability_map
from semiseg.io.scans import read_grid, read_label, read_volume, write_label
from semiseg.methods.base import Batch
from semiseg.methods.build import add_method
from semiseg.methods.mpl import MetaPseudoLabels
from semiseg.methods.pseudo_label import Lesson, PseudoLabel, Settings, TeacherAndStudent
from semiseg.methods.settings import MplSettings, PseudoLabelSettings
from semiseg.models.layers import Network
from semiseg.randomness import Draw
from semiseg.run_folder import prepared_settings
from semiseg.scoring.label_efficiency import MARGIN, verdict
from semiseg.scoring.statistics import Interval, crossed_interval
from semiseg.settings import RunSettings
from semiseg.types import FloatArray, LabelArray

RESULTS = Path(__file__).resolve().parent / "results" / "pseudo_label_ladder.json"
DOUBTFUL = 0.8
WORST = 0.2
SAMPLES = 5000
BIASES = np.arange(-2.0, 2.01, 0.25)
"""Added to an organ's log-probability."""
LEAST = np.arange(0.0, 0.91, 0.1)
"""Probability below which an organ is not given."""
BACKGROUND = 0.99
"""Voxels with so much background no bias of the grid makes an organ of."""
FRESH: dict[str, dict[str, Any]] = {
    "fresh": {"method__name": "pseudo_label", "method__label_scope": "patch"},
    "fresh_dense": {"method__name": "mpl", "method__feedback": "dense"},
    "fresh_scalar": {"method__name": "mpl", "method__feedback": "scalar", "method__teacher_every": 1},
}
PHASES = {"method__phases__warmup": 0.0, "method__phases__finetune": 0.2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--set", dest="name", choices=[*SETS], default="hippocampus")
    parser.add_argument("--subsets", type=int, default=3)
    parser.add_argument("--first-subset", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1, help="of students, and of labels alone")
    parser.add_argument("--steps", type=int, default=1000, help="of the teacher, and of each student")
    parser.add_argument("--pool", type=int, default=60, help="scans with hidden labels; the others are left out")
    parser.add_argument("--only", nargs="*", default=[], help="ways, by name")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    add_method(FreshPseudoLabelSettings, FreshPseudoLabel)
    add_method(FreshMplSettings, FreshMpl)
    for seed in range(arguments.seeds):
        for subset in range(arguments.first_subset, arguments.first_subset + arguments.subsets):
            Ladder.of(arguments, subset).climb(seed)
    print_table(read_json(arguments.results))


class FreshStudent(TeacherAndStudent[Settings], Generic[Settings]):
    """A student that begins with random weights and learns from the labels of a trained teacher alone."""

    def set_up(self, networks: Mapping[str, Network]) -> None:
        super().set_up(networks)
        self._same_size = False

    def start_from(self, weights: dict[str, Tensor]) -> bool:
        self.teacher.network.load_state_dict(weights)
        if self.teacher.average:
            self.teacher.average.restart(self.teacher.network)
        return True

    def _mixed(self, lesson: Lesson, labelled: Batch, draw: Draw) -> Lesson:
        return lesson


@dataclass(frozen=True, kw_only=True)
class FreshPseudoLabelSettings(PseudoLabelSettings):
    """Those of pseudo_label."""


@dataclass(frozen=True, kw_only=True)
class FreshMplSettings(MplSettings):
    """Those of Meta Pseudo Labels."""


class FreshPseudoLabel(FreshStudent[PseudoLabelSettings], PseudoLabel):
    """Without feedback."""


class FreshMpl(FreshStudent[MplSettings], MetaPseudoLabels):
    """With feedback."""


@dataclass(frozen=True)
class Ladder:
    """The runs of one subset."""

    arguments: argparse.Namespace
    subset: Subset
    number: int

    @staticmethod
    def of(arguments: argparse.Namespace, number: int) -> Ladder:
        folder = arguments.output / f"{arguments.name}_{arguments.steps}_steps" / f"subset_{number}"
        subset = Subset.of(arguments.name, number, data=arguments.data, folder=folder, pool=arguments.pool)
        return Ladder(arguments, subset, number)

    def climb(self, seed: int) -> None:
        steps = self.arguments.steps
        teacher = self.subset.folder / "teacher"
        self._run("teacher", 0, self._settings(steps, 0, method__name="supervised"), {})
        rungs = self._rungs(teacher)
        for way, quality in rungs.items():
            taught = str(self.subset.folder / "labels" / way)
            settings = self._settings(steps, seed, method__name="supervised", data__teacher_labels=taught)
            self._run(way, seed, settings, quality)
        self._run("labels", seed, self._settings(2 * steps, seed, method__name="supervised"), {})
        for way, given in FRESH.items():
            settings = self._settings(steps, seed, train__weights=str(teacher), **given, **PHASES)
            self._run(way, seed, settings, {})

    def _settings(self, steps: int, seed: int, **given: Any) -> RunSettings:
        return self.subset.settings(steps, train__seed=seed, **given)

    def _run(self, way: str, seed: int, settings: RunSettings, quality: dict[str, Any]) -> None:
        if self.arguments.only and way not in (*self.arguments.only, "teacher"):
            return
        run = self.subset.folder / (way if way == "teacher" else f"{way}_{seed}")
        scores = {case: mean_dice(values) for case, values in made_run(run, settings).items()}
        row = {
            "set": self.arguments.name,
            "steps": self.arguments.steps,
            "subset": self.number,
            "seed": seed,
            "way": way,
            "dice": round(float(np.mean(list(scores.values()))), 4),
            **quality,
            "cases": {case: round(value, 4) for case, value in sorted(scores.items())},
        }
        keep_row(self.arguments.results, row, ("set", "steps", "subset", "seed", "way"))
        print(f"{self.arguments.name}, subset {self.number}, seed {seed}, {way}: Dice {row['dice']:.4f}", flush=True)

    def _rungs(self, teacher: Path) -> dict[str, dict[str, Any]]:
        """Write the labels of each rung, unless they are there; how good they are."""
        folder = self.subset.folder / "labels"
        if not (folder / "quality.json").exists():
            settings = replace(prepared_settings(teacher).predict, probabilities=True)
            predict_run.predict_unlabelled(teacher, settings=settings, quiet=True)
            organs = self.subset.dataset.labels.organs
            files = {case: label_map(teacher / PSEUDO_LABELS, case) for case in self.subset.pool}
            scans = [
                Labelled(case, read_volume([probability_map(file)]).array, read_label(file)[0], self.subset.truth(case))
                for case, file in files.items()
            ]
            found = {}
            for way, labels in rungs_of(scans, list(organs)):
                for scan, label in zip(scans, labels, strict=True):
                    image = next(one.images[0] for one in self.subset.dataset.cases if one.id == scan.case)
                    write_label(label_map(folder / way, scan.case), label, read_grid(image), image)
                write_json(folder / way / "names.json", {name: value for value, name in organs.items()})
                found[way] = quality_of(scans, labels, list(organs))
            write_json(folder / "quality.json", found)
        known: dict[str, dict[str, Any]] = read_json(folder / "quality.json")
        return known


@dataclass(frozen=True)
class Labelled:
    """A scan of the pool: the teacher's probabilities `(K, Z, Y, X)` and label, and the hidden one."""

    case: str
    q: FloatArray
    given: LabelArray
    true: LabelArray


def rungs_of(scans: Sequence[Labelled], organs: Sequence[int]) -> list[tuple[str, list[LabelArray]]]:
    """The labels of every rung, the lowest first."""
    quality = [mean_dice(organ_dice(scan.given, scan.true, organs)) for scan in scans]
    worst = set(np.argsort(quality, kind="stable")[: round(WORST * len(scans))].tolist())
    decision = best_decision(scans, len(organs))
    print(f"bias {decision.bias.tolist()}, least probability {decision.least.tolist()}", flush=True)
    return [
        ("nothing", [scan.given for scan in scans]),
        ("worst_fifth", [scan.true if i in worst else scan.given for i, scan in enumerate(scans)]),
        ("bias", [decision.labels(scan.q) for scan in scans]),
        ("doubtful", [np.where(scan.q.max(0) < DOUBTFUL, scan.true, scan.given) for scan in scans]),
        ("everything", [scan.true for scan in scans]),
    ]


def quality_of(scans: Sequence[Labelled], labels: Sequence[LabelArray], organs: Sequence[int]) -> dict[str, float]:
    """Mean Dice of labels, and which share of the voxels differs from the teacher's, of those that are an organ in
    the teacher's label or the hidden one."""
    pairs = list(zip(scans, labels, strict=True))
    changed = sum(int((label != scan.given).sum()) for scan, label in pairs)
    organ = sum(int(((scan.given > 0) | (scan.true > 0)).sum()) for scan in scans)
    return {
        "labels": round(float(np.mean([mean_dice(organ_dice(label, scan.true, organs)) for scan, label in pairs])), 4),
        "changed": round(changed / organ, 4),
    }


@dataclass(frozen=True)
class Decision:
    """How labels are decided: the class with the largest log-probability plus bias, unless its probability is below the
    least; then background. bias, least: of each organ."""

    bias: NDArray[np.float64]
    least: NDArray[np.float64]

    def labels(self, q: FloatArray) -> LabelArray:
        """q: probabilities, classes first; organs are numbered in their order."""
        score = np.log(np.maximum(q, 1e-12))
        score[1:] += self.bias.reshape(-1, *[1] * (q.ndim - 1)).astype(score.dtype)
        chosen = score.argmax(0)
        probability = np.take_along_axis(q, chosen[None], 0)[0]
        least = np.concatenate([[0.0], self.least])
        label: LabelArray = np.where(probability < least[chosen], 0, chosen).astype(np.uint8)
        return label


def best_decision(scans: Sequence[Labelled], organs: int) -> Decision:
    """The one with the best mean Dice by the hidden truth: number by number over its grid, until none moves."""
    score = _dice_of(scans, organs)
    numbers = np.zeros((2, organs))
    best = score(Decision(*numbers))
    while True:
        before = best
        for kind, grid in enumerate((BIASES, LEAST)):
            for organ in range(organs):
                for value in grid:
                    tried = numbers.copy()
                    tried[kind, organ] = value
                    if (found := score(Decision(*tried))) > best:
                        best, numbers = found, tried
        if best == before:
            return Decision(*numbers)


def _dice_of(scans: Sequence[Labelled], organs: int) -> Callable[[Decision], float]:
    """Mean Dice over scans and organs of a decision; only voxels are decided that are not plainly background."""
    open_voxels = [scan.q[0] < BACKGROUND for scan in scans]
    q = np.concatenate([scan.q[:, where] for scan, where in zip(scans, open_voxels, strict=True)], axis=1)
    true = np.concatenate([scan.true[where] for scan, where in zip(scans, open_voxels, strict=True)]).astype(np.int64)
    place = np.repeat(np.arange(len(scans)), [int(where.sum()) for where in open_voxels]) * (organs + 1)
    size = len(scans) * (organs + 1)
    there = np.stack([np.bincount(scan.true.ravel(), minlength=organs + 1)[: organs + 1] for scan in scans])

    def score(decision: Decision) -> float:
        given = decision.labels(q).astype(np.int64)
        given_count, both = (
            np.bincount(place[among] + given[among], minlength=size).reshape(len(scans), -1)[:, 1:]
            for among in (np.ones(len(given), dtype=bool), given == true)
        )
        return float((2 * both / np.maximum(1, given_count + there[:, 1:])).mean())

    return score


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Of each way: Dice of the pool's labels, of the test cases, and what is gained over the teacher's own labels, with
    the interval over cases and subsets, and over cases alone."""
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["set"], row["steps"], row["way"]), []).append(row)
    print(f"\n{'set':12}{'steps':>6} {'way':13}{'runs':>5}{'labels':>8}{'changed':>9}{'Dice':>8}  against")
    for (name, steps, way), found in groups.items():
        shown = "".join(
            f"{np.mean([row[key] for row in found]):{width}.4f}" if key in found[0] else " " * width
            for key, width in (("labels", 8), ("changed", 9))
        )
        against = "fresh" if way.startswith("fresh_") else "nothing"
        said = compared(found, groups.get((name, steps, against), [])) if way != against else ""
        mean = float(np.mean([row["dice"] for row in found]))
        print(f"{name:12}{steps:6} {way:13}{len(found):5}{shown}{mean:8.4f}  {against if said else ''} {said}")


def compared(rows: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]]) -> str:
    """The difference on equal subsets and seeds, as `gain` gives it, in words."""
    both, alone = gain(rows, baseline)
    if both["mean"] is None:
        return ""
    ends = [f"[{one['low']:+.4f}, {one['high']:+.4f}]" for one in (both, alone)]
    return f"{both['mean']:+.4f} {ends[0]}, over cases alone {ends[1]}: {verdict(both)} (margin {MARGIN})"


def gain(rows: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]]) -> tuple[Interval, Interval]:
    """The mean difference with its interval for other cases and other choices of labels, and for other cases alone.
    The teacher, of one seed, counts for every seed."""
    pairs = [
        (one, other)
        for one in rows
        for other in baseline
        if one["subset"] == other["subset"] and (one["seed"] == other["seed"] or one["way"] == "teacher")
    ]
    values = np.array([[one["cases"][case] - other["cases"][case] for case in one["cases"]] for one, other in pairs])
    if not len(values):
        nothing = Interval(mean=None, low=None, high=None, count=0)
        return nothing, nothing
    subsets = [one["subset"] for one, _ in pairs]
    draw = Draw(seed=0)
    over_both = crossed_interval(values, subsets, draw, "ladder", samples=SAMPLES)
    return over_both, crossed_interval(values.mean(0)[None], [0], draw, "ladder", samples=SAMPLES)


if __name__ == "__main__":
    main()
