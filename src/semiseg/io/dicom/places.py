"""How a path names a series: a folder, a zip or a file that holds one, or `FOLDER/series-ID` of several.

`series-ID` is no file. ID is the hash of the SeriesInstanceUID; after it may stand `.` and the hash of the sub-folder
or the zip that the series lies in, so that nothing else is opened, and `-resampled`, which asks for a regular grid. So
neither UIDs nor names of sub-folders and zips get into runs, logs and pages. `semiseg check --paths` is the way back.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from semiseg.errors import DataError
from semiseg.io.dicom.series import Series, Unusable, find_series, hashed, without_uid
from semiseg.io.dicom.sources import files_of, is_zip
from semiseg.io.file_kinds import has_dicom_mark, is_dicom_name, is_scan, visible
from semiseg.words import counted, shortened

SERIES = "series-"
"""What the last part of a path begins with that names a series, and no file."""
_NAME = re.compile(rf"{SERIES}(?P<id>[0-9a-f]{{12}})(\.(?P<within>[0-9a-f]{{8}}))?(?P<resampled>-resampled)?")
_ENDING = "-resampled"
EVERY = "all"
"""What `--series` takes for each series that can be used."""
_SHOWN = 8


@dataclass(frozen=True)
class Place:
    """A folder, a zip or a file; id: of the series that is meant, empty for the only one. within: the hash of the
    sub-folder or the zip that it lies in, empty for the folder itself."""

    folder: Path
    id: str = ""
    within: str = ""
    resample: bool = False


@dataclass(frozen=True)
class Chosen:
    """series: that are scans. several: a sentence on each folder that holds more than one which could be meant. why:
    nothing could be chosen at all."""

    series: tuple[Series, ...] = ()
    several: tuple[str, ...] = ()
    why: str = ""


def place_of(path: Path) -> Place | None:
    """What a path names, None where that is no DICOM."""
    if (match := _NAME.fullmatch(path.name)) and not path.exists():
        return Place(path.parent, match["id"], match["within"] or "", bool(match["resampled"]))
    if is_scan(path):
        return None
    if path.is_dir() or is_zip(path) or (path.is_file() and (is_dicom_name(path) or has_dicom_mark(path))):
        return Place(path)
    return None


def path_of(place: Path, found: Series | Unusable, *, resample: bool = False) -> Path:
    """The path that names a series of a place, or of a zip below it, from here on."""
    common = _holder(common_folder(found)) if place.is_dir() else place
    within = f".{_hash_of(common, place)}" if common != place and common.is_relative_to(place) else ""
    resampled = _ENDING if resample and isinstance(found, Series) and found.regular else ""
    return place / f"{SERIES}{found.id}{within}{resampled}"


def called(place: Path, folder: Path, found: Sequence[Series | Unusable]) -> Path:
    """What messages call a place: a zip below the folder that was named is called by the first of its series, as its
    name may be a patient's; by its own name where no series is in it."""
    one = next((one for one in found if one.id), None)
    return place if one is None or place == folder else path_of(folder, one)


def is_only(place: Place) -> bool:
    """Whether the series that is meant is the only one of its folder, zip or file that could be."""
    try:
        found = _found(replace(place, id="", within=""))
    except DataError:  # said when the scan is read
        return False
    return [one.id for one in found if isinstance(one, Series) or one.mendable] == [place.id]


def series_of(path: Path) -> Series:
    """The series that a path names. Raises `DataError` where there is none, or not one alone, or it is no volume."""
    one = found_at(path)
    if isinstance(one, Series):
        return one
    if one.series is None:
        raise DataError(f"{path}: {one.why}")
    return one.series


def found_at(path: Path) -> Series | Unusable:
    """The same, also where it is no volume."""
    place = place_of(path)
    if place is None:
        raise DataError(f"{path}: no DICOM. Name a folder, a zip or a file of it.")
    found = _found(place)
    if not place.id:
        return the_one(path, found)
    if place.within and all(one.id != place.id for one in found):  # told apart from volumes of its series elsewhere
        found = _found(replace(place, within=""))
    if (one := next((one for one in found if one.id == place.id), None)) is None:
        raise DataError(f"{path}: the series is no longer there. Restore it, or prepare the run again.")
    return one


def common_folder(found: Series | Unusable) -> Path:
    """The folder that all files of a series lie in; of a zip one within it (`scans.zip/inner`)."""
    return Path(os.path.commonpath([file.parent for file in found.files]))


