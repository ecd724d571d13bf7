"""Pictures of a case: three planes in the radiological convention, contours as vectors over a grey slice.

Every panel is drawn in millimetres, so that its aspect ratio is the body's. Volumes are canonical (Z, Y, X).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from contourpy import contour_generator
from PIL import Image

from semiseg.geometry import Box, bounding_box
from semiseg.io.colours import organ_colours
from semiseg.types import AnyArray, DoubleArray, LabelArray, Shape, Spacing

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
_AXIS: dict[Plane, int] = {"axial": 0, "coronal": 1, "sagittal": 2}

SOFT_TISSUE_HU = (-160.0, 240.0)
"""The soft-tissue window of CT: level 40, width 400 HU."""
_MARGIN_MM = 18.0
_MAX_PIXELS = 640

NEGATIVE_RGB = (255, 112, 67)
POSITIVE_RGB = (64, 190, 255)
"""Ends of the diverging feedback scale: vermilion and sky blue differ for every kind of colour vision."""


class Edges(NamedTuple):
    """Which side of the body each edge of a picture is: R, L, A, P, S or I."""

    left: str
    right: str
    top: str
    bottom: str


EDGES: dict[Plane, Edges] = {
    "axial": Edges("R", "L", "A", "P"),
    "coronal": Edges("R", "L", "S", "I"),
    "sagittal": Edges("A", "P", "S", "I"),
}


@dataclass(frozen=True, kw_only=True)
class Contour:
    """The outline of one organ: path is SVG path data in mm, kind `reference`, `prediction` or `pseudo`."""

    organ: str
    colour: str
    kind: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One plane of one case, ready for the template. Lengths in mm; position counts slices from 1."""

    plane: Plane
    edges: Edges
    width_mm: float
    height_mm: float
    position: int
    count: int
    image_png: str
    overlay_png: str | None
    contours: tuple[Contour, ...]
    scale_mm: int

    @property
    def aspect(self) -> float:
        return self.width_mm / self.height_mm


def plane_slice(volume_zyx: AnyArray, plane: Plane, index: int) -> AnyArray:
    """The slice as it is displayed `(rows, columns)`: the patient's right (sagittal: front) at the left edge.

    Canonical axes grow to the right, front and head, so each of the three planes is shown with both axes turned.
    """
    return np.asarray(np.take(volume_zyx, index, axis=_AXIS[plane])[::-1, ::-1])


def plane_spacing(spacing_mm: Spacing, plane: Plane) -> tuple[float, float]:
    """Row and column spacing of a displayed slice, in mm."""
    rows, columns = (spacing_mm[axis] for axis in range(3) if axis != _AXIS[plane])
    return rows, columns


def choose_slices(weight_zyx: AnyArray, labels: Sequence[LabelArray], values: Sequence[int]) -> Shape:
    """For each axis the slice that holds most of `weight_zyx`, among those that hold much of the organs.

    weight_zyx: non-negative, such as the voxels in error. labels: label maps `(Z, Y, X)` that show the organs `values`.
    Each organ counts by its area as a share of its largest area in any slice, so that small ones count as much as large
    ones; slices with half of the best sum or more are chosen from. Without any organ all are; without any weight in
    them it is the slice with the best sum, and without either the middle one.
    """
    others = ((1, 2), (0, 2), (0, 1))
    weights = [weight_zyx.sum(axis=axes, dtype=np.float64) for axes in others]
    z, y, x = map(_choose, weights, _organ_areas(labels, values))
    return (z, y, x)


def _choose(weights: DoubleArray, areas: DoubleArray) -> int:
    """The slice of one axis. areas: `(slices, organs)`."""
    if not areas.any():
        return int(weights.argmax()) if weights.any() else len(weights) // 2
    held = (areas / np.maximum(areas.max(axis=0), 1.0)).sum(axis=1)
    inside = np.where(held >= 0.5 * held.max(), weights, 0.0)
    return int(inside.argmax()) if inside.any() else int(held.argmax())


