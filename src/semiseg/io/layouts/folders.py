"""Scans in a folder: names, channel numbers, duplicates. What every layout's reader is made of."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from semiseg.errors import DataError, UnsupportedError
from semiseg.files import read_json
from semiseg.io.dataset import Case, LabelScheme, Remark, Split, unusable_id
from semiseg.io.file_kinds import TO_NIFTI, is_read, kind_of, scan_files, stem, visible, what_it_holds, why_unread
from semiseg.io.layouts.series import SeriesChoice, dicom_places, is_place, series_by_id
from semiseg.io.masks import is_mask_folder
from semiseg.words import counted, shortened

TRAINING, UNLABELLED, TEST = "imagesTr", "imagesUn", "imagesTs"
TRAINING_LABELS, TEST_LABELS = "labelsTr", "labelsTs"
CHANNEL = re.compile(r"(?P<id>.+)_(?P<channel>\d{4})")
"""nnU-Net's naming: the case, then the channel in four digits."""

UNLABELLED_NAMES = ("imagesun", "imagesul", "imagesunlabelled", "imagesunlabeled", "unlabelled", "unlabeled")
"""Folders of unlabelled scans, in any letter case."""

Problems = list[tuple[Path, str]]
Key = TypeVar("Key")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a layout's reader found; `pairs` is what the dataset declares, None if it says nothing."""

    name: str
    channels: tuple[str, ...]
    labels: LabelScheme
    cases: list[Case]
    pairs: object = None
    problems: Problems = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)


def by_stem(files: Iterable[Path], problems: Problems) -> dict[str, Path]:
    """Name to file; `a.nii` beside `a.nii.gz` or `a.nrrd` is a problem, and the first is kept."""
    found: dict[str, Path] = {}
    for file in files:
        keep_first(found, stem(file), file, problems)
    return found


def keep_first(found: dict[Key, Path], key: Key, file: Path, problems: Problems) -> None:
    """Add a file by its key; a problem where there is another one."""
    first = found.setdefault(key, file)
    if first != file:
        problems.append((file, f"the same id as {first}. Keep one of the two files."))


def references_in(folder: Path, problems: Problems) -> dict[str, Path]:
    """Label maps and folders of masks, by their names."""
    found = by_stem(scan_files(folder), problems)
    for entry in visible(folder):
        if is_mask_folder(entry):
            keep_first(found, entry.name, entry, problems)
    return found


def unlabelled_folders(root: Path) -> list[str]:
    """Names of the sub-folders that hold unlabelled scans; `imagesUn` where there is none."""
    found = [entry.name for entry in visible(root) if entry.is_dir() and entry.name.lower() in UNLABELLED_NAMES]
    return found or [UNLABELLED]


def note_unread(
    folder: Path, problems: Problems, remarks: list[Remark], *, dicom: bool = False, masks: bool = False
) -> None:
    """Add what lies in a folder of scans and is not read as one: whoever put it there thinks it is.

    One line for all of a kind. Volumes and folders of them are problems, other files remarks. dicom, masks: are read
    there.
    """
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        problems.append((folder, "may not be read. Change its permissions."))
    entries = [
        entry for entry in visible(folder) if not (dicom and is_place(entry)) and not (masks and is_mask_folder(entry))
    ]
    note_files(entries, problems, remarks)


def note_files(files: Iterable[Path], problems: Problems, remarks: list[Remark]) -> None:
    """The same for files and folders that were found."""
    volumes: defaultdict[str, list[Path]] = defaultdict(list)
    others: defaultdict[str, list[Path]] = defaultdict(list)
    for file in files:
        if file.is_symlink() and not file.exists():
            problems.append((file, f"a link to {file.readlink()}, which is not there. Restore it, or remove the link."))
        elif file.is_dir():
            if text := _why_not_looked_into(file):
                volumes[text].append(file)
        elif text := why_unread(file):
            (volumes if kind_of(file) in ("dicom", "volume") else others)[text].append(file)
    problems += [_grouped(files, text) for text, files in volumes.items()]
    remarks += [("warning", *_grouped(files, text)) for text, files in others.items()]


