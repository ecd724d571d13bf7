"""The classes of two folders that are scored."""

from __future__ import annotations

from pathlib import Path

from semiseg.data.plan import read_plan
from semiseg.io.dataset import LabelScheme
from semiseg.io.file_kinds import scan_files
from semiseg.io.flare22_labels import FLARE22_LABELS
from semiseg.io.layouts.folders import read_object
from semiseg.io.layouts.nnunet import dataset_labels
from semiseg.io.layouts.plain import labels_found


def scheme_of(file: Path | None, references: Path, rules: str) -> LabelScheme:
    """Those that a dataset.json or plan.toml names; without one the challenge's own under its rules, or the values that
    are found."""
    if file is None:
        remedy = "Name the classes with --labels FILE: a dataset.json, or the plan.toml of a run."
        if rules == "flare22":
            return FLARE22_LABELS
        return labels_found(references, scan_files(references), remedy=remedy)
    if file.suffix == ".toml":
        return read_plan(file).labels
    return dataset_labels(read_object(file), file)