def _organ_areas(labels: Sequence[LabelArray], values: Sequence[int]) -> tuple[DoubleArray, DoubleArray, DoubleArray]:
    """For each axis the voxels `(slices, organs)` that one of the label maps gives to an organ."""
    sorted_values = np.array(sorted(values))
    shape, organs = labels[0].shape, len(sorted_values)
    z, y, x = (np.zeros(n * organs) for n in shape)
    for number, label in enumerate(labels):
        seen = np.isin(label, sorted_values)
        for earlier in labels[:number]:
            seen &= label != earlier
        where = np.nonzero(seen)
        classes = np.searchsorted(sorted_values, label[where])
        for axis, areas in enumerate((z, y, x)):
            areas += np.bincount(where[axis] * organs + classes, minlength=areas.size)
    return z.reshape(-1, organs), y.reshape(-1, organs), x.reshape(-1, organs)


def window(image_zyx: AnyArray, *, ct: bool) -> tuple[float, float]:
    """What is shown as black and white: the soft-tissue window in HU for CT, else percentiles 1 and 99.5."""
    if ct:
        return SOFT_TISSUE_HU
    low, high = (float(v) for v in np.percentile(image_zyx, (1.0, 99.5)))
    return (low, high) if high > low else (low, low + 1.0)


def region_of_interest(organs_zyx: AnyArray, spacing_mm: Spacing) -> Box:
    """A box around the organs with 18 mm of surroundings, or a quarter of their extent if that is more."""
    tight = bounding_box(organs_zyx)
    if tight is None:
        z, y, x = organs_zyx.shape
        return Box((0, 0, 0), (z, y, x))
    starts, stops = [], []
    for axis, spacing in enumerate(spacing_mm):
        margin = int(np.ceil(max(_MARGIN_MM / spacing, 0.25 * tight.shape[axis])))
        starts.append(max(0, tight.start[axis] - margin))
        stops.append(min(organs_zyx.shape[axis], tight.stop[axis] + margin))
    return Box((starts[0], starts[1], starts[2]), (stops[0], stops[1], stops[2]))


