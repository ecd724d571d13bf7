"""summary.json: its schema, how it is put together from scores, how it is read, and its CSV twin."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NotRequired, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from semiseg.data.patients import BIDS, patient_of
from semiseg.errors import ConfigError, DataError
from semiseg.files import read_json, write_json, write_text
from semiseg.randomness import Draw
from semiseg.scoring.metrics import OrganScores
from semiseg.scoring.statistics import BOOTSTRAP_SAMPLES, Interval, mean_interval
from semiseg.words import as_text_cell

Metric = Literal["dice", "nsd", "hd95_mm"]
Rules = Literal["standard", "flare22"]
METRICS: tuple[Metric, ...] = get_args(Metric)
PAPER_METRICS: tuple[Metric, ...] = ("dice", "nsd")
"""Those of the paper's tables."""


class CaseScores(TypedDict):
    """One evaluated case; organs by name, paths as text."""

    id: str
    reference: str
    prediction: str
    image: str | None
    organs: dict[str, OrganScores]


class Summary(TypedDict):
    """summary.json. organs: label value (as text) to name. mean: over cases of the case's mean over organs. patients:
    `DataSettings.patients`, where some have several cases."""

    rules: Rules
    organs: dict[str, str]
    tolerance_mm: dict[str, float]
    cases: list[CaseScores]
    patients: NotRequired[str]
    per_organ: dict[str, dict[Metric, Interval]]
    mean: dict[Metric, Interval]


_SUMMARY: TypeAdapter[Summary] = TypeAdapter(Summary)
_Read = TypeVar("_Read")


def summarise(
    cases: Sequence[CaseScores],
    organs: Mapping[int, str],
    tolerance_mm: Mapping[str, float],
    rules: Rules,
    patients: str = BIDS,
) -> Summary:
    """Put the cases' scores together. patients: `DataSettings.patients`."""
    whose = [patient_of(case["id"], patients) for case in cases]

    def interval(values: Sequence[float | None], purpose: str) -> Interval:
        return mean_interval(values, Draw(seed=0), purpose, samples=BOOTSTRAP_SAMPLES, patients=whose)

    summary = Summary(
        rules=rules,
        organs={str(value): name for value, name in organs.items()},
        tolerance_mm=dict(tolerance_mm),
        cases=list(cases),
        per_organ={
            organ: {metric: interval(organ_values(cases, organ, metric), f"{organ}/{metric}") for metric in METRICS}
            for organ in organs.values()
        },
        mean={metric: interval(case_means(cases, metric), f"mean/{metric}") for metric in METRICS},
    )
    if len(set(whose)) < len(whose):
        summary["patients"] = patients
    return summary


def patients_of(summary: Summary) -> list[str]:
    """Whose each case is, in their order."""
    return [patient_of(case["id"], summary.get("patients", "")) for case in summary["cases"]]


def organ_values(cases: Sequence[CaseScores], organ: str, metric: Metric) -> list[float | None]:
    """A metric of one organ, a value per case."""
    return [case["organs"][organ][metric] for case in cases]


def case_means(cases: Sequence[CaseScores], metric: Metric) -> list[float | None]:
    """Each case's mean of a metric over the organs in which it is defined; None where it is in none."""
    means: list[float | None] = []
    for case in cases:
        defined = [value for organ in case["organs"].values() if (value := organ[metric]) is not None]
        means.append(sum(defined) / len(defined) if defined else None)
    return means


def pair_count(cases: Sequence[CaseScores]) -> tuple[int, int]:
    """In how many pairs of organ and case both reference and prediction have the organ, so that there is a distance
    (HD95), and how many pairs either has."""
    scores = [organ for case in cases for organ in case["organs"].values()]
    both = sum(organ["hd95_mm"] is not None for organ in scores)
    return both, sum(organ["dice"] is not None for organ in scores)


_FIELDS = ("case", "label", "organ", *OrganScores.__annotations__)


def refuse_foreign_summary(folder: Path) -> None:
    """Raise `ConfigError` where a summary would be written over a file that is none."""
    table, file = folder / "summary.csv", folder / "summary.json"
    with suppress(FileNotFoundError), table.open(encoding="utf-8", errors="replace", newline="") as lines:
        if lines.readline().rstrip("\n") != ",".join(_FIELDS):
            raise ConfigError(f"{table}: is no summary of ours, and would be written over. {_ELSEWHERE}")
    if file.is_file():
        with suppress(DataError):
            found = read_json(file)
            if isinstance(found, dict) and found.keys() >= Summary.__annotations__.keys() - {"patients"}:
                return
        raise ConfigError(f"{file}: is no summary of ours, and would be written over. {_ELSEWHERE}")


_ELSEWHERE = "Move it away, or name another folder (--output)."


def write_summary(folder: Path, summary: Summary) -> None:
    """Write `summary.json`, and `summary.csv` with a row per case and organ (empty cell: undefined)."""
    labels = {name: value for value, name in summary["organs"].items()}
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=_FIELDS, lineterminator="\n")
    writer.writeheader()
    for case in summary["cases"]:
        for organ, scores in case["organs"].items():
            row = {"case": as_text_cell(case["id"]), "label": labels[organ], "organ": as_text_cell(organ)}
            writer.writerow(row | dict(scores))
    write_text(folder / "summary.csv", text.getvalue())
    write_json(folder / "summary.json", summary)


def read_checked(path: Path, schema: TypeAdapter[_Read], remedy: str) -> _Read:
    """Read JSON of a schema; raises `DataError` that names the key."""
    try:
        return schema.validate_python(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {key}: {first['msg']}. {remedy}") from None


def read_summary(path: Path) -> Summary:
    """Read and check a summary.json; raises `DataError` that names the key."""
    summary = read_checked(path, _SUMMARY, _ANEW)
    organs = set(summary["organs"].values())
    of_organs: list[tuple[str, Mapping[str, object]]] = [
        ("tolerance_mm", summary["tolerance_mm"]),
        ("per_organ", summary["per_organ"]),
        *((f"cases: {case['id']!a}", case["organs"]) for case in summary["cases"]),
    ]
    for key, found in of_organs:
        if found.keys() != organs:
            raise DataError(f"{path}: {key}: has not the organs that `organs` names. {_ANEW}")
    for intervals in (summary["mean"], *summary["per_organ"].values()):
        if intervals.keys() != set(METRICS):
            raise DataError(f"{path}: mean, per_organ: must have {', '.join(METRICS)}. {_ANEW}")
    return summary


_ANEW = "Run `semiseg evaluate` again."


def never_found(summary: Summary) -> str:
    """A sentence that names the organs of which no test case's prediction has anything right; empty without any."""
    found = organs_never_found(summary)
    if not found:
        return ""
    if len(found) > 1:
        return f"{', '.join(found)} were never found in the test cases that have them."
    ((organ, cases),) = found.items()
    where = "the one test case that has it" if cases == 1 else f"the {cases} test cases that have it"
    return f"{organ} was never found in {where}."


def organs_never_found(summary: Summary) -> dict[str, int]:
    """Organs with Dice 0 in every scored case whose reference has them, each with the number of these cases."""
    found: dict[str, int] = {}
    for organ in summary["organs"].values():
        scores = [case["organs"][organ] for case in summary["cases"]]
        there = [score["dice"] for score in scores if score["reference_volume_ml"] > 0 and score["dice"] is not None]
        if there and not any(there):
            found[organ] = len(there)
    return found
