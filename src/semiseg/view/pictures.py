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
from semiseg.geometry import Box
from semiseg.io.grid import Grid
from semiseg.reporting.overlays import (
    NEGATIVE_RGB,
    PLANES,
    POSITIVE_RGB,
    Plane,
    feedback_limit,
    plane_slice,
    plane_spacing,
)
from semiseg.types import AnyArray, BoolArray, Shape
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
    scale. style, opacity: of a label map. wide: a thick pale line whatever the style, as references have beside another
    label."""

    volume: Volume
    colours: Mapping[int, tuple[int, int, int]]
    limit: float = 1.0
    style: Style = "outline"
    opacity: float = 0.6
    wide: bool = False


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
    grid: Grid,
    fit: tuple[int, int],
    box: Box | None = None,
) -> Rgb:
    """A slice `(rows, columns, 3)` with square pixels, as large as fits into so many pixels of width and height.

    grid: the scan's, which `index` and `box`, the part that is shown, are of.
    """
    index = min(max(index, 0), grid.shape_zyx[_AXIS[plane]] - 1)
    shown = _shown(plane, box or Box((0, 0, 0), grid.shape_zyx), grid.shape_zyx)
    rows, columns = (part.stop - part.start for part in shown)
    row_mm, column_mm = plane_spacing(grid.spacing_mm, plane)
    scale = min(fit[0] / (columns * column_mm), fit[1] / (rows * row_mm))
    size = (max(1, round(columns * column_mm * scale)), max(1, round(rows * row_mm * scale)))
    grey = None if scan is None else _slice_of(scan, plane, index, grid.shape_zyx)
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    if scan is not None and grey is not None:
        levels = Image.fromarray(_grey(grey[shown], scan, window)).resize(size, Image.Resampling.BILINEAR)
        picture += np.asarray(levels)[..., None]
    for one in drawn:
        found = _slice_of(one.volume, plane, index, grid.shape_zyx)
        if found is not None:
            _draw(picture, one, found[shown])
    return picture


def _shown(plane: Plane, box: Box, shape: Shape) -> tuple[slice, slice]:
    """Rows and columns of a displayed slice that lie in a box: both axes are turned."""
    rows, columns = (
        slice(shape[axis] - box.stop[axis], shape[axis] - box.start[axis]) for axis in range(3) if axis != _AXIS[plane]
    )
    return rows, columns


def _grey(picture: AnyArray, scan: Volume, window: tuple[float, float]) -> Rgb:
    low, high = window
    values = picture.astype(np.float32) * scan.raw.slope + scan.raw.inter
    levels = np.clip((values - low) / max(high - low, 1e-30), 0, 1) * 255
    return np.asarray(np.rint(levels), dtype=np.uint8)


def _draw(picture: Rgb, one: Drawn, found: AnyArray) -> None:
    height, width = picture.shape[:2]
    rows = np.arange(height) * found.shape[0] // height
    columns = np.arange(width) * found.shape[1] // width
    values = found[rows[:, None], columns[None, :]]
    if not one.colours:
        share = np.clip(values.astype(np.float32) / one.limit, -1, 1)
        ends = np.array([NEGATIVE_RGB, POSITIVE_RGB], dtype=np.float32)
        _blend(picture, np.abs(share) ** 0.8 * _OPAQUE, ends[(share > 0).astype(np.intp)])
        return
    table = np.zeros((max(int(values.max(initial=0)), *one.colours) + 1, 3), np.float32)
    shown = np.zeros(len(table), bool)
    for value, colour in one.colours.items():
        table[value], shown[value] = colour, True
    seen = shown[values]
    if one.style == "outline" or one.wide:
        thick = max(1, round(max(height, width) / 320)) * (3 if one.wide else 1)
        seen &= _edges(np.where(seen, values, 0), thick=thick)
        _blend(picture, seen * np.float32(0.5 if one.wide else 1.0), table[values])
    else:
        _blend(picture, seen * np.float32(one.opacity), table[values])


def _slice_of(volume: Volume, plane: Plane, index: int, shape: Shape) -> AnyArray | None:
    """The displayed slice of a volume at a slice of the scan; None where the volume has none there."""
    if volume.is_whole:
        if volume.array.shape != shape:
            raise DataError(f"a layer has the shape {volume.array.shape}, but its scan {shape}.")
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
    """Pictures in the middles of equal cells of a row."""
    cell = width // len(panels)
    strip = np.zeros((height, width, 3), np.uint8)
    for number, panel in enumerate(panels):
        top, left = (height - panel.shape[0]) // 2, number * cell + (cell - panel.shape[1]) // 2
        strip[top : top + panel.shape[0], left : left + panel.shape[1]] = panel
    return strip


def map_limit(volume: Volume) -> float:
    return feedback_limit(volume.array)
