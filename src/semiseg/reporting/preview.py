"""A picture of a predicted scan: three planes through its organs with their outlines, and what each colour is."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from semiseg.data.plan import Plan
from semiseg.io.colours import organ_colours
from semiseg.io.scans import RawChannel
from semiseg.prediction.statistics import Census, fullest_slices
from semiseg.reporting.overlays import EDGES, PLANES, Plane, contour_lines, plane_slice, plane_spacing, window
from semiseg.types import FloatArray, LabelArray, Spacing

_PANEL = 560
"""Pixels of a panel's longer side."""
_GAP, _MARGIN, _LINE = 12, 16, 26
_SHARP = 2
"""Lines are drawn so many times larger and made small again."""
_FONT, _SMALL = 17, 14
_FOR_LETTERS = 80
"""Pixels of height that letters above and below each other need."""
_INK, _MUTED, _PAGE = (235, 235, 235), (170, 170, 170), (16, 17, 20)


def preview_png(scan: RawChannel, labels_zyx: LabelArray, spacing_mm: Spacing, census: Census, plan: Plan) -> bytes:
    """A PNG of the three slices that hold most of all organs, seen as in reports: the patient's right, or front, on
    the left. Below stand the organs with their volumes, and those that were not found."""
    organs, centre, ct = plan.labels.organs, fullest_slices(census), plan.normalisation[0].scheme == "ct"
    one_ml = float(np.prod(spacing_mm)) / 1000
    volumes_ml = {name: float(census.voxels[value]) * one_ml for value, name in organs.items()}
    colours = organ_colours(organs.values())
    slices = {
        plane: (plane_slice(scan.stored, plane, n).astype(np.float32) * np.float32(scan.slope) + np.float32(scan.inter))
        for plane, n in zip(PLANES, centre, strict=True)
    }
    grey = window(np.concatenate([one.ravel() for one in slices.values()]), ct=ct)
    panels, titles = [], []
    for axis, plane in enumerate(PLANES):
        label = plane_slice(labels_zyx, plane, centre[axis])
        titles.append(f"{plane} {centre[axis] + 1}/{labels_zyx.shape[axis]}")
        panels.append(_panel(slices[plane], label, plane, spacing_mm, grey, organs, colours))
    width = sum(panel.width for panel in panels) + _GAP * (len(panels) - 1) + 2 * _MARGIN
    legend = _legend(width - 2 * _MARGIN, organs, colours, volumes_ml)
    high = max(panel.height for panel in panels)
    height = high + legend.height + 3 * _MARGIN + _LINE
    page = Image.new("RGB", (width, height), _PAGE)
    pen, font, left = ImageDraw.Draw(page), ImageFont.load_default(_SMALL), _MARGIN
    for panel, title in zip(panels, titles, strict=True):
        pen.text((left, _MARGIN), title, fill=_MUTED, font=font, anchor="lt")
        page.paste(panel, (left, _MARGIN + _LINE + (high - panel.height) // 2))
        left += panel.width + _GAP
    page.paste(legend, (_MARGIN, height - legend.height - _MARGIN))
    stream = io.BytesIO()
    page.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _panel(
    values: FloatArray,
    label: LabelArray,
    plane: Plane,
    spacing_mm: Spacing,
    grey: tuple[float, float],
    organs: Mapping[int, str],
    colours: Mapping[str, str],
) -> Image.Image:
    rows_mm, columns_mm = plane_spacing(spacing_mm, plane)
    high, wide = label.shape[0] * rows_mm, label.shape[1] * columns_mm
    scale = _PANEL / max(high, wide)
    size = (max(1, round(wide * scale)), max(1, round(high * scale)))
    levels = np.clip((values - grey[0]) / (grey[1] - grey[0]), 0, 1) * 255
    panel = Image.fromarray(levels.round().astype(np.uint8)).resize(size, Image.Resampling.BILINEAR).convert("RGB")
    large = panel.resize((size[0] * _SHARP, size[1] * _SHARP), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(large)
    present = np.unique(label)
    for value, name in organs.items():
        if value in present:
            for line in contour_lines(label == value, (rows_mm, columns_mm)):
                points = [tuple(point) for point in (line * scale * _SHARP).tolist()]
                pen.line(points, fill=colours[name], width=2 * _SHARP, joint="curve")
    panel = large.resize(size, Image.Resampling.BOX)
    pen = ImageDraw.Draw(panel)
    font, edges = ImageFont.load_default(_SMALL), EDGES[plane]
    x, y = size[0] / 2, size[1] / 2
    letters = [(edges.left, (4, y), "lm"), (edges.right, (size[0] - 4, y), "rm")]
    if size[1] > _FOR_LETTERS:
        letters += [(edges.top, (x, 4), "mt"), (edges.bottom, (x, size[1] - 4), "mb")]
    for letter, place, anchor in letters:
        pen.text(place, letter, fill=_INK, font=font, anchor=anchor, stroke_width=2, stroke_fill=_PAGE)
    return panel


def volume_text(ml: float) -> str:
    """A volume with its unit, in letters that the font has."""
    if ml < 0.1:
        return f"{1000 * ml:.3g} mm3"
    return f"{ml:.3g} ml" if ml < 100 else f"{ml:.0f} ml"


def _legend(
    width: int, organs: Mapping[int, str], colours: Mapping[str, str], volumes_ml: Mapping[str, float]
) -> Image.Image:
    """Names in rows, as many columns as fit."""
    font = ImageFont.load_default(_FONT)
    entries = []
    for name in organs.values():
        ml = volumes_ml[name]
        amount = volume_text(ml) if ml else "not found"
        entries.append((name, f"{name.replace('_', ' ')}  {amount}", bool(ml)))
    wide = max(font.getlength(text) for _, text, _ in entries) + _LINE + 2 * _GAP
    columns = max(1, int(width // wide))
    rows = -(-len(entries) // columns)
    legend = Image.new("RGB", (width, rows * _LINE), _PAGE)
    pen = ImageDraw.Draw(legend)
    for number, (name, text, found) in enumerate(entries):
        left, top = (number % columns) * wide, (number // columns) * _LINE
        swatch = (left, top + 7, left + 12, top + 19)
        pen.rectangle(swatch, fill=colours[name] if found else None, outline=colours[name])
        pen.text((left + 20, top + _LINE / 2), text, fill=_INK if found else _MUTED, font=font, anchor="lm")
    return legend
