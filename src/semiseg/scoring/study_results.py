"""`results.json` of a study: its runs with their scores by case and organ, and what these are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from semiseg.files import write_json
from semiseg.scoring.summary import Metric, Summary, read_checked

Scores = dict[Metric, float | None]


class StudyRun(TypedDict):
    """One run and its scores. label_seed: None is the first labels of `splits.json`, a text the name of a list.
    compute: how many times the study's steps or minutes, 1 where it is left out. asked: the steps or minutes that a
    study gave it, as text; other programs give none. key: of all its settings. peak_memory_mb: of its process;
    gpu_peak_mb: of the GPU that it was trained on, if it was. notices: what its reader must know, by topic."""

    method: str
    labelled: int
    label_seed: int | str | None
    seed: int
    compute: NotRequired[float]
    asked: NotRequired[str]
    key: str
    steps: int
    minutes: float
    peak_memory_mb: float
    gpu_peak_mb: NotRequired[float]
    notices: NotRequired[dict[str, str]]
    cases: dict[str, dict[str, Scores]]


class Reference(TypedDict):
    """A method with more labels, another program's say, that all methods with fewer are compared with."""

    method: str
    labelled: int


class Study(TypedDict):
    """results.json. ceiling: the label budget of full supervision. patients: `DataSettings.patients`, where some have
    several test cases."""

    name: str
    dataset: str
    machine: dict[str, str]
    minutes: float
    baseline: str
    ceiling: int | None
    reference: NotRequired[Reference | None]
    organs: list[str]
    tolerance_mm: dict[str, float]
    test_cases: int
    patients: NotRequired[str]
    runs: list[StudyRun]


_STUDY: TypeAdapter[Study] = TypeAdapter(Study)


def read_study(path: Path) -> Study:
    """Read and check results.json; raises `DataError` that names the key."""
    return read_checked(path, _STUDY, "Restore the file, or delete it to begin anew.")


def write_study(path: Path, study: Study) -> None:
    """Write results.json; scores with five decimals, which is finer than a voxel's worth."""
    rounded: dict[str, Any] = dict(study)
    rounded["runs"] = [dict(run) | {"cases": _rounded(run["cases"])} for run in study["runs"]]
    write_json(path, rounded)


def run_name(method: str, labelled: int, label_seed: int | str | None, seed: int, compute: float = 1.0) -> str:
    """What a run of a study is called."""
    subset = "first" if label_seed is None else f"labels{label_seed}" if isinstance(label_seed, int) else label_seed
    return f"{method}-{labelled}-{subset}-seed{seed}" + (f"-{compute:g}x" if compute != 1 else "")


def name_of(run: StudyRun) -> str:
    """What a run is called."""
    return run_name(run["method"], run["labelled"], run["label_seed"], run["seed"], run.get("compute", 1.0))


def folder_name(name: str, key: str) -> str:
    """Of a run's folder: with other settings it has another one, so that nothing that was made is overwritten."""
    return f"{name}-{key[:8]}"


def scores_of(summary: Summary) -> dict[str, dict[str, Scores]]:
    """A run's scores by case and organ."""
    return {
        case["id"]: {organ: {"dice": s["dice"], "nsd": s["nsd"]} for organ, s in case["organs"].items()}
        for case in summary["cases"]
    }


def case_mean(organs: Mapping[str, Scores], metric: Metric) -> float:
    """Mean over the organs in which it is defined; NaN where it is in none."""
    defined = [value for scores in organs.values() if (value := scores[metric]) is not None]
    return sum(defined) / len(defined) if defined else float("nan")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return round(value, 5) if isinstance(value, float) else value
