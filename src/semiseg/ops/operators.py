"""The exact 1-D operators behind separable resampling, orders 0, 1 and 3.

Interpolation by splines is linear and separable, so zooming an identity matrix gives the exact 1-D operator. Splines
of order 3 reach over the whole axis, but their weights fall off by 0.27 a voxel (the pole of the cubic B-spline's
prefilter, Unser 1999): outside of a short band they are nothing, so long axes cost no more a voxel than short ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from semiseg.types import AnyArray, DoubleArray, FloatArray

BLOCK_ROWS = 32
"""Output rows that a band makes at once. Fixed, so that a row is the same bits whoever asks for it."""
HALO_ROWS = 16
"""Input rows that a block needs on each side of those that it lies on, at most."""
_NEGLIGIBLE = 1e-9
"""Weights of an operator under this are left out: a hundredth of float32's rounding of a weight of 1."""


def zoom_operator(n_in: int, n_out: int, order: int) -> DoubleArray:
    """The matrix `(n_out, n_in)`, float64, that resamples one axis by splines of order 0, 1 or 3.

    Large for a long axis: what is kept is made of it, `zoom_taps` and `zoom_band`.
    """
    operator: DoubleArray = ndimage.zoom(np.eye(n_in), (n_out / n_in, 1.0), order=order, mode="nearest", grid_mode=True)
    return operator


@dataclass(frozen=True)
class Taps:
    """A 1-D operator of order 0 or 1: output row r is `low_weight[r] * a[low[r]] + high_weight[r] * a[high[r]]`."""

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    low_weight: AnyArray
    high_weight: AnyArray

    def apply(self, array: AnyArray, axis: int) -> AnyArray:
        """Resample one axis of `array`, in the type of the weights."""
        along = tuple(-1 if a == axis else 1 for a in range(array.ndim))
        out = np.take(array, self.low, axis=axis) * self.low_weight.reshape(along)
        if self.high_weight.any():
            out += np.take(array, self.high, axis=axis) * self.high_weight.reshape(along)
        return np.asarray(out)


@lru_cache(maxsize=256)
def zoom_taps(n_in: int, n_out: int, order: int, dtype: type[Any] = np.float32) -> Taps:
    """The operator of order 0 or 1 as at most two taps a row, weights in `dtype`."""
    operator = zoom_operator(n_in, n_out, order)
    used = operator != 0
    low = used.argmax(axis=1)
    high = n_in - 1 - used[:, ::-1].argmax(axis=1)
    row = np.arange(n_out)
    high_weight = np.where(high > low, operator[row, high], 0.0)
    return Taps(low, high, operator[row, low].astype(dtype), high_weight.astype(dtype))


@dataclass(frozen=True)
class Band:
    """A 1-D operator cut into blocks of `BLOCK_ROWS` output rows, each with the input rows that it needs."""

    first: tuple[int, ...]
    """Of each block, the first input row."""
    blocks: tuple[FloatArray, ...]
    """Of each block, the weights `(output rows, input rows)`."""

    def input_rows(self, block: int) -> tuple[int, int]:
        """The input rows `[start, stop)` of a block."""
        return self.first[block], self.first[block] + self.blocks[block].shape[1]

    def apply(self, array: FloatArray, axis: int) -> FloatArray:
        """Resample one axis of a 3-D array."""
        shape = list(array.shape)
        shape[axis] = sum(len(weights) for weights in self.blocks)
        out = np.empty(shape, dtype=np.float32)
        for block, weights in enumerate(self.blocks):
            source = (slice(None),) * axis + (slice(*self.input_rows(block)),)
            target = (slice(None),) * axis + (slice(block * BLOCK_ROWS, block * BLOCK_ROWS + len(weights)),)
            out[target] = multiply(weights, array[source], axis)
        return out


@lru_cache(maxsize=64)
def zoom_band(n_in: int, n_out: int, order: int) -> Band:
    """The operator of `zoom_operator` as a band in float32."""
    operator = zoom_operator(n_in, n_out, order)
    first, blocks = [], []
    for start in range(0, n_out, BLOCK_ROWS):
        rows = operator[start : start + BLOCK_ROWS]
        used = np.flatnonzero((np.abs(rows) > _NEGLIGIBLE).any(axis=0))
        first.append(int(used[0]))
        blocks.append(np.ascontiguousarray(rows[:, used[0] : used[-1] + 1], dtype=np.float32))
    return Band(tuple(first), tuple(blocks))


def multiply(operator: FloatArray, array: FloatArray, axis: int) -> FloatArray:
    """The operator `(m, n)` along one axis of a 3-D array, as matrix products."""
    if axis == 0:
        return (operator @ array.reshape(array.shape[0], -1)).reshape(-1, *array.shape[1:])
    if axis == 1:
        return np.asarray(np.matmul(operator, array))
    return np.asarray(array @ operator.T)


MIXED = -1
"""In place of a label: of neighbours that have different ones."""


def shared_with_next(labels: NDArray[np.int32], axis: int) -> NDArray[np.int32]:
    """The label that each voxel shares with the next one along an axis, or `MIXED`; the last one's as it is.

    Between voxels of one label order 1 gives that label: no weights need be looked at.
    """
    shared = labels.copy()
    here, following = (np.moveaxis(a, axis, 0) for a in (shared, labels))
    here[:-1][following[:-1] != following[1:]] = MIXED
    return shared
