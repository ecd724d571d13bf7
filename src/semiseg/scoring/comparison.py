"""Several runs on the same cases, side by side: per organ and mean, paired with the first run.

Everything is paired over cases, so that the difficulty of a case cancels. Runs that were not scored on
exactly the same cases, organs, rules and tolerances are refused rather than compared on what they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from semiseg.data.patients import patient_of
from semiseg.errors import DataError
from semiseg.randomness import Draw
from semiseg.scoring.statistics import (
    BOOTSTRAP_SAMPLES,
    FEWEST_CASES,
    Interval,
    PairedDifference,
    as_numbers,
    mean_interval,
    paired_difference,
    with_empty_as_right,
)
from semiseg.scoring.summary import (
    METRICS,
    PAPER_METRICS,
    CaseScores,
    Metric,
    Summary,
    case_means,
    organ_values,
    pair_count,
)
from semiseg.scoring.tables import (
    DECIMALS,
    RANGE_NOTE,
    TITLES,
    UNDEFINED,
    cases_text,
    interval_text,
    p_text,
    print_table,
    shows_range,
)

MEAN = "mean"


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """One organ, or the mean over organs: an interval per run, and each later run's difference to the first."""

    organ: str
    values: tuple[Interval, ...]
    differences: tuple[PairedDifference, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """names: of the runs, the baseline first. budgets: what each run was allowed (steps, minutes, labels), or empty.

    tables: rows per metric, a row per organ and last the mean; the mean HD95 of a case is over the organs that have one
    in every run. distances: how many pairs of organ and case those are, of how many in all.
    """

    names: tuple[str, ...]
    budgets: tuple[str, ...]
    case_count: int
    patient_count: int
    rules: str
    distances: tuple[int, int]
    tables: dict[Metric, tuple[ComparisonRow, ...]]

    @property
    def over(self) -> str:
        """What intervals are over."""
        return "cases" if self.patient_count == self.case_count else "patients"

    @property
    def few_cases(self) -> bool:
        """Whether there are too few cases for intervals and p-values."""
        return self.patient_count < FEWEST_CASES


def compare_summaries(names: Sequence[str], summaries: Sequence[Summary], *, budgets: Sequence[str] = ()) -> Comparison:
    """Compare runs by their summaries; the first is the baseline.

    A difference is over the cases in which both runs have the metric (its `count`); Dice and NSD are 1 where a run left
    empty what is empty, and the other did not. Raises `DataError` naming the cases, references, organs, rules or
    tolerances that differ.
    """
    if len(names) != len(summaries) or len(names) < 2 or len(set(names)) < len(names):
        raise DataError(
            f"a comparison needs two or more runs of different names, but got {', '.join(names)}. "
            "Name runs, or give names with --names."
        )
    for name, summary in zip(names[1:], summaries[1:], strict=True):
        _check_comparable(names[0], summaries[0], name, summary)
    order = [case["id"] for case in summaries[0]["cases"]]
    runs = [sorted(summary["cases"], key=lambda case: order.index(case["id"])) for summary in summaries]
    shared, patients = _with_shared_organs(runs), _patients(names, summaries)
    dice = {o: [organ_values(run, o, "dice") for run in runs] for o in summaries[0]["organs"].values()}
    dice[MEAN] = [case_means(run, "dice") for run in runs]
    tables: dict[Metric, tuple[ComparisonRow, ...]] = {}
    for metric in METRICS:
        columns = {o: [organ_values(run, o, metric) for run in runs] for o in summaries[0]["organs"].values()}
        columns[MEAN] = [case_means(run, metric) for run in (shared if metric == "hd95_mm" else runs)]
        tables[metric] = tuple(_row(o, values, dice[o], metric, patients) for o, values in columns.items())
    return Comparison(
        names=tuple(names),
        budgets=tuple(budgets),
        case_count=len(order),
        patient_count=len(set(patients)),
        rules=summaries[0]["rules"],
        distances=(pair_count(shared[0])[0], max(pair_count(run)[1] for run in runs)),
        tables=tables,
    )


def _patients(names: Sequence[str], summaries: Sequence[Summary]) -> list[str]:
    """Whose each case is, in the order of the first summary, by the one that knows. Raises `DataError` where two know
    otherwise."""
    known = {name: pattern for name, one in zip(names, summaries, strict=True) if (pattern := one.get("patients"))}
    if len(set(known.values())) > 1:
        told = ", ".join(f"{name} by {pattern!r}" for name, pattern in known.items())
        raise DataError(f"patients are named otherwise in the runs: {told} (data.patients). Score them alike.")
    pattern = next(iter(known.values()), "")
    return [patient_of(case["id"], pattern) for case in summaries[0]["cases"]]


def _with_shared_organs(runs: Sequence[Sequence[CaseScores]]) -> list[list[CaseScores]]:
    """The runs' cases with those organs alone that have an HD95 in every run: means over what each has found would
    compare different organs, and be better the fewer are found."""
    kept: list[list[CaseScores]] = [[] for _ in runs]
    for cases in zip(*runs, strict=True):
        organs = [o for o in cases[0]["organs"] if all(case["organs"][o]["hd95_mm"] is not None for case in cases)]
        for run, case in zip(kept, cases, strict=True):
            shared = case.copy()
            shared["organs"] = {organ: case["organs"][organ] for organ in organs}
            run.append(shared)
    return kept


def _row(
    organ: str,
    runs: Sequence[Sequence[float | None]],
    dice: Sequence[Sequence[float | None]],
    metric: Metric,
    patients: Sequence[str],
) -> ComparisonRow:
    """dice: of the same runs and cases, None where nothing is there and nothing was found."""
    # one purpose for all runs: they draw the same cases, so their intervals move together
    draw, purpose, count = Draw(seed=0), f"{organ}/{metric}", BOOTSTRAP_SAMPLES
    scores, empty = as_numbers(runs), np.isnan(as_numbers(dice))
    pairs = [[0, later] for later in range(1, len(runs))]
    if metric == "hd95_mm":
        compared = [scores[pair] for pair in pairs]
    else:
        compared = [with_empty_as_right(scores[pair], empty[pair]) for pair in pairs]
    return ComparisonRow(
        organ=organ,
        values=tuple(mean_interval(run, draw, purpose, samples=count, patients=patients) for run in runs),
        differences=tuple(
            paired_difference(first, later, draw, purpose, samples=count, patients=patients)
            for first, later in compared
        ),
    )


def _check_comparable(first: str, a: Summary, second: str, b: Summary) -> None:
    cases = [{case["id"] for case in summary["cases"]} for summary in (a, b)]
    if cases[0] != cases[1]:
        surplus = {first: cases[0] - cases[1], second: cases[1] - cases[0]}
        only = [f"only in {name}: {', '.join(sorted(ids))}" for name, ids in surplus.items() if ids]
        raise DataError(
            f"{first} and {second} were scored on different cases ({'; '.join(only)}). Score both on the same."
        )
    if a["rules"] != b["rules"]:
        raise DataError(
            f"{first} was scored by the rules {a['rules']}, {second} by {b['rules']}. Use the same for both."
        )
    if a["organs"] != b["organs"]:
        raise DataError(
            f"{first} and {second} have different organs: {a['organs']} and {b['organs']}. Name runs of one dataset."
        )
    if a["tolerance_mm"] != b["tolerance_mm"]:
        raise DataError(
            f"{first} and {second} have different NSD tolerances: {a['tolerance_mm']} and {b['tolerance_mm']} mm. "
            "Evaluate both with the same."
        )
    volumes = [
        {
            case["id"]: [case["organs"][organ]["reference_volume_ml"] for organ in a["organs"].values()]
            for case in scored
        }
        for scored in (a["cases"], b["cases"])
    ]
    if other := [id for id, found in volumes[0].items() if not np.allclose(found, volumes[1][id])]:
        raise DataError(
            f"{first} and {second} were scored by different references: organs of {other[0]} have other volumes. Score "
            "both by the same."
        )


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print a table of Dice and one of NSD, as in the paper, and each run's budget."""
    console = console or Console()
    shown: list[Interval] = []
    for metric in PAPER_METRICS:
        print_table(f"{TITLES[metric]}, {_subtitle(comparison)}", *_table(comparison, metric), console)
        console.print()
        for row in comparison.tables[metric]:
            shown += [*row.values, *(paired.difference for paired in row.differences)]
    notes = [RANGE_NOTE] if any(map(shows_range, shown)) else []
    budgets = [f"{n}: {budget}" for n, budget in zip(comparison.names, comparison.budgets, strict=False) if budget]
    for line in notes + budgets:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(comparison: Comparison, metric: Metric) -> tuple[list[str], list[list[str]]]:
    """Header and rows as text: a column per run, then difference and p per later run; no p below six cases."""
    decimals = DECIMALS[metric]
    few = comparison.few_cases
    ends = "(range)" if few else "[95 %]"
    several = len(comparison.names) > 2
    header = ["organ", *comparison.names]
    for name in comparison.names[1:]:
        header += [f"difference: {name}" if several else f"difference {ends}", *([] if few else ["p"])]
    rows = []
    for row in comparison.tables[metric]:
        cells = [row.organ, *(interval_text(value, decimals) for value in row.values)]
        for paired in row.differences:
            cells.append(interval_text(paired.difference, decimals, signed=True))
            if not few:
                cells.append(p_text(paired.p_value) or UNDEFINED)
        rows.append(cells)
    return header, rows


def _subtitle(comparison: Comparison) -> str:
    baseline, cases = comparison.names[0], cases_text(comparison.case_count, comparison.patient_count)
    if comparison.few_cases:
        return f"{cases}, rules {comparison.rules}; mean (range of the cases), paired difference to {baseline}"
    return (
        f"{cases}, rules {comparison.rules}; mean [95 % bootstrap interval over {comparison.over}], "
        f"paired difference to {baseline}, Wilcoxon signed-rank p of each by itself"
    )
