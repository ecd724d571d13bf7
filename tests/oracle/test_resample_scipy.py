"""Resampling held against scipy's own zoom, which nnU-Net reaches through skimage's `resize`."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from semiseg.ops.resample import resample_image, resample_label

Shape = tuple[int, int, int]
SHAPES: list[tuple[Shape, Shape]] = [
    ((12, 20, 17), (9, 31, 17)),
    ((5, 7, 9), (10, 14, 18)),
    ((30, 33, 36), (13, 11, 12)),
    ((1, 8, 9), (1, 15, 4)),
    ((3, 4, 2), (7, 9, 5)),
    ((1, 6, 6), (4, 3, 3)),
    ((24, 40, 40), (36, 50, 36)),
    ((3, 600, 5), (4, 523, 5)),  # long axes go in bands
    ((5, 3, 130), (5, 2, 700)),
]


def _zoom(array: np.ndarray, shape: Shape, order: int) -> np.ndarray:
    factors = [b / a for a, b in zip(array.shape, shape, strict=True)]
    return np.asarray(ndimage.zoom(array, factors, order=order, mode="nearest", grid_mode=True))


def _zoom_coarse(array: np.ndarray, shape: Shape, axis: int, order: int) -> np.ndarray:
    """nnU-Net's way for a coarse axis: each slice by `order`, then the nearest slice."""
    plane = tuple(n for a, n in enumerate(shape) if a != axis)
    factors = [b / a for a, b in zip(np.take(array, 0, axis).shape, plane, strict=True)]
    slices = [
        ndimage.zoom(piece, factors, order=order, mode="nearest", grid_mode=True)
        for piece in np.moveaxis(array, axis, 0)
    ]
    stacked = np.stack(slices, axis=axis)
    coordinates = np.indices(shape).astype(float)
    coordinates[axis] = array.shape[axis] / shape[axis] * (coordinates[axis] + 0.5) - 0.5
    return np.asarray(ndimage.map_coordinates(stacked, coordinates, order=0, mode="nearest"))


def _blobs(shape: Shape, classes: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    fields = np.stack([ndimage.gaussian_filter(rng.standard_normal(shape), 1.5) for _ in range(classes)])
    return fields.argmax(axis=0).astype(np.uint8)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(("shape", "out"), SHAPES)
def test_image_equals_zoom(shape: Shape, out: Shape, order: int) -> None:
    image = np.random.default_rng(1).standard_normal((2, *shape)).astype(np.float32)
    ours = resample_image(image, out, order=order, clip=False)
    for channel, result in zip(image, ours, strict=True):
        # scipy sums in float64, three float32 products round by about 3 eps (4e-7) of values up to 5.
        np.testing.assert_allclose(result, _zoom(channel.astype(np.float64), out, order), atol=4e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("shape", "out"), SHAPES)
def test_image_with_a_coarse_axis_equals_nnunets_way(shape: Shape, out: Shape, axis: int) -> None:
    image = np.random.default_rng(2).standard_normal((1, *shape)).astype(np.float32)
    ours = resample_image(image, out, axis, clip=False)[0]
    # As above: rounding of two float32 products of values up to 5.
    np.testing.assert_allclose(ours, _zoom_coarse(image[0].astype(np.float64), out, axis, 3), atol=4e-6)


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize(("shape", "out"), SHAPES)
def test_logits_equal_zoom(shape: Shape, out: Shape, axis: int | None) -> None:
    logits = np.random.default_rng(3).standard_normal((2, *shape)).astype(np.float32)
    ours = resample_image(logits, out, axis, order=1)
    for channel, result in zip(logits.astype(np.float64), ours, strict=True):
        expected = _zoom(channel, out, 1) if axis is None else _zoom_coarse(channel, out, axis, 1)
        # Linear weights and three roundings in float32 of values up to 5.
        np.testing.assert_allclose(result, expected, atol=2e-6)


@pytest.mark.parametrize("axis", [None, 0, 2])
@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize(("shape", "out"), SHAPES)
def test_label_is_the_largest_of_the_zoomed_masks(shape: Shape, out: Shape, axis: int | None, smooth: bool) -> None:
    """Of blobs, and of noise, where up to eight classes meet in a voxel."""
    label = _blobs(shape, 5, seed=4) if smooth else np.random.default_rng(4).integers(0, 9, shape).astype(np.uint8)
    values = np.unique(label)
    masks = [(label == value).astype(np.float64) for value in values]
    weights = np.stack([_zoom(mask, out, 1) if axis is None else _zoom_coarse(mask, out, axis, 1) for mask in masks])
    first, second = np.sort(weights, axis=0)[[-1, -2]]
    clear = first - second > 1e-9  # otherwise they are equal, up to float64 rounding
    ours = resample_label(label, out, axis)
    np.testing.assert_array_equal(ours[clear], values[weights.argmax(axis=0)][clear])
    nearest = _zoom(label.astype(np.float64), out, 0)
    heaviest = weights >= first - 1e-9
    nearest_is_heaviest = (heaviest & (values[:, None, None, None] == nearest)).any(axis=0)
    np.testing.assert_array_equal(ours[nearest_is_heaviest], nearest[nearest_is_heaviest])
    smallest = values[heaviest.argmax(axis=0)]
    np.testing.assert_array_equal(ours[~nearest_is_heaviest], smallest[~nearest_is_heaviest])
