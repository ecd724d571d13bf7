"""nnU-Net raw folders (version 1 and 2), with `imagesUn/` for unlabelled scans.

imagesTr/ID_0000.nii.gz  labelsTr/ID.nii.gz  imagesUn/ID_0000.nii.gz  imagesTs/...  labelsTs/...  dataset.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from semiseg.errors import DataError, UnsupportedError
from semiseg.io.dataset import LabelScheme, Remark
from semiseg.io.file_kinds import ENDINGS_TEXT, is_scan
from semiseg.io.label_scheme import parse_channels, parse_labels
from semiseg.io.layouts.folders import (
    TEST,
    TEST_LABELS,
    TRAINING,
    TRAINING_LABELS,
    Found,
    Problems,
    folder_cases,
    note_other_folders,
    note_training_count,
    read_object,
    refuse_other_files,
    unlabelled_folders,
)
from semiseg.io.layouts.series import SeriesChoice


def read_nnunet(root: Path, choice: SeriesChoice) -> Found:
    """Read the folder."""
    file = root / "dataset.json"
    description = read_object(file)
    _refuse_endings(description, file)
    unlabelled = unlabelled_folders(root)
    for folder in (TRAINING, *unlabelled, TEST):
        refuse_other_files(root / folder)
    channels = dataset_channels(description, file)
    scheme = dataset_labels(description, file)
    problems: Problems = []
    remarks: list[Remark] = []
    known = [TRAINING, TRAINING_LABELS, TEST, TEST_LABELS]
    for entry in sorted(root.iterdir()):
        meant = next((name for name in known if name.lower() == entry.name.lower() and name != entry.name), None)
        if meant and entry.is_dir():
            problems.append((entry, f"not read: the folder's name is spelt {meant}. Rename it."))
            known.append(entry.name)
    cases = folder_cases(root, TRAINING, TRAINING_LABELS, "train", channels, choice, problems, remarks)
    for folder in unlabelled:
        cases += folder_cases(root, folder, None, "train", channels, choice, problems, remarks)
    cases += folder_cases(root, TEST, TEST_LABELS, "test", channels, choice, problems, remarks)
    note_other_folders(root, [*known, *unlabelled], remarks)
    note_training_count(description, file, cases, remarks)
    return Found(
        name=str(description.get("name", root.name)),
        channels=channels,
        labels=scheme,
        cases=cases,
        pairs=description.get("mirror_pairs"),
        problems=problems,
        remarks=remarks,
    )


def dataset_labels(description: dict[str, Any], file: Path) -> LabelScheme:
    """The label list of a dataset.json; raises `UnsupportedError` for regions."""
    if "labels" not in description:
        raise DataError(f'{file}: "labels" is missing. Add the names, such as {{"background": 0, "liver": 1}}.')
    if "regions_class_order" in description:
        raise UnsupportedError(
            f"{file}: regions_class_order: region-based training is not supported. Give every class one value."
        )
    return parse_labels(description["labels"], file)


def dataset_channels(description: dict[str, Any], file: Path) -> tuple[str, ...]:
    """The channel names of a dataset.json: `channel_names`, or `modality` in older ones."""
    for key in ("channel_names", "modality"):
        if key in description:
            return parse_channels(description[key], file, key)
    raise DataError(f'{file}: "channel_names" is missing. Add it, such as {{"0": "CT"}}: it chooses the normalisation.')


def _refuse_endings(description: dict[str, Any], file: Path) -> None:
    ending = description.get("file_ending", ".nii.gz")
    if not is_scan(str(ending)):
        raise UnsupportedError(f"{file}: file_ending {ending!r} is not supported: scans are 3D {ENDINGS_TEXT}.")
