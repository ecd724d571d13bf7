"""A regular grid of slices that lie on none: tilted ones are moved within their planes, and slices are made between
those that lie unevenly. And the way of a label map back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from semiseg.geometry import triple
from semiseg.io.dicom.headers import Slice
from semiseg.io.dicom.order import TILT_PIXELS, heights, in_plane, place_tolerance_mm
from semiseg.io.dicom.values import widened
from semiseg.types import AnyArray, DoubleArray, FloatArray

Plane = Callable[[int], AnyArray]


@dataclass(frozen=True)
class _Placed:
    """A slice in the grid's plane; which rows and columns it covers; its lowest value there."""

    values: FloatArray
    rows: AnyArray
    columns: AnyArray
    lowest: float


@dataclass(frozen=True)
class Regular:
    """shape_xyz: of the regular grid. moved: for each source slice, by how many pixels of it its first column and row
    lie inside of the grid's. at: the source slice's place, in slices of the grid. size: its columns and rows."""

    shape_xyz: tuple[int, int, int]
    size: tuple[int, int]
    moved: tuple[tuple[float, float], ...]
    at: tuple[float, ...]

    def fill(self, target: AnyArray, plane: Plane) -> AnyArray:
        """Fill `(slices, rows, columns)` with values between those of the source slices, `plane(index)`, each of which
        is asked for once and in order; what no slice covers gets the lowest value of all. Returns the array, or a wider
        one where its whole numbers do not hold the values."""
        below, above = 0, min(1, len(self.at) - 1)
        planes = {index: self._placed(index, plane(index)) for index in (below, above)}
        lowest = min(one.lowest for one in planes.values())
        covered: list[tuple[AnyArray, AnyArray]] = []
        for k in range(self.shape_xyz[2]):
            while self.at[above] < k and above < len(self.at) - 1:
                planes.pop(below)
                below, above = above, above + 1
                planes[above] = self._placed(above, plane(above))
                lowest = min(lowest, planes[above].lowest)
            share = (k - self.at[below]) / max(self.at[above] - self.at[below], 1e-9)
            share = min(1.0, max(0.0, share))
            low, high = planes[below], planes[above]
            if share == 0 or share == 1:
                one = high if share else low
                values, rows, columns = one.values, one.rows, one.columns
            else:
                values = low.values * np.float32(1 - share) + high.values * np.float32(share)
                rows, columns = low.rows & high.rows, low.columns & high.columns
            if target.dtype.kind in "iu":
                values = np.rint(values)
                target = target.astype(widened(values, target.dtype), copy=False)
            target[k] = values
            covered.append((rows, columns))
        for k, (rows, columns) in enumerate(covered):
            target[k, ~rows] = lowest
            target[k, :, ~columns] = lowest
        return target

    def _placed(self, index: int, plane: AnyArray) -> _Placed:
        """A source slice in the grid's plane."""
        columns, rows, _ = self.shape_xyz
        x, y = self.moved[index]
        values: FloatArray = plane.astype(np.float32)
        values, inside_x = _shifted(values, x, columns, axis=1)
        values, inside_y = _shifted(values, y, rows, axis=0)
        return _Placed(values, inside_y, inside_x, float(values[np.ix_(inside_y, inside_x)].min()))

    def back(self, label: AnyArray) -> AnyArray:
        """A label map `(columns, rows, slices)` of the grid at the source slices, by nearest voxels."""
        columns, rows = self.size
        out = np.zeros((columns, rows, len(self.at)), dtype=label.dtype)
        for index, ((x, y), place) in enumerate(zip(self.moved, self.at, strict=True)):
            k = min(max(round(place), 0), self.shape_xyz[2] - 1)
            across, down = (
                _nearest(n, shift, limit) for n, shift, limit in zip(self.size, (x, y), self.shape_xyz[:2], strict=True)
            )
            out[:, :, index] = label[:, :, k][np.ix_(across, down)]
        return out


def _nearest(count: int, shift: float, limit: int) -> AnyArray:
    nearest: AnyArray = np.clip(np.rint(np.arange(count) + shift), 0, limit - 1).astype(np.intp)
    return nearest


def _shifted(values: FloatArray, shift: float, count: int, axis: int) -> tuple[FloatArray, AnyArray]:
    """Values that lie `shift` pixels further along an axis, on `count` pixels, and which of them lie between two."""
    size = values.shape[axis]
    place = np.arange(count) - shift
    inside = (place > -1e-6) & (place < size - 1 + 1e-6)
    low = np.clip(np.floor(place + 1e-6).astype(np.intp), 0, size - 1)
    share = np.clip(place - low, 0.0, 1.0).astype(np.float32)
    share[share < 1e-5] = 0
    first = values.take(low, axis=axis)
    if not share.any():
        return first, inside
    shape = (-1, 1) if axis == 0 else (1, -1)
    second = values.take(np.minimum(low + 1, size - 1), axis=axis)
    weight = share.reshape(shape)
    return first * (1 - weight) + second * weight, inside


def made_regular(ordered: Sequence[Slice]) -> tuple[Regular, DoubleArray, float]:
    """How slices without duplicates become a regular grid; where its first voxel lies (LPS); its spacing along the
    normal. The spacing is the median of theirs, stretched so that the first and the last slice stay where they are."""
    first = ordered[0]
    at, moved = heights(ordered), in_plane(ordered)
    if np.abs(moved).max() <= TILT_PIXELS:
        moved = np.zeros_like(moved)
    usual = float(np.median(np.diff(at)))
    count = max(2, round((at[-1] - at[0]) / usual) + 1)
    step_mm = float(at[-1] - at[0]) / (count - 1)
    place = (at - at[0]) / step_mm
    near = np.abs(place - np.rint(place)) * step_mm <= place_tolerance_mm(step_mm)
    place = np.where(near, np.rint(place), place)
    least = moved.min(axis=0)
    moved = moved - least
    extra = np.ceil(moved.max(axis=0) - 1e-6).astype(int)
    columns, rows = first.pixels.columns, first.pixels.rows
    along, spacing = np.array(first.orientation, dtype=np.float64).reshape(2, 3), first.spacing or (1.0, 1.0)
    start = (
        np.array(first.position, dtype=np.float64) + along[0] * least[0] * spacing[1] + along[1] * least[1] * spacing[0]
    )
    regular = Regular(
        shape_xyz=triple((columns + int(extra[0]), rows + int(extra[1]), count)),
        size=(columns, rows),
        moved=tuple((float(x), float(y)) for x, y in moved),
        at=tuple(map(float, place)),
    )
    return regular, start, step_mm
