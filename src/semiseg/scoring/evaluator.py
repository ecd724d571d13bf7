"""Predictions in a folder scored against references, case-parallel; out come summary.json and summary.csv."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import get_args
from unicodedata import normalize

from semiseg.cases import WAS_KILLED, map_cases
from semiseg.data.labels import count_values
from semiseg.data.patients import BIDS
from semiseg.errors import ConfigError, DataError
from semiseg.geometry import from_canonical
from semiseg.io.dataset import LabelScheme
from semiseg.io.file_kinds import scans_by_stem, visible
from semiseg.io.flare22_labels import FLARE22_ORGANS
from semiseg.io.grid import Grid
from semiseg.io.masks import is_mask_folder, mask_folders
from semiseg.io.scans import read_label, read_masks
from semiseg.scoring.flare22 import FLARE22_TOLERANCE_MM, score_case_flare22
from semiseg.scoring.metrics import score_case
from semiseg.scoring.summary import CaseScores, Rules, Summary, refuse_foreign_summary, summarise, write_summary
from semiseg.types import LabelArray, Spacing
from semiseg.words import counted, shortened

Reference = tuple[str, Path, Path | None]
"""Case id, reference label map, image or None."""
_Pair = tuple[str, Path, Path, Path | None]
"""Case id, reference, prediction, image."""
_DICOM = ".dcm"
Progress = Callable[[int, int], None]
"""Called with the numbers of cases done and in all."""


TOLERANCE, FORGIVEN_VOXELS = "tolerance", 5
"""The topic of the notice where NSD forgives more than so many voxels."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """How predictions are scored."""

    rules: Rules = "standard"
    """`standard`, or `flare22` to score exactly as the FLARE 2022 challenge does (its own 13 organs and tolerances)."""
    tolerance_mm: float = 1.0
    """Surface error in mm that NSD forgives; 1 mm is a voxel of most MRI, for organs in CT 2 to 5 mm are usual."""
    organ_tolerance_mm: dict[str, float] = field(default_factory=dict)
    """Tolerance in mm of single organs, by name, where it is not `tolerance_mm`."""

    def __post_init__(self) -> None:
        if self.rules not in get_args(Rules):
            raise ConfigError(f"evaluate.rules = {self.rules!r} is none of {', '.join(get_args(Rules))}.")
        for key, value in {"": self.tolerance_mm, **self.organ_tolerance_mm}.items():
            if not (math.isfinite(value) and value >= 0):
                name = f"organ_tolerance_mm.{key}" if key else "tolerance_mm"
                raise ConfigError(f"evaluate.{name} = {value} must be a distance in mm, 0 or more.")

    def check_labels(self, labels: LabelScheme) -> None:
        """Raise `ConfigError` where organs are named, or rules asked for, that do not fit a dataset's labels."""
        _scored_organs(labels, self)


def too_forgiving(settings: EvaluateSettings, spacing_mm: Spacing, run: Path) -> str:
    """A sentence where NSD forgives errors of many voxels, and so says little; empty otherwise. spacing_mm: of the
    run's grid."""
    tolerance, voxel = settings.tolerance_mm, max(spacing_mm)
    if settings.rules != "standard" or settings.organ_tolerance_mm or tolerance <= FORGIVEN_VOXELS * voxel:
        return ""
    return (
        f"NSD forgives {tolerance:g} mm, which is {tolerance / voxel:.0f} voxels of the plan's grid: it says little. "
        f"`semiseg run {run} --set evaluate.tolerance_mm={voxel:.2g}` scores again, and trains nothing."
    )


def evaluate_folder(
    predictions: Path,
    references: Path | Sequence[Reference],
    labels: LabelScheme,
    *,
    settings: EvaluateSettings | None = None,
    output: Path | None = None,
    workers: int = 1,
    progress: Progress | None = None,
    patients: str = BIDS,
) -> Summary:
    """Score every reference's prediction; write `summary.json` and `summary.csv`, return the summary.

    predictions: folder with `ID.nii.gz`, or another format. references: a folder of label maps of the same names (of
    DICOM SEG `ID.dcm` or `ID_seg.dcm`, or folders of masks), or the cases themselves. output: folder for the summary,
    by default that of the predictions. workers: processes; 1 scores in this one. patients: `DataSettings.patients`.

    Raises `DataError` naming every missing prediction before anything is computed, and for a prediction that
    is not on its reference's grid or has values outside of the labels; `ConfigError` where labels and rules
    do not fit, and where a file that is no summary would be written over.
    """
    settings = settings or EvaluateSettings()
    organs, tolerance_mm = _scored_organs(labels, settings)
    output = output or predictions
    refuse_foreign_summary(output)
    cases = map_cases(
        partial(_score_files, labels=labels, rules=settings.rules, tolerance_mm=tolerance_mm),
        _pair(predictions, references),
        workers=workers,
        lost=_lost,
        progress=(lambda done, total, case: progress(done, total)) if progress else None,
    )
    summary = summarise(cases, organs, tolerance_mm, settings.rules, patients)
    write_summary(output, summary)
    return summary


def _lost(case: _Pair) -> CaseScores:
    _, reference, prediction, _ = case
    raise DataError(
        f"{prediction}: {WAS_KILLED}. Use a machine with more memory, or look whether it and {reference} are as large "
        "as they should be."
    )


