"""The page of a study: label efficiency, tests, cost, and the cases that the methods differ most on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from semiseg.data.plan import read_plan
from semiseg.errors import DataError
from semiseg.files import write_text
from semiseg.io.file_kinds import label_map
from semiseg.reporting.figures import EfficiencyLine, efficiency_plot, forest_plot, series_key, words
from semiseg.reporting.numbers import value
from semiseg.reporting.page import load_template
from semiseg.reporting.pictures import DrawnCase, one_slice
from semiseg.scoring.label_efficiency import (
    MARGIN,
    Point,
    against_reference,
    ceiling_runs,
    groups_of,
    organ_scores,
    patient_count,
    points,
    verdict,
)
from semiseg.scoring.statistics import FEWEST_CASES, Interval
from semiseg.scoring.study_results import Study, StudyRun, case_mean, folder_name, name_of
from semiseg.scoring.summary import PAPER_METRICS, Metric, read_summary
from semiseg.scoring.tables import TITLES, cases_text, markdown_table, p_text
from semiseg.words import counted

NOTICED = "Warnings of the runs"
_CASES = 3
"""Cases that are drawn."""


def write_study_page(study: Study, path: Path, *, runs: Path | None = None) -> Path:
    """Write the page and return its path. runs: where the run folders are, for pictures of cases; None draws none."""
    found = points(study)
    methods = list(dict.fromkeys(point.method for point in found))
    page = load_template("study.html").render(
        study=study,
        scored=scored_text(study),
        budget=budget_text(study),
        points=found,
        on_gpu=any(point.gpu_peak_mb is not None for point in found),
        budgets=sorted({point.labelled for point in found}),
        methods=methods,
        plots=[(TITLES[metric], efficiency_figure(study, found, metric)) for metric in PAPER_METRICS],
        compute_plots=compute_figures(study, found),
        several_computes=len({point.compute for point in found}) > 1,
        forest=forest_figure(study, found),
        margin=MARGIN,
        verdict=verdict,
        too_few=too_few_cases(study),
        legend=[(*series_key(n), method) for n, method in enumerate(_drawn_methods(study, found))],
        organ_tables=[
            (TITLES[metric], [(point, organ_scores(study, *_group(point), metric, point.compute)) for point in found])
            for metric in PAPER_METRICS
        ],
        organs=study["organs"],
        reference_title=reference_title(study),
        against=against_reference(study),
        signed=_signed,
        p_text=p_text,
        steps_text=steps_text,
        noticed=noticed_table(study),
        cases=_drawn_cases(study, runs) if runs else [],
    )
    write_text(path, page)
    return path


def efficiency_figure(study: Study, found: Sequence[Point], metric: Metric) -> str:
    """SVG of a metric against the number of labels, a line for each method at its most compute, the ceiling dashed."""
    lines = efficiency_lines(study, found, metric)
    return efficiency_plot(lines, _ceiling_value(study, found, metric), name=TITLES[metric], over="labelled scans")


def efficiency_lines(study: Study, found: Sequence[Point], metric: Metric) -> list[EfficiencyLine]:
    """Each method's points by rising labels, of the most compute; an interval that one run does not have is its mean.
    The ceiling is no point."""
    most = {_group(point): point for point in sorted(found, key=lambda point: point.compute)}
    return _lines(study, list(most.values()), metric, lambda point: point.labelled)


def compute_figures(study: Study, found: Sequence[Point]) -> list[tuple[str, str]]:
    """Title and SVG of Dice against compute for each number of labels that has several."""
    figures = []
    for labelled in sorted({point.labelled for point in found if point.labelled != study["ceiling"]}):
        here = [point for point in found if point.labelled == labelled]
        if len({point.compute for point in here}) > 1:
            lines = _lines(study, here, "dice", lambda point: point.compute)
            svg = efficiency_plot(lines, _ceiling_value(study, found, "dice"), name="Dice", over="times the compute")
            figures.append((counted(labelled, "labelled scan"), svg))
    return figures


def forest_figure(study: Study, found: Sequence[Point]) -> str:
    """SVG of every difference to the baseline in Dice that has an interval; empty where none has."""
    several = len({point.compute for point in found}) > 1
    rows = []
    for point in found:
        interval = point.difference.get("dice")
        if interval and interval["mean"] is not None and interval["low"] is not None and interval["high"] is not None:
            times = f", {point.compute:g} x" if several else ""
            name = f"{point.method}, {counted(point.labelled, 'label')}{times}"
            rows.append((name, interval["mean"], interval["low"], interval["high"]))
    return forest_plot(rows, MARGIN) if rows else ""


def _lines(
    study: Study, found: Sequence[Point], metric: Metric, amount: Callable[[Point], float]
) -> list[EfficiencyLine]:
    lines: list[EfficiencyLine] = []
    for method in _drawn_methods(study, found):
        rows = []
        for point in found:
            mean = point.values[metric]
            if point.method == method and point.labelled != study["ceiling"] and mean["mean"] is not None:
                low, high = (mean[end] if mean[end] is not None else mean["mean"] for end in ("low", "high"))
                rows.append((amount(point), mean["mean"], float(low or 0.0), float(high or 0.0)))
        lines.append((method, sorted(rows)))
    return lines


def _ceiling_value(study: Study, found: Sequence[Point], metric: Metric) -> float | None:
    method = next((run["method"] for run in ceiling_runs(study)), None)
    top = [point for point in found if (point.method, point.labelled) == (method, study["ceiling"])]
    return max(top, key=lambda point: point.compute).values[metric]["mean"] if top else None


def _group(point: Point) -> tuple[str, int]:
    return point.method, point.labelled


def _drawn_methods(study: Study, found: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(point.method for point in found if point.labelled != study["ceiling"]))


StudyTable = tuple[str, list[str], list[list[str]]]
"""Title, header and rows as text."""


def study_tables(study: Study) -> list[StudyTable]:
    """Methods by label budgets, the mean over organs first; then against the study's reference, where one is run; then
    Dice and NSD by organ."""
    tables = [("Mean over organs", *_mean_rows(study)), (reference_title(study), *_reference_rows(study))]
    for metric in PAPER_METRICS:
        title = f"Mean {TITLES[metric]} by organ, and minus {study['baseline']} on the runs of both"
        tables.append((title, *_organ_rows(study, metric)))
    return [table for table in tables if table[2]]


def study_markdown(study: Study) -> str:
    """What was run, and the tables, in Markdown."""
    machine = ", ".join(f"{key} {text}" for key, text in study["machine"].items())
    head = (
        f"# {study['name']}: {study['dataset']}\n\n{scored_text(study)}, {budget_text(study)}. Machine: {machine}. "
        f"{too_few_cases(study)}"
    ).rstrip()
    noticed = noticed_table(study)
    shown = [*study_tables(study), *([noticed] if noticed[2] else [])]
    tables = (f"{title}:\n\n{markdown_table(header, rows)}" for title, header, rows in shown)
    return "\n\n".join([head, *tables]) + "\n"


def scored_text(study: Study) -> str:
    """`40 cases scored`; where patients have several, that they and not their cases count."""
    cases, patients = study["test_cases"], patient_count(study)
    over = "" if patients >= cases else " (intervals and p are over patients)"
    return f"{cases_text(cases, patients)} scored{over}"


def steps_text(point: Point) -> str:
    """The steps of its runs: from the fewest to the most where minutes decided."""
    fewest, most = point.steps
    return str(most) if fewest == most else f"{fewest} to {most}"


def budget_text(study: Study) -> str:
    """How long runs are: the minutes, or the steps that the study sets."""
    return f"{study['minutes']:g} minutes a run" if study["minutes"] else "steps as the study sets them"


def too_few_cases(study: Study) -> str:
    """A sentence where too few cases are scored; empty otherwise."""
    cases, patients = study["test_cases"], patient_count(study)
    who = "patients" if patients < cases else "cases"
    few = min(cases, patients) < FEWEST_CASES
    return f"Fewer than {FEWEST_CASES} {who} are too few for intervals, a p and a verdict." if few else ""


def reference_title(study: Study) -> str:
    """What is compared with the study's reference."""
    reference = study.get("reference")
    return f"Against {reference['method']} with {reference['labelled']} labels" if reference else ""


