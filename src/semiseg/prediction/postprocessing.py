"""Which cleaning of labels helps: chosen on validation cases, organ by organ, and kept with the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np

from semiseg.errors import ModelError
from semiseg.files import read_json, write_json
from semiseg.ops.cleaning import STEPS, Step, clean
from semiseg.prediction.model import POSTPROCESSING_FILE
from semiseg.types import LabelArray

SMALLEST_GAIN = 0.001
"""Of an organ's mean Dice on validation cases: what is less is left alone."""
_CHOICES: tuple[tuple[Step, ...], ...] = tuple(
    chain.from_iterable(combinations(STEPS, n) for n in range(len(STEPS) + 1))
)


@dataclass(frozen=True)
class Pair:
    """A validation case: its label map and the predicted one, on one grid. id: of the case."""

    id: str
    reference: LabelArray
    labels: LabelArray


def choose_steps(pairs: Sequence[Pair], organs: Mapping[int, str], *, ignore: int | None = None) -> dict[str, Any]:
    """For each organ the steps with the best mean Dice over the cases that have it; what `write_steps` keeps.

    ignore: value of voxels that nobody labelled, which count in nothing. Of what comes back `steps` has the organs that
    any step helps, `dice` the means by organ and choice, `cases` the ids.
    """
    steps: dict[str, list[Step]] = {}
    table: dict[str, dict[str, float]] = {}
    for value, name in organs.items():
        present = [pair for pair in pairs if (pair.reference == value).any()]
        if not present:
            continue
        means = {
            choice: float(np.mean([_dice(pair, value, choice, ignore) for pair in present])) for choice in _CHOICES
        }
        table[name] = {" + ".join(choice) or "as predicted": round(mean, 6) for choice, mean in means.items()}
        best = max(_CHOICES, key=lambda choice: means[choice])  # the first of equals: the fewest steps
        if means[best] - means[()] >= SMALLEST_GAIN:
            steps[name] = list(best)
    return {"steps": steps, "dice": table, "cases": [pair.id for pair in pairs]}


def write_steps(model: Path, chosen: Mapping[str, Any]) -> None:
    """Keep them in the model's folder."""
    write_json(model / POSTPROCESSING_FILE, chosen)


def read_steps(model: Path, organs: Mapping[int, str]) -> dict[int, tuple[Step, ...]]:
    """What is kept there, by class value; empty where nothing was chosen. Raises `ModelError` for another form."""
    file = model / POSTPROCESSING_FILE
    if not file.is_file():
        return {}
    try:
        found = read_json(file)["steps"]
        values = {name: value for value, name in organs.items()}
        steps = {values[name]: tuple(wanted) for name, wanted in found.items()}
    except (KeyError, TypeError, AttributeError):
        raise ModelError(f"{file}: not the steps of this model's organs. Delete it, or choose them anew.") from None
    if unknown := {step for wanted in steps.values() for step in wanted} - set(STEPS):
        raise ModelError(f"{file}: unknown steps {sorted(unknown)}; {', '.join(STEPS)} are known. Delete the file.")
    return steps


def _dice(pair: Pair, value: int, steps: tuple[Step, ...], ignore: int | None) -> float:
    found, reference = clean(pair.labels, {value: steps}) == value, pair.reference == value
    if ignore is not None:
        found &= pair.reference != ignore
    return float(2 * np.count_nonzero(found & reference) / (np.count_nonzero(found) + np.count_nonzero(reference)))
