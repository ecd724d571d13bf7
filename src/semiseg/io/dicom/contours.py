"""Outlines of a mask along the edges of its pixels, each a polygon without holes: a hole is joined to what is around it
by a keyhole.

A keyhole is a channel without width: the outline runs to the hole, around it, and back on the same line. DICOM allows
it in `CLOSED_PLANAR` contours, and whoever fills polygons by even and odd crossings or by winding numbers leaves the
hole empty. Contours that are to be added or cut out one by one (`CLOSEDPLANAR_XOR`, or by custom) are filled by some.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from itertools import pairwise
from typing import Any

import numpy as np
from contourpy import FillType, contour_generator

from semiseg.types import BoolArray, DoubleArray


def outlines(mask: BoolArray) -> list[DoubleArray]:
    """Closed polygons `(points, 2)` of columns and rows, whose corners are corners of pixels: the pixel `(row, column)`
    reaches from `column - 0.5` to `column + 0.5`. The last point is not the first again."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return []
    inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    padded = np.pad(inside, 1).astype(np.float64)
    generator: Any = contour_generator(z=padded, fill_type=FillType.OuterOffset)
    points, offsets = generator.filled(0.5, 2.0)
    shift = np.array([columns[0] - 1.0, rows[0] - 1.0])
    found = []
    for lines, ends in zip(points, offsets, strict=True):
        loops = [_corners(lines[start:stop]) for start, stop in pairwise(ends.astype(int))]
        found.append(_without_straight(loops[0] if len(loops) == 1 else _joined(loops)) + shift)
    return found


def _corners(line: DoubleArray) -> DoubleArray:
    """The corners of pixels that a line halfway between middles of pixels passes, each one step from the last."""
    return np.asarray(np.floor((line[:-1] + line[1:]) / 2) + 0.5)


def _joined(loops: list[DoubleArray]) -> DoubleArray:
    """One loop of an outline and its holes. Each hole is joined at its leftmost corner to the next corner on its left,
    of what is joined already; between them there is nothing of another loop, since each passes all corners on its
    way."""
    outer, *holes = loops
    corners: list[tuple[float, float]] = []
    following: list[int] = []
    in_row: dict[float, list[tuple[float, int]]] = {}

    def add(loop: list[tuple[float, float]]) -> int:
        """A loop of its own; the number of its first corner."""
        first = len(corners)
        corners.extend(loop)
        following.extend([*range(first + 1, first + len(loop)), first])
        return first

    def know(first: int) -> None:
        for number in range(first, len(corners)):
            x, y = corners[number]
            insort(in_row.setdefault(y, []), (x, number))

    know(add(_pairs(outer)))
    for hole in sorted(holes, key=lambda loop: float(loop[:, 0].min())):
        begun = add(_pairs(np.roll(hole, -int(hole[:, 0].argmin()), axis=0)))
        last = len(corners) - 1
        x, y = corners[begun]
        row = in_row[y]
        joint = row[bisect_right(row, (x, begun)) - 1][1]
        know(begun)
        # joint -> the hole's corners -> its first corner again -> joint again -> what followed it
        corners.extend([corners[begun], corners[joint]])
        following.extend([last + 2, following[joint]])
        following[last], following[joint] = last + 1, begun
    order, at = [0], following[0]
    while at != 0:
        order.append(at)
        at = following[at]
    return np.array([corners[number] for number in order])


def _pairs(loop: DoubleArray) -> list[tuple[float, float]]:
    return [(x, y) for x, y in loop.tolist()]


def _without_straight(loop: DoubleArray) -> DoubleArray:
    """The loop without points at which it goes straight on, and without repeated ones."""
    loop = loop[(loop != np.roll(loop, 1, axis=0)).any(axis=1)]
    way = np.sign(loop - np.roll(loop, 1, axis=0))
    return np.asarray(loop[(way != np.roll(way, -1, axis=0)).any(axis=1)])