def _why_not_looked_into(folder: Path) -> str | None:
    """Why a folder in a folder of scans is not read, where it holds scans of any format."""
    holds = what_it_holds(folder)
    if is_read(holds):
        return "a folder in the folder of scans: it is not looked into. Move its scans up."
    return f"a folder of {' and '.join(formats_of(holds))}, which is not read here. {TO_NIFTI}" if holds else None


def formats_of(holds: str) -> list[str]:
    """`DICOM`, `.mgz`: the formats alone of what `what_it_holds` says."""
    return [part.split()[1] for part in holds.split(", ")]


def _grouped(files: list[Path], text: str) -> tuple[Path, str]:
    """One problem for all files of one kind: the first file, and the names of the others."""
    others = [file.name for file in files[1:]]
    return files[0], text + (f" The same with {counted(len(others), 'other')}: {shortened(others)}." if others else "")


def note_other_folders(root: Path, read: Collection[str], remarks: list[Remark]) -> None:
    """Add the sub-folders of a dataset's root that hold scans and are not read, and scans in the root itself.

    read: names of the sub-folders, and of files in the root, that are.
    """
    files = [entry for entry in visible(root) if entry.is_file() and entry.name not in read]
    loose = [file for file in files if kind_of(file) in ("scan", "dicom", "volume")]
    if loose:
        names = shortened([file.name for file in loose])
        text = f"{counted(len(loose), 'scan')} beside the folders, not read: {names}. Move what is meant into a folder."
        remarks.append(("warning", root, text))
    for entry in visible(root):
        if entry.is_dir() and entry.name not in read and (holds := what_it_holds(entry)):
            text = f"not read, though it holds {holds}. Unlabelled scans are read from {UNLABELLED}/: move them there."
            remarks.append(("warning", entry, text))


def note_training_count(
    description: Mapping[str, Any], file: Path, cases: Iterable[Case], remarks: list[Remark]
) -> None:
    """Add where fewer training cases have a label than a dataset.json says there are."""
    said = description.get("numTraining")
    training = [case for case in cases if case.split == "train"]
    found = [case for case in training if case.label is not None]
    if not isinstance(said, int) or isinstance(said, bool) or not 0 < len(found) < said:
        return
    rest = [case.id for case in training if case.label is None and case.images[0].parent.name == TRAINING]
    used = f"; the other {len(rest)} are" if len(rest) > 1 else "; the other one is" if rest else ""
    used += f" used as unlabelled: {shortened(rest)}" if rest else "; the others are not there"
    have = counted(len(found), "training scan has", "training scans have")
    text = f"it says numTraining = {said}, but {have} a label{used}. Add labels, or correct the number."
    remarks.append(("warning", file, text))


def folder_cases(
    root: Path,
    images: str,
    labels: str | None,
    split: Split,
    channels: tuple[str, ...],
    choice: SeriesChoice,
    problems: Problems,
    remarks: list[Remark],
) -> list[Case]:
    """The cases of one pair of folders in nnU-Net's naming; what does not fit is set aside as a problem."""
    note_unread(root / images, problems, remarks, dicom=True)
    if labels:
        note_unread(root / labels, problems, remarks)
    grouped: dict[str, dict[int, Path]] = {}
    label_files = by_stem(scan_files(root / labels), problems) if labels else {}
    for name, series in series_by_id(root / images, label_files, choice, problems, remarks).items():
        grouped[name] = {0: series}
    for name, file in by_stem(scan_files(root / images), problems).items():
        match = CHANNEL.fullmatch(name)
        if match is None:
            text = f"the name has no channel number. Rename it to {name}_0000{file.name[len(name) :]}."
            problems.append((file, text))
            continue
        grouped.setdefault(match["id"], {})[int(match["channel"])] = file
    return pair_up(grouped, label_files, split, channels, problems)


