"""Which scans to predict: files and folders grouped into cases."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from semiseg.errors import ConfigError, DataError
from semiseg.io.dicom.places import EVERY, called, choose, is_only, left_out, path_of, place_of, series_of
from semiseg.io.dicom.series import Unusable, find_series
from semiseg.io.dicom.sources import is_zip
from semiseg.io.file_kinds import (
    ENDINGS_TEXT,
    TO_NIFTI,
    is_read,
    is_scan,
    kind_of,
    stem,
    visible,
    what_it_holds,
    why_unread,
)
from semiseg.io.layouts.masks import SCANS
from semiseg.io.layouts.series import labelled_name

_CHANNEL = re.compile(r"(?P<id>.+)_(?P<channel>\d{4})$")
_LABEL_FOLDER = re.compile(
    r"(labels|masks|segmentations).*|(label|mask|segmentation)(Tr|Ts|Un)?([^a-z].*)?", re.IGNORECASE
)
"""Not `labelled` and `masked`, which scans are."""
_LABEL_FILE = re.compile(r"labels?|seg|segmentation|mask", re.IGNORECASE)
_SHOWN = 5
"""So many files that are not read are named, and then how many more there are."""

_Grouped = dict[str, dict[int, Path]]


@dataclass(frozen=True)
class Scan:
    """One scan to predict: its id names the output; one image per channel (or one 4D image)."""

    id: str
    images: tuple[Path, ...]


def refuse_among_scans(output: Path | None, folders: Iterable[Path]) -> None:
    """Raise `ConfigError` where label maps would go into one of these folders of scans."""
    if output is not None and output.resolve() in {folder.resolve() for folder in folders}:
        raise ConfigError(
            f"{output}: is the scans' own folder, where label maps would be taken for scans. Name another folder with "
            "--output."
        )


def find_scans(
    inputs: Sequence[Path],
    *,
    output: Path | None = None,
    series: str = "",
    resample: bool = False,
    say: Callable[[str], None] | None = None,
) -> list[Scan]:
    """Group `ID_0000.nii.gz`, `ID_0001.nii.gz` (channels) or `ID.nii.gz` into scans, sorted by id.

    Of folders also the sub-folders are read, but for those of label maps and of predictions. Where scans of several
    sub-folders share a name, that of the sub-folder stands in front of the id; where a scan is `ct` or `mri` and alone
    in its sub-folder, it is the id. Numbers that do not run from 0000 on without a gap belong to the names: they are no
    channels. output: a folder that is not looked into. say: told of each file that is not read, the first five.

    A folder, a zip or a file of DICOM gives a scan for each series, whose id is the hash of the SeriesInstanceUID, or
    in a data set's folder of images the name of its label. series: UID, id, part of a description, or `all`, where one
    folder holds several. resample: also those that lie on no regular grid.

    Raises `DataError` for no or a missing input, a folder without scans, two files that claim one channel of one id,
    and series of which it is not said which is meant; `ConfigError` where `output` is one of the inputs itself.
    """
    if not inputs:
        raise DataError("no scans: name files, or folders of scans.")
    grouped: defaultdict[str, _Grouped] = defaultdict(dict)  # by sub-folder: channels of a scan lie in one folder
    unread: list[str] = []
    of_dicom: list[tuple[str, Scan]] = []
    for path in inputs:
        files: list[tuple[Path, str]] = []
        if path.is_dir():
            refuse_among_scans(output, [path])
            files, slices, zips, not_read = _in_folder(path, output)
            unread += not_read
            heap, places = _places(path, slices, zips)
            alone = not files and bool(heap) + len(places) == 1
            if heap:
                of_dicom += _series(path, heap, series, resample, unread, alone=alone)
            for one, name in places.items():
                of_dicom += _series(one, None, series, resample, unread, alone=alone, name=name, below=path)
            if not files and not slices and not zips:
                raise DataError(f"{path}: {_no_scan(path, not_read)}")
        elif not is_scan(path.name) and (place := place_of(path)):
            if place.id:
                name = labelled_name(place.folder)
                of_dicom.append(("", Scan(name if name and is_only(place) else place.id, (path,))))
            else:
                name = labelled_name(path)
                of_dicom += _series(path, None, series, resample, unread, alone=True, name=name)
        elif path.is_file():
            files = [(path, "")]
        else:
            raise DataError(f"{path}: there is no such file or folder.")
        for file, sub_folder in files:
            _add(grouped[sub_folder], file)
    if say:
        for _, scan in of_dicom if resample else ():
            if (place := place_of(scan.images[0])) and place.resample:
                say(f"{scan.id}: {series_of(scan.images[0]).made_regular}")
        for text in unread[:_SHOWN]:
            say(text)
        if len(unread) > _SHOWN:
            say(f"{len(unread) - _SHOWN} more files or folders are not read either.")
    scans = [(sub_folder, scan) for sub_folder, found in grouped.items() for scan in _scans(found)]
    if not scans and not of_dicom:
        raise DataError(f"no scan is left to be read. {unread[0]}")
    return _by_id([*scans, *of_dicom])


def _places(folder: Path, slices: Sequence[Path], zips: Sequence[Path]) -> tuple[list[Path], dict[Path, str]]:
    """The files that are looked through together; and what is a scan of its own: zips, and folders and files that a
    label of a data set is called as, each with that name (else empty)."""

    @cache
    def labelled(place: Path) -> Path | None:
        """The place itself or the folder above it that a label is called as."""
        if labelled_name(place):
            return place
        return None if place == folder else labelled(place.parent)

    heap: list[Path] = []
    places: dict[Path, str] = {}
    for file in slices:
        if place := labelled(file):
            places[place] = labelled_name(place)
        else:
            heap.append(file)
    return heap, places | {archive: labelled_name(archive) for archive in zips}


def _series(
    place: Path,
    files: list[Path] | None,
    asked: str,
    resample: bool,
    unread: list[str],
    *,
    alone: bool,
    name: str = "",
    below: Path | None = None,
) -> list[tuple[str, Scan]]:
    """The series of DICOM of a place, each a scan, and a sentence for each that is none. alone: nothing else is there
    to be predicted. name: of the only one. below: the folder that was named, where this is a place in it."""
    if below is None or name:
        below = place
    try:
        found = find_series(place, files=files, resample=resample)
    except DataError as error:
        if alone:
            raise
        unread.append(str(error))
        return []
    chosen = choose(below, found, asked)
    at = called(place, below, found)
    if chosen.several and not chosen.series and alone:
        raise DataError(f"{at}: {chosen.several[0]}")
    unread += [f"{at}: {text}" for text in chosen.several]
    if chosen.why:
        if alone:
            raise DataError(f"{at}: {chosen.why}")
        unread.append(f"{at}: {chosen.why}")
    elif not asked or asked == EVERY:
        others = [one for one in found if isinstance(one, Unusable)]
        unread += [f"{path_of(below, one)}: left out: {one.why}" for one in others if one.id and not one.left_out]
        unread += [f"{at}: {text}" for text in left_out([one for one in others if one.left_out or not one.id])]
    name = name if len(chosen.series) == 1 else ""
    return [("", Scan(name or one.id, (path_of(below, one, resample=resample),))) for one in chosen.series]


def _in_folder(folder: Path, output: Path | None) -> tuple[list[tuple[Path, str]], list[Path], list[Path], list[str]]:
    """The scans below a folder, each with the sub-folder's name (empty in the folder itself); the files of DICOM; zips;
    and a sentence for each file and folder that is not read."""
    files: list[tuple[Path, str]] = []
    unread: list[str] = []
    slices: list[Path] = []
    zips: list[Path] = []
    skipped: list[str] = []
    leave_out = None if output is None else output.resolve()

    @cache  # there may be thousands of files in it
    def is_closed(place: Path) -> bool:
        """Whether a folder is not looked into, or one above it, of which the outermost is named."""
        if place == folder:  # which was named
            return False
        if is_closed(place.parent) or place.resolve() == leave_out:
            return True
        if why := _why_closed(place):
            skipped.append(f"{place}: {why}")
        return bool(why)

    for file in visible(folder, deep=True):
        if is_closed(file.parent):
            continue
        if is_scan(file.name) and file.is_file():
            files.append((file, "_".join(file.relative_to(folder).parts[:-1])))
        elif file.is_symlink() and not file.exists():
            unread.append(f"{file}: not read: a link to {file.readlink()}, which is not there.")
        elif kind_of(file) == "dicom":
            slices.append(file)
        elif is_zip(file):
            zips.append(file)
        elif why := why_unread(file):
            unread.append(f"{file}: {why}")
    scans = Counter(file.parent for file, _ in files if not _LABEL_FILE.fullmatch(stem(file)))
    labels = dict.fromkeys(file for file, _ in files if _LABEL_FILE.fullmatch(stem(file)) and scans[file.parent])
    skipped += [f"{file}: not read: a label map, by its name. If it is a scan, name this file." for file in labels]
    return [(file, name) for file, name in files if file not in labels], slices, zips, skipped + unread


def _why_closed(folder: Path) -> str:
    """What to say of a sub-folder that is not looked into; empty for one that is."""
    if (folder / "predictions.jsonl").exists():
        return "not read: label maps that semiseg predicted. To predict on them all the same, name this folder."
    if _LABEL_FOLDER.fullmatch(folder.name):
        return "not read: label maps, by its name. If these are scans, name this folder."
    return ""


def _no_scan(folder: Path, unread: Sequence[str]) -> str:
    """What to say of a folder without a scan."""
    holds = what_it_holds(folder)
    if holds and not is_read(holds):
        return f"no scan that is read: {holds}. {TO_NIFTI}"
    said = f"no DICOM and no {ENDINGS_TEXT} file in this folder or below it. Name the folder of the scans."
    return " ".join([said, *unread[:1]])


def _add(grouped: _Grouped, file: Path) -> None:
    match = _CHANNEL.match(stem(file))
    scan, channel = (match["id"], int(match["channel"])) if match else (stem(file), 0)
    taken = grouped.setdefault(scan, {})
    if channel in taken:
        raise DataError(f"{file}: {taken[channel]} is channel {channel} of {scan} too. Rename or remove one of them.")
    taken[channel] = file


def _scans(grouped: _Grouped) -> list[Scan]:
    scans: list[Scan] = []
    for name, channels in grouped.items():
        if sorted(channels) == list(range(len(channels))):
            scans.append(Scan(name, tuple(channels[c] for c in sorted(channels))))
        else:
            scans += [Scan(stem(file), (file,)) for file in channels.values()]
    return scans


def _by_id(scans: Sequence[tuple[str, Scan]]) -> list[Scan]:
    """Scans sorted by their ids, which are made unique by the names of sub-folders. Raises `DataError` where they
    cannot be."""
    uses = Counter(scan.id for _, scan in scans)
    in_folder = Counter(sub_folder for sub_folder, _ in scans)
    by_id: dict[str, Scan] = {}
    for sub_folder, found in scans:
        scan = replace(found, id=f"{sub_folder}_{found.id}") if sub_folder and uses[found.id] > 1 else found
        if sub_folder and found.id in SCANS and in_folder[sub_folder] == 1:  # a set of masks calls cases by folders
            scan = replace(found, id=sub_folder)
        if scan.id in by_id:
            raise DataError(_same_id(scan, by_id[scan.id].images[0]))
        by_id[scan.id] = scan
    return [by_id[key] for key in sorted(by_id)]


def _same_id(scan: Scan, first: Path) -> str:
    """What to say of a scan that has the id of an earlier one."""
    image = scan.images[0]
    place, other = place_of(image), place_of(first)
    if place and other and place.id and place.id == other.id:
        if image == first:
            return f"{image}: this series is named twice. Name it once."
        where = " and ".join(f"`semiseg check {one} --paths`" for one in dict.fromkeys([other.folder, place.folder]))
        return f"{image}: the same series lies twice, also as {first}. To see where: {where}. Remove one of the two."
    return f"{image}: {first} has the id {scan.id} too. Rename one."
