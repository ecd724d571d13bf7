"""Methods by number of labels, over several label subsets and seeds: what a study of runs comes to.

A run is one method on one label subset with one seed; its scores are by case and organ. Methods are compared on the
runs that both have (the same labels, subset and seed), paired over cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from semiseg.data.patients import patient_of
from semiseg.errors import DataError
from semiseg.randomness import Draw
from semiseg.scoring.statistics import (
    FEWEST_CASES,
    Interval,
    as_numbers,
    by_subset,
    crossed_interval,
    holm,
    independent,
    signed_rank_p,
    with_empty_as_right,
)
from semiseg.scoring.study_results import Study, StudyRun, case_mean, name_of
from semiseg.scoring.summary import PAPER_METRICS, Metric
from semiseg.types import DoubleArray

DICE: Metric = "dice"
_SAMPLES = 5000
"""Draws of the cases behind each interval."""
MARGIN = 0.003
"""In Dice: two methods whose difference lies within, interval and all, are level (docs/protocol.md)."""
Group = tuple[str, int, float]
"""A method, its number of labels, and how many times the study's steps or minutes it was given."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A method at a label budget, with so many times the study's steps or minutes.

    runs: how many. difference: to the baseline on the runs that both have, with its interval over cases and subsets;
    over_cases: that of Dice with its interval over cases alone, for these networks. p_value is of the Wilcoxon
    signed-rank test over cases, adjusted by Holm over all comparisons with the baseline. better: how many of those runs
    are better than the baseline's. gap_closed: the difference as a share of the ceiling's, over the same cases. steps:
    the fewest and the most of its runs.
    """

    method: str
    labelled: int
    compute: float
    runs: int
    values: dict[Metric, Interval]
    difference: dict[Metric, Interval] = field(default_factory=dict)
    over_cases: Interval | None = None
    p_value: float | None = None
    better: tuple[int, int] = (0, 0)
    gap_closed: float | None = None
    minutes: float
    peak_memory_mb: float
    gpu_peak_mb: float | None
    steps: tuple[int, int]


def points(study: Study) -> list[Point]:
    """Every method at every label budget and compute, in the order of the study's runs, with what the ceiling has."""
    groups = groups_of(study["runs"])
    return _adjusted([_point(study, group, groups) for group in groups])


@dataclass(frozen=True, kw_only=True)
class AgainstReference:
    """Mean Dice of a method at a label budget minus the reference's, over the same cases.

    difference: its interval is over cases and the method's subsets; over_cases: over cases alone, for these networks.
    The reference's own subsets are averaged, and count as no spread. p_value: of the Wilcoxon signed-rank test over
    cases, adjusted by Holm over all comparisons with the reference.
    """

    method: str
    labelled: int
    compute: float
    runs: int
    difference: Interval
    over_cases: Interval
    p_value: float | None


def reference_runs(study: Study) -> list[StudyRun]:
    """The runs of the study's reference, if it names one: those of the most compute."""
    if not (named := study.get("reference")):
        return []
    wanted = (named["method"], named["labelled"])
    found = {group[2]: runs for group, runs in groups_of(study["runs"]).items() if group[:2] == wanted}
    return found[max(found)] if found else []


def against_reference(study: Study) -> list[AgainstReference]:
    """Every method with fewer labels than the study's reference, by labels; empty where it names none, or none is run
    yet.

    Raises `DataError` where the reference was scored on other cases.
    """
    if not (reference := reference_runs(study)):
        return []
    named, ids = reference[0], sorted(reference[0]["cases"])
    fewer = [run for run in study["runs"] if run["labelled"] < named["labelled"]]
    if others := [run for run in fewer if sorted(run["cases"]) != ids]:
        raise DataError(
            f"reference: {named['method']} with {named['labelled']} labels was scored on other cases than "
            f"{name_of(others[0])}. Delete its rows from results.json and make them anew, or [reference] from the "
            "study file."
        )
    patients = _patients(study, ids)
    found = []
    for (method, labelled, compute), runs in sorted(groups_of(fewer).items(), key=lambda group: group[0][1:]):
        levels, mine = _matrices(ids, "dice", reference, runs)
        minus = mine - by_subset(levels, _subsets(reference)).mean(axis=0)
        by_case = by_subset(minus, _subsets(runs)).mean(axis=0)
        found.append(
            AgainstReference(
                method=method,
                labelled=labelled,
                compute=compute,
                runs=len(runs),
                difference=_interval(minus, runs, "dice", patients),
                over_cases=_over_cases(by_case, labelled, patients),
                p_value=signed_rank_p(by_case, patients),
            )
        )
    return _adjusted(found)


