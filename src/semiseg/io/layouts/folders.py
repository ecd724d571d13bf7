"""Scans in a folder: names, channel numbers, duplicates. What every layout's reader is made of."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semiseg.errors import DataError, UnsupportedError
from semiseg.files import read_json
from semiseg.io.dataset import Case, LabelScheme, Split
from semiseg.io.nifti import NIFTI_ENDINGS

TRAINING, UNLABELLED, TEST = "imagesTr", "imagesUn", "imagesTs"
TRAINING_LABELS, TEST_LABELS = "labelsTr", "labelsTs"
CHANNEL = re.compile(r"(?P<id>.+)_(?P<channel>\d{4})")
"""nnU-Net's naming: the case, then the channel in four digits."""

_FLAT_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_OTHER_VOLUMES = (".nrrd", ".mha", ".mhd", ".dcm", ".hdr", ".img")

Problems = list[tuple[Path, str]]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a layout's reader found; `pairs` is what the dataset declares, None if it says nothing."""

    name: str
    channels: tuple[str, ...]
    labels: LabelScheme
    cases: list[Case]
    pairs: object = None
    problems: Problems = field(default_factory=list)


def stem(path: Path) -> str:
    """The file's name without `.nii` or `.nii.gz`."""
    return next(path.name[: -len(ending)] for ending in NIFTI_ENDINGS if path.name.endswith(ending))


def scans(folder: Path, *, deep: bool = False) -> list[Path]:
    """NIfTI files in order of their names, none without a folder; hidden ones (`._x` of a Mac) are no scans."""
    files = sorted(folder.rglob("*") if deep else folder.glob("*"))
    visible = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    return [file for file in visible if file.name.endswith(NIFTI_ENDINGS) and file.is_file()]


def by_stem(files: Iterable[Path], problems: Problems) -> dict[str, Path]:
    """Name to file; `a.nii` beside `a.nii.gz` is a problem, and the first is kept."""
    found: dict[str, Path] = {}
    for file in files:
        first = found.setdefault(stem(file), file)
        if first != file:
            problems.append((file, f"the same id as {first}. Keep one of the two files."))
    return found


def note_unread(folder: Path, problems: Problems) -> None:
    """Add what lies in a folder of scans and is not read as one: whoever put it there thinks it is."""
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        problems.append((folder, "may not be read. Change its permissions."))
    for file in sorted(folder.glob("*")):
        if file.name.startswith("."):
            continue
        if file.is_symlink() and not file.exists():
            problems.append((file, f"a link to {file.readlink()}, which is not there. Restore it, or remove the link."))
        elif file.is_dir() and scans(file, deep=True):
            problems.append((file, "a folder in the folder of scans: it is not looked into. Move its scans up."))
        elif file.name.lower().endswith((*_OTHER_VOLUMES, *NIFTI_ENDINGS)) and not file.name.endswith(NIFTI_ENDINGS):
            problems.append((file, "not read: scans are .nii or .nii.gz, in small letters. Convert or rename it."))


def folder_cases(
    root: Path, images: str, labels: str | None, split: Split, channels: tuple[str, ...], problems: Problems
) -> list[Case]:
    """The cases of one pair of folders in nnU-Net's naming; what does not fit is set aside as a problem."""
    for folder in (images, labels) if labels else (images,):
        note_unread(root / folder, problems)
    grouped: dict[str, dict[int, Path]] = {}
    for name, file in by_stem(scans(root / images), problems).items():
        match = CHANNEL.fullmatch(name)
        if match is None:
            problems.append(
                (file, f"the name has no channel number. Rename it to {name}_0000{file.name[len(name) :]}.")
            )
            continue
        grouped.setdefault(match["id"], {})[int(match["channel"])] = file
    label_files = by_stem(scans(root / labels), problems) if labels else {}
    return pair_up(grouped, label_files, split, channels, problems)


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
            problems.append((files[numbers[0]], _wrong_channels(name, numbers, channels)))
            continue
        paths = tuple(files[number] for number in numbers)
        cases.append(Case(id=name, images=paths, label=labels.get(name), split=split))
    for name, file in labels.items():
        if name not in images:
            problems.append(
                (file, f"a label without an image: no scan has the id {name}. Add the scan, or move it away.")
            )
    return cases


def _wrong_channels(name: str, numbers: list[int], channels: tuple[str, ...]) -> str:
    has = ", ".join(f"_{number:04d}" for number in numbers)
    needs = ", ".join(f"_{number:04d} ({channel})" for number, channel in enumerate(channels))
    return f"case {name} has the channels {has}, but {needs} are expected. Add or remove files."


def unique_cases(cases: Iterable[Case], problems: Problems) -> tuple[Case, ...]:
    """The cases in order; one whose id was used before is set aside as a problem."""
    kept: dict[str, Case] = {}
    for case in cases:
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
    for name in dict.fromkeys(order):
        if name not in usable:
            text = f"train_order names {name}, no labelled training case. Add its files, or take it off the list."
            problems.append((file, text))
        elif order.count(name) > 1:
            problems.append((file, f"train_order names {name} {order.count(name)} times. Name it once."))
    return tuple(kept)


def refuse_other_files(folder: Path) -> None:
    """Raise `UnsupportedError` if a folder holds pictures or other volume formats and no NIfTI file."""
    if not folder.is_dir() or scans(folder):
        return
    for file in sorted(folder.glob("*")):
        ending = file.suffix.lower()
        if ending in _FLAT_ENDINGS:
            raise UnsupportedError(f"{file}: 2D images are not supported. semiseg segments 3D scans in .nii.gz.")
        if ending in _OTHER_VOLUMES:
            raise UnsupportedError(f"{file}: {ending} is not read in a dataset folder. Convert the scans to .nii.gz.")


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object; raises `DataError` for other JSON."""
    value = read_json(file)
    if not isinstance(value, dict):
        raise DataError(f"{file}: a JSON object was expected, not {type(value).__name__}.")
    return value
