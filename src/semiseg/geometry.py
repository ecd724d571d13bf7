"""Affines, orientations and boxes. Files store `(X, Y, Z)`; semiseg works in canonical `(Z, Y, X)`.

Canonical is nibabel's RAS+: X grows towards the patient's right, Y to the front, Z to the head, and an array is
indexed `[z, y, x]`. Only axis swaps and flips are applied: no interpolation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from nibabel import orientations

from semiseg.types import AnyArray, DoubleArray, Shape, Spacing

T = TypeVar("T")
_nibabel: Any = orientations  # has no type annotations
_CANONICAL = np.array([[0, 1], [1, 1], [2, 1]], dtype=float)
CANONICAL_AXES: Shape = (0, 1, 2)
LEFT_RIGHT_AXIS = 2
"""The axis of a canonical `(Z, Y, X)` array along which the body's left and right are mirrored."""


def triple(values: Iterable[T]) -> tuple[T, T, T]:
    """Three values as a `Shape` or a `Spacing`; `ValueError` for another number of them."""
    z, y, x = values
    return (z, y, x)


def spacing_from_affine(affine: DoubleArray) -> Spacing:
    """Voxel size in mm in `(Z, Y, X)` order of an affine whose columns are in `(X, Y, Z)` order."""
    return triple(float(v) for v in np.sqrt((affine[:3, :3] ** 2).sum(axis=0))[::-1])


def orientation_name(affine: DoubleArray) -> str:
    """Axis codes such as `RAS` or `LPS`: the direction in which each stored axis grows."""
    return "".join(_nibabel.aff2axcodes(affine))


def stored_axes(affine: DoubleArray) -> tuple[int, ...] | None:
    """The canonical `(X, Y, Z)` axis that each stored axis runs along; None if the affine leaves one without."""
    axes = _nibabel.io_orientation(affine)[:, 0]
    return None if np.isnan(axes).any() else tuple(int(axis) for axis in axes)


def canonical_grid(affine: DoubleArray, shape_xyz: Shape) -> tuple[Shape, Spacing]:
    """Voxel counts and voxel sizes in mm, both in canonical `(Z, Y, X)` order, of a stored `(X, Y, Z)` shape."""
    order = np.argsort(_nibabel.io_orientation(affine)[:, 0])[::-1]
    spacing_xyz = spacing_from_affine(affine)[::-1]
    return triple(shape_xyz[axis] for axis in order), triple(spacing_xyz[axis] for axis in order)


def to_canonical(array_xyz: AnyArray, affine: DoubleArray) -> AnyArray:
    """Flip and swap a stored `(X, Y, Z)` array into canonical `(Z, Y, X)`; a view where possible."""
    return np.asarray(_nibabel.apply_orientation(array_xyz, _nibabel.io_orientation(affine))).transpose(2, 1, 0)


def from_canonical(array_zyx: AnyArray, affine: DoubleArray) -> AnyArray:
    """The inverse of `to_canonical`: a canonical `(Z, Y, X)` array back to the file's `(X, Y, Z)` order; a view.

    `(C, Z, Y, X)` comes back as `(X, Y, Z, C)`.
    """
    back = _nibabel.ornt_transform(_CANONICAL, _nibabel.io_orientation(affine))
    return np.asarray(_nibabel.apply_orientation(array_zyx.transpose(), back))


def canonical_affine(affine: DoubleArray, shape_xyz: tuple[int, int, int]) -> DoubleArray:
    """The affine that maps canonical `(X, Y, Z)` indices to millimetres."""
    return np.asarray(affine @ _nibabel.inv_ornt_aff(_nibabel.io_orientation(affine), shape_xyz), dtype=np.float64)


@dataclass(frozen=True)
class Box:
    """A half-open box `[start, stop)` of voxels in `(Z, Y, X)` order; it may reach outside of an array."""

    start: Shape
    stop: Shape

    @property
    def shape(self) -> Shape:
        return triple(b - a for a, b in zip(self.start, self.stop, strict=True))

    def slices(self) -> tuple[slice, slice, slice]:
        """Slices of the box; it must lie inside of the array."""
        return triple(map(slice, self.start, self.stop))


def bounding_box(mask: AnyArray, *, margin: int = 0) -> Box | None:
    """The smallest box around the non-zero voxels, grown by `margin` within the array; None if there are none."""
    starts, stops = [], []
    for axis in range(3):
        occupied = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if occupied.size == 0:
            return None
        starts.append(max(0, int(occupied[0]) - margin))
        stops.append(min(mask.shape[axis], int(occupied[-1]) + 1 + margin))
    return Box(triple(starts), triple(stops))