def _mean_rows(study: Study) -> tuple[list[str], list[list[str]]]:
    """A row for each method and label budget."""
    minus = f"- {study['baseline']} [95 %]"
    found = sorted(points(study), key=lambda point: (point.labelled, point.compute))
    several = len({point.compute for point in found}) > 1
    on_gpu = any(point.gpu_peak_mb is not None for point in found)
    header = [
        "labels", *(["compute"] if several else []), "method", "runs", "DSC [95 %]", "NSD", f"DSC {minus}", "verdict",
        "over cases [95 %]", "p over cases (Holm)", f"NSD {minus}", "better runs", "gap closed", "steps", "min",
        "peak MB", *(["GPU MB"] if on_gpu else []),
    ]  # fmt: skip
    rows = []
    for point in found:
        dice, nsd = point.values["dice"], point.values["nsd"]
        rows.append(
            [
                str(point.labelled),
                *([f"{point.compute:g} x"] if several else []),
                point.method,
                str(point.runs),
                f"{_plain(dice['mean'])} {_range(dice, _plain)}".rstrip(),
                _plain(nsd["mean"]),
                _signed_interval(point.difference.get("dice")),
                verdict(point.difference["dice"]) if point.difference else "",
                _signed_range(point.over_cases),
                p_text(point.p_value),
                _signed_interval(point.difference.get("nsd")),
                f"{point.better[0]}/{point.better[1]}" if point.better[1] else "",
                "" if point.gap_closed is None else f"{100 * point.gap_closed:.0f} %",
                steps_text(point),
                f"{point.minutes:.1f}",
                f"{point.peak_memory_mb:.0f}" if point.peak_memory_mb else "",  # of runs that a batch system made
                *(["" if point.gpu_peak_mb is None else f"{point.gpu_peak_mb:.0f}"] if on_gpu else []),
            ]
        )
    return header, rows


