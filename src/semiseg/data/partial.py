"""Label maps that say something of a part of a scan alone: the rest has the ignore value, and counts in no loss.

What is unknown must not be taught to be background. Label maps are `(Z, Y, X)`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from semiseg.geometry import bounding_box
from semiseg.io.dataset import LabelScheme
from semiseg.types import BoolArray, LabelArray

MARGIN = 1
"""How far around an organ that was set aside background is ignored, by the organ's size along each axis: what is
missing of it lies there."""


def ignore_value(labels: LabelScheme) -> int:
    """The dataset's value of voxels that nobody labelled, or the first one that is free."""
    return labels.count if labels.ignore is None else labels.ignore


def without_organs(label: LabelArray, unknown: Collection[int], ignore: int) -> LabelArray:
    """The label map where of some organs nothing is known: their voxels are ignored, and so is the background around
    them, as far as the organ is large, since parts of it may have been missed. Where the map has none of an organ, it
    may lie anywhere: all background is ignored. Voxels of other organs stay."""
    known = _with_room(label, ignore)
    background = label == 0
    for value in unknown:
        mask = label == value
        box = bounding_box(mask)
        if box is None:
            known[background] = ignore
            continue
        around = tuple(
            slice(max(0, a - MARGIN * (b - a)), b + MARGIN * (b - a)) for a, b in zip(box.start, box.stop, strict=True)
        )
        known[around][background[around]] = ignore
        known[mask] = ignore
    return known


def on_slices(label: LabelArray, axis: int, indices: Collection[int], ignore: int) -> LabelArray:
    """The label map on some slices along an axis alone."""
    known = np.full_like(_with_room(label, ignore), ignore)
    chosen = [slice(None)] * 3
    chosen[axis] = sorted(indices)  # type: ignore[call-overload]
    known[tuple(chosen)] = label[tuple(chosen)]
    return known


def over(base: LabelArray, above: LabelArray, ignore: int) -> LabelArray:
    """The one label map where it says something, else the other."""
    return np.where(above == ignore, base, above).astype(np.promote_types(base.dtype, above.dtype))


def with_unknown(labels: LabelScheme, unknown: Collection[int]) -> LabelScheme:
    """The classes where some label maps do not know these organs. Where mirroring would take a known organ for an
    unknown one, what they leave open is ignored."""
    order = labels.permutation()
    closed = {order[value] for value in unknown} == set(unknown)
    return replace(labels, ignore=ignore_value(labels), unknown=tuple(sorted(unknown)) if closed else ())


def from_masks(masks: Mapping[int, BoolArray], labels: LabelScheme) -> LabelArray:
    """A label map from one mask by organ. labels: with an ignore value.

    Where two organs claim a voxel it is ignored. Where the unknown organs alone have no mask, background is `open`: it
    may be one of them, and is none of the others. Where others have none, all background is ignored.
    """
    organs, ignore = set(labels.organs), ignore_value(labels)
    shape = next(iter(masks.values())).shape
    label = np.zeros(shape, dtype=np.min_scalar_type(max(ignore + 1, *organs)))
    claims = np.zeros(shape, dtype=np.uint8)
    for value, mask in masks.items():
        label[mask] = value
        claims += mask
    label[claims > 1] = ignore
    missing = organs - masks.keys()
    if missing and missing == set(labels.unknown):
        label[label == 0] = ignore + 1
        return label
    return without_organs(label, missing, ignore)


def _with_room(label: LabelArray, ignore: int) -> LabelArray:
    """A copy in a type that holds the ignore value."""
    return label.astype(np.promote_types(label.dtype, np.min_scalar_type(ignore)))
