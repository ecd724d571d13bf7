"""Where the body is in a scan: places worth drawing unlabelled patches from."""

from __future__ import annotations

from math import ceil

import numpy as np
from scipy import ndimage

from semiseg.geometry import CANONICAL_AXES, Box, bounding_box, triple
from semiseg.io.scans import RawChannel
from semiseg.types import AnyArray, BoolArray, FloatArray, Shape

_COARSE_AXIS_VOXELS = 96
_SMALLEST_PART = 0.01
_AIR_HU, _DENSE_HU = -1024.0, 500.0
_TISSUE_HU = -200.0
"""What is denser is body in any CT: fat begins at some -150."""


def body_locations(
    channel: RawChannel, shape_out: Shape, *, ct: bool, count: int, generator: np.random.Generator
) -> tuple[Shape, ...]:
    """Up to `count` voxels `(z, y, x)` of a grid of `shape_out` that lie in the body, with its ends along each axis.

    The mask is made on every n-th voxel, at most 96 an axis, since places need no fine outline. channel:
    `(Z, Y, X)` on the scan's own grid. ct: intensities are Hounsfield units.
    """
    coarse, steps = every_nth(channel)
    mask = body_mask(coarse, ct=ct)
    occupied = np.argwhere(mask if mask.any() else np.ones_like(mask))
    chosen = generator.choice(len(occupied), min(count, len(occupied)), replace=False)
    ends = np.concatenate([occupied.argmin(0), occupied.argmax(0)])[: len(chosen)]
    chosen[: len(ends)] = ends  # a thin end would be met by chance, and is labelled only if it is known
    source = occupied[chosen] * steps + [step // 2 for step in steps]
    # The voxel of the output grid that holds the centre of the source voxel.
    place = ((source + 0.5) * np.divide(shape_out, channel.stored.shape)).astype(int)
    return tuple(triple(map(int, voxel)) for voxel in np.minimum(place, np.subtract(shape_out, 1)))


def every_nth(channel: RawChannel) -> tuple[FloatArray, list[int]]:
    """The values of every n-th voxel, at most 96 an axis, the middle one of each n; and n of each axis."""
    steps = [max(1, -(-n // _COARSE_AXIS_VOXELS)) for n in channel.stored.shape]
    coarse = channel.stored[tuple(slice(step // 2, None, step) for step in steps)]
    return RawChannel(coarse, channel.slope, channel.inter).values(), steps


class BodyBoxes:
    """Tells where on a grid the body of a CT is, and which boxes hold some of it."""

    def __init__(self, channel: RawChannel, shape: Shape, axes: Shape = CANONICAL_AXES) -> None:
        """channel: canonical, in Hounsfield units. shape: of the grid of the boxes, in the order of `axes`."""
        coarse, _ = every_nth(channel)
        self._mask = body_parts(coarse).transpose(axes)
        self._shape = shape
        self._scale = np.divide(self._mask.shape, shape)

    def region(self, margin: Shape) -> Box | None:
        """The box around the body, grown by `margin` within the grid; None if none was found."""
        found = bounding_box(self._mask, margin=1)  # the mask has every n-th voxel only
        if found is None:
            return None
        start = triple(max(0, int(n / scale) - m) for n, scale, m in zip(found.start, self._scale, margin, strict=True))
        stop = triple(
            min(size, ceil(n / scale) + m)
            for n, scale, m, size in zip(found.stop, self._scale, margin, self._shape, strict=True)
        )
        return Box(start, stop)

    def __call__(self, start: Shape, stop: Shape) -> bool:
        """Whether the box, which may reach outside, holds body or is next to it; always true if none was found."""
        low = np.maximum(np.floor(np.multiply(start, self._scale)).astype(int) - 1, 0)
        high = np.ceil(np.multiply(stop, self._scale)).astype(int) + 1
        box = self._mask[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
        return bool(box.any()) or not self._mask.any()


def body_parts(channel: FloatArray) -> BoolArray:
    """All of the body in a CT `(Z, Y, X)`, canonical: `body_mask`, and what it encloses in an axial slice, such as the
    air in lungs and bowel."""
    return np.stack([ndimage.binary_fill_holes(piece) for piece in body_mask(channel, ct=True)])


def body_mask(channel: FloatArray, *, ct: bool) -> BoolArray:
    """The body `(Z, Y, X)`: in CT the components above Otsu's threshold that are at least 1 % of the largest, so also a
    second leg; otherwise all above the mean. In a crop without air Otsu's threshold would tell bone from tissue."""
    if not ct:
        return np.asarray(channel > channel.mean(dtype=np.float64))
    # Padding far below air would be a third mode that draws the threshold to itself.
    bounded = np.clip(channel, _AIR_HU, _DENSE_HU)
    components, count = ndimage.label(bounded > min(otsu_threshold(bounded), _TISSUE_HU))
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    sizes[0] = 0
    parts = (sizes >= _SMALLEST_PART * sizes.max()) & (sizes > 0)
    return np.asarray(parts[components])


def otsu_threshold(values: AnyArray) -> float:
    """The threshold with the largest variance between the two classes that it makes (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = counts.cumsum()[:-1]
    above = counts.sum() - below
    sums = (counts * centres).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = sums[:-1] / below - (sums[-1] - sums[:-1]) / above
        between = np.nan_to_num(below * above * gap**2, nan=0.0)
    return float(edges[1:-1][between.argmax()])
