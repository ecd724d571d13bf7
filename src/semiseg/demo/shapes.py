"""Implicit shapes: functions that give the signed distance in mm (negative inside) of every point to a surface.

Points are `(3, ...)` arrays of x (right), y (front) and z (up) in mm. Distances of ellipsoids are first-order
approximations, good near the surface, which is where partial volume needs them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator

from semiseg.types import DoubleArray, FloatArray

Vector = tuple[float, float, float]
FAR_MM = np.float32(1e3)
"""Distance given to points that are surely outside of a tube and near nothing of it."""
_MARGIN_MM = 14.0
""""Near" a tube: beyond the widest edge that is painted around one."""


def ellipsoid(
    points: FloatArray, centre: DoubleArray, radii: DoubleArray, turn: DoubleArray | None = None
) -> FloatArray:
    """Distance to an ellipsoid; `turn` is a rotation matrix whose rows are its axes.

    First-order distance f(f - 1)/|grad f| of f = |p/r|, see Quilez, "Ellipsoid signed distance bound".
    """
    local = points - _column(centre, points)
    if turn is not None:
        local = np.tensordot(turn.astype(np.float32), local, axes=1)
    scaled = local / _column(radii, points)
    length = np.sqrt((scaled**2).sum(axis=0))
    slope = np.sqrt(((scaled / _column(radii, points)) ** 2).sum(axis=0))
    return np.asarray(length * (length - 1) / np.maximum(slope, np.float32(1e-6)), dtype=np.float32)


def column(points: FloatArray, centre: tuple[float, float], radii: tuple[float, float], power: float) -> FloatArray:
    """Distance to an endless upright column with a superellipse as its outline; `power` 2 is an ellipse."""
    u = np.abs(points[0] - np.float32(centre[0])) / np.float32(radii[0])
    v = np.abs(points[1] - np.float32(centre[1])) / np.float32(radii[1])
    f = (u**power + v**power) ** np.float32(1 / power)
    away = np.hypot(points[0] - np.float32(centre[0]), points[1] - np.float32(centre[1]))
    return np.asarray((f - 1) * np.maximum(away, 1.0) / np.maximum(f, np.float32(1e-3)), dtype=np.float32)


def tube(points: FloatArray, knots: DoubleArray, radii: Sequence[float]) -> FloatArray:
    """Distance to a tube with round ends along a smooth curve through knots `(K, 3)`, with a radius at each knot."""
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(knots, axis=0), axis=1))])
    at = np.linspace(0.0, along[-1], max(2, round(along[-1] / max(2.0, 0.7 * min(radii)))))
    smooth = PchipInterpolator(along, np.column_stack([knots, radii]))(at)
    line, widths = smooth[:, :3], smooth[:, 3]
    reach = float(widths.max()) + _MARGIN_MM
    low, high = line.min(axis=0) - reach, line.max(axis=0) + reach
    near = np.logical_and.reduce([(points[i] > low[i]) & (points[i] < high[i]) for i in range(3)])
    distance = np.full(points.shape[1:], FAR_MM, dtype=np.float32)
    x, y, z = points[:, near]
    if x.size:
        nearest = np.full(x.shape, FAR_MM, dtype=np.float32)
        for (cx, cy, cz), width in zip(line.astype(np.float32), widths.astype(np.float32), strict=True):
            np.minimum(nearest, np.sqrt((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) - width, out=nearest)
        distance[near] = nearest
    return distance


def union(first: FloatArray, second: FloatArray, *, blend_mm: float) -> FloatArray:
    """Smooth union of two shapes with a fillet of about `blend_mm` (polynomial smooth minimum)."""
    share = np.clip(0.5 + 0.5 * (second - first) / np.float32(blend_mm), 0, 1)
    return np.asarray(second + (first - second) * share - blend_mm * share * (1 - share), dtype=np.float32)


def intersection(first: FloatArray, second: FloatArray, *, blend_mm: float) -> FloatArray:
    """Smooth intersection of two shapes, its edge rounded by about `blend_mm`."""
    return -union(-first, -second, blend_mm=blend_mm)


def rotation(angles_deg: Vector) -> DoubleArray:
    """Rotation matrix about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(angles_deg)):
        turn = np.eye(3)
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _column(vector: DoubleArray, points: FloatArray) -> FloatArray:
    return np.asarray(vector, dtype=np.float32).reshape((3,) + (1,) * (points.ndim - 1))
