"""Surfaces of voxel masks as small area elements ("surfels"), and the distances between two surfaces.

A surfel sits where eight voxels meet. It exists if some, not all, of the eight are in the mask, and carries the area of
the surface that marching cubes would draw there, so that a slanted surface is not counted as a staircase and
anisotropic voxels weigh what they should. Surface Dice and the robust Hausdorff distance weigh surfels by area.

Boundary rule: everything outside of the array is background, so an organ that the field of view cuts off has
a surface there.

The definitions are those of Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head and
neck anatomy for radiotherapy" (2018), whose reference implementation is the Apache-2.0 package surface-distance 0.1;
the results equal it to float64 rounding (tests/oracle). The code and the table of areas are independent of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from semiseg.geometry import bounding_box
from semiseg.types import BoolArray, DoubleArray, Spacing

_Corner = tuple[int, int, int]
_CORNERS: tuple[_Corner, ...] = tuple((z, y, x) for z, y, x in product((0, 1), repeat=3))
"""Corner number `4 z + 2 y + x` of the 2×2×2 neighbourhood; its bit in the code is `1 << number`."""
_FULL = 255


@dataclass(frozen=True)
class SurfaceDistances:
    """Surfels of both surfaces, each sorted by (distance, area); float64.

    reference_mm and prediction_mm: distance of each surfel to the nearest surfel of the other surface,
    infinite if the other mask is empty. reference_mm2 and prediction_mm2: the surfels' areas.
    """

    reference_mm: DoubleArray
    reference_mm2: DoubleArray
    prediction_mm: DoubleArray
    prediction_mm2: DoubleArray


def surface_distances(
    reference: BoolArray, prediction: BoolArray, spacing_mm: Spacing, *, ignore: BoolArray | None = None
) -> SurfaceDistances:
    """Distances from each surface to the other.

    reference, prediction: masks `(Z, Y, X)`. ignore: voxels that nobody labelled. They are background in both masks; a
    surfel that touches one of them may be an artefact of that cut, so it has no weight itself (it is left out), but
    still serves as the other surface's neighbour: whatever lies next to unlabelled ground is not called wrong.
    """
    if ignore is not None:
        reference, prediction = reference & ~ignore, prediction & ~ignore
    box = bounding_box(reference | prediction, margin=1)
    if box is None:
        nothing = np.empty(0)
        return SurfaceDistances(nothing, nothing, nothing, nothing)
    crop = box.slices()
    areas = surfel_areas_mm2(spacing_mm)
    unknown = None if ignore is None else _neighbour_codes(ignore[crop]) > 0
    surfaces = []
    for mask in (reference, prediction):
        codes = _neighbour_codes(mask[crop])
        surfels = np.argwhere((codes > 0) & (codes < _FULL))
        where = tuple(surfels.T)
        counted = np.ones(len(surfels), dtype=np.bool_) if unknown is None else ~unknown[where]
        surfaces.append((surfels, areas[codes[where]], counted))
    (r, r_mm2, r_counted), (p, p_mm2, p_counted) = surfaces
    return SurfaceDistances(
        *_sorted(_nearest_mm(r[r_counted], p, spacing_mm), r_mm2[r_counted]),
        *_sorted(_nearest_mm(p[p_counted], r, spacing_mm), p_mm2[p_counted]),
    )


def surface_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Normalised surface Dice (NSD): the share of both surfaces' area that lies within `tolerance_mm` of the other.

    From 0 to 1; NaN if neither mask has a surface.
    """
    near_mm2 = distances.reference_mm2[distances.reference_mm <= tolerance_mm].sum()
    near_mm2 += distances.prediction_mm2[distances.prediction_mm <= tolerance_mm].sum()
    total_mm2 = distances.reference_mm2.sum() + distances.prediction_mm2.sum()
    return float(near_mm2 / total_mm2) if total_mm2 > 0 else float("nan")


