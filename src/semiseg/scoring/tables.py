"""Console tables of a summary: boxed in a terminal, aligned plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from semiseg.scoring.statistics import FEWEST_CASES, Interval, is_range
from semiseg.scoring.summary import METRICS, Metric, Summary, pair_count, patients_of
from semiseg.words import counted

TITLES: dict[Metric, str] = {"dice": "DSC", "nsd": "NSD", "hd95_mm": "HD95 (mm)"}
DECIMALS: dict[Metric, int] = {"dice": 4, "nsd": 4, "hd95_mm": 2}
UNDEFINED = "–"
RANGE_NOTE = f"(a to b) is the range of fewer than {FEWEST_CASES} cases or patients: too few for an interval and a p."


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """Print a row per organ and the mean over organs: each metric with its 95 % interval over cases, or with its range
    where there are fewer than six."""
    ends = "(range)" if is_range(summary["mean"]["dice"]) else "[95 %]"
    header = ["organ", "tolerance (mm)", *(f"{TITLES[metric]} {ends}" for metric in METRICS), "cases"]
    rows = []
    for organ, intervals in summary["per_organ"].items():
        cells = [interval_text(intervals[metric], DECIMALS[metric]) for metric in METRICS]
        counts = "/".join(dict.fromkeys(str(intervals[metric]["count"]) for metric in METRICS))
        rows.append([organ, f"{summary['tolerance_mm'][organ]:g}", *cells, counts])
    cells = [interval_text(summary["mean"][metric], DECIMALS[metric]) for metric in METRICS]
    rows.append(["mean", "", *cells, str(len(summary["cases"]))])
    console = console or Console()
    cases = cases_text(len(summary["cases"]), len(set(patients_of(summary))))
    print_table(f"{cases}, rules {summary['rules']}", header, rows, console)
    intervals_of_all = [*summary["per_organ"].values(), summary["mean"]]
    notes = [RANGE_NOTE] if any(shows_range(row[metric]) for row in intervals_of_all for metric in METRICS) else []
    both, there = pair_count(summary["cases"])
    if both < there:
        notes.append(f"HD95 is over the {both} of {there} organs in cases that reference and prediction both have.")
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def cases_text(cases: int, patients: int) -> str:
    """`40 cases`, `40 cases of 20 patients`."""
    text = counted(cases, "case")
    return text if patients >= cases else f"{text} of {counted(patients, 'patient')}"


def interval_text(interval: Interval, decimals: int, *, signed: bool = False) -> str:
    """`0.8123 [0.7900, 0.8310]`, `0.8123 (0.7900 to 0.8310)` for a range; a dash where the mean is undefined."""
    if interval["mean"] is None:
        return UNDEFINED
    form = f"{'+' if signed else ''}.{decimals}f"
    mean = f"{interval['mean']:{form}}"
    if interval["low"] is None or interval["high"] is None:
        return mean
    low, high = f"{interval['low']:{form}}", f"{interval['high']:{form}}"
    return f"{mean} ({low} to {high})" if is_range(interval) else f"{mean} [{low}, {high}]"


def shows_range(interval: Interval) -> bool:
    """Whether `interval_text` shows a range."""
    return is_range(interval) and interval["low"] is not None


def p_text(p_value: float | None) -> str:
    """`0.034`, `<0.001`; empty where there is none."""
    if p_value is None:
        return ""
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def print_table(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    console: Console | None = None,
    *,
    total: bool = True,
) -> None:
    """Print a table; the first column is text, the others are numbers. total: whether the last row is one."""
    console = console or Console()
    if not console.is_terminal:
        console.print(plain_table(title, header, rows), markup=False, highlight=False, soft_wrap=True)
        return
    # Names of organs are text, whatever brackets they have.
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left")
    for number, column in enumerate(header):
        table.add_column(Text(column), justify="left" if number == 0 else "right")
    for row in rows[:-1] if total else rows:
        table.add_row(*map(Text, row))
    if total:
        table.add_section()
        table.add_row(*map(Text, rows[-1]), style="bold")
    console.print(table)


def plain_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table as aligned text without a frame, however wide."""
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    lines = [title]
    for line in [header, *rows]:
        cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table in Markdown; a line break in a cell is a space."""
    cells = [[" ".join(cell.replace("|", "\\|").splitlines()) for cell in line] for line in [header, *rows]]
    lines = ["| " + " | ".join(line) + " |" for line in cells]
    rule = "|" + "|".join(["---", *["---:"] * (len(header) - 1)]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
