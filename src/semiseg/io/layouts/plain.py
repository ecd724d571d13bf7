"""A plain pair of folders: `images/` and `labels/` with equal names, with or without nnU-Net's `_0000`.

Names of classes come from an optional labels.json or dataset.json; otherwise they are `class_1`, `class_2`, ... up to
the highest value in the label files. `imagesUn/`, `imagesTs/` and `labelsTs/` are read if they are there. A label
may be a folder of masks (`semiseg.io.masks`).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from semiseg.errors import DataError
from semiseg.io.dataset import Case, LabelScheme, Remark, Split
from semiseg.io.file_kinds import ENDINGS_TEXT, scan_files
from semiseg.io.label_scheme import parse_labels, unknown_names
from semiseg.io.layouts.folders import (
    CHANNEL,
    TEST,
    TEST_LABELS,
    Found,
    Problems,
    by_stem,
    keep_first,
    note_other_folders,
    note_training_count,
    note_unread,
    pair_up,
    read_object,
    references_in,
    refuse_other_files,
    unlabelled_folders,
)
from semiseg.io.layouts.nnunet import dataset_channels, dataset_labels
from semiseg.io.layouts.series import SeriesChoice, series_by_id
from semiseg.io.modality import UNKNOWN_CHANNEL
from semiseg.io.scans import read_label, values_in

IMAGES, LABELS = "images", "labels"


def read_plain(root: Path, choice: SeriesChoice) -> Found:
    """Read the folders."""
    refuse_other_files(root / IMAGES)
    file = root / "dataset.json"
    description = read_object(file) if file.is_file() else {}
    problems: Problems = []
    remarks: list[Remark] = []
    folders: list[tuple[str, str | None, Split]] = [
        (IMAGES, LABELS, "train"),
        *((folder, None, "train") for folder in unlabelled_folders(root)),
        (TEST, TEST_LABELS, "test"),
    ]
    files: list[tuple[Split, dict[str, Path], dict[str, Path]]] = []
    for images, label_folder, split in folders:
        note_unread(root / images, problems, remarks, dicom=True)
        if label_folder:
            note_unread(root / label_folder, problems, remarks, masks=True)
        references = references_in(root / label_folder, problems) if label_folder else {}
        scans = by_stem(scan_files(root / images), problems)
        for name, series in series_by_id(root / images, references, choice, problems, remarks).items():
            keep_first(scans, name, series, problems)
        files.append((split, scans, references))
    # Four digits at the end are a channel, unless a label anywhere has the very same name.
    numbered = not any(CHANNEL.fullmatch(name) for _, found, labelled in files for name in found.keys() & labelled)
    groups = [(split, _by_channel(found, numbered=numbered), references) for split, found, references in files]
    channels = _channels(description, file, [by_channel for _, images, _ in groups for by_channel in images.values()])
    cases: list[Case] = []
    for split, images_by_id, references in groups:
        cases += pair_up(images_by_id, references, split, channels, problems)
    read = [folder for images, label_folder, _ in folders for folder in (images, label_folder) if folder]
    note_other_folders(root, read, remarks)
    note_training_count(description, file, cases, remarks)
    if not cases and problems:
        first, text = problems[0]
        raise DataError(f"{first}: {text.removeprefix(f'{first}: ')}")
    named = _labels(root, description, cases)
    if list(named.names.values()) == list(unknown_names(named.organs).values()):
        text = (
            f'The classes have no names. Name them in {root / "labels.json"}, such as {{"left_kidney": 1}}: '
            "organs of two sides are told by left and right in their names."
        )
        remarks.append(("note", root / LABELS, text))
    return Found(
        name=str(description.get("name", root.resolve().name)),
        channels=channels,
        labels=named,
        cases=cases,
        pairs=description.get("mirror_pairs"),
        problems=problems,
        remarks=remarks,
    )


def _by_channel(images: dict[str, Path], *, numbered: bool) -> dict[str, dict[int, Path]]:
    """Images by id and channel. numbered: four digits at the end are a channel."""
    grouped: dict[str, dict[int, Path]] = {}
    for name, file in images.items():
        match = CHANNEL.fullmatch(name) if numbered else None
        if match is not None and f"{match['id']}_0000" in images:
            grouped.setdefault(match["id"], {})[int(match["channel"])] = file
        else:
            grouped.setdefault(name, {})[0] = file
    return grouped


def _channels(description: dict[str, Any], file: Path, images: list[dict[int, Path]]) -> tuple[str, ...]:
    if "channel_names" in description or "modality" in description:
        return dataset_channels(description, file)
    counts = Counter(len(files) for files in images)
    count = max(counts, key=lambda channels: (counts[channels], channels), default=1)  # one odd scan is the odd one
    return (UNKNOWN_CHANNEL,) if count == 1 else tuple(f"{UNKNOWN_CHANNEL}_{index}" for index in range(count))


def _labels(root: Path, description: dict[str, Any], cases: list[Case]) -> LabelScheme:
    if "labels" in description:
        return dataset_labels(description, root / "dataset.json")
    file = root / "labels.json"
    if file.is_file():
        return parse_labels(read_object(file), file)
    named = [case.label for case in cases if case.label is not None]
    if not named and cases and (files := scan_files(root / LABELS)):
        of_slicer = " 3D Slicer's ending .seg.nrrd is no name: save them as .nrrd." if ".seg." in files[0].name else ""
        raise DataError(
            f"{files[0]}: no label has the name of a scan, and a scan is called {cases[0].images[0].name}. Give a scan "
            f"and its label the same name.{of_slicer}"
        )
    return labels_found(root / LABELS, named)


def labels_found(folder: Path, files: list[Path], *, remedy: str = "") -> LabelScheme:
    """Classes up to the highest value in the label files of a folder. remedy: of values that leave gaps."""
    values: set[int] = set()
    errors: list[str] = []
    for file in files:
        try:
            values.update(values_in(read_label(file)[0]))
        except DataError as error:
            errors.append(str(error))  # the check opens every file again and names this one
    found = sorted(values - {0})
    if not found and errors:
        others = f" Of {len(files)} label files {len(errors)} cannot be used." if len(files) > 1 else ""
        raise DataError(f"{errors[0]}{others}")
    if not found:
        what = "no label file has a voxel above 0" if files else f"no {ENDINGS_TEXT} file of a scan is there"
        raise DataError(f"{folder}: {what}. Put label maps there.")
    if 2 * len(found) < found[-1]:
        shown = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
        raise DataError(
            f"{folder}: the values {shown} leave gaps; classes must be 1, 2, 3, ... {remedy or _renumber(found)}"
        )
    return LabelScheme(names=unknown_names(found))


def _renumber(found: list[int]) -> str:
    if found[1:] and found[-1] == 255:
        top = found[-2] + 1
        return f'If 255 is what nobody labelled, make it {top}, and name all in labels.json, {top} as "ignore".'
    return "Renumber them."
