"""Separable resampling of images, label maps and logits, orders 0, 1 and 3.

What differs from scipy and nnU-Net is the order of sums: images by float32 rounding, and logits too. Clipping to the
input's range matters at order 3 alone, since order 1 is a mean with weights that are not negative.

Boundary and grid rule: voxels are cells (`grid_mode=True`: the first and last cell edges of input and
output coincide), and outside of the array the nearest voxel continues (`mode="nearest"`): scipy's
convention, and through skimage's `resize` nnU-Net's.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
from numpy.typing import NDArray

from semiseg.geometry import triple
from semiseg.ops.operators import BLOCK_ROWS, MIXED, Taps, multiply, shared_with_next, zoom_band, zoom_taps
from semiseg.types import AnyArray, FloatArray, LabelArray, Shape, Spacing

ANISOTROPY_RATIO = 3.0
"""A scan is anisotropic when its largest spacing is more than this many times its smallest (nnU-Net's threshold)."""


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
    return triple(
        max(1, round(old / new * n)) for n, old, new in zip(shape_zyx, spacing_mm, target_spacing_mm, strict=True)
    )


def resample_image(
    image: FloatArray, shape_out: Shape, anisotropic_axis: int | None = None, *, order: int = 3, clip: bool = True
) -> FloatArray:
    """The image `(C, Z, Y, X)` float32 at `shape_out`, by splines of `order`, and order 0 along `anisotropic_axis`.

    clip: keep each channel within its input's range, as nnU-Net does (each slice across `anisotropic_axis`
    within that slice's range); scipy's zoom does not. The same shape comes back as an exact copy.
    """
    out = np.empty((image.shape[0], *shape_out), dtype=np.float32)
    for source, target in zip(image, out, strict=True):
        limits = value_limits(source, anisotropic_axis) if clip else None
        rows = ResampledRows(
            lambda start, stop, source=source: source[start:stop],  # type: ignore[misc]
            source.shape,
            shape_out,
            anisotropic_axis,
            order=order,
            limits=limits,
        )
        for block in range(rows.blocks):
            target[rows.rows_of(block)] = rows.block(block)
    return out


Limits = tuple[AnyArray, AnyArray]


def value_limits(channel: AnyArray, anisotropic_axis: int | None = None) -> Limits:
    """The smallest and the largest value of a channel `(Z, Y, X)`, of each slice across `anisotropic_axis`.

    Two arrays of three axes, of length 1 where a limit is for all.
    """
    plane = tuple(axis for axis in range(3) if axis != anisotropic_axis)
    return channel.min(axis=plane, keepdims=True), channel.max(axis=plane, keepdims=True)


class ResampledRows:
    """One channel on another grid, made block by block along its first axis from the rows that a block needs.

    A block is the same bits whoever asks for it, and whatever was asked for before.
    """

    def __init__(
        self,
        read: Callable[[int, int], FloatArray],
        shape_in: Shape,
        shape_out: Shape,
        anisotropic_axis: int | None = None,
        *,
        order: int = 3,
        limits: Limits | None = None,
    ) -> None:
        """read: gives the input rows `[start, stop)`, `(stop - start, Y, X)` float32.

        limits: what `value_limits` says of the input, to keep the result within; None not to.
        """
        self._read, self._shape_in, self._shape_out = read, shape_in, shape_out
        self._axis, self._order = anisotropic_axis, order
        self._nearest = None
        """Of each output slice across the coarse axis, the input slice that it is."""
        if anisotropic_axis is not None:
            self._nearest = _nearest(shape_in[anisotropic_axis], shape_out[anisotropic_axis])
        plane = [axis for axis in range(3) if axis != anisotropic_axis and shape_in[axis] != shape_out[axis]]
        # The axis that shrinks most goes first, so that the later products are small.
        self._plane = sorted((a for a in plane if a > 0), key=lambda a: shape_out[a] / shape_in[a])
        self._limits = limits if plane and order > 1 else None

    @property
    def blocks(self) -> int:
        """How many blocks the result has."""
        return -(-self._shape_out[0] // BLOCK_ROWS)

    def rows_of(self, block: int) -> slice:
        """The output rows of a block."""
        return slice(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, self._shape_out[0]))

    def block(self, block: int) -> FloatArray:
        """The output rows of a block, `(rows, Y, X)` float32; where nothing is resampled, a view of the input's."""
        rows, n_in, nearest = self.rows_of(block), self._shape_in[0], self._nearest
        if n_in == self._shape_out[0]:
            out = self._read(rows.start, rows.stop)
        elif nearest is not None and self._axis == 0:
            picked = nearest[rows]
            out = self._read(int(picked[0]), int(picked[-1]) + 1)[picked - picked[0]]
        else:
            band = zoom_band(n_in, self._shape_out[0], self._order)
            out = multiply(band.blocks[block], self._read(*band.input_rows(block)), 0)
        if nearest is not None and self._axis:
            out = np.take(out, nearest, axis=self._axis)
        for axis in self._plane:
            out = zoom_band(self._shape_in[axis], self._shape_out[axis], self._order).apply(out, axis)
        if self._limits is not None:
            low, high = self._limits
            if nearest is not None and self._axis is not None:
                wanted = nearest[rows] if self._axis == 0 else nearest
                low, high = np.take(low, wanted, self._axis), np.take(high, wanted, self._axis)
            out = np.clip(out, low, high)
        return out


_TIE = 1e-9
"""Weights of classes that differ by less are equal: sums of eight float64 products that ought to be."""


def resample_label(label: LabelArray, shape_out: Shape, anisotropic_axis: int | None = None) -> LabelArray:
    """The label map `(Z, Y, X)` at `shape_out`, in its own type: the class whose mask weighs most by order 1.

    Along `anisotropic_axis` order 0. Of classes that weigh the same it is the nearest voxel's if that is one of them,
    otherwise the smallest value: nnU-Net's rule (batchgenerators 0.25.5; before, the last class that reached 0.5).
    Weights are looked at only between different labels, and not at all where all neighbours have the same.
    """
    if label.shape == shape_out:
        return label.copy()
    orders = [0 if axis == anisotropic_axis else 1 for axis in range(3)]
    z, y, x = (zoom_taps(label.shape[a], shape_out[a], orders[a], np.float64) for a in range(3))
    nearest = [_nearest(n_in, n_out) for n_in, n_out in zip(label.shape, shape_out, strict=True)]
    out = np.empty(shape_out, dtype=label.dtype)
    for start in range(0, shape_out[0], BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, shape_out[0]))
        first = min(int(z.low[rows].min()), int(nearest[0][rows].min()))
        stop = max(int(z.high[rows].max()), int(nearest[0][rows].max())) + 1
        in_part = Taps(z.low[rows] - first, z.high[rows] - first, z.low_weight[rows], z.high_weight[rows])
        out[rows] = _resample_label_rows(label[first:stop], [in_part, y, x], [nearest[0][rows] - first, *nearest[1:]])
    return out