def contour_path(mask: AnyArray, spacing_mm: tuple[float, float]) -> str:
    """SVG path data, in mm, of the lines halfway between the voxel centres in and out of a displayed mask.

    mask: bool `(rows, columns)`. spacing_mm: of rows and columns. The top left corner of the first voxel is
    (0, 0); an empty mask gives an empty string.
    """
    lines = contour_lines(mask, spacing_mm)
    return "".join("M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points[:-1]) + "Z" for points in lines)


def contour_lines(mask: AnyArray, spacing_mm: tuple[float, float]) -> list[DoubleArray]:
    """The same as closed lines of points `(x, y)`; none for an empty mask."""
    if not mask.any():
        return []
    padded = np.pad(mask.astype(np.float64), 1)  # so that an organ cut by the picture's edge is closed
    scale = (spacing_mm[1], spacing_mm[0])
    return [np.asarray((np.asarray(line) - 0.5) * scale) for line in contour_generator(z=padded).lines(0.5)]


def case_panels(
    image_zyx: AnyArray,
    reference_zyx: LabelArray,
    prediction_zyx: LabelArray,
    spacing_mm: Spacing,
    *,
    organs: Mapping[int, str],
    ct: bool,
) -> list[Panel]:
    """Three planes of a test case with the contours of reference and prediction, where they disagree most among the
    slices that show the organs (`choose_slices`).

    Voxels whose reference is neither an organ nor the background (the ignore label) are no disagreement.
    """
    values = np.array(sorted(organs))
    seen = np.isin(reference_zyx, values) | np.isin(prediction_zyx, values)
    error = (reference_zyx != prediction_zyx) & np.isin(reference_zyx, np.append(values, 0))
    centre = choose_slices(error, (reference_zyx, prediction_zyx), list(organs))
    labels = (("reference", reference_zyx), ("prediction", prediction_zyx))
    return _panels(image_zyx, labels, seen, centre, spacing_mm, organs, window(image_zyx, ct=ct))


def method_panels(
    image_zyx: AnyArray,
    reference_zyx: LabelArray,
    predictions_zyx: Mapping[str, LabelArray],
    spacing_mm: Spacing,
    *,
    organs: Mapping[int, str],
    ct: bool,
) -> dict[str, Panel]:
    """The same slice of a case for each method, with the contours of reference and prediction: of the three planes'
    slices that show the organs (`choose_slices`) and on which the methods are wrong most, the one with the largest
    sum."""
    values = np.append(np.array(sorted(organs)), 0)
    known = np.isin(reference_zyx, values)
    errors = np.zeros(reference_zyx.shape, dtype=np.int32)
    for found in predictions_zyx.values():
        errors += (found != reference_zyx) & known
    seen = np.isin(reference_zyx, values[:-1]) | (errors > 0)
    centre = choose_slices(errors, (reference_zyx, *predictions_zyx.values()), list(organs))
    sums = [plane_slice(errors, plane, centre[_AXIS[plane]]).sum() for plane in PLANES]
    plane = int(np.argmax(sums))
    grey = window(image_zyx, ct=ct)

    def panel(found: LabelArray) -> Panel:
        labels = (("reference", reference_zyx), ("prediction", found))
        return _panels(image_zyx, labels, seen, centre, spacing_mm, organs, grey)[plane]

    return {name: panel(found) for name, found in predictions_zyx.items()}


def feedback_panels(
    image_zyx: AnyArray,
    pseudo_label_zyx: LabelArray,
    feedback_zyx: AnyArray,
    spacing_mm: Spacing,
    *,
    organs: Mapping[int, str],
) -> tuple[list[Panel], float]:
    """Three planes with the signed feedback over the scan, where it is strongest; and the scale's end.

    The scale is symmetrical; it ends at `feedback_limit`. Slices are those with the largest sum of squares among those
    that show the pseudo-label's organs.
    """
    limit = feedback_limit(feedback_zyx)
    size = np.minimum(np.abs(feedback_zyx) / limit, 1.0)
    seen = (pseudo_label_zyx > 0) | (size > 0.25)
    centre = choose_slices(size**2, (pseudo_label_zyx,), list(organs))
    labels = (("pseudo", pseudo_label_zyx),)
    grey = window(image_zyx, ct=False)
    overlay = (feedback_zyx / limit, signed_png)
    return _panels(image_zyx, labels, seen, centre, spacing_mm, organs, grey, overlay), limit


def label_panels(
    image_zyx: AnyArray,
    labels_zyx: LabelArray,
    earlier_zyx: LabelArray | None,
    spacing_mm: Spacing,
    *,
    organs: Mapping[int, str],
) -> list[Panel]:
    """Three planes of an unlabelled scan with the contours of its pseudo-label; over the scan, where an earlier one
    differs, on the slices on which most of it does among those that show the organs (`choose_slices`)."""
    maps = (labels_zyx,) if earlier_zyx is None else (labels_zyx, earlier_zyx)
    differs = np.zeros(labels_zyx.shape, dtype=bool) if earlier_zyx is None else labels_zyx != earlier_zyx
    seen = differs | np.isin(labels_zyx, np.array(sorted(organs)))
    centre = choose_slices(differs, maps, list(organs))
    overlay = None if earlier_zyx is None else (differs, mask_png)
    grey = window(image_zyx, ct=False)
    return _panels(image_zyx, (("pseudo", labels_zyx),), seen, centre, spacing_mm, organs, grey, overlay)


def feedback_limit(feedback_zyx: AnyArray) -> float:
    """The size above which a tenth of the total absolute feedback lies (1 if there is none).

    Feedback sits in few voxels, so that a percentile over all of them would depend on how much air a scan holds.
    """
    sizes = np.sort(np.abs(feedback_zyx.astype(np.float64)), axis=None)[::-1]
    if not sizes[0] > 0:
        return 1.0
    share = np.cumsum(sizes) / sizes.sum()
    return float(sizes[np.searchsorted(share, 0.1)])


def _panels(
    image_zyx: AnyArray,
    labels: Sequence[tuple[str, LabelArray]],
    seen_zyx: AnyArray,
    centre: Shape,
    spacing_mm: Spacing,
    organs: Mapping[int, str],
    grey: tuple[float, float],
    overlay: tuple[AnyArray, Callable[[AnyArray], str]] | None = None,
) -> list[Panel]:
    """overlay: a volume, and what makes a PNG of a slice of it."""
    box, colours = region_of_interest(seen_zyx, spacing_mm), organ_colours(organs.values())
    panels = []
    for plane in PLANES:
        axis = _AXIS[plane]
        index = centre[axis]
        spacing = plane_spacing(spacing_mm, plane)

        def shown(volume: AnyArray, plane: Plane = plane, index: int = index, axis: int = axis) -> AnyArray:
            inside = list(box.slices())
            inside[axis] = slice(index, index + 1)
            return plane_slice(volume[tuple(inside)], plane, 0)

        picture = shown(image_zyx)
        height_mm, width_mm = (n * s for n, s in zip(picture.shape, spacing, strict=True))
        panels.append(
            Panel(
                plane=plane,
                edges=EDGES[plane],
                width_mm=width_mm,
                height_mm=height_mm,
                position=index + 1,
                count=image_zyx.shape[axis],
                image_png=grey_png(picture, *grey),
                overlay_png=overlay[1](shown(overlay[0])) if overlay else None,
                contours=tuple(
                    Contour(organ=name, colour=colours[name], kind=kind, path=path)
                    for kind, label in labels
                    for value, name in organs.items()
                    if (path := contour_path(shown(label) == value, spacing))
                ),
                scale_mm=scale_length(width_mm),
            )
        )
    return panels


def scale_length(width_mm: float) -> int:
    """The length of the scale bar: the longest of 1, 2, 5, 10, ... mm within 30 % of the width."""
    return max((n for n in (1, 2, 5, 10, 20, 50, 100, 200) if n <= 0.3 * width_mm), default=1)


def grey_png(picture: AnyArray, low: float, high: float) -> str:
    """A slice as a base64 PNG of 8 bit grey levels."""
    levels = np.clip((picture.astype(np.float64) - low) / (high - low), 0, 1) * 255
    return _encode(Image.fromarray(levels.round().astype(np.uint8)))


def signed_png(picture: AnyArray) -> str:
    """Values in [-1, 1] as a base64 PNG in the two colours of the feedback scale; 0 is transparent."""
    step = np.clip(np.round(picture.astype(np.float64) * 127), -127, 127).astype(np.int16) + 127
    image = Image.frombytes("P", (step.shape[1], step.shape[0]), step.astype(np.uint8).tobytes())
    image.putpalette([channel for s in range(255) for channel in (NEGATIVE_RGB if s < 127 else POSITIVE_RGB)])
    opacity = bytes(round(235 * (abs(s - 127) / 127) ** 0.8) for s in range(255))
    return _encode(image, opacity)


def mask_png(picture: AnyArray) -> str:
    """A mask as a base64 PNG, half transparent in the colour for disagreement; 0 is transparent."""
    image = Image.frombytes("P", (picture.shape[1], picture.shape[0]), picture.astype(np.uint8).tobytes())
    image.putpalette([*NEGATIVE_RGB, *NEGATIVE_RGB])
    return _encode(image, bytes((0, 165)))


def _encode(image: Image.Image, opacity: bytes | None = None) -> str:
    if max(image.size) > _MAX_PIXELS:
        factor = _MAX_PIXELS / max(image.size)
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        # Palette indices must not be averaged: halfway between two of them is no mixture of their colours.
        image = image.resize(size, Image.Resampling.NEAREST if image.mode == "P" else Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True, transparency=opacity)
    return base64.b64encode(stream.getvalue()).decode("ascii")