def robust_hausdorff_mm(distances: SurfaceDistances, percent: float = 95.0) -> float:
    """The larger of the two directed Hausdorff distances at a percentile (HD95), percentiles taken over area, in mm.

    The percentile is the first surfel at which the cumulated share of the area reaches `percent`. Infinite if
    either mask has no surface.
    """
    return max(
        _percentile_mm(distances.reference_mm, distances.reference_mm2, percent),
        _percentile_mm(distances.prediction_mm, distances.prediction_mm2, percent),
    )


def surfel_areas_mm2(spacing_mm: Spacing) -> DoubleArray:
    """The area of the surface inside a 2×2×2 neighbourhood for each of its 256 codes; float64 `(256,)`, mm².

    Rule (Lorensen and Cline 1987, the fifteen cases): of the eight corners, the smaller of inside and outside is cut
    off. Each of its edge-connected groups is cut off by one polygon through the middles of the edges that lead out of
    the group; where the polygon is not flat, it is split into triangles so that its area is largest at equal spacing.
    """
    dz, dy, dx = spacing_mm
    face_mm2 = np.array([dy * dx, dz * dx, dz * dy])
    return np.asarray(np.sqrt(np.square(_area_vectors() * face_mm2).sum(axis=2)).sum(axis=1))


@cache
def _area_vectors() -> DoubleArray:
    """Area vectors at unit spacing of the pieces of surface of each code, up to sign: `(256, pieces, 3)`."""
    vectors = np.zeros((256, 4, 3))
    for code in range(256):
        inside = frozenset(corner for bit, corner in enumerate(_CORNERS) if code >> bit & 1)
        minority = inside if len(inside) <= 4 else frozenset(_CORNERS) - inside
        pieces = [piece for group in _groups(minority) for piece in _pieces(group)]
        vectors[code, : len(pieces)] = np.reshape(pieces, (-1, 3))
    return vectors


def _pieces(group: frozenset[_Corner]) -> list[list[float]]:
    """Area vectors of the flat pieces of the polygon that cuts one edge-connected group of corners off.

    Found by writing the polygons down: 1 corner a triangle, 2 a rectangle, 3 a pentagon (a triangle and a
    trapezium), 4 corners of a face a square, a corner and its three neighbours a flat hexagon, a path that
    turns twice a skew hexagon (a parallelogram through the middle and a triangle at either end).
    """
    extent = [len({corner[axis] for corner in group}) for axis in range(3)]
    across = [1.0 if n == 1 else 0.0 for n in extent]
    if len(group) == 1:
        return [[1 / 8] * 3]
    if len(group) == 2:
        return [[n / 2 for n in across]]
    if len(group) == 3:
        return [[n / 2 for n in across], [3 / 8] * 3]
    if any(across):
        return [across]
    inner = [a for a in group if sum(_adjacent(a, b) for b in group) > 1]
    if len(inner) == 1:
        return [[3 / 4] * 3]
    middle = [1.0 if i != j else 0.0 for i, j in zip(*inner, strict=True)]
    ends = [[(m + (axis == end)) / 4 for axis, m in enumerate(middle)] for end in range(3) if not middle[end]]
    return [[1 / 2] * 3, *ends]


def _adjacent(a: _Corner, b: _Corner) -> bool:
    """Whether an edge of the cube joins two corners."""
    return sum(i != j for i, j in zip(a, b, strict=True)) == 1


def _groups(corners: frozenset[_Corner]) -> list[frozenset[_Corner]]:
    """The groups of corners that are connected along edges of the cube."""
    groups: list[frozenset[_Corner]] = []
    for corner in sorted(corners):
        touching = [group for group in groups if any(_adjacent(corner, other) for other in group)]
        groups = [group for group in groups if group not in touching]
        groups.append(frozenset({corner}).union(*touching))
    return groups


