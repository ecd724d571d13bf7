"""A label as a folder of masks, one file for each organ, as TotalSegmentator and AbdomenAtlas have it.

    ROOT/labels.json                                   {"liver": 1, "left_kidney": 2}
    ROOT/ID/segmentations/liver.nii.gz, left_kidney.nii.gz, ...   (or ROOT/labels/ID/liver.nii.gz, ...)

labels.json (or the "labels" of a dataset.json) chooses the organs and gives each its value, so that another mask
changes nothing. The folder stands for the label map of a scan of a data set (`semiseg.io.scans` reads it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from semiseg.errors import DataError
from semiseg.files import read_json
from semiseg.io.dataset import LabelScheme
from semiseg.io.file_kinds import scan_files, scans_by_stem, visible
from semiseg.io.label_scheme import parse_labels
from semiseg.words import shortened

MASKS = "segmentations"
_OF_LABELS = ("labels", "labelsTs")
_NAMES = ("dataset.json", "labels.json")


def is_mask_folder(path: Path) -> bool:
    """Whether a path names a folder of masks, by where it lies and what it holds."""
    placed = path.name == MASKS or path.parent.name in _OF_LABELS
    return placed and path.is_dir() and bool(scan_files(path))


def mask_folders(folder: Path) -> dict[str, Path]:
    """Folders of masks by the ids of their scans: `FOLDER/ID/segmentations`, or `FOLDER/ID` where that is a place of
    labels."""
    entries = [entry for entry in visible(folder.resolve()) if entry.name != MASKS]
    found = {entry.name: entry if is_mask_folder(entry) else entry / MASKS for entry in entries}
    return {id: path for id, path in found.items() if is_mask_folder(path)}


def named_organs(folder: Path) -> tuple[Path, LabelScheme]:
    """The organs to learn from masks, and the file that names them. Raises `DataError` where there is none."""
    root = folder.parent.parent
    described, own = (root / name for name in _NAMES)
    if described.is_file() and isinstance(value := read_json(described), dict) and "labels" in value:
        return described, _without_ignore(parse_labels(value["labels"], described), described)
    if own.is_file():
        return own, _without_ignore(parse_labels(read_json(own), own), own)
    names = {name: value for value, name in enumerate(scans_by_stem(folder), 1)}
    raise DataError(
        f"{folder}: nothing says which of these masks are to be learnt. Write {own} with those that are, numbered from "
        f"1: {json.dumps(names)}"
    )


def _without_ignore(scheme: LabelScheme, file: Path) -> LabelScheme:
    if scheme.ignore is not None:
        raise DataError(
            f"{file}: names an ignore value, which masks of one organ each do not have. Take it off the list."
        )
    return scheme


def refuse_other_organs(folder: Path, names: Mapping[int, str]) -> None:
    """Raise `DataError` where the list of organs gives masks other values than a run does, of which these names are."""
    file, scheme = named_organs(folder)
    if dict(names) != scheme.names:
        raise DataError(
            f"{folder}: {file} names other organs, or numbers them otherwise, than when the run was prepared. "
            "Restore it, or make a new run."
        )


def mask_files(folder: Path, organs: Mapping[int, str] | None = None) -> dict[int, Path]:
    """The masks of a folder by the value of their organ, ascending. organs: their names by value; by default those that
    a list names.

    Raises `DataError` where nothing says which organs count, or one of them has no file.
    """
    which = "which is asked for"
    if organs is None:
        file, scheme = named_organs(folder)
        organs, which = scheme.organs, f"which {file} names"
    there = scans_by_stem(folder)
    if missing := [name for name in organs.values() if name not in there]:
        raise DataError(
            f"{folder}: has no mask of {shortened(missing)}, {which}. Where the scan has none of it, put an "
            "empty mask there."
        )
    return {value: there[name] for value, name in sorted(organs.items())}


def files_of_masks(folder: Path) -> list[Path]:
    """What the label is made of: the masks that count, and the file that says so."""
    return [*mask_files(folder).values(), named_organs(folder)[0]]
