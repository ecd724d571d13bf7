"""The classes of two folders that are scored."""

from __future__ import annotations

from pathlib import Path

from semiseg.data.plan import read_plan
from semiseg.errors import DataError
from semiseg.io.dataset import LabelScheme
from semiseg.io.file_kinds import scan_files, visible
from semiseg.io.flare22_labels import FLARE22_LABELS
from semiseg.io.layouts.folders import read_object
from semiseg.io.layouts.nnunet import dataset_labels
from semiseg.io.layouts.plain import labels_found
from semiseg.io.masks import mask_folders


def scheme_of(file: Path | None, references: Path, rules: str) -> LabelScheme:
    """Those that a dataset.json or plan.toml names; without one the challenge's own under its rules, or the values that
    are found."""
    if file is None:
        remedy = "Name the classes with --labels FILE: a dataset.json, or the plan.toml of a run."
        if rules == "flare22":
            return FLARE22_LABELS
        files = scan_files(references)
        segmentations = any(file.name.lower().endswith(".dcm") for file in visible(references))
        if not files and (segmentations or mask_folders(references)):
            raise DataError(
                f"{references}: {'DICOM SEG' if segmentations else 'masks'} name organs, and not the values that "
                "predictions have for them. Add --labels MODEL/plan.toml (of the model folder or run that predicted), "
                "or --labels DATA/dataset.json."
            )
        return labels_found(references, files, remedy=remedy)
    if file.suffix == ".toml":
        return read_plan(file).labels
    return dataset_labels(read_object(file), file)
