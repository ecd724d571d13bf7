"""The series of a place as a table for the terminal: the one place where descriptions are shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from semiseg.io.dicom.places import choose, passed_over, size_of
from semiseg.io.dicom.series import Series, Unusable
from semiseg.words import counted, printable

_PLAIN_WIDTH = 140
_MOST_DESCRIPTION = 40


def print_series(place: Path, found: Sequence[Series | Unusable], asked: str = "") -> bool:
    """Print all series and what would be read of them; whether that is anything."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    chosen = choose(place, found, asked)
    series = [one for one in found if one.id]
    if series:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("id", "description", "", "matrix", "slices", "spacing (mm)", ""):
            table.add_column(name, overflow="fold")
        for one in series:
            table.add_row(*map(Text, _row(one)))
        console.print(table)
    for one in found:
        if isinstance(one, Unusable) and not one.id:
            console.print(Text(printable(passed_over(one))))
    for text in (chosen.why, *chosen.several):
        if text:
            console.print(Text(printable(text[:1].upper() + text[1:]), "bold"))
    if chosen.series:
        console.print(Text(f"{counted(len(chosen.series), 'scan')} to be read.", "bold"))
    return bool(chosen.series) and not chosen.several


def _row(one: Series | Unusable) -> tuple[str, ...]:
    description = printable(one.description.replace("\n", " "))[:_MOST_DESCRIPTION]
    if isinstance(one, Series):
        columns, rows, slices = size_of(one)
        mm = " x ".join(f"{v:.4g}" for v in one.grid.stored_mm)
        note = "made regular" if one.regular else ""
        return one.id, description, one.modality, f"{columns} x {rows}", str(slices), mm, note
    pixels, spacing = one.slices[0].pixels, one.slices[0].spacing
    mm = "" if spacing is None else f"{spacing[1]:.4g} x {spacing[0]:.4g}"
    return (
        one.id,
        description,
        one.modality,
        f"{pixels.columns} x {pixels.rows}",
        str(len(one.files)),
        mm,
        printable(one.why),
    )
