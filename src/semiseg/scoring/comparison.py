"""Several runs on the same cases, side by side: per organ and mean, paired with the first run.

Everything is paired over cases, so that the difficulty of a case cancels. Runs that were not scored on
exactly the same cases, organs, rules and tolerances are refused rather than compared on what they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from semiseg.errors import DataError
from semiseg.randomness import Draw
from semiseg.scoring.statistics import FEWEST_CASES, Interval, PairedDifference, mean_interval, paired_difference
from semiseg.scoring.summary import METRICS, CaseScores, Metric, Summary, case_means, organ_values, pair_count
from semiseg.scoring.tables import (
    DECIMALS,
    RANGE_NOTE,
    TITLES,
    UNDEFINED,
    interval_text,
    markdown_table,
    p_text,
    print_table,
    shows_range,
)
from semiseg.words import counted

MEAN = "mean"


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """One organ, or the mean over organs: an interval per run, and each later run's difference to the
    first."""

    organ: str
    values: tuple[Interval, ...]
    differences: tuple[PairedDifference, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """names: of the runs, the baseline first. budgets: what each run was allowed (steps, minutes, labels), or
    empty.

    tables: rows per metric, a row per organ and last the mean; the mean HD95 of a case is over the organs that have one
    in every run. distances: how many pairs of organ and case those are, of how many in all.
    """

    names: tuple[str, ...]
    budgets: tuple[str, ...]
    case_count: int
    rules: str
    distances: tuple[int, int]
    tables: dict[Metric, tuple[ComparisonRow, ...]]

    @property
    def few_cases(self) -> bool:
        """Whether there are too few cases for intervals and p-values."""
        return self.case_count < FEWEST_CASES


def compare_summaries(
    names: Sequence[str],
    summaries: Sequence[Summary],
    *,
    budgets: Sequence[str] = (),
    samples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare runs by their summaries; the first is the baseline.

    A difference is over the cases in which both runs have the metric (its `count`). Raises `DataError` naming
    the cases, organs, rules or tolerances that differ.
    """
    if len(names) != len(summaries) or len(names) < 2 or len(set(names)) < len(names):
        raise DataError(
            f"a comparison needs two or more runs of different names, but got {', '.join(names)}. "
            "Name runs, or give names with --names."
        )
    for name, summary in zip(names[1:], summaries[1:], strict=True):
        _check_comparable(names[0], summaries[0], name, summary)
    draw = Draw(seed=seed)
    order = [case["id"] for case in summaries[0]["cases"]]
    runs = [sorted(summary["cases"], key=lambda case: order.index(case["id"])) for summary in summaries]
    shared = _with_shared_organs(runs)
    tables: dict[Metric, tuple[ComparisonRow, ...]] = {}
    for metric in METRICS:
        columns = {o: [organ_values(run, o, metric) for run in runs] for o in summaries[0]["organs"].values()}
        columns[MEAN] = [case_means(run, metric) for run in (shared if metric == "hd95_mm" else runs)]
        tables[metric] = tuple(_row(o, values, metric, draw, samples) for o, values in columns.items())
    return Comparison(
        names=tuple(names),
        budgets=tuple(budgets),
        case_count=len(order),
        rules=summaries[0]["rules"],
        distances=(pair_count(shared[0])[0], max(pair_count(run)[1] for run in runs)),
        tables=tables,
    )


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


def _row(organ: str, runs: Sequence[Sequence[float | None]], metric: Metric, draw: Draw, samples: int) -> ComparisonRow:
    # one purpose for all runs: they draw the same cases, so their intervals move together
    purpose = f"{organ}/{metric}"
    return ComparisonRow(
        organ=organ,
        values=tuple(mean_interval(run, draw, purpose, samples=samples) for run in runs),
        differences=tuple(paired_difference(runs[0], run, draw, purpose, samples=samples) for run in runs[1:]),
    )


def _check_comparable(first: str, a: Summary, second: str, b: Summary) -> None:
    cases = [{case["id"] for case in summary["cases"]} for summary in (a, b)]
    if cases[0] != cases[1]:
        only = [
            f"only in {n}: {', '.join(sorted(x))}"
            for n, x in ((first, cases[0] - cases[1]), (second, cases[1] - cases[0]))
            if x
        ]
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


def print_comparison(
    comparison: Comparison, console: Console | None = None, *, metrics: Sequence[Metric] = ("dice", "nsd")
) -> None:
    """Print a table per metric (the paper's: Dice and NSD) and each run's budget."""
    console = console or Console()
    for metric in metrics:
        header, rows = comparison_rows(comparison, metric)
        print_table(f"{TITLES[metric]}, {_subtitle(comparison)}", header, rows, console)
        console.print()
    for line in [*_range_notes(comparison, metrics), *_budget_lines(comparison)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def comparison_markdown(comparison: Comparison, *, metrics: Sequence[Metric] = ("dice", "nsd")) -> str:
    """The same tables in Markdown."""
    parts = []
    for metric in metrics:
        parts.append(f"**{TITLES[metric]}**, {_subtitle(comparison)}")
        parts.append(markdown_table(*comparison_rows(comparison, metric)))
    parts += _range_notes(comparison, metrics)
    if comparison.budgets:
        parts.append("\n".join(f"- {line}" for line in _budget_lines(comparison)))
    return "\n\n".join(parts) + "\n"


def comparison_rows(comparison: Comparison, metric: Metric) -> tuple[list[str], list[list[str]]]:
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
                cells.append(p_text(paired.p_value, undefined=UNDEFINED))
        rows.append(cells)
    return header, rows


def _subtitle(comparison: Comparison) -> str:
    baseline, cases = comparison.names[0], counted(comparison.case_count, "case")
    if comparison.few_cases:
        return f"{cases}, rules {comparison.rules}; mean (range of the cases), paired difference to {baseline}"
    return (
        f"{cases}, rules {comparison.rules}; mean [95 % bootstrap interval over cases], "
        f"paired difference to {baseline}, Wilcoxon signed-rank p of each by itself"
    )


def _range_notes(comparison: Comparison, metrics: Sequence[Metric]) -> list[str]:
    """A sentence where a table shows ranges."""
    rows = [row for metric in metrics for row in comparison.tables[metric]]
    shown = [interval for row in rows for interval in (*row.values, *(paired.difference for paired in row.differences))]
    return [RANGE_NOTE] if any(map(shows_range, shown)) else []


def _budget_lines(comparison: Comparison) -> list[str]:
    return [f"{n}: {budget}" for n, budget in zip(comparison.names, comparison.budgets, strict=False) if budget]