def _neighbour_codes(mask: BoolArray) -> NDArray[np.uint8]:
    """Codes of all 2×2×2 neighbourhoods, those half outside included: uint8 `(Z + 1, Y + 1, X + 1)`."""
    codes: NDArray[np.uint8] = np.pad(mask.astype(np.uint8, order="C"), 1)
    for axis, shift in ((2, 1), (1, 2), (0, 4)):
        lower, upper = (np.moveaxis(codes, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        codes = np.moveaxis(lower | np.left_shift(upper, np.uint8(shift)), 0, axis)
    return codes


def _nearest_mm(surfels: NDArray[np.int64], others: NDArray[np.int64], spacing_mm: Spacing) -> DoubleArray:
    """Distance of each surfel (index vectors `(N, 3)`) to the nearest of the others.

    Most lie near: so the places around each are looked at first, the nearest ones first, and only what is left goes to
    a k-d tree. In float64 and from the whole-number offset, since a fast distance transform is in single precision: it
    puts five voxels of 0.4 mm, which a NIfTI header stores as 0.40000001, within 2 mm, where surface-distance does not.
    Of two neighbours at one distance either may be picked: they differ in the last place at most.
    """
    nearest = np.full(len(surfels), np.inf)
    if len(others) == 0 or len(surfels) == 0:
        return nearest
    around, around_mm = _places_around(spacing_mm)
    reach = around.max(axis=0)
    low = np.minimum(surfels.min(axis=0), others.min(axis=0)) - reach
    shape = np.maximum(surfels.max(axis=0), others.max(axis=0)) + reach + 1 - low
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    occupied = np.zeros(int(shape.prod()), dtype=np.bool_)
    occupied[(others - low) @ strides] = True
    left = np.arange(len(surfels))
    places = (surfels - low) @ strides
    for step, mm in zip(around @ strides, around_mm, strict=True):
        hit = occupied[places + step]
        if hit.any():
            nearest[left[hit]] = mm
            left, places = left[~hit], places[~hit]
            if len(left) == 0:
                return nearest
    # midpoint splits and whole boxes: built and asked 2 to 4 times as fast for points on a grid as the defaults
    tree = cKDTree(others * np.array(spacing_mm), leafsize=32, compact_nodes=False, balanced_tree=False)
    _, found = tree.query(surfels[left] * np.array(spacing_mm))
    nearest[left] = _lengths_mm(surfels[left] - others[found], spacing_mm)
    return nearest


_PLACES = 128
"""About so many places around a surfel are looked at before the k-d tree is asked."""


@lru_cache(maxsize=16)
def _places_around(spacing_mm: Spacing) -> tuple[NDArray[np.int64], DoubleArray]:
    """Index vectors of all places within some distance, the nearest first, and their distances in mm."""
    radius_mm = (_PLACES * np.prod(spacing_mm) * 3 / (4 * np.pi)) ** (1 / 3)  # of a ball of so many voxels
    counts = [int(radius_mm / mm) for mm in spacing_mm]
    offsets = np.indices([2 * n + 1 for n in counts]).reshape(3, -1).T - counts
    lengths_mm = _lengths_mm(offsets, spacing_mm)
    order = np.argsort(lengths_mm, kind="stable")
    order = order[lengths_mm[order] <= radius_mm]
    return offsets[order], lengths_mm[order]


def _lengths_mm(offsets: NDArray[np.int64], spacing_mm: Spacing) -> DoubleArray:
    """Lengths of index vectors `(N, 3)`; x comes first, as in the (X, Y, Z) arrays of NIfTI files."""
    z, y, x = (offsets * np.array(spacing_mm)).T
    return np.asarray(np.sqrt(x * x + y * y + z * z))


def _sorted(distances_mm: DoubleArray, areas_mm2: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    order = np.lexsort((areas_mm2, distances_mm))
    return distances_mm[order], areas_mm2[order]


def _percentile_mm(distances_mm: DoubleArray, areas_mm2: DoubleArray, percent: float) -> float:
    if distances_mm.size == 0:
        return float("inf")
    share = np.cumsum(areas_mm2) / areas_mm2.sum()
    return float(distances_mm[min(int(np.searchsorted(share, percent / 100.0)), distances_mm.size - 1)])
