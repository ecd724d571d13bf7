"""Where the voxels of a scan lie, whatever the format of its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semiseg.errors import DataError
from semiseg.geometry import canonical_affine, canonical_grid, orientation_name, stored_axes, triple
from semiseg.types import AnyArray, DoubleArray, Shape, Spacing

_POSITION_TOLERANCE = 0.04
"""So far apart the corners of two grids may lie, in sizes of the smallest voxel: what other programs leave of an affine
that they round to four digits, over 512 voxels of 0.7 mm. Of microscopic voxels it is as little."""
_DIRECTION_TOLERANCE_MM = 1e-3
_LARGEST_MM = 1e6
"""No scan lies a kilometre off: larger numbers are a damaged header."""
_LARGEST_VOXEL_MM, _SMALLEST_VOXEL_MM = 1e3, 1e-6


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a file lie: enough to check two files against each other and to write a third one.

    shape_zyx and spacing_mm are in canonical order. affine: from stored indices `(X, Y, Z)` to millimetres (RAS+).
    stored_mm: voxel sizes along the stored axes as the file states them, which an affine may contradict.
    voxel_bytes: of a stored voxel of one channel. doubts: sentences on what of the geometry is to be looked at.
    """

    shape_zyx: Shape
    spacing_mm: Spacing
    affine: DoubleArray
    stored_mm: tuple[float, float, float]
    channels: int = 1
    voxel_bytes: int = 4
    doubts: tuple[str, ...] = ()

    @property
    def orientation(self) -> str:
        return orientation_name(self.affine)

    @property
    def _canonical_affine(self) -> DoubleArray:
        """The affine of canonical indices; the same for every order in which a file may store one grid."""
        axes = stored_axes(self.affine) or (0, 1, 2)
        return canonical_affine(self.affine, triple(self.shape_zyx[2 - axis] for axis in axes))

    def difference(self, other: Grid) -> str | None:
        """One sentence with the numbers where two grids differ, or None. Corners may lie 4 % of a voxel apart.

        Files that store the same grid in another order or direction of axes do not differ: reading undoes that.
        """
        if axes := self.mirrored_along(other):
            return (
                f"mirrored against it along {' and '.join(axes)} (same shape and voxel size, but orientations "
                f"{self.orientation} and {other.orientation})"
            )
        if self.shape_zyx != other.shape_zyx:
            return f"the shapes differ (Z, Y, X): {self.shape_zyx} and {other.shape_zyx}"
        if not self._meets(other):
            apart = self._corners_apart_mm(other)
            mine, theirs = self._canonical_affine, other._canonical_affine
            return (
                f"the geometries differ: spacings (Z, Y, X) {numbers_text(self.spacing_mm)} and "
                f"{numbers_text(other.spacing_mm)} mm, orientations {self.orientation} and {other.orientation}, "
                f"origins {numbers_text(mine[:3, 3])} and {numbers_text(theirs[:3, 3])} mm "
                f"(their corners lie up to {apart:.4g} mm apart)"
            )
        return None

    def _corners_apart_mm(self, other: Grid) -> float:
        """How far apart the two places of a corner voxel are at most, of grids of one shape."""
        z, y, x = self.shape_zyx
        corners = np.array([(i, j, k, 1) for i in (0, x - 1) for j in (0, y - 1) for k in (0, z - 1)], dtype=float)
        moved = corners @ (self._canonical_affine - other._canonical_affine).T
        return float(np.linalg.norm(moved[:, :3], axis=1).max())

    def _meets(self, other: Grid) -> bool:
        """Whether the corners of a grid of the same shape lie where those of this one lie."""
        voxel_mm = min(*self.spacing_mm, *other.spacing_mm)
        return self._corners_apart_mm(other) <= _POSITION_TOLERANCE * voxel_mm

    def misfit(self, other: Grid, remedy: str) -> str | None:
        """The same with what to do. remedy: of grids that differ in shape, or where voxels do not fit each other."""
        if (difference := self.difference(other)) is None:
            return None
        if self.shape_zyx == other.shape_zyx:
            otherwise = "restore the file." if self.mirrored_along(other) else f"{remedy[:1].lower()}{remedy[1:]}"
            remedy = f"If the stored voxels fit each other, give both files one affine; otherwise {otherwise}"
        return f"{difference}. {remedy}"

    def mirrored_along(self, other: Grid) -> list[str]:
        """The axes (`X`, `Y`, `Z`) along which files of one shape and voxel size store opposite directions and lie
        elsewhere: one of the two headers has a wrong sign. Empty for grids that are equal or differ otherwise."""
        mine, theirs = self.affine[:3, :3], other.affine[:3, :3]
        columns_agree = np.allclose(np.abs(mine), np.abs(theirs), atol=_DIRECTION_TOLERANCE_MM, rtol=1e-3)
        if self.shape_zyx != other.shape_zyx or not columns_agree:
            return []
        if self._meets(other):
            return []
        axes = stored_axes(self.affine) or (0, 1, 2)
        turned = [axis for axis in range(3) if float(mine[:, axis] @ theirs[:, axis]) < 0]
        return sorted("XYZ"[axes[axis]] for axis in turned)


def checked_grid(
    path: Path,
    shape: Sequence[int],
    affine: DoubleArray,
    *,
    stored_mm: Sequence[float],
    voxel_bytes: int,
    doubts: tuple[str, ...] = (),
    source: str = "the header's geometry",
) -> Grid:
    """The grid that a file's header tells. shape: stored, `(X, Y, Z)` or `(X, Y, Z, C)`. source: of the affine.

    Raises `DataError` for what is not 3D or 4D, has no voxels, or an affine that no scan has.
    """
    shape = tuple(shape)
    if len(shape) not in (3, 4):
        raise DataError(f"{path}: {len(shape)}D {shape}, but a 3D scan is expected. Remove it.")
    if min(shape) < 1:
        raise DataError(f"{path}: the header gives the shape {shape}, which holds no voxels. Restore the file.")
    if not _invertible(affine):
        raise DataError(f"{path}: the affine is singular or not finite. Repair {source}.")
    shape_zyx, spacing_mm = canonical_grid(affine, triple(shape[:3]))
    if not _SMALLEST_VOXEL_MM <= min(spacing_mm) <= max(spacing_mm) <= _LARGEST_VOXEL_MM:
        raise DataError(f"{path}: voxels of {numbers_text(spacing_mm)} mm (Z, Y, X) are no scan's. Repair {source}.")
    return Grid(
        shape_zyx,
        spacing_mm,
        affine,
        stored_mm=triple(map(float, stored_mm)),
        channels=shape[3] if len(shape) == 4 else 1,
        voxel_bytes=voxel_bytes,
        doubts=doubts,
    )


def _invertible(affine: DoubleArray) -> bool:
    """Whether every stored axis has a direction of its own; also false for what overflows when squared."""
    if not np.isfinite(affine).all() or np.abs(affine).max() > _LARGEST_MM:
        return False
    return abs(float(np.linalg.det(affine[:3, :3]))) >= 1e-12 and stored_axes(affine) is not None


def numbers_text(values: Sequence[float] | AnyArray) -> str:
    """Some numbers in brackets, as messages show them."""
    return "(" + ", ".join(f"{float(v):.4g}" for v in values) + ")"