def _reference_rows(study: Study) -> tuple[list[str], list[list[str]]]:
    """Methods with fewer labels than the reference; no rows where there is none."""
    header = ["labels", "method", "runs", "DSC - reference [95 %]", "over cases [95 %]", "p over cases (Holm)"]
    return header, [
        [
            str(row.labelled),
            row.method,
            str(row.runs),
            _signed_interval(row.difference),
            _signed_range(row.over_cases),
            p_text(row.p_value),
        ]
        for row in against_reference(study)
    ]


def _organ_rows(study: Study, metric: Metric) -> tuple[list[str], list[list[str]]]:
    """Mean of each organ, and what it is more than the baseline's: a row for each method and label budget (the paper's
    table, turned)."""
    rows = []
    groups = sorted(groups_of(study["runs"]), key=lambda group: group[1:])
    several = len({compute for *_, compute in groups}) > 1
    for method, labelled, compute in groups:
        cells = [
            _plain(score.mean) + (f" ({_signed(score.difference)})" if score.difference is not None else "")
            for score in organ_scores(study, method, labelled, metric, compute).values()
        ]
        rows.append([str(labelled), *([f"{compute:g} x"] if several else []), method, *cells])
    return ["labels", *(["compute"] if several else []), "method", *map(words, study["organs"])], rows


