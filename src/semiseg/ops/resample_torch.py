"""Separable resampling on torch tensors, on any device: the operators of `semiseg.ops.operators`, banded as there."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semiseg.ops.operators import BLOCK_ROWS, Taps, zoom_band, zoom_taps
from semiseg.types import AnyArray, Shape


def resample_tensor(
    volume: Tensor, shape_out: Shape, anisotropic_axis: int | None = None, *, order: int = 3, clip: bool = True
) -> Tensor:
    """`semiseg.ops.resample.resample_image` for a tensor `(C, Z, Y, X)` float32, on its device.

    Images at order 3; logits, and label maps as one mask each, at order 1. order: 0, 1 or 3; along `anisotropic_axis`
    always 0. clip: keep each channel (each slice across `anisotropic_axis`) within its range, which splines of order 3
    leave and the others don't. The same shape comes back as a copy. Differs from numpy's in the order of float32 sums.
    """
    limits = _limits(volume, shape_out, anisotropic_axis) if clip and order > 1 else None
    axes = [axis for axis in range(3) if volume.shape[axis + 1] != shape_out[axis]]
    out = volume if axes else volume.clone()
    # The axis that shrinks most goes first, so that the later products are small.
    for axis in sorted(axes, key=lambda axis: shape_out[axis] / volume.shape[axis + 1]):
        if axis == anisotropic_axis or order == 0:
            out = _picked(out, axis, shape_out[axis])
        else:
            out = _multiplied(out, axis, shape_out[axis], order)
    return out if limits is None else torch.clamp(out, *limits)


def apply_taps(taps: Taps, tensor: Tensor, axis: int) -> Tensor:
    """`Taps.apply` for a tensor, on its device: the same products and sums in the same order."""
    along = tuple(-1 if a == axis else 1 for a in range(tensor.ndim))

    def weighted(rows: NDArray[np.intp], weights: AnyArray) -> Tensor:
        picked = tensor.index_select(axis, torch.from_numpy(rows).to(tensor.device))
        return picked.mul_(torch.from_numpy(weights).to(tensor.device).reshape(along))

    out = weighted(taps.low, taps.low_weight)
    return out.add_(weighted(taps.high, taps.high_weight)) if taps.high_weight.any() else out


def labels_between(
    planes: tuple[Tensor, Tensor], weights: tuple[float, float], taps: tuple[Taps | None, Taps | None]
) -> Tensor:
    """The largest class of logits `(K, Y, X)` between two rows, resampled along both axes: the first of equals, uint8
    (int32 for more than 256 classes), on their device; in main memory where that has no room. None: an axis as it is.
    """
    try:
        plane = planes[0] if weights[1] == 0 else (planes[0] * weights[0]).add_(planes[1] * weights[1])
        for axis, along in enumerate(taps, start=1):
            plane = plane if along is None else apply_taps(along, plane, axis)
        return plane.argmax(0).to(torch.uint8 if len(plane) <= 256 else torch.int32)
    except torch.OutOfMemoryError:
        pass
    # Outside of the handler: the error holds what was allocated.
    return labels_between((planes[0].cpu(), planes[1].cpu()), weights, taps)


def _picked(volume: Tensor, axis: int, n_out: int) -> Tensor:
    """Order 0 along one axis."""
    nearest = torch.from_numpy(zoom_taps(volume.shape[axis + 1], n_out, 0).low).to(volume.device)
    return volume.index_select(axis + 1, nearest)


def _multiplied(volume: Tensor, axis: int, n_out: int, order: int) -> Tensor:
    """The banded operator along one axis."""
    band = zoom_band(volume.shape[axis + 1], n_out, order)
    rows = volume.movedim(axis + 1, -2)
    out = volume.new_empty((*rows.shape[:-2], n_out, rows.shape[-1]))
    for block, weights in enumerate(band.blocks):
        first, last = band.input_rows(block)
        start = block * BLOCK_ROWS
        out[..., start : start + len(weights), :] = (
            torch.from_numpy(weights).to(volume.device) @ rows[..., first:last, :]
        )
    return out.movedim(-2, axis + 1)


def _limits(volume: Tensor, shape_out: Shape, anisotropic_axis: int | None) -> tuple[Tensor, Tensor] | None:
    """The smallest and largest value of each channel, of each slice across the coarse axis; None if no spline is
    applied."""
    plane = [axis for axis in range(3) if axis != anisotropic_axis]
    if all(volume.shape[axis + 1] == shape_out[axis] for axis in plane):
        return None
    low, high = (function(volume, [axis + 1 for axis in plane], keepdim=True) for function in (torch.amin, torch.amax))
    if anisotropic_axis is None:
        return low, high
    n_out = shape_out[anisotropic_axis]
    return _picked(low, anisotropic_axis, n_out), _picked(high, anisotropic_axis, n_out)
