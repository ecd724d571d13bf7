"""Overlays: the radiological convention, the choice of slices, and contours that lie where the masks are."""

from __future__ import annotations

import base64
import io
import re
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from semiseg.reporting.overlays import (
    EDGES,
    NEGATIVE_RGB,
    POSITIVE_RGB,
    SOFT_TISSUE_HU,
    Plane,
    case_panels,
    choose_slices,
    contour_path,
    feedback_limit,
    feedback_panels,
    grey_png,
    plane_slice,
    plane_spacing,
    region_of_interest,
    scale_length,
    signed_png,
    window,
)

SHAPE = (6, 8, 10)
SIDES = {"S": (0, -1), "I": (0, 0), "A": (1, -1), "P": (1, 0), "R": (2, -1), "L": (2, 0)}
"""Axis and index of the outermost voxels at each side of a canonical (Z, Y, X) array."""


def points(path: str) -> np.ndarray:
    return np.array([[float(v) for v in pair.split()] for pair in re.findall(r"[\d.-]+ [\d.-]+", path)])


def polygon_area(path: str) -> float:
    x, y = points(path).T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def decode(png: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(png)))


@pytest.mark.parametrize("plane", get_args(Plane))
def test_each_edge_shows_the_side_that_its_letter_names(plane: Plane) -> None:
    edges = EDGES[plane]
    for letter, row_column in (
        (edges.left, (slice(None), 0)),
        (edges.right, (slice(None), -1)),
        (edges.top, (0, slice(None))),
        (edges.bottom, (-1, slice(None))),
    ):
        volume = np.zeros(SHAPE, dtype=bool)
        axis, index = SIDES[letter]
        np.moveaxis(volume, axis, 0)[index] = True
        picture = plane_slice(volume, plane, 3)
        assert picture[row_column].all(), f"{letter} is not at its edge"
        assert picture.sum() == picture[row_column].sum(), f"{letter} reaches further than its edge"


def test_the_patients_right_is_on_the_left_of_axial_and_coronal_pictures() -> None:
    assert (EDGES["axial"].left, EDGES["coronal"].left) == ("R", "R")
    assert (EDGES["axial"].top, EDGES["coronal"].top, EDGES["sagittal"].top) == ("A", "S", "S")


def test_the_spacing_of_a_picture_leaves_out_the_axis_that_it_cuts() -> None:
    assert plane_spacing((5.0, 2.0, 1.0), "axial") == (2.0, 1.0)
    assert plane_spacing((5.0, 2.0, 1.0), "coronal") == (5.0, 1.0)
    assert plane_spacing((5.0, 2.0, 1.0), "sagittal") == (5.0, 2.0)


def test_slices_go_where_the_error_is_largest_among_those_with_organs() -> None:
    organs = np.zeros((20, 20, 20), dtype=np.uint8)
    organs[5:15, 5:15, 5:15] = 1
    error = np.zeros(organs.shape, dtype=bool)
    error[12, 6:9, 8:12] = True
    error[18] = True  # most errors lie in a slice without any organ
    assert choose_slices(error, [organs], [1])[0] == 12
    assert choose_slices(error, [np.zeros_like(organs)], [1])[0] == 18, "without organs errors alone count"


def test_small_organs_count_as_much_as_large_ones() -> None:
    """The large organ alone is in slices 0 to 9, two small ones with a little of it in slices 12 and 13."""
    organs = np.zeros((20, 30, 30), dtype=np.uint8)
    organs[0:10] = 1
    organs[12:14, 0:2, 0:2], organs[12:14, 5:7, 5:7], organs[12:14, 20:, 20:] = 2, 3, 1
    error = np.zeros(organs.shape, dtype=bool)
    error[3, 0:5], error[12, 0:2, 0:2], error[13, 0, 0] = True, True, True
    assert choose_slices(error, [organs], [1, 2, 3])[0] == 12


def test_an_organ_counts_where_any_of_the_maps_has_it() -> None:
    reference, prediction = np.zeros(SHAPE, dtype=np.uint8), np.zeros(SHAPE, dtype=np.uint8)
    reference[1, 2:6, 2:6], prediction[4, 2:6, 2:6] = 1, 1
    error = np.zeros(SHAPE, dtype=bool)
    error[4, 2:4, 2:4] = True
    assert choose_slices(error, [reference, prediction], [1])[0] == 4


def test_without_any_error_slices_show_most_organs_and_else_the_middle() -> None:
    nothing, organs = np.zeros(SHAPE, dtype=bool), np.zeros(SHAPE, dtype=np.uint8)
    organs[2, 4:7, 6:9] = 1
    organs[3, 5, 7] = 1
    assert choose_slices(nothing, [organs], [1]) == (2, 5, 7)
    assert choose_slices(nothing, [np.zeros_like(organs)], [1]) == (3, 4, 5)


@given(
    top=st.integers(0, 5),
    left=st.integers(0, 5),
    rows=st.integers(2, 6),
    columns=st.integers(2, 6),
    spacing=st.tuples(st.floats(0.5, 5), st.floats(0.5, 5)),
)
def test_a_contour_encloses_its_mask(
    top: int, left: int, rows: int, columns: int, spacing: tuple[float, float]
) -> None:
    mask = np.zeros((12, 12), dtype=bool)
    mask[top : top + rows, left : left + columns] = True
    path = contour_path(mask, spacing)
    x, y = points(path).T
    # Path data has two decimals, so each coordinate is within 0.005 mm.
    assert np.allclose([x.min(), x.max()], np.array([left, left + columns]) * spacing[1], atol=0.006)
    assert np.allclose([y.min(), y.max()], np.array([top, top + rows]) * spacing[0], atol=0.006)
    # Halfway lines cut an eighth of a voxel off each of the four corners; 0.005 mm around the outline for rounding.
    expected = (rows * columns - 0.5) * spacing[0] * spacing[1]
    assert polygon_area(path) == pytest.approx(expected, abs=0.01 * (x.max() + y.max() + 10))


