"""Separable resampling of images, label maps and logits, orders 0, 1 and 3.

Boundary and grid rule: voxels are cells (`grid_mode=True`: the first and last cell edges of input and
output coincide), and outside of the array the nearest voxel continues (`mode="nearest"`): scipy's
convention, and through skimage's `resize` nnU-Net's. Interpolation by splines is linear and separable, so
zooming an identity matrix gives the exact 1-D operator, and one matrix product per axis applies it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from semiseg.geometry import Box, bounding_box
from semiseg.types import AnyArray, DoubleArray, FloatArray, LabelArray, Shape, Spacing

ANISOTROPY_RATIO = 3.0
"""A scan is anisotropic when its largest spacing is more than this many times its smallest (nnU-Net's
threshold).
"""


def is_anisotropic(spacing_mm: Spacing) -> bool:
    """Whether the largest spacing is more than 3 times the smallest one."""
    return max(spacing_mm) > ANISOTROPY_RATIO * min(spacing_mm)


def coarse_axis(spacing_mm: Spacing) -> int | None:
    """The axis along which a grid is resampled with order 0, or None: nnU-Net's rule.

    That is the axis of the largest spacing, if that is more than 3 times the smallest one and no second
    axis is as coarse.
    """
    largest = max(spacing_mm)
    if not is_anisotropic(spacing_mm) or spacing_mm.count(largest) > 1:
        return None
    return spacing_mm.index(largest)


def target_shape(shape_zyx: Shape, spacing_mm: Spacing, target_spacing_mm: Spacing) -> Shape:
    """The shape after resampling: `round(shape * spacing / target)` as in nnU-Net, at least 1 voxel."""
    z, y, x = (
        max(1, round(old / new * n)) for n, old, new in zip(shape_zyx, spacing_mm, target_spacing_mm, strict=True)
    )
    return (z, y, x)


@lru_cache(maxsize=128)
def zoom_operator(n_in: int, n_out: int, order: int) -> DoubleArray:
    """The matrix `(n_out, n_in)`, float64, that resamples one axis by splines of order 0, 1 or 3;
    read-only.
    """
    operator: DoubleArray = ndimage.zoom(np.eye(n_in), (n_out / n_in, 1.0), order=order, mode="nearest", grid_mode=True)
    operator.setflags(write=False)
    return operator


@dataclass(frozen=True)
class Taps:
    """A 1-D operator of order 0 or 1: output row r is `low_weight[r] * a[low[r]] + high_weight[r] *
    a[high[r]]`.
    """

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    low_weight: AnyArray
    high_weight: AnyArray

    def rows(self, start: int, stop: int) -> Taps:
        """The operator of output rows `[start, stop)` alone."""
        part = slice(start, stop)
        return Taps(self.low[part], self.high[part], self.low_weight[part], self.high_weight[part])

    def columns(self, start: int, stop: int) -> Taps:
        """The operator on an input that is zero outside of rows `[start, stop)`, of which only those are
        given.
        """

        def weight(index: NDArray[np.intp], weights: AnyArray) -> AnyArray:
            return np.where((index >= start) & (index < stop), weights, weights.dtype.type(0))

        def local(index: NDArray[np.intp]) -> NDArray[np.intp]:
            return np.clip(index, start, stop - 1) - start

        return Taps(
            local(self.low),
            local(self.high),
            weight(self.low, self.low_weight),
            weight(self.high, self.high_weight),
        )

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


def resample_image(
    image: FloatArray,
    shape_out: Shape,
    anisotropic_axis: int | None = None,
    *,
    order: int = 3,
    clip: bool = True,
) -> FloatArray:
    """The image `(C, Z, Y, X)` float32 at `shape_out`, by splines of `order`, and order 0 along
    `anisotropic_axis`.

    clip: keep each channel within its input's range, as nnU-Net does (each slice across `anisotropic_axis`
    within that slice's range); scipy's zoom does not. The same shape comes back as an exact copy.
    """
    out = np.empty((image.shape[0], *shape_out), dtype=np.float32)
    for source, target in zip(image, out, strict=True):
        target[:] = _resample_channel(source, shape_out, anisotropic_axis, order, clip)
    return out


def _resample_channel(
    channel: FloatArray, shape_out: Shape, anisotropic_axis: int | None, order: int, clip: bool
) -> FloatArray:
    if channel.shape == shape_out:
        return channel
    if anisotropic_axis is not None:
        channel = _nearest(channel, shape_out[anisotropic_axis], anisotropic_axis)
    plane = [axis for axis in range(3) if axis != anisotropic_axis]
    axes = [axis for axis in plane if channel.shape[axis] != shape_out[axis]]
    out = channel
    # The axis that shrinks most goes first, so that the later products are small.
    for axis in sorted(axes, key=lambda a: shape_out[a] / channel.shape[a]):
        operator = zoom_operator(channel.shape[axis], shape_out[axis], order).astype(np.float32)
        out = _multiply(operator, out, axis)
    if clip and axes and order > 1:
        low = channel.min(axis=tuple(plane), keepdims=True)
        high = channel.max(axis=tuple(plane), keepdims=True)
        out = np.clip(out, low, high)
    return out


def _multiply(operator: FloatArray, array: FloatArray, axis: int) -> FloatArray:
    """The operator `(m, n)` along one axis of a 3-D array, as one matrix product per slab."""
    if axis == 0:
        return (operator @ array.reshape(array.shape[0], -1)).reshape(-1, *array.shape[1:])
    if axis == 1:
        return np.asarray(np.matmul(operator, array))
    return np.asarray(array @ operator.T)


def _nearest(array: AnyArray, n_out: int, axis: int) -> AnyArray:
    if array.shape[axis] == n_out:
        return array
    return np.take(array, zoom_taps(array.shape[axis], n_out, 0).low, axis=axis)


def resample_label(
    label: LabelArray,
    shape_out: Shape,
    classes: Collection[int] | None = None,
    anisotropic_axis: int | None = None,
) -> LabelArray:
    """The label map `(Z, Y, X)` at `shape_out`, in its own type: order 1 on each class's mask, `>= 0.5`
    wins.

    Along `anisotropic_axis` order 0. Of two classes with 0.5 each the larger value wins, and where none
    reaches 0.5 the voxel is background: nnU-Net's `resize_segmentation`. classes: values to keep, all that
    occur by default. Masks are weighted in float64, since 0.5 is often met exactly, and only within the box
    of their class.
    """
    if label.shape == shape_out:
        return label.copy()
    values = [int(v) for v in np.unique(label) if v != 0 and (classes is None or int(v) in classes)]
    orders = [0 if axis == anisotropic_axis else 1 for axis in range(3)]
    taps = [zoom_taps(label.shape[a], shape_out[a], orders[a], np.float64) for a in range(3)]
    out = np.zeros(shape_out, dtype=label.dtype)
    for value in values:
        mask = label == value
        box = bounding_box(mask)
        assert box is not None  # the value occurs
        region, weight = _resample_mask(mask[box.slices()], box, taps)
        out[region.slices()][weight >= 0.5] = value
    return out


def _resample_mask(mask: AnyArray, box: Box, taps: list[Taps]) -> tuple[Box, DoubleArray]:
    """The output region that the input box reaches, and the weight of the mask in it."""
    weight = mask.astype(np.float64)
    starts, stops = [0, 0, 0], [0, 0, 0]
    for axis in range(3):
        a, b = box.start[axis], box.stop[axis]
        touched = np.flatnonzero((taps[axis].high >= a) & (taps[axis].low < b))
        if touched.size == 0:  # order 0 on the way to fewer slices can leave a class out
            return Box((0, 0, 0), (0, 0, 0)), np.zeros((0, 0, 0))
        starts[axis], stops[axis] = int(touched[0]), int(touched[-1]) + 1
        weight = taps[axis].rows(starts[axis], stops[axis]).columns(a, b).apply(weight, axis)
    return Box((starts[0], starts[1], starts[2]), (stops[0], stops[1], stops[2])), weight


def slab_input_rows(n_in: int, n_out: int, z_start: int, z_stop: int, *, nearest: bool = False) -> tuple[int, int]:
    """The input rows `[first, last)` along Z from which output rows `[z_start, z_stop)` are made."""
    if n_in == n_out:
        return z_start, z_stop
    taps = zoom_taps(n_in, n_out, 0 if nearest else 1).rows(z_start, z_stop)
    return int(taps.low.min()), int(taps.high.max()) + 1


def resample_slab(
    array: FloatArray,
    shape_out: Shape,
    z_start: int,
    z_stop: int,
    anisotropic_axis: int | None = None,
    *,
    first_row: int = 0,
    rows_in: int | None = None,
) -> FloatArray:
    """Rows `[z_start, z_stop)` of the logits at `shape_out`, `(K, z_stop - z_start, Y, X)` float32, by
    order 1.

    Along `anisotropic_axis` order 0. Each output plane is computed alone, so slabs put together are
    bit-equal to the whole made at once.

    array: `(K, rows, Y, X)` float32: the whole input, or its rows from `first_row` on of `rows_in` in all,
    of which `slab_input_rows` says which are needed.
    """
    n_in = array.shape[1] if rows_in is None else rows_in
    z_order, y_order, x_order = (0 if axis == anisotropic_axis else 1 for axis in range(3))
    z = zoom_taps(n_in, shape_out[0], z_order).rows(z_start, z_stop)
    y = zoom_taps(array.shape[2], shape_out[1], y_order) if array.shape[2] != shape_out[1] else None
    x = zoom_taps(array.shape[3], shape_out[2], x_order) if array.shape[3] != shape_out[2] else None
    out = np.empty((array.shape[0], z_stop - z_start, *shape_out[1:]), dtype=np.float32)
    for channel, target in zip(array, out, strict=True):
        for row in range(z_stop - z_start):
            plane = channel[z.low[row] - first_row]
            if z.high_weight[row] != 0:
                plane = plane * z.low_weight[row] + channel[z.high[row] - first_row] * z.high_weight[row]
            plane = plane if y is None else y.apply(plane, 0)
            target[row] = plane if x is None else x.apply(plane, 1)
    return out
