"""What is best per minute of an expert: full labels, labels that are accepted or set aside, or slices that are mended?

    python benchmarks/simulated_reviewer.py --data FOLDER --output FOLDER [--set hippocampus] [--steps 1500]

A run with few labels labels the other training scans, whose own labels are hidden. A simulated reviewer compares them
with the hidden ones: a label is accepted above a Dice of --accept, and set aside below; by case, or organ by organ; and
the worst axial slices of what was set aside are mended, as many as a budget says. From each review a run of its own is
made, of as many steps, from random weights. Full labels for the next scans of the list are the alternative.

Runs are made by steps and not by minutes, so that a busy machine changes no result. What is done is not done again:
the same command goes on. Writes benchmarks/results/simulated_reviewer.json after every run, and prints a table.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from few_labels import SETS, OrganDice, Subset, id_list, keep_row, made_run, mean_dice, organ_dice
from semiseg import predict_run
from semiseg.corrections import AskedSlices, import_correction
from semiseg.data.reviews import PSEUDO_LABELS
from semiseg.data.roles import read_run_cases
from semiseg.decisions import FILE, DecisionLog, label_sha256
from semiseg.files import read_json
from semiseg.io.dataset import Dataset, LabelScheme
from semiseg.io.scans import read_grid, read_label, write_label
from semiseg.randomness import Draw
from semiseg.scoring.statistics import paired_difference
from semiseg.types import LabelArray

RESULTS = Path(__file__).resolve().parent / "results" / "simulated_reviewer.json"
SECONDS_TO_COMPARE = 15.0
"""To judge a label (Label Critic's experts; /docs/lab/review.md)."""
MINUTES_TO_DRAW = 45.0
"""A whole scan, 30 to 60 in the same paper. A slice takes its share, by the slices that hold an organ."""


FULL_LABELS = (4, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--set", dest="name", choices=[*SETS], default="hippocampus")
    parser.add_argument("--subsets", type=int, default=3)
    parser.add_argument("--first-subset", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500, help="of training, in every run")
    parser.add_argument("--accept", type=float, default=0.85, help="Dice from which on a label is accepted")
    parser.add_argument("--slices", type=int, default=60, help="slices that are mended")
    parser.add_argument("--pool", type=int, default=40, help="unlabelled scans; the others are left out")
    parser.add_argument("--only", nargs="*", default=[], help="strategies, by name")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    for subset in range(arguments.first_subset, arguments.first_subset + arguments.subsets):
        _subset(arguments, subset)
    print_table(read_json(arguments.results))


def _subset(arguments: argparse.Namespace, number: int) -> None:
    folder = arguments.output / f"{arguments.name}_{arguments.steps}_steps" / f"subset_{number}"
    subset = Subset.of(arguments.name, number, data=arguments.data, folder=folder, pool=arguments.pool)
    base = folder / "none"
    made = Made(arguments, subset, number)
    made.run("none", base, {"expert_minutes": 0.0})
    if not (base / PSEUDO_LABELS / "predictions.jsonl").exists():
        predict_run.predict_unlabelled(base, quiet=True)
    judged = _judged(subset, base)
    for name, effort in _reviews(folder, base, subset.dataset, judged, arguments):
        made.run(name, folder / name, effort, data__decisions=str(folder / "reviews" / name))
    for count in FULL_LABELS:
        name = f"full_{count}"
        labels = id_list(folder, [*subset.labelled, *subset.pool[:count]], name)
        effort = {"expert_minutes": count * MINUTES_TO_DRAW}
        made.run(name, folder / name, effort, data__label_list=str(labels))


@dataclass(frozen=True)
class Made:
    """Makes runs of a subset, and keeps what came of them."""

    arguments: argparse.Namespace
    subset: Subset
    number: int

    def run(self, strategy: str, run: Path, effort: dict[str, Any], **given: Any) -> None:
        """Prepare, train, predict and score, unless it is done or not wanted."""
        if self.arguments.only and strategy not in (*self.arguments.only, "none"):
            return
        scores = _means(made_run(run, self.subset.settings(self.arguments.steps, **given)))
        before = _means(made_run(run.parent / "none", self.subset.settings(self.arguments.steps)))
        roles = [case.role for case in read_run_cases(run / "cases.jsonl")]
        row = {
            "set": self.arguments.name,
            "subset": self.number,
            "steps": self.arguments.steps,
            "accept": self.arguments.accept,
            "strategy": strategy,
            "dice": round(float(np.mean(list(scores.values()))), 4),
            "gain": _gain(before, scores),
            "roles": {role: roles.count(role) for role in sorted(set(roles))},
            **effort,
        }
        keep_row(self.arguments.results, row, ("set", "subset", "steps", "strategy"))
        print(f"{self.arguments.name}, subset {self.number}, {strategy}: Dice {row['dice']:.4f}, {effort}", flush=True)


def _means(scores: dict[str, OrganDice]) -> dict[str, float]:
    return {case: mean_dice(values) for case, values in scores.items()}


def _gain(before: dict[str, float], now: dict[str, float]) -> list[float | None]:
    """Mean difference over test cases with its 95 % interval, of this subset alone."""
    pairs = [before[case] for case in now], list(now.values())
    found = paired_difference(*pairs, Draw(seed=0), "review", samples=10_000).difference
    return [None if value is None else round(value, 4) for value in (found["mean"], found["low"], found["high"])]


@dataclass(frozen=True)
class Judged:
    """A pseudo-label beside the hidden one, with Dice by organ (None where both have none of it)."""

    case: str
    file: Path
    given: LabelArray
    true: LabelArray
    dice: OrganDice

    @property
    def mean(self) -> float:
        return mean_dice(self.dice)


def _judged(subset: Subset, base: Path) -> list[Judged]:
    """The pseudo-labels beside the hidden ones."""
    found = []
    for case in subset.pool:
        file = base / PSEUDO_LABELS / f"{case}.nii.gz"
        given, true = read_label(file)[0], subset.truth(case)
        found.append(Judged(case, file, given, true, organ_dice(given, true, list(subset.dataset.labels.organs))))
    return found


def _reviews(
    folder: Path, base: Path, dataset: Dataset, judged: list[Judged], arguments: argparse.Namespace
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Write each review, as `semiseg view` and `semiseg correct` would; its name and what it took."""
    looking = len(judged) * SECONDS_TO_COMPARE / 60
    accepted = [one for one in judged if one.mean >= arguments.accept]
    aside = [one for one in judged if one.mean < arguments.accept]
    quality = {
        "looked_at": len(judged),
        "dice_of_pseudo_labels": round(float(np.mean([one.mean for one in judged])), 4),
        "dice_of_accepted": round(float(np.mean([one.mean for one in accepted])), 4) if accepted else None,
    }
    with _Review(folder, base, "accept") as (log, _):
        for one in judged:
            _decide(log, one, "accept" if one.mean >= arguments.accept else "set_aside")
    yield "accept", quality | {"expert_minutes": looking}
    with _Review(folder, base, "accept_organs") as (log, _):
        for one in judged:
            good = {value: (d or 0.0) >= arguments.accept for value, d in one.dice.items()}
            if all(good.values()):
                _decide(log, one, "accept")
            else:
                for value, is_good in good.items():
                    _decide(log, one, "accept" if is_good else "set_aside", dataset.labels.names[value])
    yield "accept_organs", quality | {"expert_minutes": looking}
    worst = _worst_slices(aside, arguments.slices)
    with _Review(folder, base, "accept_and_slices") as (log, review):
        for one in judged:
            _decide(log, one, "accept" if one.mean >= arguments.accept else "set_aside")
        mended = _mend(review, aside, worst, dataset.labels)
    minutes = sum(len(slices) for slices in worst.values()) * _minutes_a_slice(judged)
    yield "accept_and_slices", quality | {"expert_minutes": looking + minutes, "slices": mended}


class _Review:
    """A folder that is reviewed: the base run's pseudo-labels with decisions of its own."""

    def __init__(self, folder: Path, base: Path, name: str) -> None:
        self.place, self.base = folder / "reviews" / name, base

    def __enter__(self) -> tuple[DecisionLog, Path]:
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.base / PSEUDO_LABELS, self.place / PSEUDO_LABELS)
        for name in ("plan.toml", "cases.jsonl"):
            shutil.copy(self.base / name, self.place / name)
        return DecisionLog(self.place / FILE), self.place

    def __exit__(self, *_: object) -> None:
        return None


def _decide(log: DecisionLog, one: Judged, decision: Any, organ: str | None = None) -> None:
    log.add(
        one.case,
        decision,
        organ=organ,
        reviewer="simulated",
        label_sha256=label_sha256(one.file),
        seconds=SECONDS_TO_COMPARE,
    )


def _worst_slices(cases: Sequence[Judged], budget: int) -> dict[str, list[int]]:
    """Axial slices with the most wrong voxels, by case."""
    wrong = [
        (int(count), one.case, index)
        for one in cases
        for index, count in enumerate((one.given != one.true).sum(axis=(1, 2)))
        if count
    ]
    chosen: dict[str, list[int]] = {}
    for _, case, index in sorted(wrong, key=lambda found: (-found[0], found[1], found[2]))[:budget]:
        chosen.setdefault(case, []).append(index)
    return chosen


def _mend(review: Path, cases: Sequence[Judged], slices: dict[str, list[int]], labels: LabelScheme) -> int:
    images = {case.id: Path(case.images[0]) for case in read_run_cases(review / "cases.jsonl")}
    with TemporaryDirectory() as scratch:
        for one in cases:
            if one.case not in slices:
                continue
            mended = one.given.copy()
            mended[slices[one.case]] = one.true[slices[one.case]]
            file = Path(scratch) / f"{one.case}.nii.gz"
            write_label(file, mended, read_grid(images[one.case]), images[one.case])
            import_correction(review, one.case, file, AskedSlices(axis=0, indices=tuple(sorted(slices[one.case]))))
    return sum(map(len, slices.values()))


def _minutes_a_slice(judged: Sequence[Judged]) -> float:
    """A scan's minutes, by the mean number of axial slices that hold an organ."""
    held = [int((one.true > 0).any(axis=(1, 2)).sum()) for one in judged]
    return MINUTES_TO_DRAW / max(1.0, float(np.mean(held)))


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Mean Dice over subsets, the gain over no review, and that per hour of an expert."""
    print(f"{'set':14}{'steps':>7} {'strategy':20}{'subsets':>8}{'Dice':>8}{'gain':>8}{'hours':>7}{'gain/hour':>11}")
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["set"], row["steps"], row["strategy"]), []).append(row)
    for (name, steps, strategy), found in groups.items():
        none = {row["subset"]: row["dice"] for row in groups.get((name, steps, "none"), [])}
        gains = [row["dice"] - none[row["subset"]] for row in found if row["subset"] in none]
        gain, hours = float(np.mean(gains)), float(np.mean([row["expert_minutes"] for row in found])) / 60
        per_hour = f"{gain / hours:11.4f}" if hours else f"{'':11}"
        mean = float(np.mean([row["dice"] for row in found]))
        print(f"{name:14}{steps:7} {strategy:20}{len(found):8}{mean:8.4f}{gain:8.4f}{hours:7.2f}{per_hour}")


if __name__ == "__main__":
    main()
