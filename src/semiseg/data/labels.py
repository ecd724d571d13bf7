"""Label maps read and held against the image's grid and the dataset's classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from semiseg.errors import DataError
from semiseg.geometry import Box, triple
from semiseg.io.dataset import LabelScheme
from semiseg.io.grid import Grid
from semiseg.io.masks import is_mask_folder, refuse_other_organs
from semiseg.io.scans import read_label
from semiseg.types import LabelArray
from semiseg.words import counted


def count_values(label: LabelArray) -> dict[int, int]:
    """Voxels of each value that occurs, ascending."""
    # Counting slice by slice is many times faster than sorting all voxels, and needs no 64-bit copy of them.
    length = int(label.max(initial=0)) + 1
    counts = sum((np.bincount(plane.ravel(), minlength=length) for plane in label), np.zeros(length, np.int64))
    return {int(v): int(counts[v]) for v in np.flatnonzero(counts)}


def boxes_of(label: LabelArray) -> dict[int, Box]:
    """The smallest box around each value above 0 that occurs in a label map `(Z, Y, X)`, by one pass over it."""
    found = enumerate(ndimage.find_objects(label), start=1)
    return {
        value: Box(triple(s.start for s in where), triple(s.stop for s in where)) for value, where in found if where
    }


def voxels_of(label: LabelArray, value: int, box: Box) -> NDArray[np.int64]:
    """The voxels `(N, 3)` of a value, `(z, y, x)` in the label map; box: around them."""
    return np.argwhere(label[box.slices()] == value) + box.start


def read_checked_label(path: Path, image: Path, grid: Grid, labels: LabelScheme) -> tuple[LabelArray, dict[int, int]]:
    """The label map `(Z, Y, X)` and the voxels of each value in it.

    image, grid: the scan that it belongs to. Raises `DataError` for another grid than the scan's, and for
    values that the dataset does not declare.
    """
    if is_mask_folder(path):
        refuse_other_organs(path, labels.names)
    label, label_grid = read_label(path)
    if misfit := label_grid.misfit(grid, "Resample it onto the scan, or restore the file."):
        raise DataError(f"{path}: not on the grid of {image}: {misfit}")
    voxels = count_values(label)
    for value, count in voxels.items():
        if value not in labels.names and value not in (labels.ignore, labels.open):
            have = counted(count, "voxel has", "voxels have")
            raise DataError(
                f"{path}: {have} value {value}, but the dataset's labels end at {max(labels.names)}. "
                "Correct the file, or declare the label."
            )
    return label, voxels
