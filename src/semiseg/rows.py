"""The rows that runs and predictions leave. Each row is checked where it is read: what was edited or damaged is
named."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NotRequired, TypeVar

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from semiseg.errors import DataError
from semiseg.files import read_jsonl
from semiseg.tables import first_problem
from semiseg.words import from_text_cell

Row = TypeVar("Row")


class RoundRow(TypedDict):
    """A labelling of whole unlabelled scans, in `rounds.jsonl`: docs/formats.md."""

    round: int
    step: int
    scans: int
    agreement: float | None
    found: dict[str, int]
    trusted: bool
    why: str
    unknown: list[str]
    poses: list[dict[str, Any]]
    lying: dict[str, int]


class PredictionRow(TypedDict):
    """What became of a scan, in `predictions.jsonl`: docs/formats.md."""

    id: str
    output: NotRequired[str]
    model: NotRequired[str]
    engine: NotRequired[str]
    precision: NotRequired[str]
    key: NotRequired[str]
    files: NotRequired[dict[str, str]]
    seconds: NotRequired[float]
    error: NotRequired[str]
    pose: NotRequired[str]
    statistics: NotRequired[list[dict[str, Any]]]
    nothing_found: NotRequired[bool]


class NoticeRow(TypedDict):
    """What a person must know of a run, in `notices.jsonl`."""

    topic: str
    text: str


class Doubt(TypedDict):
    """A case's doubt. entropy: mean over voxels that may be an organ, as a share of the largest, `ln K`. disagreement:
    1 - mean Dice of the two networks' labels over the organs that one of them finds (1 where neither finds any; nan
    where there is one network alone).
    organs: how many organs are found. organ_voxels: voxels of organs on the plan's grid.
    """

    id: str
    entropy: float
    disagreement: float
    organs: int
    organ_voxels: int


_ROUNDS: TypeAdapter[RoundRow] = TypeAdapter(RoundRow)
_PREDICTIONS: TypeAdapter[PredictionRow] = TypeAdapter(PredictionRow)
_NOTICES: TypeAdapter[NoticeRow] = TypeAdapter(NoticeRow)
_METRICS: TypeAdapter[dict[str, float]] = TypeAdapter(dict[str, float])


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`: numbers by name, the step (whole) and the phase (a word) among them."""
    path = run / "metrics.jsonl"
    rows = read_jsonl(path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("step"), int) or not isinstance(row.get("phase", ""), str):
            raise DataError(f"{path}, line {number}: has no whole step, or no phase. Mend or delete the line.")
        _checked({key: value for key, value in row.items() if key != "phase"}, _METRICS, path, number)
    return rows


def read_rounds(run: Path) -> list[RoundRow]:
    """The rows of `rounds.jsonl`."""
    return _rows(run / "rounds.jsonl", _ROUNDS)


def read_predictions(folder: Path) -> list[PredictionRow]:
    """The rows of `predictions.jsonl`."""
    return _rows(folder / "predictions.jsonl", _PREDICTIONS)


def read_notice_rows(path: Path) -> list[NoticeRow]:
    """The rows of `notices.jsonl`."""
    return _rows(path, _NOTICES)


def read_ranking(run: Path) -> list[Doubt]:
    """`run/ranking.csv`, in its order; raises `DataError` where there is none."""
    path = run / "ranking.csv"
    if not path.is_file():
        raise DataError(f"{path}: not there. Rank the run's unlabelled cases first: semiseg rank {run}")
    try:
        with path.open(encoding="utf-8") as file:
            return [
                Doubt(
                    id=from_text_cell(row["id"]),
                    entropy=float(row["entropy"]),
                    disagreement=float(row["disagreement"]),
                    organs=int(row["organs"]),
                    organ_voxels=int(row["organ_voxels"]),
                )
                for row in csv.DictReader(file)
            ]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: no ranking ({error}). Rank the run again: semiseg rank {run}") from None


def _rows(path: Path, adapter: TypeAdapter[Row]) -> list[Row]:
    return [_checked(row, adapter, path, number) for number, row in enumerate(read_jsonl(path), start=1)]


def _checked(row: Any, adapter: TypeAdapter[Row], path: Path, number: int) -> Row:
    try:
        return adapter.validate_python(row, strict=True)
    except ValidationError as error:
        raise DataError(f"{path}, line {number}: {first_problem(error)} Mend or delete the line.") from None