def choose(place: Path, found: Sequence[Series | Unusable], asked: str = "") -> Chosen:
    """The series of a place that are scans: the only one in each of its folders, or those that are asked for by id,
    UID or a part of the description (again one in each folder, unless it is `all`)."""
    matching = list(found)
    if asked and asked != EVERY:
        named = [one for one in found if one.id and one.id == without_uid(asked)]
        matching = named or [one for one in found if _is_asked(one, asked)]
        if not matching:
            return Chosen(why=f"no series fits --series {asked}. {listed(found)}")
        usable = [series for one in matching if (series := one if isinstance(one, Series) else one.series)]
    else:
        usable = [one for one in found if isinstance(one, Series)]
    if not usable:
        return Chosen(why=f"no series that is a volume. {_first_reasons(matching)}")
    if asked == EVERY:
        return Chosen(tuple(usable))
    together = _by_folder(usable)
    remedy = f"Add --series ID, a part of a description (`semiseg check {place}` shows them), or --series all."
    several = tuple(
        f"{counted(len(group), 'series', 'series')} in one folder. {listed(group)} {remedy}"
        for group in together
        if len(group) > 1
    )
    return Chosen(tuple(group[0] for group in together if len(group) == 1), several)


def the_one(place: Path, found: Sequence[Series | Unusable], asked: str = "") -> Series:
    """The one series of a place. Raises `DataError` where there is none, or several could be meant, among them such as
    are not regular."""
    chosen = choose(place, found, asked)
    if chosen.why or chosen.several:
        raise DataError(f"{place}: {chosen.why or chosen.several[0]}")
    others = [one for one in found if isinstance(one, Unusable) and one.mendable and not asked]
    candidates: list[Series | Unusable] = [*chosen.series, *others]
    if len(candidates) > 1:
        count = counted(len(candidates), "series", "series")
        raise DataError(f"{place}: {count}, but one is wanted. {listed(candidates)} Name one with --series ID.")
    return chosen.series[0]


def left_out(found: Sequence[Unusable]) -> list[str]:
    """Sentences on series and files that nobody takes for scans, one for all of a kind."""
    series = Counter(one.why for one in found if one.id)
    said = [f"{counted(count, 'series', 'series')} left out: {why}" for why, count in series.items()]
    return said + [passed_over(one) for one in found if not one.id]


def passed_over(one: Unusable) -> str:
    """A sentence on files that are of no series."""
    kind = f" of {one.modality}" if one.modality else ""
    names = shortened([file.name for file in one.files], 3)
    return f"{counted(len(one.files), 'other DICOM file')}{kind} ({names}): {one.why}"


def _by_folder(series: Sequence[Series]) -> list[list[Series]]:
    """Series in groups, of which each shares a folder with another of its group: a person is to say which is meant."""
    groups: list[tuple[set[Path], list[Series]]] = []
    for one in series:
        folders, group = {file.parent if len(set(one.files)) > 1 else file for file in one.files}, [one]
        for other in [other for other in groups if other[0] & folders]:
            groups.remove(other)
            folders, group = folders | other[0], [*other[1], *group]
        groups.append((folders, group))
    return [group for _, group in groups]


def _is_asked(one: Series | Unusable, asked: str) -> bool:
    if asked in (one.uid, one.id, hashed(one.uid)):
        return bool(one.id)
    return asked.lower() in one.description.lower()


def listed(found: Sequence[Series | Unusable]) -> str:
    """Series in a sentence, by id and size; nothing of theirs that could name a patient."""
    with_id = [one for one in found if one.id]
    shown = "; ".join(_short(one) for one in with_id[:_SHOWN])
    more = f"; and {len(with_id) - _SHOWN} more" if len(with_id) > _SHOWN else ""
    return f"There are: {shown}{more}." if with_id else "There is none."


def _short(one: Series | Unusable) -> str:
    if isinstance(one, Unusable):
        what = "not regular" if one.mendable else "no volume, or left out"
        return f"{one.id} ({one.modality}, {counted(len(one.files), 'image')}, {what})"
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


def _holder(folder: Path) -> Path:
    """A folder, or the zip that it lies in."""
    return next((above for above in (folder, *folder.parents) if is_zip(above)), folder)


def _hash_of(folder: Path, place: Path) -> str:
    return hashed(folder.relative_to(place).as_posix(), 8)


def _folder_of(place: Place) -> Path:
    """The folder, or the zip, that holds all files of the series."""
    if not place.within:
        return place.folder
    for _ in range(2):
        if (found := _folders_below(place.folder).get(place.within)) and found.exists():
            return found
        _folders_below.cache_clear()  # folders may have come since
    raise DataError(
        f"{place.folder / (SERIES + place.id)}: the series is no longer there. Restore it, or prepare the run again."
    )


@lru_cache(maxsize=16)
def _folders_below(folder: Path) -> dict[str, Path]:
    """All folders and zips below one, linked ones too, by their hashes."""
    files = visible(folder, deep=True)
    below = {above for one in {file.parent for file in files} for above in (one, *one.parents)}
    below = {one for one in below if folder in one.parents} | {file for file in files if is_zip(file)}
    return {_hash_of(one, folder): one for one in below}


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
