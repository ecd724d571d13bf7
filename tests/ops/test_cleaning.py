from __future__ import annotations

import numpy as np

from semiseg.ops.cleaning import clean, largest_component


def label_map() -> np.ndarray:
    """Class 1: a hollow box with a stray voxel; class 2: a voxel within the hollow; class 3: two pieces."""
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[1:6, 1:6, 1:6] = 1
    labels[2:5, 2:5, 2:5] = 0
    labels[3, 3, 3] = 2
    labels[10, 10, 10] = 1
    labels[8, 0:4, 0] = 3
    labels[8, 8:10, 0] = 3
    return labels


def test_the_largest_component_stays_and_the_rest_is_background() -> None:
    given = label_map()
    cleaned = clean(given, {1: ("largest_component",), 3: ("largest_component",)})
    assert np.array_equal(given, label_map())  # a copy
    expected = label_map()
    expected[10, 10, 10] = 0
    expected[8, 8:10, 0] = 0
    assert np.array_equal(cleaned, expected)
    assert cleaned.dtype == np.uint8


def test_holes_are_filled_but_no_other_class_is_overwritten() -> None:
    cleaned = clean(label_map(), {1: ("fill_holes",)})
    assert cleaned[3, 3, 3] == 2
    assert np.count_nonzero(cleaned == 1) == 5**3 - 1 + 1  # all but class 2, and the stray voxel
    assert np.array_equal(clean(label_map(), {2: ("largest_component", "fill_holes"), 9: ("fill_holes",)}), label_map())


def test_what_is_removed_does_not_keep_its_holes() -> None:
    """The component is chosen first: a hollow one that is dropped is not filled."""
    labels = np.zeros((9, 9, 20), np.uint8)
    labels[1:4, 1:4, 1:4] = 1
    labels[2, 2, 2] = 0
    labels[:, :, 10:] = 1
    cleaned = clean(labels, {1: ("largest_component", "fill_holes")})
    assert not cleaned[:, :, :10].any()


def test_corners_connect_if_asked_to() -> None:
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True
    mask[3, 0, 0:2] = True
    assert largest_component(mask).sum() == 3
    assert largest_component(mask, corners=False).sum() == 2
