"""What benchmarks share that train on a few labels of a set and hide the others: the sets, runs that are made once, and
their Dice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from semiseg import predict_run, prepare_run, train_run
from semiseg.config import load_settings
from semiseg.data.plan import read_plan
from semiseg.data.roles import of_role, read_run_cases
from semiseg.files import read_json, write_json, write_text
from semiseg.io.dataset import Dataset
from semiseg.io.file_kinds import label_map
from semiseg.io.layouts import read_dataset
from semiseg.io.scans import read_label
from semiseg.scoring.metrics import dice
from semiseg.settings import RunSettings
from semiseg.types import LabelArray

OrganDice = dict[int, float | None]
"""By value; None where both label maps have none of the organ."""


@dataclass(frozen=True)
class RealSet:
    """A data set, how many labels a run begins with, and settings that make its runs short."""

    folder: str
    labelled: int
    settings: dict[str, Any] = field(default_factory=dict)


SETS = {
    "hippocampus": RealSet("Dataset004_Hippocampus", 4, {"plan.spacing_mm": [1.5] * 3, "plan.patch": [24, 32, 24]}),
    "head_neck": RealSet("Dataset101_HeadNeckCT", 8, {"plan.spacing_mm": [4.375] * 3, "plan.patch": [32, 48, 28]}),
    # Three patients: both frames of each stand side by side in the list.
    "acdc": RealSet("Dataset103_ACDC", 6, {"plan.spacing_mm": [10.0, 3.0, 3.0], "plan.patch": [8, 64, 64]}),
}


@dataclass(frozen=True)
class Subset:
    """A choice of the labelled scans, and the pool of scans whose labels are hidden; the others are left out.

    folder: of its runs and lists.
    """

    real: RealSet
    dataset: Dataset
    root: Path
    folder: Path
    labelled: list[str]
    pool: list[str]
    plain: dict[str, Any]
    """The settings that say all this."""

    @staticmethod
    def of(name: str, number: int, *, data: Path, folder: Path, pool: int) -> Subset:
        """Subset `number` begins so many times the labels further on in the set's order."""
        real = SETS[name]
        root = data / real.folder
        dataset = read_dataset(root)
        begin = number * real.labelled
        order = [*dataset.train_order[begin:], *dataset.train_order[:begin]]
        labelled, hidden = order[: real.labelled], order[real.labelled : real.labelled + pool]
        plain = {
            "data.label_list": str(id_list(folder, labelled, "none")),
            "data.exclude": str(id_list(folder, order[real.labelled + pool :], "left_out")),
        }
        return Subset(real, dataset, root, folder, labelled, hidden, plain)

    def settings(self, steps: int, **given: Any) -> RunSettings:
        """Of a run on one thread, by steps and not by minutes, so that a busy machine changes no result. given: with
        two underscores in the place of a point."""
        wanted = {
            **self.real.settings,
            "data.root": str(self.root),
            "plan.base_features": 8,
            "train.steps": steps,
            "train.threads": 1,
            "train.precision": "float32",
            "train.device": "cpu",
            "train.validation_every": 0,
            "predict.device": "cpu",
            "predict.engine": "torch",
            "predict.mirror": False,
            **self.plain,
            **{key.replace("__", "."): value for key, value in given.items()},
        }
        if "train__weights" in given:  # which bring their plan along
            wanted = {key: value for key, value in wanted.items() if not key.startswith("plan.")}
        return load_settings(None, [f"{key}={_toml(value)}" for key, value in wanted.items()])

    def truth(self, case: str) -> LabelArray:
        """The hidden label."""
        (own,) = (one.label for one in self.dataset.cases if one.id == case)
        assert own is not None  # all training cases of these sets have one
        return read_label(own)[0]


def id_list(folder: Path, ids: Sequence[str], name: str) -> Path:
    file = folder / "lists" / f"{name}.txt"
    write_text(file, "\n".join(ids) + "\n")
    return file


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


def made_run(run: Path, settings: RunSettings) -> dict[str, OrganDice]:
    """Prepare, train and predict, unless it is done: Dice of each test case. No distances, which would take longer than
    such a run."""
    file = run / "dice.json"
    if not file.exists():
        prepare_run.prepare(run, settings, quiet=True)
        train_run.train(run, quiet=True)
        predict_run.predict_test_cases(run, quiet=True)
        organs = read_plan(run / "plan.toml").labels.organs
        found = {}
        for case in of_role(read_run_cases(run / "cases.jsonl"), "test"):
            given, true = read_label(label_map(run / "predictions", case.id))[0], read_label(Path(case.label or ""))[0]
            found[case.id] = organ_dice(given, true, list(organs))
        write_json(file, found)
    return {
        case: {int(organ): value for organ, value in values.items()}  # JSON's keys are texts
        for case, values in read_json(file).items()
    }


def organ_dice(given: LabelArray, true: LabelArray, organs: Sequence[int]) -> OrganDice:
    return {organ: dice(true == organ, given == organ) for organ in organs}


def mean_dice(values: OrganDice) -> float:
    """Over the organs that one of both has; 0 where there is none."""
    defined = [value for value in values.values() if value is not None]
    return float(np.mean(defined)) if defined else 0.0


def keep_row(file: Path, row: dict[str, Any], key: Sequence[str]) -> None:
    """Put a row into a list of results, in the place of the one with the same key."""
    rows = read_json(file) if file.exists() else []
    others = [one for one in rows if [one[k] for k in key] != [row[k] for k in key]]
    write_json(file, sorted([*others, row], key=lambda one: [one[k] for k in key]))