_Compared = TypeVar("_Compared", Point, AgainstReference)


def _adjusted(rows: Sequence[_Compared]) -> list[_Compared]:
    """The same with p-values adjusted for all that are compared."""
    p_values = iter(holm([row.p_value for row in rows if row.p_value is not None]))
    return [row if row.p_value is None else replace(row, p_value=next(p_values)) for row in rows]


def groups_of(runs: Sequence[StudyRun]) -> dict[Group, list[StudyRun]]:
    """The runs by method, number of labels and compute, in their order."""
    groups: dict[Group, list[StudyRun]] = {}
    for run in runs:
        groups.setdefault((run["method"], run["labelled"], run.get("compute", 1.0)), []).append(run)
    return groups


def verdict(difference: Interval) -> str:
    """What a difference in Dice says: "ahead", "behind", "level" (within the margin), or "open"."""
    low, high = difference["low"], difference["high"]
    if low is None or high is None or independent(difference) < FEWEST_CASES:
        return "open"
    if low >= -MARGIN and high <= MARGIN:
        return "level"
    return "ahead" if low > 0 else "behind" if high < 0 else "open"


def patient_count(study: Study) -> int:
    """Of how many patients the test cases are."""
    return len({patient for run in study["runs"] for patient in _patients(study, list(run["cases"]))})


def _patients(study: Study, ids: Sequence[str]) -> list[str]:
    """Whose each case is."""
    return [patient_of(id, study.get("patients", "")) for id in ids]


def _interval(values: DoubleArray, runs: Sequence[StudyRun], metric: Metric, patients: Sequence[str]) -> Interval:
    """Of `(runs, cases)`, over cases and subsets."""
    purpose = f"{runs[0]['labelled']}/{metric}"
    return crossed_interval(values, _subsets(runs), Draw(seed=0), purpose, samples=_SAMPLES, patients=patients)


def _over_cases(by_case: DoubleArray, labelled: int, patients: Sequence[str]) -> Interval:
    """Of a Dice value a case, by the draws that `_interval` has for a single subset."""
    draw, purpose = Draw(seed=0), f"{labelled}/dice"
    return crossed_interval(by_case[np.newaxis], [0], draw, purpose, samples=_SAMPLES, patients=patients)


def _point(study: Study, group: Group, groups: Mapping[Group, Sequence[StudyRun]]) -> Point:
    method, labelled, compute = group
    runs, baseline = groups[group], groups.get((study["baseline"], labelled, compute), [])
    ids = sorted(runs[0]["cases"])
    patients = _patients(study, ids)
    point = Point(
        method=method,
        labelled=labelled,
        compute=compute,
        runs=len(runs),
        values={m: _interval(_matrices(ids, m, runs)[0], runs, m, patients) for m in PAPER_METRICS},
        minutes=float(np.mean([run["minutes"] for run in runs])),
        peak_memory_mb=max(run["peak_memory_mb"] for run in runs),
        gpu_peak_mb=max((run["gpu_peak_mb"] for run in runs if "gpu_peak_mb" in run), default=None),
        steps=(min(run["steps"] for run in runs), max(run["steps"] for run in runs)),
    )
    pairs = _pairs(baseline, runs)
    if method == study["baseline"] or not pairs:
        return point
    floors, mine = zip(*pairs, strict=True)
    gain = {}
    for metric in PAPER_METRICS:
        floor, own = _matrices(ids, metric, floors, mine)
        gain[metric] = own - floor
    by_run = _defined(gain["dice"])
    difference = {metric: _interval(gain[metric], mine, metric, patients) for metric in PAPER_METRICS}
    by_case = by_subset(gain["dice"], _subsets(mine)).mean(axis=0)
    return replace(
        point,
        difference=difference,
        over_cases=_over_cases(by_case, labelled, patients),
        p_value=signed_rank_p(by_case, patients),
        better=(int((by_run.mean(axis=1) > 0).sum()), len(pairs)),
        gap_closed=_gap_closed(ids, floors, mine, ceiling_runs(study, compute)),
    )


