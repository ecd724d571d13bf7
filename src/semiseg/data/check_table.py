"""The check's report for the terminal: what was found, every problem with its remedy, a one-line verdict."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from semiseg.data.check import CheckReport
from semiseg.data.check_case import CaseFacts, Problem, Severity
from semiseg.types import AnyArray
from semiseg.words import counted

_PLAIN_WIDTH = 100
_SHOWN = 5
"""So many problems of one kind are printed, and then how many more there are."""
_KIND_LENGTH = 60
_STYLES: dict[Severity, str] = {"error": "bold red", "warning": "bold yellow", "note": "cyan"}


def print_check(report: CheckReport, console: Console | None = None) -> None:
    """Print the report; plain text of 100 columns where the output is no terminal."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=_PLAIN_WIDTH)
    console.print()
    console.print(Text.assemble((report.name, "bold"), f"  {report.root}"))
    console.print(_summary(report))
    if sizes := _sizes(report.cases):
        console.print(sizes)
    console.print(_labels(report))
    alike = Counter(_kind(problem) for problem in report.problems)
    printed: Counter[str] = Counter()
    for problem in report.problems:
        kind = _kind(problem)
        printed[kind] += 1
        if printed[kind] <= _SHOWN or alike[kind] <= _SHOWN + 1:
            console.print(Text.assemble((problem.severity, _STYLES[problem.severity]), "  ", (problem.file, "bold")))
            console.print(Padding(Text(problem.text), (0, 0, 0, 4)))
        elif printed[kind] == _SHOWN + 1:
            text = f"    and {alike[kind] - _SHOWN} more {problem.severity}s of the same kind, on other files"
            console.print(Text(text, _STYLES[problem.severity]))
    if report.problems:
        console.print()
    console.print(_verdict(report))


def _summary(report: CheckReport) -> Table:
    """Facts that fit on a line each."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    roles = Counter(case.role for case in report.cases)
    table.add_row("layout", report.layout)
    table.add_row("cases", f"{roles['labelled']} labelled, {roles['unlabelled']} unlabelled, {roles['test']} test")
    table.add_row("channels", Text(", ".join(report.channels)))
    orientations = Counter(case.orientation for case in report.cases if case.orientation)
    listed = ", ".join(f"{name} {count}" for name, count in orientations.most_common())
    table.add_row("orientation", listed or "unknown")
    if report.target_spacing_mm:
        spacing = " × ".join(f"{mm:.3g}" for mm in report.target_spacing_mm)
        size = f"at most {_bytes(report.disk_bytes)} at {spacing} mm (Z, Y, X), before compression"
        table.add_row("to prepare", size)
    if pairs := report.labels.mirror_pairs:
        names = report.labels.names
        table.add_row("mirror pairs", Text(", ".join(f"{names[a]} | {names[b]}" for a, b in pairs)))
    return table


def _sizes(cases: Sequence[CaseFacts]) -> Table | None:
    """Smallest, median and largest size by axis."""
    shapes = np.array([case.shape_zyx for case in cases if case.shape_zyx])
    spacings = np.array([case.spacing_mm for case in cases if case.spacing_mm])
    if not shapes.size:
        return None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("axis")
    for name in ("voxels min", "median", "max", "spacing mm min", "median", "max"):
        table.add_column(name, justify="right")
    for axis, name in enumerate(("Z (to the head)", "Y (to the front)", "X (to the right)")):
        numbers = [f"{value:.0f}" for value in _spread(shapes[:, axis])]
        table.add_row(name, *numbers, *(f"{value:.3g}" for value in _spread(spacings[:, axis])))
    return table


def _spread(values: AnyArray) -> tuple[float, float, float]:
    return float(values.min()), float(np.median(values)), float(values.max())


def _labels(report: CheckReport) -> Table:
    """Cases and voxels by label value, training and test apart."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("value", justify="right")
    table.add_column("label")
    for name in ("labelled cases", "voxels", "share", "test cases", "voxels"):
        table.add_column(name, justify="right")
    train = [case.label_voxels for case in report.cases if case.role == "labelled" and case.label_voxels]
    test = [case.label_voxels for case in report.cases if case.role == "test" and case.label_voxels]
    total = sum(sum(voxels.values()) for voxels in train)
    names = dict(report.labels.names)
    if report.labels.ignore is not None:
        names[report.labels.ignore] = "ignore"
    found = sorted({value for voxels in (*train, *test) for value in voxels} - set(names))
    for value, name in (names | dict.fromkeys(found, "not in the list")).items():
        count, voxels = _count(train, value)
        test_count, test_voxels = _count(test, value)
        share = f"{100 * voxels / total:.3g} %" if total else ""
        row = (str(value), Text(name), str(count), f"{voxels:,}", share, str(test_count), f"{test_voxels:,}")
        table.add_row(*row, style="bold red" if value in found else None)
    return table


def _count(maps: Sequence[dict[int, int]], value: int) -> tuple[int, int]:
    return sum(value in voxels for voxels in maps), sum(voxels.get(value, 0) for voxels in maps)


def _kind(problem: Problem) -> str:
    """The text without its numbers and names of files, by which problems are alike."""
    words = re.sub(r"\S*[/\\.]\S*|[-\d]+", "", problem.text)
    return f"{problem.severity} {words[:_KIND_LENGTH]}"


def _verdict(report: CheckReport) -> Text:
    counts = Counter(problem.severity for problem in report.problems)
    kinds: tuple[Severity, ...] = ("error", "warning", "note")
    parts = [counted(counts[kind], kind) for kind in kinds if counts[kind]]
    found = ", ".join(parts) or "no problems"
    if report.ok:
        return Text.assemble(("Ready", "bold green"), f": {counted(len(report.cases), 'case')}, {found}.")
    return Text.assemble(("Not ready", "bold red"), f": {found}. Mend the errors and check again.")


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