def unlabelled_series(root: Path, choice: SeriesChoice, problems: Problems, remarks: list[Remark]) -> list[Case]:
    """The series of DICOM in the folders of unlabelled scans, as cases."""
    return [
        Case(id=name, images=(path,), label=None)
        for folder in unlabelled_folders(root)
        for name, path in series_by_id(root / folder, (), choice, problems, remarks).items()
    ]


def pair_up(
    images: Mapping[str, Mapping[int, Path]],
    labels: Mapping[str, Path],
    split: Split,
    channels: tuple[str, ...],
    problems: Problems,
) -> list[Case]:
    """Cases of images by id and channel with the labels of the same id; an image without a label is unlabelled."""
    cases = []
    for name, files in images.items():
        numbers = sorted(files)
        if numbers != list(range(len(channels))) and numbers != [0]:
            has = ", ".join(f"_{number:04d}" for number in numbers)
            needs = ", ".join(f"_{number:04d} ({channel})" for number, channel in enumerate(channels))
            remedy = "Add or remove files."
            if len(channels) == 1:
                remedy = f"Keep one; if they are scans of their own, number them otherwise, as {name}-{numbers[0]:04d}."
            text = f"case {name} has the channels {has}, but {needs} are expected. {remedy}"
            problems.append((files[numbers[0]], text))
            continue
        paths = tuple(files[number] for number in numbers)
        cases.append(Case(id=name, images=paths, label=labels.get(name), split=split))
    for name, file in labels.items():
        if name not in images:
            meant = next((id for id in images if id not in labels and re.match(f"{re.escape(id)}[_.-]", name)), None)
            remedy = f"If it is the label of {meant}, call it so." if meant else "Add the scan, or move it away."
            problems.append((file, f"a label without an image: no scan has the id {name}. {remedy}"))
    return cases


def unique_cases(cases: Iterable[Case], problems: Problems) -> tuple[Case, ...]:
    """The cases in order; one whose id was used before, or cannot be used, is set aside as a problem."""
    kept: dict[str, Case] = {}
    for case in cases:
        if why := unusable_id(case.id):
            problems.append((case.images[0], why))
            continue
        first = kept.setdefault(case.id, case)
        if first is not case:
            text = f"the id {case.id} is already that of {first.images[0]}. Rename or remove one of the two."
            problems.append((case.images[0], text))
    return tuple(kept.values())


def train_order(root: Path, cases: Iterable[Case], problems: Problems) -> tuple[str, ...]:
    """`train_order` of `splits.json`: ids of labelled training cases; others in the list are problems. Else empty."""
    file = root / "splits.json"
    if not file.is_file():
        return ()
    splits = read_json(file)
    order = splits.get("train_order", []) if isinstance(splits, dict) else []
    if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
        raise DataError(f"{file}: train_order must be a list of case ids.")
    usable = {case.id for case in cases if case.split == "train" and case.label is not None}
    kept = dict.fromkeys(name for name in order if name in usable)
    for name, count in Counter(order).items():
        if name not in usable:
            text = f"train_order names {name}, no labelled training case. Add its files, or take it off the list."
            problems.append((file, text))
        elif count > 1:
            problems.append((file, f"train_order names {name} {count} times. Name it once."))
    return tuple(kept)


def refuse_other_files(folder: Path) -> None:
    """Raise `UnsupportedError` if a folder holds pictures or other volume formats, and nothing that is read."""
    if not folder.is_dir() or scan_files(folder) or dicom_places(folder):
        return
    for file in visible(folder):
        if file.is_dir():
            if (holds := what_it_holds(file)) and not is_read(holds):
                raise UnsupportedError(f"{file}: {_why_not_looked_into(file)}")
        elif kind_of(file) == "picture":
            raise UnsupportedError(f"{file}: 2D images are not supported. semiseg segments 3D scans (.nii.gz, say).")
        elif kind_of(file) in ("dicom", "volume", "archive"):
            raise UnsupportedError(f"{file}: {why_unread(file)}")


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object; raises `DataError` for other JSON."""
    value = read_json(file)
    if not isinstance(value, dict):
        raise DataError(f"{file}: a JSON object was expected, not {type(value).__name__}.")
    return value
