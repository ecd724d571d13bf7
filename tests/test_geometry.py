"""Orientations, affines and boxes, against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from semiseg.geometry import (
    LEFT_RIGHT_AXIS,
    Box,
    bounding_box,
    canonical_affine,
    canonical_grid,
    from_canonical,
    orientation_name,
    spacing_from_affine,
    stored_axes,
    to_canonical,
)

ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1.0, -1.0), repeat=3)))


def affine_of(axes: tuple[int, ...], signs: tuple[float, ...], sizes: tuple[float, ...]) -> np.ndarray:
    """An affine whose stored axis i runs along canonical axis axes[i] in direction signs[i]."""
    affine = np.zeros((4, 4))
    for stored, (axis, sign, size) in enumerate(zip(axes, signs, sizes, strict=True)):
        affine[axis, stored] = sign * size
    affine[:, 3] = (5.0, -7.0, 11.0, 1.0)
    return affine


@given(
    array=arrays.arrays(np.int16, arrays.array_shapes(min_dims=3, max_dims=3, max_side=4)),
    orientation=st.sampled_from(ORIENTATIONS),
    tilt=st.floats(-0.3, 0.3),
)
def test_canonical_and_back_is_the_identity_also_for_tilted_scans(
    array: np.ndarray, orientation: tuple[tuple[int, ...], tuple[float, ...]], tilt: float
) -> None:
    affine = affine_of(*orientation, (1.0, 1.5, 2.0))
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    affine = rotation @ affine
    canonical = to_canonical(array, affine)
    assert np.array_equal(from_canonical(canonical, affine), array)
    shape_zyx, spacing_mm = canonical_grid(affine, array.shape)  # type: ignore[arg-type]
    assert shape_zyx == canonical.shape
    axes = stored_axes(affine)
    assert axes == orientation[0]
    sizes = dict(zip(axes, (1.0, 1.5, 2.0), strict=True))
    assert spacing_mm == pytest.approx((sizes[2], sizes[1], sizes[0]))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_canonical_affine_leaves_each_voxel_where_it_is_in_the_body(
    orientation: tuple[tuple[int, ...], tuple[float, ...]],
) -> None:
    affine = affine_of(*orientation, (1.0, 1.5, 2.0))
    stored = np.arange(24).reshape(2, 3, 4)
    new = canonical_affine(affine, (2, 3, 4))
    assert orientation_name(new) == "RAS"
    canonical = to_canonical(stored, affine)
    for value in range(24):
        before = affine @ [*np.argwhere(stored == value)[0], 1]
        after = new @ [*np.argwhere(canonical == value)[0][::-1], 1]
        assert np.array_equal(before, after)


def test_names_and_spacings() -> None:
    affine = affine_of((0, 1, 2), (-1.0, -1.0, 1.0), (0.5, 0.75, 3.0))
    assert orientation_name(affine) == "LPS"
    assert spacing_from_affine(affine) == (3.0, 0.75, 0.5)


def test_mirroring_along_the_left_right_axis_moves_voxels_across_the_body() -> None:
    affine = affine_of((1, 0, 2), (1.0, -1.0, 1.0), (1.0, 1.0, 1.0))
    marked = np.zeros((3, 4, 5))
    marked[0, 0, 0] = 1  # the stored second axis runs to the left, so that this voxel is the rightmost
    canonical = to_canonical(marked, affine)
    assert canonical[0, 0, -1] == 1
    assert np.flip(canonical, LEFT_RIGHT_AXIS)[0, 0, 0] == 1


def test_an_affine_without_three_directions_has_no_axes() -> None:
    assert stored_axes(np.diag([1.0, 0.0, 1.0, 1.0])) is None


@settings(max_examples=200)
@given(
    mask=arrays.arrays(np.bool_, arrays.array_shapes(min_dims=3, max_dims=3, max_side=6)),
    margin=st.integers(0, 3),
)
def test_the_bounding_box_is_the_smallest_one_grown_within_the_array(mask: np.ndarray, margin: int) -> None:
    box = bounding_box(mask, margin=margin)
    occupied = np.argwhere(mask)
    if not len(occupied):
        assert box is None
        return
    assert box is not None
    assert box.start == tuple(np.maximum(occupied.min(axis=0) - margin, 0))
    assert box.stop == tuple(np.minimum(occupied.max(axis=0) + 1 + margin, mask.shape))
    assert mask[box.slices()].sum() == mask.sum()


def test_a_box_knows_its_shape() -> None:
    box = Box((1, -2, 3), (4, 5, 9))
    assert box.shape == (3, 7, 6)
    assert Box((1, 2, 3), (4, 5, 9)).slices() == (slice(1, 4), slice(2, 5), slice(3, 9))