def noticed_table(study: Study) -> StudyTable:
    """The warnings of each method, budget and compute, in how many of the runs that are known to have none or some, and
    one of them."""
    several = len({run.get("compute", 1.0) for run in study["runs"]}) > 1
    groups = groups_of(study["runs"]).items()
    rows = []
    for (method, labelled, compute), runs in sorted(groups, key=lambda group: group[0][1:]):
        known, times = [run["notices"] for run in runs if "notices" in run], [f"{compute:g} x"] if several else []
        for topic in dict.fromkeys(topic for notices in known for topic in notices):
            texts = [notices[topic] for notices in known if topic in notices]
            rows.append([str(labelled), *times, method, f"{len(texts)} of {len(known)}", texts[0]])
    return NOTICED, ["labels", *(["compute"] if several else []), "method", "runs", "example"], rows


def _drawn_cases(study: Study, runs: Path) -> list[DrawnCase]:
    """The cases that the methods differ most on, at the budget with the most methods, in its first common runs: those
    that have left predictions here, where there are several."""
    group = _widest_group(study)
    if len(group) < 2:
        return []
    here = [run for run in group if (_folder(run, runs) / "predictions").is_dir()]
    group = here if len(here) > 1 else group
    return [_drawn(case, group, runs) for case in most_different(group)[:_CASES]]


def most_different(group: Sequence[StudyRun]) -> list[str]:
    """Ids of the runs' cases, those first whose mean Dice lies furthest apart between the runs."""
    spread = {}
    for case in sorted(set.intersection(*(set(run["cases"]) for run in group))):
        means = [case_mean(run["cases"][case], "dice") for run in group]
        spread[case] = float(np.nanmax(means) - np.nanmin(means)) if np.isfinite(means).any() else 0.0
    return sorted(spread, key=lambda case: -spread[case])


def _folder(run: StudyRun, runs: Path) -> Path:
    return runs / folder_name(name_of(run), run["key"])


def _widest_group(study: Study) -> list[StudyRun]:
    groups: dict[tuple[int, int | str | None, int, float], list[StudyRun]] = {}
    for run in study["runs"]:
        group = (run["labelled"], run["label_seed"], run["seed"], run.get("compute", 1.0))
        groups.setdefault(group, []).append(run)
    return max(groups.values(), key=len, default=[])


def _drawn(case: str, group: Sequence[StudyRun], runs: Path) -> DrawnCase:
    folders = {run["method"]: _folder(run, runs) for run in group}
    # Runs of earlier sittings, and of other programs, may have left no folder here.
    folders = {method: path for method, path in folders.items() if label_map(path / "predictions", case).exists()}
    if not folders:
        return DrawnCase(id=case, problem=f"No run in {runs} has predicted it.")
    try:
        first = next(iter(folders.values()))
        summary, plan = read_summary(first / "summary.json"), read_plan(first / "plan.toml")
        row = next(row for row in summary["cases"] if row["id"] == case)
        panels = one_slice(
            {method: label_map(folder / "predictions", case) for method, folder in folders.items()},
            first / row["reference"],
            first / row["image"] if row["image"] else None,
            organs={int(value): name for value, name in summary["organs"].items()},
            ct=plan.normalisation[0].scheme == "ct",
        )
    except DataError as error:
        return DrawnCase(id=case, problem=str(error))
    dice = {run["method"]: case_mean(run["cases"][case], "dice") for run in group}
    return DrawnCase(id=case, panels=tuple((m, value(dice[m]), panel) for m, panel in panels.items()))


def _plain(number: float | None) -> str:
    return "–" if number is None else f"{number:.4f}"


def _signed(number: float | None) -> str:
    return "–" if number is None else f"{number:+.4f}".replace("-", "−")


def _signed_interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{_signed(interval['mean'])} {_signed_range(interval)}".rstrip()


def _signed_range(interval: Interval | None) -> str:
    return "" if interval is None else _range(interval, _signed)


def _range(interval: Interval, text: Callable[[float | None], str]) -> str:
    """Nothing where cases are too few for an interval."""
    return "" if interval["low"] is None else f"[{text(interval['low'])}, {text(interval['high'])}]"
