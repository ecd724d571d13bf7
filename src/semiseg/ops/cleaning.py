"""Cleaning of label maps, organ by organ: all but the largest component removed, holes filled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from scipy import ndimage

from semiseg.geometry import bounding_box
from semiseg.types import BoolArray, LabelArray

Step = Literal["largest_component", "fill_holes"]
STEPS: tuple[Step, ...] = ("largest_component", "fill_holes")
"""In the order in which they are applied."""
_ALL_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)


def clean(labels: LabelArray, steps: Mapping[int, tuple[Step, ...]]) -> LabelArray:
    """The label map `(Z, Y, X)` with the steps of each class applied, in a copy.

    What is removed becomes background, and only background is filled: no step takes a voxel from another class.
    """
    cleaned = labels.copy()
    for value, wanted in steps.items():
        mask = cleaned == value
        box = bounding_box(mask)
        if box is None:
            continue
        crop, inside = cleaned[box.slices()], mask[box.slices()]
        if "largest_component" in wanted:
            kept = largest_component(inside)
            crop[inside & ~kept] = 0
            inside = kept
        if "fill_holes" in wanted:
            crop[ndimage.binary_fill_holes(inside) & (crop == 0)] = value
    return cleaned


def largest_component(mask: BoolArray, *, corners: bool = True) -> BoolArray:
    """The component of a mask `(Z, Y, X)` with the most voxels, the first of equals.

    corners: voxels that touch at an edge or a corner are connected too, not at a face alone.
    """
    components, count = ndimage.label(mask, structure=_ALL_NEIGHBOURS if corners else None)
    if count <= 1:
        return mask
    # Slice by slice: `bincount` makes a copy of 8 bytes a voxel.
    sizes = np.zeros(count + 1, dtype=np.int64)
    for piece in components:
        sizes += np.bincount(piece.ravel(), minlength=count + 1)
    sizes[0] = 0
    return np.asarray(components == sizes.argmax())
