from __future__ import annotations

import numpy as np
import pytest

from semiseg.ops.normalise import dark_limit, mean_and_deviation, normalise_ct, normalise_zscore


def zscore(image: np.ndarray) -> np.ndarray:
    mean, deviation = mean_and_deviation(lambda: np.array_split(image, 3))
    return normalise_zscore(image, mean=mean, deviation=deviation)


def test_ct_clips_then_scales_and_leaves_the_input_alone() -> None:
    image = np.array([-2000, -100, 50, 3000], dtype=np.float32)
    before = image.copy()
    out = normalise_ct(image, low=-100, high=200, mean=50, deviation=75)
    np.testing.assert_array_equal(out, np.array([-2, -2, 0, 2], dtype=np.float32))
    assert out.dtype == np.float32
    np.testing.assert_array_equal(image, before)


def test_zscore_of_intensities_over_a_million() -> None:
    rng = np.random.default_rng(0)
    image = (rng.random((40, 50, 40)) * 2e6 + 1e6).astype(np.float32)
    out = zscore(image)
    exact = (image.astype(np.float64) - image.mean(dtype=np.float64)) / image.std(dtype=np.float64)
    # float32 voxels of 3e6 carry 0.25 each, 4e-7 of the deviation; the subtraction adds as much.
    np.testing.assert_allclose(out, exact, atol=1e-6)
    assert out.dtype == np.float32


def test_zscore_does_not_depend_on_the_scale() -> None:
    image = np.random.default_rng(1).random((8, 8, 8)).astype(np.float32)
    # The two differ by float32 rounding of values up to 2.
    np.testing.assert_allclose(zscore(image), zscore(image * np.float32(1e6)), atol=2e-6)


def test_constant_images_become_zero() -> None:
    image = np.full((4, 4, 4), 7, dtype=np.float32)
    assert not zscore(image).any()
    assert not normalise_ct(image, low=0, high=10, mean=7, deviation=0).any()


def test_the_mean_of_what_is_not_dark_does_not_see_a_margin() -> None:
    """Half of the scan is margin: the mean of all falls by half, that of what is brighter than the limit stays."""
    tissue = np.random.default_rng(0).normal(100, 10, size=(8, 20, 20)).astype(np.float32)
    scan = np.concatenate([tissue, np.zeros_like(tissue)])
    limit = dark_limit(scan)
    assert 0 < limit < tissue.min()
    mean, deviation = mean_and_deviation(lambda: [scan[:5], scan[5:]], above=limit)
    np.testing.assert_allclose((mean, deviation), (tissue.mean(), tissue.std()), rtol=1e-6)
    constant = np.full((2, 3, 4), 5.0, dtype=np.float32)
    assert mean_and_deviation(lambda: [constant], above=dark_limit(constant)) == (5.0, 0.0)


@pytest.mark.parametrize("bright", [1.0, 0.7, 3e5])
def test_a_mask_is_normalised_by_all_of_its_voxels(bright: float) -> None:
    """What is not dark has one value there, and no deviation."""
    mask = np.zeros((4, 10, 10), dtype=np.float32)
    mask[1:3, 2:8, 2:8] = bright
    mean, deviation = mean_and_deviation(lambda: [mask], above=dark_limit(mask))
    np.testing.assert_allclose((mean, deviation), (mask.mean(dtype=float), mask.std(dtype=float)), rtol=1e-6)
