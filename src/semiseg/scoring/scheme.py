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
from semiseg.io.masks import mask_folders, named_organs


def scheme_of(file: Path | None, references: Path, rules: str) -> LabelScheme:
    """Those that a dataset.json or plan.toml names; without one the challenge's own under its rules, the organs that a
    list of masks names, or the values that are found."""
    if file is None:
        remedy = "Name the classes with --labels FILE: a dataset.json, or the plan.toml of a run."
        if rules == "flare22":
            return FLARE22_LABELS
        if masks := mask_folders(references):
            return named_organs(next(iter(masks.values())))[1]
        files = scan_files(references)
        if not files and any(file.name.lower().endswith(".dcm") for file in visible(references)):
            raise DataError(
                f"{references}: DICOM SEG name organs, and not the values that predictions have for them. Add --labels "
                "MODEL/plan.toml (of the model folder or run that predicted), or --labels DATA/dataset.json."
            )
        return labels_found(references, files, remedy=remedy)
    if file.suffix == ".toml":
        return read_plan(file).labels
    return dataset_labels(read_object(file), file)