def _gap_closed(
    ids: Sequence[str], floors: Sequence[StudyRun], mine: Sequence[StudyRun], ceiling: Sequence[StudyRun]
) -> float | None:
    """What runs have more than the baseline's, as a share of what the ceiling has more; None where it has not more."""
    if not ceiling:
        return None
    low, own, high = _matrices(ids, "dice", floors, mine, ceiling)
    counted = np.isfinite(np.concatenate([low, own, high])).all(axis=0)
    if not counted.any():
        return None
    floor, reached, top = (
        float(by_subset(scores[:, counted], _subsets(runs)).mean())
        for scores, runs in ((low, floors), (own, mine), (high, ceiling))
    )
    return (reached - floor) / (top - floor) if top > floor else None


def ceiling_runs(study: Study, compute: float | None = None) -> list[StudyRun]:
    """Runs of the first method that was run with the labels of the ceiling, if one was: with this compute, or else with
    the most."""
    found = [run for run in study["runs"] if run["labelled"] == study["ceiling"]]
    found = [run for run in found if run["method"] == found[0]["method"]]
    ran = [run.get("compute", 1.0) for run in found]
    given = compute if compute in ran else max(ran, default=1.0)
    return [run for run in found if run.get("compute", 1.0) == given]


def _pairs(baseline: Sequence[StudyRun], runs: Sequence[StudyRun]) -> list[tuple[StudyRun, StudyRun]]:
    """Runs of two methods that have label subset and seed in common."""
    known = {(run["label_seed"], run["seed"]): run for run in baseline}
    return [(known[key], run) for run in runs if (key := (run["label_seed"], run["seed"])) in known]


def _subsets(runs: Sequence[StudyRun]) -> list[int]:
    """The number of each run's label subset."""
    names = [run["label_seed"] for run in runs]
    order = list(dict.fromkeys(names))
    return [order.index(name) for name in names]


def _matrices(ids: Sequence[str], metric: Metric, *groups: Sequence[StudyRun]) -> list[DoubleArray]:
    """A metric's mean over organs `(runs, cases)` of groups of runs that are compared, NaN where none defines it. Where
    a run rightly found nothing in a case and another found something, the first has 1. Raises `DataError` where
    runs were not scored on the same cases."""
    runs = [run for group in groups for run in group]
    for run in runs:
        if sorted(run["cases"]) != list(ids):
            raise DataError(
                f"{run['method']} with {run['labelled']} labels was scored on other cases than the runs that it is "
                "compared with. Delete its rows from results.json, and run the study again."
            )
    scores, dice = (
        np.array([[case_mean(run["cases"][case], m) for case in ids] for run in runs]) for m in (metric, DICE)
    )
    scores = with_empty_as_right(scores, np.isnan(dice))
    return np.split(scores, np.cumsum([len(group) for group in groups])[:-1])


def _defined(values: DoubleArray) -> DoubleArray:
    """The cases that have a value in every run."""
    return values[:, np.isfinite(values).all(axis=0)]


@dataclass(frozen=True, kw_only=True)
class OrganScore:
    """mean: over cases and runs. difference: to the baseline's, over the runs that it has too. None where it is not
    defined."""

    mean: float | None
    difference: float | None


def organ_scores(
    study: Study, method: str, labelled: int, metric: Metric, compute: float = 1.0
) -> dict[str, OrganScore]:
    """A method's score of each organ with so many labels and so much compute."""
    groups = groups_of(study["runs"])
    runs, baseline = (groups.get((name, labelled, compute), []) for name in (method, study["baseline"]))
    pairs = [] if method == study["baseline"] else _pairs(baseline, runs)

    def numbers(of: Sequence[StudyRun], organ: str, wanted: Metric) -> DoubleArray:
        return as_numbers([run["cases"][case][organ][wanted] for run in of for case in sorted(run["cases"])])

    def mean(of: DoubleArray) -> float | None:
        return float(np.nanmean(of)) if np.isfinite(of).any() else None

    scores = {}
    for organ in study["organs"]:
        both, dice = (np.array([numbers(side, organ, m) for side in zip(*pairs, strict=True)]) for m in (metric, DICE))
        floor, mine = with_empty_as_right(both, np.isnan(dice)) if pairs else (np.empty(0), np.empty(0))
        scores[organ] = OrganScore(mean=mean(numbers(runs, organ, metric)), difference=mean(mine - floor))
    return scores
