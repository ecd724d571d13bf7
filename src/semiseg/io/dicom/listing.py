"""The series of a place, for the terminal: the one place where descriptions and names of sub-folders are shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from semiseg.errors import DataError
from semiseg.io.dicom.places import choose, common_folder, found_at, passed_over, path_of, place_of, size_of
from semiseg.io.dicom.series import Series, Unusable
from semiseg.words import counted, printable, shortened

_PLAIN_WIDTH = 140
_MOST_DESCRIPTION = 40


def print_series(place: Path, found: Sequence[Series | Unusable], asked: str = "", *, paths: bool = False) -> bool:
    """Print all series and what would be read of them; whether that is anything. paths: also where they lie."""
    console = _console()
    chosen = choose(place, found, asked)
    series = [one for one in found if one.id]
    if series:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("id", "description", "", "matrix", "slices", "spacing (mm)", ""):
            table.add_column(name, overflow="fold")
        for one in series:
            table.add_row(*map(Text, _row(one)))
        console.print(table)
    if paths:
        _print_places(console, place, [(path_of(place, one).name, "", one) for one in series])
    elif series:
        console.print("Where each lies: add --paths.")
    for one in found:
        if isinstance(one, Unusable) and not one.id:
            console.print(Text(printable(passed_over(one))))
    for text in (chosen.why, *chosen.several):
        if text:
            console.print(Text(printable(text[:1].upper() + text[1:]), "bold"))
    if chosen.series:
        console.print(Text(f"{counted(len(chosen.series), 'scan')} to be read.", "bold"))
    return bool(chosen.series) and not chosen.several


def print_places(root: Path, images: Iterable[tuple[str, Path]]) -> None:
    """Print where the series of DICOM of a data set lie. images: paths of scans, and of such as are none, with the case
    that each is."""
    found: dict[tuple[str, Path], tuple[str, str, Series | Unusable]] = {}  # a series may lie in two places
    for case, path in images:
        if (place := place_of(path)) and place.id:
            with suppress(DataError):  # it is gone meanwhile
                one = found_at(path)
                found.setdefault((one.id, common_folder(one)), (path.name, case, one))
    console = _console()
    if found:
        _print_places(console, root, list(found.values()))
    else:
        console.print("No series of DICOM is in this data set.")


def _print_places(console: Console, root: Path, found: Sequence[tuple[str, str, Series | Unusable]]) -> None:
    """found: with the name that messages have for each, and the case that it is, empty for none."""
    files = [file for _, _, one in found for file in set(one.files)]
    shared = Counter(file.parent for file in files)
    for name, case, one in found:
        folder = common_folder(one)
        where = str(folder.relative_to(root)) if folder.is_relative_to(root) else str(folder)
        own = Counter(file.parent for file in set(one.files))
        if any(shared[parent] > count for parent, count in own.items()):  # others lie there, too
            where += f": {shortened([file.name for file in dict.fromkeys(one.files)], 3)}"
        called = f"  case {case}" if case else ""
        console.print(Text(printable(f"{name}{called}  {where}")), soft_wrap=True)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)


def _row(one: Series | Unusable) -> tuple[str, ...]:
    description = printable(one.description.replace("\n", " "))[:_MOST_DESCRIPTION]
    if isinstance(one, Series):
        columns, rows, slices = size_of(one)
        mm = " x ".join(f"{v:.4g}" for v in one.grid.stored_mm)
        note = printable(one.made_regular[:1].upper() + one.made_regular[1:])
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
