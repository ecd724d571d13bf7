"""Pictures that the server draws: slices for pages without WebGL, thumbnails, and strips that a label is judged by.

Shown as in reports: the patient's right, or front, at the left edge.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from semiseg.errors import DataError
from semiseg.reporting.overlays import (
    NEGATIVE_RGB,
    PLANES,
    POSITIVE_RGB,
    Plane,
    feedback_limit,
    plane_slice,
    plane_spacing,
)
from semiseg.types import AnyArray, BoolArray, Shape, Spacing
from semiseg.view.volumes import ADDED, MISSED, OTHER, Volume

Style = Literal["outline", "fill"]
Rgb = NDArray[np.uint8]
DIFFERENCE_RGB = {MISSED: (255, 112, 67), ADDED: (64, 190, 255), OTHER: (240, 228, 66)}
_AXIS: dict[Plane, int] = {plane: axis for axis, plane in enumerate(PLANES)}
_OPAQUE = 0.85
"""Of the feedback map where it is strongest."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A label map or a map to draw. colours: of the values that are shown; none for a map. limit: the end of a map's
    scale. style, opacity: of a label map."""

    volume: Volume
    colours: Mapping[int, tuple[int, int, int]]
    limit: float = 1.0
    style: Style = "outline"
    opacity: float = 0.6


def colours_of(organs: Mapping[int, str], by_name: Mapping[str, str]) -> dict[int, tuple[int, int, int]]:
    """Colours by value."""
    return {value: rgb(by_name[name]) for value, name in organs.items()}


def rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue, *_ = ImageColor.getrgb(colour)
    return red, green, blue


def draw_slice(
    scan: Volume | None,
    drawn: Sequence[Drawn],
    plane: Plane,
    index: int,
    window: tuple[float, float],
    *,
    longest: int,
    like: Volume,
) -> Rgb:
    """A slice `(rows, columns, 3)` with square pixels, its longest side of so many. like: has the scan's grid."""
    axis = _AXIS[plane]
    shape = like.array.shape
    index = min(max(index, 0), shape[axis] - 1)
    size = _size(shape, like.grid.spacing_mm, plane, longest)
    if scan is None:
        picture = np.zeros((size[1], size[0], 3), np.uint8)
    else:
        grey = Image.fromarray(_grey(scan, plane, index, window)).resize(size, Image.Resampling.BILINEAR)
        picture = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    for one in drawn:
        _draw(picture, one, plane, index, shape)
    return picture


def _size(shape: Sequence[int], spacing_mm: Spacing, plane: Plane, longest: int) -> tuple[int, int]:
    """Width and height in pixels."""
    rows, columns = (n for axis, n in enumerate(shape) if axis != _AXIS[plane])
    row_mm, column_mm = plane_spacing(spacing_mm, plane)
    height, width = rows * row_mm, columns * column_mm
    scale = longest / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _grey(scan: Volume, plane: Plane, index: int, window: tuple[float, float]) -> Rgb:
    low, high = window
    values = plane_slice(scan.array, plane, index).astype(np.float32) * scan.raw.slope + scan.raw.inter
    levels = np.clip((values - low) / max(high - low, 1e-6), 0, 1) * 255
    return np.asarray(np.rint(levels), dtype=np.uint8)


def _draw(picture: Rgb, one: Drawn, plane: Plane, index: int, shape: Shape | Sequence[int]) -> None:
    height, width = picture.shape[:2]
    found = _slice_of(one.volume, plane, index, shape)
    if found is None:
        return
    rows = np.arange(height) * found.shape[0] // height
    columns = np.arange(width) * found.shape[1] // width
    values = found[rows[:, None], columns[None, :]]
    if not one.colours:
        share = np.clip(values.astype(np.float32) / one.limit, -1, 1)
        ends = np.array([NEGATIVE_RGB, POSITIVE_RGB], dtype=np.float32)
        _blend(picture, np.abs(share) ** 0.8 * _OPAQUE, ends[(share > 0).astype(np.intp)])
        return
    top = int(values.max(initial=0))
    table = np.zeros((max(top, max(one.colours)) + 1, 3), np.float32)
    shown = np.zeros(len(table), bool)
    for value, colour in one.colours.items():
        table[value], shown[value] = colour, True
    seen = shown[values]
    if one.style == "outline":
        seen &= _edges(np.where(seen, values, 0), thick=max(1, round(max(height, width) / 320)))
        _blend(picture, seen.astype(np.float32), table[values])
    else:
        _blend(picture, seen * np.float32(one.opacity), table[values])


def _slice_of(volume: Volume, plane: Plane, index: int, shape: Shape | Sequence[int]) -> AnyArray | None:
    """The displayed slice of a volume at a slice of the scan; None where the volume has none there."""
    if volume.step == (1.0, 1.0, 1.0) and volume.start == (0.0, 0.0, 0.0):
        if volume.array.shape != tuple(shape):
            raise DataError(f"a layer has shape {volume.array.shape}, but its scan {tuple(shape)}.")
        return plane_slice(volume.array, plane, index)
    axis = _AXIS[plane]
    at = int(volume.nearest(axis, shape[axis])[index])
    if at < 0:
        return None
    inside = np.take(volume.array, at, axis=axis)
    rows, columns = (volume.nearest(other, shape[other]) for other in range(3) if other != axis)
    found = inside[rows[:, None], columns[None, :]]
    found[(rows < 0)[:, None] | (columns < 0)[None, :]] = 0
    return np.asarray(found[::-1, ::-1])


def _edges(values: AnyArray, *, thick: int) -> BoolArray:
    """Pixels within `thick` of one of another value, inside of the shape."""
    edge = np.zeros(values.shape, dtype=bool)
    for step in range(1, thick + 1):
        for axis in (0, 1):
            for way in (step, -step):
                moved = np.roll(values, way, axis=axis)
                border = [slice(None), slice(None)]
                border[axis] = slice(None, way) if way > 0 else slice(way, None)
                moved[tuple(border)] = 0
                edge |= moved != values
    return edge


def _blend(picture: Rgb, opacity: AnyArray, colour: AnyArray) -> None:
    where = opacity > 0
    share = opacity[where][:, None]
    picture[where] = np.rint(picture[where] * (1 - share) + colour[where] * share).astype(np.uint8)


def png(picture: Rgb) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG", compress_level=1)
    return stream.getvalue()


def side_by_side(panels: Sequence[Rgb], width: int, height: int) -> Rgb:
    """Pictures in a row of cells, each as large as its cell allows."""
    cell = width // len(panels)
    strip = np.zeros((height, width, 3), np.uint8)
    for number, panel in enumerate(panels):
        scale = min((cell - 4) / panel.shape[1], height / panel.shape[0])
        size = (max(1, int(panel.shape[1] * scale)), max(1, int(panel.shape[0] * scale)))
        small = np.asarray(Image.fromarray(panel).resize(size, Image.Resampling.BILINEAR))
        top, left = (height - size[1]) // 2, number * cell + (cell - size[0]) // 2
        strip[top : top + size[1], left : left + size[0]] = small
    return strip


def longest_outline(label: AnyArray) -> dict[Plane, int]:
    """For each plane the slice on which outlines are longest."""
    found: dict[Plane, int] = {}
    for plane, axis in _AXIS.items():
        others = [other for other in range(3) if other != axis]
        edges = sum(np.count_nonzero(np.diff(label, axis=other), axis=tuple(others)) for other in others)
        found[plane] = int(np.argmax(edges))
    return found


def map_limit(volume: Volume) -> float:
    return feedback_limit(volume.array)
