from __future__ import annotations

import numpy as np
import pytest

from semiseg.geometry import triple
from semiseg.ops.operators import zoom_operator, zoom_taps
from semiseg.ops.resample import (
    coarse_axis,
    is_anisotropic,
    keep_known,
    resample_image,
    resample_label,
    target_shape,
)


def _image(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("spacing", "anisotropic", "axis"),
    [
        ((3.0, 1.0, 1.0), False, None),  # the bound itself is not above it
        ((3.1, 1.0, 1.0), True, 0),
        ((2.5, 0.8, 0.8), True, 0),
        ((4.0, 4.0, 4.0), False, None),  # a ratio, not millimetres
        ((0.5, 0.5, 2.0), True, 2),
        ((0.3, 1.25, 1.25), True, None),  # two coarse axes: nnU-Net resamples them like isotropic ones
    ],
)
def test_anisotropy_is_a_ratio(spacing: tuple[float, float, float], anisotropic: bool, axis: int | None) -> None:
    assert is_anisotropic(spacing) == anisotropic
    assert coarse_axis(spacing) == axis


def test_target_shape_rounds_as_nnunet_does() -> None:
    assert target_shape((100, 512, 511), (2.5, 0.8, 0.75), (1.25, 1.0, 1.5)) == (200, 410, 256)
    assert target_shape((1, 1, 1), (1.0, 1.0, 1.0), (9.0, 9.0, 9.0)) == (1, 1, 1)


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_the_same_shape_is_an_exact_copy(axis: int | None) -> None:
    image = _image((2, 5, 6, 7))
    same = resample_image(image, (5, 6, 7), axis)
    assert same.tobytes() == image.tobytes()
    assert not np.shares_memory(same, image)
    label = (image[0] > 0).astype(np.uint8)
    assert resample_label(label, (5, 6, 7), axis).tobytes() == label.tobytes()


@pytest.mark.parametrize("order", [0, 1, 3])
def test_constants_stay(order: int) -> None:
    image = np.full((1, 7, 6, 5), 3.25, dtype=np.float32)
    # Each spline operator's rows sum to 1 up to float32 rounding of 3 products.
    np.testing.assert_allclose(resample_image(image, (9, 4, 11), order=order), 3.25, rtol=2e-6)


def test_clip_keeps_each_channel_in_its_range_and_no_clip_overshoots() -> None:
    image = np.zeros((2, 8, 8, 8), dtype=np.float32)
    image[0, :, :, 4:] = 1
    image[1, :, :, 4:] = 100
    clipped = resample_image(image, (13, 13, 13))
    free = resample_image(image, (13, 13, 13), clip=False)
    assert (clipped[0].min(), clipped[0].max(), clipped[1].max()) == (0, 1, 100)
    assert free[0].max() > 1.01
    assert free[0].min() < -0.01


def test_clip_across_a_coarse_axis_is_slice_by_slice() -> None:
    image = np.zeros((1, 2, 8, 8), dtype=np.float32)
    image[0, 0, :, 4:] = 1
    image[0, 1, :, 4:] = 50
    out = resample_image(image, (4, 13, 13), 0)
    assert out[0, :2].max() == 1
    assert out[0, 2:].max() == 50


def test_the_coarse_axis_takes_the_nearest_slice() -> None:
    image = _image((1, 3, 4, 4))
    out = resample_image(image, (6, 4, 4), 0)
    np.testing.assert_array_equal(out[0], np.repeat(image[0], 2, axis=0))


def test_taps_are_the_operator() -> None:
    for n_in, n_out in ((1, 5), (5, 1), (7, 16), (16, 7), (9, 9)):
        taps = zoom_taps(n_in, n_out, 1, np.float64)
        np.testing.assert_array_equal(taps.apply(np.eye(n_in), 0), zoom_operator(n_in, n_out, 1))


def test_label_of_one_voxel_grows_as_a_box() -> None:
    label = np.zeros((5, 5, 5), dtype=np.uint16)
    label[2, 2, 2] = 300
    out = resample_label(label, (10, 10, 10))
    assert out.dtype == np.uint16
    # Weight 0.75 or more along each of three axes: 0.75 ** 3 = 0.42 < 0.5, so the voxel vanishes.
    assert not out.any()
    label[1:4, 1:4, 1:4] = 300
    out = resample_label(label, (10, 10, 10))
    assert set(np.unique(out)) == {0, 300}
    assert out[3:7, 3:7, 3:7].all()


def test_labels_invent_no_class() -> None:
    label = np.random.default_rng(0).integers(1, 4, (6, 6, 6)).repeat(3, 0).repeat(3, 1).repeat(3, 2).astype(np.uint8)
    assert set(np.unique(resample_label(label, (11, 13, 25)))) == {1, 2, 3}  # no background where there was none


def test_where_no_class_has_half_the_heaviest_wins() -> None:
    label = np.array([[[1, 2], [1, 3]]], dtype=np.uint8).repeat(2, 0)
    np.testing.assert_array_equal(resample_label(label, (1, 1, 1)), [[[1]]])
    label[:] = [[4, 2], [4, 4]]
    label[1] = 0
    # 4: three eighths, 0: four eighths
    np.testing.assert_array_equal(resample_label(label, (1, 1, 1)), [[[0]]])


def test_of_equal_classes_the_nearest_voxels_wins_or_the_smallest() -> None:
    label = np.array([[[5, 3]]], dtype=np.uint8)
    middle = resample_label(label, (1, 1, 1))[0, 0, 0]
    assert middle == label[0, 0, zoom_taps(2, 1, 0).low[0]]
    corners = np.array([3, 1, 1, 1, 2, 2, 2, 3], dtype=np.uint8).reshape(2, 2, 2)  # 3 eighths of 1 and of 2
    assert zoom_taps(2, 1, 0).low[0] in (0, 1)  # either corner is a 3, which is not among the heaviest
    np.testing.assert_array_equal(resample_label(corners, (1, 1, 1)), [[[1]]])


def test_a_class_between_the_kept_slices_is_left_out() -> None:
    label = np.zeros((5, 4, 4), dtype=np.uint8)
    label[1] = 1
    assert not resample_label(label, (1, 8, 8), 0).any()


@pytest.mark.parametrize(("axis", "place"), [(0, 7), (1, 6), (2, 11), (0, 0), (2, 19)])
@pytest.mark.parametrize("size", [20, 10, 7, 3, 30])
def test_one_slice_that_is_known_is_not_lost_between_ignored_ones(axis: int, place: int, size: int) -> None:
    """On coarser and finer grids, as one slice there, with its classes; all else stays ignored or is next to it."""
    label = np.full((20, 20, 20), 9, dtype=np.uint8)
    known = np.moveaxis(label, axis, 0)[place]
    known[:] = 0
    known[:10] = 1
    shape = triple(size for _ in range(3))
    out = resample_label(label, shape)
    keep_known(label, out, 9)
    there = np.moveaxis(out, axis, 0)[int((place + 0.5) * size / 20)]
    assert (there != 9).any()
    if size <= 20:
        assert set(np.unique(there)) == {0, 1}
        assert (there[: size // 2] == 1).all()
        assert (there[(size + 1) // 2 :] == 0).all()
    assert (np.moveaxis(out, axis, 0) != 9).any(axis=(1, 2)).sum() <= max(1, 3 * size // 20)


def test_what_is_known_stays_as_it_was_resampled() -> None:
    label = np.random.default_rng(0).integers(0, 3, (9, 10, 11)).astype(np.uint8)
    out = resample_label(label, (5, 6, 4))
    before = out.copy()
    keep_known(label, out, 9)
    assert np.array_equal(out, before)
