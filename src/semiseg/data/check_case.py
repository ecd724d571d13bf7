"""What one case holds and what is wrong with it: opens every file of the case, headers and voxels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from semiseg.data.labels import count_values
from semiseg.errors import DataError
from semiseg.io.dataset import Case, Dataset
from semiseg.io.grid import Grid
from semiseg.io.modality import is_ct
from semiseg.io.scans import read_grid, read_label_rounded, read_volume
from semiseg.types import FloatArray, Shape, Spacing
from semiseg.words import counted, printable

Severity = Literal["error", "warning", "note"]
Role = Literal["labelled", "unlabelled", "test"]

NO_HOUNSFIELD = "no Hounsfield units?"
_LABEL_SOURCES = {"nnunet": "dataset.json", "msd": "dataset.json", "flare22": "FLARE22's list"}
"""Who says which labels there are, by layout."""

Remark = tuple[Severity, Path, str]
"""A problem in the making: its file and a text that may begin with the file's path."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong. file is relative to the dataset's folder; text ends with the remedy.

    error: a run would stop. warning: it would not, and a person should look. note: put right while reading.
    """

    severity: Severity
    file: str
    text: str
    case: str | None = None


@dataclass(frozen=True, kw_only=True)
class CaseFacts:
    """What the files of one case hold; None where a file could not be read.

    label_voxels: number of voxels by label value. content: hash of the image's canonical voxels, whatever the file's
    compression and orientation.
    """

    id: str
    role: Role
    shape_zyx: Shape | None = None
    spacing_mm: Spacing | None = None
    orientation: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    label_voxels: dict[int, int] | None = None
    content: str | None = None


def inspect_case(case: Case, dataset: Dataset) -> tuple[CaseFacts, list[Problem]]:
    """Open all files of a case of a dataset. Nothing that is wrong with them raises: it is in the list of problems."""
    remarks: list[Remark] = []
    grid, image = _inspect_image(case, dataset, remarks)
    label_grid, voxels = _inspect_label(case.label, dataset, remarks) if case.label else (None, None)
    remedy = "Resample it onto the image, or restore the file."
    if case.label and grid and label_grid and (misfit := grid.misfit(label_grid, remedy)):
        remarks.append(("error", case.label, f"not on the grid of its image: {misfit}"))
    facts = CaseFacts(
        id=case.id,
        role=role_of(case),
        shape_zyx=grid.shape_zyx if grid else None,
        spacing_mm=grid.spacing_mm if grid else None,
        orientation=grid.orientation if grid else None,
        minimum=float(image.min()) if image is not None else None,
        maximum=float(image.max()) if image is not None else None,
        label_voxels=voxels,
        content=_content(image) if image is not None else None,
    )
    return facts, [as_problem(remark, dataset.root, case.id) for remark in remarks]


def role_of(case: Case) -> Role:
    """`test`, or for training cases whether they have a label."""
    if case.split == "test":
        return "test"
    return "labelled" if case.label is not None else "unlabelled"


def set_aside(file: Path, text: str) -> Remark:
    """What is said of something that a run goes on without."""
    return "warning", file, f"set aside: {text.removeprefix(f'{file}: ')}"


def as_problem(remark: Remark, root: Path, case: str | None = None) -> Problem:
    """A remark with the file's path below the dataset's folder, or its whole path if it lies elsewhere."""
    severity, file, text = remark
    text = text.removeprefix(f"{file}: ")
    name = str(file.relative_to(root) if file != root and file.is_relative_to(root) else file)
    if text.split(" ", 1)[0].isalpha():  # a word, no id or key
        text = text[:1].upper() + text[1:]
    return Problem(severity=severity, file=printable(name), text=printable(text), case=case)


def _inspect_image(case: Case, dataset: Dataset, remarks: list[Remark]) -> tuple[Grid | None, FloatArray | None]:
    """Grid and voxels `(C, Z, Y, X)` of the image, each None where it cannot be had."""
    grids = [grid for path in case.images if (grid := inspect_header(path, remarks))]
    first = grids[0] if grids else None
    if len(grids) < len(case.images) or not _form_fits(grids, case, dataset, remarks):
        return first, None
    try:
        image = read_volume(case.images).array
    except DataError as error:
        named = next((file for file in case.images if str(error).startswith(f"{file}:")), case.images[0])
        remarks.append(("error", named, str(error)))
        return first, None
    _judge_intensities(image, case, dataset, remarks)
    return first, image


def inspect_header(path: Path, remarks: list[Remark]) -> Grid | None:
    """The grid of a file, None where it cannot be read; adds what of its header is doubtful."""
    try:
        grid = read_grid(path)
    except DataError as error:
        remarks.append(("error", path, str(error)))
        return None
    remarks += [("warning", path, doubt) for doubt in grid.doubts]
    return grid


def _form_fits(grids: list[Grid], case: Case, dataset: Dataset, remarks: list[Remark]) -> bool:
    """Whether dimensions and channels are those of a 3D case of this dataset."""
    file, shape, wanted = case.images[0], grids[0].shape_zyx, len(dataset.channels)
    if min(shape) == 1:
        text = f"one slice, of the shape (Z, Y, X) {shape}, which a run takes. Leave it out if it is no 3D scan."
        remarks.append(("warning", file, text))
    channels = sum(grid.channels for grid in grids)
    if channels == wanted:
        return True
    if wanted == 1:
        text = f"4D with {channels} volumes, but a 3D scan is expected. Keep one volume, or name all channels."
    else:
        names = ", ".join(dataset.channels)
        remedy = "Add or remove channels."
        if len(case.images) == channels < wanted:
            missing = [f"{case.id}_{n:04d} ({dataset.channels[n]})" for n in range(channels, wanted)]
            remedy = f"Add {', '.join(missing)}, or remove the case."
        text = f"{counted(channels, 'channel')}, but the dataset names {wanted} ({names}). {remedy}"
    remarks.append(("error", file, text))
    return False


def _judge_intensities(image: FloatArray, case: Case, dataset: Dataset, remarks: list[Remark]) -> None:
    constant = [name for name, c in zip(dataset.channels, image, strict=True) if float(c.min()) == float(c.max())]
    if len(constant) == len(dataset.channels):
        value = float(image.flat[0])
        text = f"every voxel is {value:g}: there is nothing to see. Restore the scan, or leave it out."
        remarks.append(("warning", case.images[0], text))
    elif constant:
        text = f"the channel {', '.join(constant)} is constant. Restore it, or leave the case out."
        remarks.append(("warning", case.images[0], text))
    for name, channel in zip(dataset.channels, image, strict=True):
        if is_ct(name) and name not in constant and float(channel.min()) >= 0:
            text = (
                f"the channel is called CT, but its lowest value is {float(channel.min()):g}: {NO_HOUNSFIELD} "
                "Apply the rescale intercept, or say --modality mr if it is no CT."
            )
            remarks.append(("warning", case.images[0], text))


def _inspect_label(file: Path, dataset: Dataset, remarks: list[Remark]) -> tuple[Grid | None, dict[int, int] | None]:
    """Grid and voxel counts of a label map, each None where it cannot be had."""
    try:
        label, grid, rounded = read_label_rounded(file)
    except DataError as error:
        remarks.append(("error", file, str(error)))
        return None, None
    if rounded:
        text = f"label values are up to {rounded:.2g} off whole numbers: they are rounded. Store them as whole numbers."
        remarks.append(("warning", file, text))
    counts = count_values(label)
    labels = dataset.labels
    strange = {value: count for value, count in counts.items() if value not in labels.names and value != labels.ignore}
    if strange:
        parts = [f"{count} voxel{'s have' if count > 1 else ' has'} value {value}" for value, count in strange.items()]
        shown = ", ".join(parts[:4]) + (f" and {len(parts) - 4} more values" if len(parts) > 4 else "")
        source = _LABEL_SOURCES.get(dataset.layout, "the label list")
        last, most = max(labels.names), max(strange)
        added = ", or add the label" if most == last + 1 and labels.ignore is None else ""
        text = f"{shown}, but {source} ends at {last}. Fix the file{added}."
        remarks.append(("error", file, text))
    elif not any(value in labels.organs for value in counts):
        text = "the label is empty: no voxel has a class. Remove the file if nobody has labelled the scan."
        remarks.append(("warning", file, text))
    return grid, counts


def _content(image: FloatArray) -> str:
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()
