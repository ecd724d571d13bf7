"""Dice, surface Dice, HD95 and volumes of one case, organ by organ, under the standard empty-mask rules.

| reference | prediction | dice | nsd  | hd95_mm |
|-----------|------------|------|------|---------|
| empty     | empty      | null | null | null    |
| empty     | something  | 0    | 0    | null    |
| something | empty      | 0    | 0    | null    |

Null is "undefined" and left out of means: an organ that is neither there nor found says nothing about the
prediction, and the distance to a surface that does not exist is not a number. A mean HD95 is therefore over
the found organs only; read it beside its count.

Ignored voxels (the reference's `ignore` label: nobody labelled them) are background in both masks and belong
to no volume. A surface element that touches one has no weight, see `semiseg.ops.surface`; an organ whose
surface has no element left has null for nsd and hd95_mm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from typing_extensions import TypedDict

from semiseg.ops.surface import robust_hausdorff_mm, surface_dice, surface_distances
from semiseg.types import BoolArray, LabelArray, Spacing


class OrganScores(TypedDict):
    """Scores of one organ in one case; None where undefined. Volumes in millilitres."""

    dice: float | None
    nsd: float | None
    hd95_mm: float | None
    volume_ml: float
    reference_volume_ml: float


class OrganMasks(NamedTuple):
    """Masks of one organ in a box around both; ignored voxels are already cleared in both masks."""

    reference: BoolArray
    prediction: BoolArray
    ignore: BoolArray | None


def score_case(
    reference: LabelArray,
    prediction: LabelArray,
    spacing_mm: Spacing,
    organs: Mapping[int, str],
    tolerance_mm: Mapping[str, float],
    *,
    ignore: int | None = None,
) -> dict[str, OrganScores]:
    """Scores by organ name.

    reference, prediction: label maps `(Z, Y, X)` on one grid. organs: value to name. tolerance_mm: of the
    NSD, by name. ignore: value in the reference of voxels that nobody labelled.
    """
    return {
        organs[value]: score_organ(masks, spacing_mm, tolerance_mm[organs[value]])
        for value, masks in organ_masks(reference, prediction, organs, ignore=ignore).items()
    }


def score_organ(masks: OrganMasks, spacing_mm: Spacing, tolerance_mm: float) -> OrganScores:
    """Scores of one organ under the rules at the top of this file."""
    scores = OrganScores(
        dice=dice(masks.reference, masks.prediction),
        nsd=None,
        hd95_mm=None,
        volume_ml=volume_ml(masks.prediction, spacing_mm),
        reference_volume_ml=volume_ml(masks.reference, spacing_mm),
    )
    if scores["dice"] is None:
        return scores
    if not (masks.reference.any() and masks.prediction.any()):
        return {**scores, "nsd": 0.0}
    distances = surface_distances(masks.reference, masks.prediction, spacing_mm, ignore=masks.ignore)
    return {
        **scores,
        "nsd": _defined(surface_dice(distances, tolerance_mm)),
        "hd95_mm": _defined(robust_hausdorff_mm(distances)),
    }


def dice(reference: BoolArray, prediction: BoolArray) -> float | None:
    """Sørensen–Dice overlap of two masks, 0 to 1; None if both are empty."""
    total = np.count_nonzero(reference) + np.count_nonzero(prediction)
    return 2 * np.count_nonzero(reference & prediction) / total if total else None


def volume_ml(mask: BoolArray, spacing_mm: Spacing) -> float:
    """Volume of a mask in millilitres."""
    return float(np.count_nonzero(mask) * math.prod(spacing_mm) / 1000)


def organ_masks(
    reference: LabelArray, prediction: LabelArray, organs: Mapping[int, str], *, ignore: int | None = None
) -> dict[int, OrganMasks]:
    """Both masks of each organ, cropped to a box around both and a margin of one voxel: one pass over the volumes."""
    found = [ndimage.find_objects(label) for label in (reference, prediction)]
    masks = {}
    for value in organs:
        box = _union([boxes[value - 1] if value <= len(boxes) else None for boxes in found], reference.ndim)
        truth, guess = reference[box], prediction[box]
        unknown = None if ignore is None else truth == ignore
        in_guess = guess == value if unknown is None else (guess == value) & ~unknown
        masks[value] = OrganMasks(truth == value, in_guess, unknown)
    return masks


def _union(boxes: list[tuple[slice, ...] | None], dimensions: int) -> tuple[slice, ...]:
    """The smallest box around all boxes, grown by one voxel; an empty box if there are none."""
    present = [box for box in boxes if box is not None]
    if not present:
        return (slice(0, 0),) * dimensions
    return tuple(
        slice(max(0, min(s.start for s in along) - 1), max(s.stop for s in along) + 1)
        for along in zip(*present, strict=True)
    )


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None