def keep_known(label: LabelArray, out: LabelArray, ignore: int) -> None:
    """Give voxels of a resampled label map `out` that are ignored the class of a voxel of `label` that lies in them and
    is not, in place: one slice that a person drew weighs less than the ignored ones beside it, and would be lost."""
    to = [
        np.minimum((np.arange(n) + 0.5) * m / n, m - 1).astype(np.intp)
        for n, m in zip(label.shape, out.shape, strict=True)
    ]
    for plane in range(len(label)):  # a whole comparison would take as much memory as the label map
        row = out[to[0][plane]]
        lost = np.nonzero((label[plane] != ignore) & (row[np.ix_(to[1], to[2])] == ignore))
        row[to[1][lost[0]], to[2][lost[1]]] = label[plane][lost]


def _nearest(n_in: int, n_out: int) -> NDArray[np.intp]:
    """Of each output voxel along an axis the input voxel that it lies in."""
    return np.arange(n_in) if n_in == n_out else zoom_taps(n_in, n_out, 0).low


def _resample_label_rows(label: LabelArray, taps: list[Taps], nearest: list[NDArray[np.intp]]) -> AnyArray:
    """Some rows of a label map."""
    cells = label.astype(np.int32)
    for axis, tap in enumerate(taps):
        if tap.high_weight.any():
            cells = shared_with_next(cells, axis)
    for axis, tap in enumerate(taps):
        cells = np.take(cells, tap.low, axis=axis)
    places = np.nonzero(cells == MIXED)
    if places[0].size:
        cells[places] = _heaviest(label, places, taps, nearest)
    return cells


def _heaviest(
    label: LabelArray, places: tuple[NDArray[np.intp], ...], taps: list[Taps], nearest: list[NDArray[np.intp]]
) -> LabelArray:
    """Of single output voxels the class that weighs most among their eight neighbours."""
    found = label[tuple(voxels[p] for voxels, p in zip(nearest, places, strict=True))]
    ends = [((t.low[p], t.low_weight[p]), (t.high[p], t.high_weight[p])) for t, p in zip(taps, places, strict=True)]
    neighbours = list(product(*ends))
    values = np.stack([label[z, y, x] for (z, _), (y, _), (x, _) in neighbours])
    weights = np.stack([a * b * c for (_, a), (_, b), (_, c) in neighbours])
    # The nearest voxel's class has more than half nearly everywhere, and half is enough where it is the nearest's.
    left = np.flatnonzero(np.where(values == found, weights, 0.0).sum(axis=0) < 0.5 - _TIE)
    values, weights, closest = values[:, left], weights[:, left], found[left]
    scores = np.stack([np.where(values == value, weights, 0.0).sum(axis=0) for value in values])
    tied = scores >= scores.max(axis=0) - _TIE
    is_closest = (tied & (values == closest)).any(axis=0)
    smallest = np.where(tied, values, np.iinfo(values.dtype).max).min(axis=0)
    found[left] = np.where(is_closest, closest, smallest)
    return found