def _scored_organs(labels: LabelScheme, settings: EvaluateSettings) -> tuple[dict[int, str], dict[str, float]]:
    """Organs by value and tolerances by organ. Raises `ConfigError` where labels and settings do not fit."""
    if settings.rules == "flare22":
        _check_flare22(labels)
        return FLARE22_ORGANS, FLARE22_TOLERANCE_MM
    unknown = sorted(set(settings.organ_tolerance_mm) - set(labels.organs.values()))
    if unknown:
        raise ConfigError(
            f"evaluate.organ_tolerance_mm names {', '.join(unknown)}, but the organs are "
            f"{', '.join(labels.organs.values())}. Correct the name."
        )
    tolerance_mm = {o: float(settings.organ_tolerance_mm.get(o, settings.tolerance_mm)) for o in labels.organs.values()}
    return labels.organs, tolerance_mm


def _check_flare22(labels: LabelScheme) -> None:
    """Other numbers than the challenge's would be scored as the wrong organs without a sign of it."""
    if set(labels.organs) != set(FLARE22_ORGANS):
        raise ConfigError(
            f"the rules flare22 score labels 1 to 13, but this dataset has {', '.join(map(str, labels.organs))}. "
            "Use the rules standard."
        )
    ours = {name.lower(): value for value, name in labels.organs.items()}
    for value, name in FLARE22_ORGANS.items():
        if ours.get(name, value) != value:
            raise ConfigError(
                f"the rules flare22 take {name} as label {value}, but this dataset has it as {ours[name]}. "
                "Renumber the labels, or use the rules standard."
            )
    if labels.ignore is not None:
        raise ConfigError(
            f"the rules flare22 know no ignore label, but this dataset has {labels.ignore}. Use the rules standard."
        )


def _pair(predictions: Path, references: Path | Sequence[Reference]) -> list[_Pair]:
    """The cases with their predictions. Raises `DataError` with all missing files at once."""
    if isinstance(references, Path):
        if not references.is_dir():
            raise DataError(f"{references}: there is no such folder of reference label maps.")
        files = _segmentations(references) | scans_by_stem(references) or mask_folders(references)
        cases: Sequence[Reference] = [(name, files[name], None) for name in sorted(files)]
        origin = str(references)
    else:
        cases, origin = references, "the case list"
    if not cases:
        raise DataError(f"{origin}: no reference label maps to score against. Give a folder of label maps.")
    # Accents may be written in two ways, and macOS has its own.
    there = {normalize("NFC", case): file for case, file in scans_by_stem(predictions).items()}
    found = [(case, reference, there.get(normalize("NFC", case)), image) for case, reference, image in cases]
    missing = [case for case, _, prediction, _ in found if prediction is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise DataError(
            f"{predictions}: {len(missing)} of {counted(len(found), 'prediction')} {are} missing: "
            f"{shortened(missing)}. "
            "A score over the rest would flatter; predict these cases first."
        )
    return [(case, reference, path, image) for case, reference, path, image in found if path is not None]


def _segmentations(folder: Path) -> dict[str, Path]:
    """DICOM SEG of a folder by their names without `.dcm` or `_seg.dcm`. Raises `DataError` for another `.dcm` file."""
    files = [file for file in visible(folder) if file.name.lower().endswith(_DICOM)]
    if not files:
        return {}
    from semiseg.io.dicom.segmentation_reading import is_segmentation

    if other := next((file for file in files if not is_segmentation(file)), None):
        raise DataError(f"{other}: no DICOM SEG, so no reference. Export the labels as SEG or NIfTI.")
    return {file.name[: -len(_DICOM)].removesuffix("_seg"): file for file in files}


def _read_reference(file: Path, grid: Grid, labels: LabelScheme) -> tuple[LabelArray, Grid]:
    """A label map and its grid; grid: the prediction's, on which a SEG is put. Masks and SEG go by organs' names."""
    if is_mask_folder(file):
        return read_masks(file, labels.organs)
    if not file.name.lower().endswith(_DICOM):
        return read_label(file)
    from semiseg.io.dicom.segmentation_reading import read_segmentation

    return read_segmentation(file, grid, labels.organs), grid


def _score_files(case: _Pair, labels: LabelScheme, rules: Rules, tolerance_mm: dict[str, float]) -> CaseScores:
    id, reference_file, prediction_file, image = case
    prediction, prediction_grid = read_label(prediction_file)
    reference, grid = _read_reference(reference_file, prediction_grid, labels)
    remedy = "Predict on the scan that the reference was drawn on, or resample one onto the other."
    if misfit := grid.misfit(prediction_grid, remedy):
        raise DataError(f"{prediction_file}: not on the grid of {reference_file}: {misfit}")
    if rules == "flare22":
        # The challenge's script does not know orientations: it is given arrays and voxel sizes as the file has them.
        dx, dy, dz = grid.stored_mm
        stored = [from_canonical(label, grid.affine).transpose(2, 1, 0) for label in (reference, prediction)]
        organs = score_case_flare22(stored[0], stored[1], (dz, dy, dx))
    else:
        _check_values(reference_file, reference, labels)
        _check_values(prediction_file, prediction, labels)
        organs = score_case(reference, prediction, grid.spacing_mm, labels.organs, tolerance_mm, ignore=labels.ignore)
    return CaseScores(
        id=id,
        reference=str(reference_file),
        prediction=str(prediction_file),
        image=None if image is None else str(image),
        organs=organs,
    )


def _check_values(path: Path, label: LabelArray, labels: LabelScheme) -> None:
    """A value that no label has would count as background without a sign of it."""
    counts = count_values(label)
    known = set(labels.names) | {labels.ignore}
    unknown = [value for value in counts if value not in known]
    if unknown:
        have = counted(counts[unknown[0]], "voxel has", "voxels have")
        raise DataError(
            f"{path}: {have} value {unknown[0]}, but the labels are "
            f"{', '.join(map(str, sorted(labels.names)))}. Correct the file. Of two folders, --labels FILE names them."
        )
