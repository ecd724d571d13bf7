"""Several runs side by side on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from semiseg.errors import DataError
from semiseg.files import refuse_foreign, write_text
from semiseg.io.colours import organ_colours
from semiseg.reporting.numbers import NOTHING, distance, value
from semiseg.reporting.page import METRIC_NAMES, facts, load_template, method_name, trained_on
from semiseg.reporting.pictures import DrawnCase, image_path, mean_dice, one_slice
from semiseg.reporting.run_data import RunData, read_run
from semiseg.scoring.comparison import Comparison, compare_summaries
from semiseg.scoring.statistics import Interval, PairedDifference, is_range
from semiseg.scoring.summary import METRICS, CaseScores, Metric, Summary

_OURS = "Made by semiseg from the files of these runs alone."
"""The foot of such a page."""
_EFFORT = ("Weights from", "Steps", "Training time", "Budget", "Seed")


def write_comparison_report(runs: Sequence[Path], path: Path, *, names: Sequence[str] = ()) -> Path:
    """Write a page that compares evaluated runs with the first of them, and return `path`. names: of the runs, in the
    place of their folders'.

    Raises `ConfigError` where a file is there that is no such page, and `DataError` for a run without summary.json and
    for runs that were not scored on the same cases, organs, rules and tolerances.
    """
    refuse_foreign(path, _OURS)
    data = [read_run(run) for run in runs]
    summaries: list[Summary] = []
    for run in data:
        if run.summary is None:
            raise DataError(f"{run.folder}: there is no summary.json. Run `semiseg evaluate` on it first.")
        summaries.append(run.summary)
    names = list(names) or [run.folder.resolve().name for run in data]
    comparison = compare_summaries(names, summaries)
    means = comparison.tables["dice"][-1].values
    page = load_template("comparison.html").render(
        difference=difference,
        names=names,
        comparison=comparison,
        runs=[_card(name, run, mean) for name, run, mean in zip(names, data, means, strict=True)],
        tables=[(metric, METRIC_NAMES[metric], _full_bar(comparison, metric)) for metric in METRICS],
        cases=_drawn_cases(names, data),
        organs=[(organ, colour, "") for organ, colour in organ_colours(data[0].label_values.values()).items()],
    )
    write_text(path, page)
    return path


def _drawn_cases(names: Sequence[str], runs: Sequence[RunData]) -> list[DrawnCase]:
    """The case on which the runs' mean Dice differs most, and the one in the middle."""
    scored = [{case["id"]: case for case in run.summary["cases"]} for run in runs if run.summary]
    order = sorted(scored[0], key=lambda case: (-_apart([cases[case] for cases in scored]), case))
    chosen = [("The runs differ most", order[0]), ("In the middle", order[len(order) // 2])]
    return [_drawn(title, case, names, runs, scored) for title, case in chosen[: len(order)]]


def _apart(cases: Sequence[CaseScores]) -> float:
    """How far the runs' mean Dice of a case lies apart; 0 where no run has any."""
    means = [mean for case in cases if (mean := mean_dice(case)) is not None]
    return max(means) - min(means) if means else 0.0


def _drawn(
    title: str, case: str, names: Sequence[str], runs: Sequence[RunData], scored: Sequence[Mapping[str, CaseScores]]
) -> DrawnCase:
    first, row = runs[0], scored[0][case]
    predictions = {n: run.path(cases[case]["prediction"]) for n, run, cases in zip(names, runs, scored, strict=True)}
    reference, image = first.path(row["reference"]), image_path(first, row)
    try:
        panels = one_slice(predictions, reference, image, organs=first.label_values, ct=first.is_ct)
    except DataError as error:
        return DrawnCase(title=title, id=case, problem=f"This case cannot be drawn. {error}")
    dice = [value(mean_dice(cases[case])) for cases in scored]
    return DrawnCase(title=title, id=case, panels=tuple((n, d, panels[n]) for n, d in zip(names, dice, strict=True)))


def _card(name: str, run: RunData, mean: Interval) -> dict[str, object]:
    effort = ", ".join(f"{key.lower()} {text}" for key, text in facts(run) if key in _EFFORT)
    method = method_name(run)
    sentence = f"{method[:1].upper()}{method[1:]}. {trained_on(run)}" if method else trained_on(run)
    return {"title": name, "mean": mean, "sentence": sentence, "effort": effort}


def _full_bar(comparison: Comparison, metric: Metric) -> float:
    """The value of a full bar."""
    if metric != "hd95_mm":
        return 1.0
    means = [found["mean"] or 0.0 for row in comparison.tables[metric] for found in row.values]
    return max(means, default=0.0) or 1.0


def difference(paired: PairedDifference, metric: Metric) -> Markup | str:
    """The signed difference with its interval and p, coloured only where the interval leaves out zero; below six cases
    with their range, and never coloured."""
    mean, low, high = (paired.difference[key] for key in ("mean", "low", "high"))
    if mean is None:
        return NOTHING
    if low is None or high is None:
        return _signed(mean, metric)
    if is_range(paired.difference):
        return Markup('<span class="val">{}</span> <span class="int">range {} to {}, {} cases</span>').format(
            _signed(mean, metric), _signed(low, metric), _signed(high, metric), paired.difference["count"]
        )
    better = mean < 0 if metric == "hd95_mm" else mean > 0
    certain = low > 0 or high < 0
    kind = ("gain" if better else "loss") if certain else "val"
    p = "" if paired.p_value is None else f", p {'< 0.001' if paired.p_value < 0.001 else f'= {paired.p_value:.3f}'}"
    return Markup('<span class="{}">{}</span> <span class="int">{} to {}{}</span>').format(
        kind, _signed(mean, metric), _signed(low, metric), _signed(high, metric), p
    )


def _signed(number: float, metric: Metric) -> str:
    size = distance(abs(number)) if metric == "hd95_mm" else f"{abs(number):.3f}"
    return f"{'−' if number < 0 else '+'}{size}"
