"""How a path names a series: a folder, a zip or a file that holds one, or `FOLDER/series-ID` of several.

`series-ID` is no file. ID is the hash of the SeriesInstanceUID; after it may stand `.` and the hash of the sub-folder
that the series lies in, so that nothing else is opened, and `-resampled`, which asks for a regular grid. So neither
UIDs nor names of sub-folders get into runs, logs and pages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from semiseg.errors import DataError
from semiseg.io.dicom.series import Series, Unusable, find_series, hashed
from semiseg.io.dicom.sources import files_of, is_zip
from semiseg.io.file_kinds import has_dicom_mark, is_dicom_name, is_scan, visible
from semiseg.words import counted

_NAME = re.compile(r"series-(?P<id>[0-9a-f]{12})(\.(?P<within>[0-9a-f]{8}))?(?P<resampled>-resampled)?")
_ENDING = "-resampled"
EVERY = "all"
"""What `--series` takes for each series that can be used."""
_SHOWN = 8


@dataclass(frozen=True)
class Place:
    """A folder, a zip or a file; id: of the series that is meant, empty for the only one. within: the hash of the
    sub-folder that it lies in, empty for the folder itself."""

    folder: Path
    id: str = ""
    within: str = ""
    resample: bool = False


def place_of(path: Path) -> Place | None:
    """What a path names, None where that is no DICOM."""
    if (match := _NAME.fullmatch(path.name)) and not path.exists():
        return Place(path.parent, match["id"], match["within"] or "", bool(match["resampled"]))
    if is_scan(path):
        return None
    if path.is_dir() or is_zip(path) or (path.is_file() and (is_dicom_name(path) or has_dicom_mark(path))):
        return Place(path)
    return None


def holds_dicom(folder: Path) -> bool:
    """Whether a folder, at any depth, or a zip is one of DICOM, by names and marks of its files."""
    if is_zip(folder):
        return True
    return any(is_dicom_name(file) or has_dicom_mark(file) for file in visible(folder, deep=True))


def path_of(place: Path, found: Series | Unusable, *, resample: bool = False) -> Path:
    """The path that names a series of a place from here on."""
    common = Path(os.path.commonpath([file.parent for file in found.files])) if place.is_dir() else place
    within = f".{_hash_of(common, place)}" if common != place and common.is_relative_to(place) else ""
    resampled = _ENDING if resample and isinstance(found, Series) and found.regular else ""
    return place / f"series-{found.id}{within}{resampled}"


def series_of(path: Path) -> Series:
    """The series that a path names. Raises `DataError` where there is none, or not one alone, or it is no volume."""
    place = place_of(path)
    if place is None:
        raise DataError(f"{path}: no DICOM. Name a folder, a zip or a file of it.")
    found = _found(place)
    if place.id:
        one = next((one for one in found if one.id == place.id), None)
        if one is None:
            raise DataError(f"{path}: the series is no longer there. Restore it, or prepare the run again.")
        if isinstance(one, Series):
            return one
        if one.series is None:
            raise DataError(f"{path}: {one.why}")
        return one.series
    chosen = choose(place.folder, found)
    if isinstance(chosen, str):
        raise DataError(f"{path}: {chosen}")
    return chosen[0]


def choose(place: Path, found: Sequence[Series | Unusable], asked: str = "") -> list[Series] | str:
    """The series of a place that are meant: the only one that can be used, or those that are asked for by id, UID or a
    part of the description (of each of its folders one, unless `all` or what is asked for names it); or why there is
    none, as the rest of a sentence with the remedy."""
    if asked and asked != EVERY:
        matching = [one for one in found if _is_asked(one, asked)]
        if not matching:
            return f"no series fits --series {asked}. {listed(found)}"
        usable = [series for one in matching if (series := one if isinstance(one, Series) else one.series)]
    else:
        matching = list(found)
        usable = [one for one in found if isinstance(one, Series)]
    if not usable:
        return f"no series that is a volume. {_first_reasons(matching)}"
    if asked != EVERY and (several := _beside_each_other(usable)):
        count = counted(len(several), "series", "series")
        return f"{count} that could be meant. {listed(several)} {_say_which(place)}"
    return usable


def _say_which(place: Path) -> str:
    return f"Add --series ID, or a part of a description (`semiseg check {place}` shows them), or --series all."


def _is_asked(one: Series | Unusable, asked: str) -> bool:
    if asked in (one.uid, one.id, hashed(one.uid)):
        return bool(one.id)
    return asked.lower() in one.description.lower()


def _beside_each_other(series: Sequence[Series]) -> list[Series]:
    """Series of which files lie in one folder, so that a person is to say which is meant."""
    by_folder: dict[Path, list[Series]] = {}
    for one in series:
        for folder in {file.parent if len(set(one.files)) > 1 else file for file in one.files}:
            by_folder.setdefault(folder, []).append(one)
    return next((found for found in by_folder.values() if len(found) > 1), [])


def listed(found: Sequence[Series | Unusable]) -> str:
    """Series in a sentence, by id and size; nothing of theirs that could name a patient."""
    with_id = [one for one in found if one.id]
    shown = "; ".join(_short(one) for one in with_id[:_SHOWN])
    more = f"; and {len(with_id) - _SHOWN} more" if len(with_id) > _SHOWN else ""
    return f"There are: {shown}{more}." if with_id else "There is none."


def _short(one: Series | Unusable) -> str:
    if isinstance(one, Unusable):
        return f"{one.id} ({one.modality}, {counted(len(one.files), 'image')}, no volume or left out)"
    columns, rows, slices = size_of(one)
    mm = " x ".join(f"{v:.3g}" for v in one.grid.stored_mm)
    return f"{one.id} ({one.modality}, {columns} x {rows} x {slices}, {mm} mm)"


def size_of(one: Series) -> tuple[int, int, int]:
    """Columns, rows and slices of a series as its files have them."""
    pixels = one.slices[0].pixels
    return pixels.columns, pixels.rows, len(one.files)


def _first_reasons(found: Sequence[Series | Unusable]) -> str:
    reasons = list(dict.fromkeys(one.why for one in found if isinstance(one, Unusable)))
    return " ".join(reasons[:3]) or "No DICOM image is in it."


def _hash_of(folder: Path, place: Path) -> str:
    return hashed(folder.relative_to(place).as_posix(), 8)


def _folder_of(place: Place) -> Path:
    """The folder that holds all files of the series."""
    if not place.within:
        return place.folder
    for folder in _folders_below(place.folder):
        if _hash_of(folder, place.folder) == place.within:
            return folder
    raise DataError(f"{place.folder / place.id}: the series is no longer there. Restore it, or prepare the run again.")


@lru_cache(maxsize=16)
def _folders_below(folder: Path) -> list[Path]:
    return [Path(path) for path, *_ in os.walk(folder, followlinks=False)]


def stamp_of(path: Path) -> tuple[int, int]:
    """Bytes in all and the latest time of the files among which a series lies: they change with them."""
    place = place_of(path)
    if place is None:
        raise FileNotFoundError(2, "No such file or directory", str(path))
    folder = _folder_of(place)
    stats = [file.stat() for file in ([folder] if is_zip(folder) else files_of(folder))]
    return sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)


def _found(place: Place) -> list[Series | Unusable]:
    folder = _folder_of(place)
    if not folder.exists():
        raise DataError(f"{folder}: there is no such file or folder.")
    stats = stamp_of(folder)
    return _known_series(folder, stats, place.resample)


@lru_cache(maxsize=32)
def _known_series(folder: Path, stamp: tuple[int, int], resample: bool) -> list[Series | Unusable]:
    del stamp
    return find_series(folder, resample=resample)
