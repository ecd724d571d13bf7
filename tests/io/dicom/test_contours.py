"""Outlines with keyholes, filled again by a scan line and by winding numbers of our own."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from semiseg.io.dicom.contours import outlines


def crossings(polygon: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """For each pixel's middle the directions of the polygon's lines that cross the ray to its right, added up twice:
    `[0]` counts them, `[1]` adds their signs."""
    rows, columns = np.indices(shape)
    found = np.zeros((2, *shape), int)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 != y1:
            crosses = (min(y0, y1) < rows) & (rows < max(y0, y1)) & (columns < x0 + (rows - y0) / (y1 - y0) * (x1 - x0))
            found[0] += crosses
            found[1] += crosses * int(np.sign(y1 - y0))
    return found


def filled(polygons: list[np.ndarray], shape: tuple[int, int], rule: str) -> np.ndarray:
    """The union of polygons."""
    inside = np.zeros(shape, bool)
    for polygon in polygons:
        count, sign = crossings(polygon, shape)
        inside |= (count % 2 == 1) if rule == "even-odd" else (sign != 0)
    return inside


def ring() -> np.ndarray:
    mask = np.zeros((12, 14), bool)
    mask[1:11, 2:12] = True
    mask[4:7, 5:9] = False
    return mask


def islands() -> np.ndarray:
    """A ring, an island in its hole, and in that island a hole again."""
    mask = np.zeros((15, 15), bool)
    mask[1:14, 1:14], mask[3:12, 3:12], mask[5:10, 5:10], mask[7, 7] = True, False, True, False
    return mask


MASKS = {
    "one pixel": np.ones((1, 1), bool),
    "whole": np.ones((4, 6), bool),
    "ring": ring(),
    "islands": islands(),
    "nothing": np.zeros((3, 3), bool),
    "corners touch": np.eye(5, dtype=bool),
    "holes touch": ~np.pad(np.eye(4, dtype=bool), 2),
    "holes in a row": ~np.pad(np.tile([[True, False]], (1, 4)), ((2, 2), (2, 2))),
    "chess": (np.indices((9, 8)).sum(axis=0) % 2).astype(bool),
    "two": np.pad(np.array([[True, False, True]]), 2),
} | {f"noise {n}": np.random.default_rng(n).random((23, 31)) < (0.3, 0.5, 0.7, 0.9)[n % 4] for n in range(24)}


@pytest.mark.parametrize("rule", ["even-odd", "winding"])
@pytest.mark.parametrize("name", MASKS)
def test_filling_gives_the_mask_back(name: str, rule: str) -> None:
    mask = MASKS[name]
    assert np.array_equal(filled(outlines(mask), mask.shape, rule), mask)


@pytest.mark.parametrize("name", MASKS)
def test_one_polygon_for_each_part_that_runs_along_edges(name: str) -> None:
    mask = MASKS[name]
    polygons = outlines(mask)
    parts = [ndimage.label(mask, np.ones((3, 3)))[1], ndimage.label(mask)[1]]  # those that touch at a corner: either
    assert parts[0] <= len(polygons) <= parts[1]
    for polygon in polygons:
        assert np.array_equal(polygon % 1, np.full_like(polygon, 0.5))
        steps = np.roll(polygon, -1, axis=0) - polygon
        assert ((steps != 0).sum(axis=1) == 1).all()  # along rows and columns alone, and nowhere on the spot
    area = sum(abs(area_of(polygon)) for polygon in polygons)
    assert area == np.count_nonzero(mask)  # a keyhole has no area


def area_of(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)


def test_a_straight_edge_has_two_ends_alone() -> None:
    (square,) = outlines(np.pad(np.ones((30, 20), bool), 3))
    assert len(square) == 4
    (with_hole,) = outlines(ring())
    assert len(with_hole) == 10  # 4 and 4 corners, and both ends of the keyhole