def test_contours_have_a_ring_for_each_part_and_hole_and_close_at_the_edge() -> None:
    mask = np.zeros((9, 9), dtype=bool)
    mask[0:5, 0:5] = True
    mask[2, 2] = False
    mask[7, 7] = True
    path = contour_path(mask, (1.0, 1.0))
    assert path.count("M") == path.count("Z") == 3
    assert contour_path(np.zeros((4, 4), dtype=bool), (1.0, 1.0)) == ""


def test_panels_have_physical_sizes_and_the_organ_where_it_is() -> None:
    reference = np.zeros((10, 20, 30), dtype=np.uint8)
    reference[4:7, 12:16, 20:26] = 2
    prediction = np.zeros_like(reference)
    prediction[4:7, 12:16, 21:26] = 2
    image = np.zeros(reference.shape, dtype=np.float32)
    panels = case_panels(image, reference, prediction, (5.0, 2.0, 1.0), organs={2: "liver"}, ct=True)
    axial = panels[0]
    assert [p.plane for p in panels] == ["axial", "coronal", "sagittal"]
    assert (panels[2].position, panels[2].count) == (21, 30)
    # Margins: 18 mm in x (to the edges at 2 and 30), 9 voxels of 2 mm in y (3 to 20), so 28 × 34 mm are shown.
    assert (axial.width_mm, axial.height_mm) == (28.0, 34.0)
    outline = {c.kind: points(c.path) for c in axial.contours}
    assert (outline["reference"][:, 0].min(), outline["reference"][:, 0].max()) == (4.0, 10.0)
    assert (outline["prediction"][:, 0].min(), outline["prediction"][:, 0].max()) == (4.0, 9.0)
    assert (outline["reference"][:, 1].min(), outline["reference"][:, 1].max()) == (8.0, 16.0)
    assert [c.kind for c in panels[2].contours] == ["reference"], "this slice is only in the reference"


def test_ignored_voxels_do_not_draw_the_slices_to_them() -> None:
    reference = np.zeros(SHAPE, dtype=np.uint8)
    reference[0] = 9
    prediction = np.zeros(SHAPE, dtype=np.uint8)
    prediction[3, 4, 5] = 1
    image = np.zeros(SHAPE, dtype=np.float32)
    panels = case_panels(image, reference, prediction, (1.0, 1.0, 1.0), organs={1: "a"}, ct=False)
    assert [p.position for p in panels] == [4, 5, 6]


def test_the_region_holds_the_organs_with_a_margin_inside_of_the_scan() -> None:
    organs = np.zeros((40, 60, 60), dtype=bool)
    organs[2:10, 30:34, 30:34] = True
    box = region_of_interest(organs, (3.0, 2.0, 18.0))
    assert box.start == (0, 21, 29)
    assert box.stop == (16, 43, 35)
    assert region_of_interest(np.zeros(SHAPE, dtype=bool), (1.0, 1.0, 1.0)).shape == SHAPE


def test_grey_levels_follow_the_window() -> None:
    assert window(np.zeros(SHAPE), ct=True) == SOFT_TISSUE_HU
    low, high = window(np.zeros(SHAPE), ct=False)
    assert high > low, "a constant scan must not divide by zero"
    pixels = np.asarray(decode(grey_png(np.array([[-500.0, 40.0, 900.0]]), *SOFT_TISSUE_HU)))
    assert pixels.tolist() == [[0, 128, 255]]


def test_large_slices_are_made_smaller() -> None:
    assert decode(grey_png(np.zeros((300, 2000)), 0, 1)).size == (640, 96)


def test_the_feedback_scale_is_symmetrical_and_zero_is_transparent() -> None:
    pixels = np.asarray(decode(signed_png(np.array([[-2.0, -1.0, 0.0, 1.0, 2.0]]))).convert("RGBA"))[0]
    assert pixels[0].tolist() == pixels[1].tolist() == [*NEGATIVE_RGB, 235]
    assert pixels[3].tolist() == pixels[4].tolist() == [*POSITIVE_RGB, 235]
    assert pixels[2, 3] == 0


def test_the_feedback_limit_does_not_depend_on_how_much_air_there_is() -> None:
    rng = np.random.default_rng(0)
    feedback = rng.normal(size=(10, 10, 10))
    assert feedback_limit(np.pad(feedback, 20)) == feedback_limit(feedback)
    assert feedback_limit(np.zeros(SHAPE)) == 1.0


def test_feedback_panels_go_where_the_feedback_is_and_survive_none() -> None:
    image, label = np.zeros(SHAPE, dtype=np.float32), np.zeros(SHAPE, dtype=np.uint8)
    label[2:4, 2:4, 2:4] = 1
    feedback = np.zeros(SHAPE)
    feedback[3, 2, 3] = -3e-9
    feedback[1, 6, 8] = -1e-9  # where the pseudo-label has no organ
    arguments = {"organs": {1: "a"}}
    panels, limit = feedback_panels(image, label, feedback, (1.0, 1.0, 1.0), **arguments)
    assert [p.position for p in panels] == [4, 3, 4]
    assert limit == 3e-9
    panels, _ = feedback_panels(image, label, np.zeros(SHAPE), (1.0, 1.0, 1.0), **arguments)
    assert [c.kind for c in panels[0].contours] == ["pseudo"]


@pytest.mark.parametrize(("width_mm", "length"), [(300, 50), (100, 20), (35, 10), (2, 1)])
def test_scale_bars_have_round_lengths(width_mm: float, length: int) -> None:
    assert scale_length(width_mm) == length
