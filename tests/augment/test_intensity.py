from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from semiseg.augment import intensity
from semiseg.augment.intensity import IntensityParams, apply_intensity, sample_intensity
from semiseg.augment.settings import Augmentation
from semiseg.randomness import Draw

ALWAYS = Augmentation(
    noise_probability=1.0,
    blur_probability=1.0,
    brightness_probability=1.0,
    contrast_probability=1.0,
    low_resolution_probability=1.0,
    gamma_probability=1.0,
    inverted_gamma_probability=1.0,
)
OFF = Augmentation.none()


def _images(n: int = 3, channels: int = 2) -> torch.Tensor:
    return torch.randn((n, channels, 7, 9, 8), generator=torch.Generator().manual_seed(0)) * 2 + 0.5


def _select(params: IntensityParams, i: int) -> IntensityParams:
    arrays = {f.name: getattr(params, f.name)[i : i + 1] for f in fields(params) if f.name != "axes"}
    return replace(params, **arrays)


def test_same_key_same_numbers_and_a_rank_has_its_own_part() -> None:
    whole, again = (sample_intensity(Draw(1, 4), 4, 2, ALWAYS) for _ in range(2))
    part = sample_intensity(Draw(1, 4, sample=3), 1, 2, ALWAYS)
    for name in ("noise_seed", "noise_deviation", "blur_sigma", "gamma", "low_resolution"):
        values = getattr(whole, name)
        assert np.array_equal(values, getattr(again, name))
        assert np.array_equal(values[3:], getattr(part, name))
        assert len(np.unique(values)) == values.size


def test_batched_equals_one_by_one() -> None:
    images, params = _images(), sample_intensity(Draw(2, 1), 3, 2, ALWAYS)
    together = apply_intensity(images, params)
    for i in range(3):
        one = apply_intensity(images[i : i + 1], _select(params, i))
        # Sums and powers round differently with the place in memory; a few changes in a row add up to 1e-5.
        assert torch.allclose(one[0], together[i], atol=1e-5, rtol=0)


def test_nothing_drawn_is_a_no_op_and_untouched_channels_are_bit_equal() -> None:
    images = _images()
    params = sample_intensity(Draw(0), 3, 2, OFF)
    assert apply_intensity(images, params) is images
    before = images.clone()
    for name in ("noise_deviation", "blur_sigma", "brightness", "contrast", "low_resolution", "gamma"):
        values = getattr(params, name).copy()
        values[1, 0] = 0.7
        out = apply_intensity(images, replace(params, **{name: values}))
        changed = (out != images).flatten(2).any(dim=2)
        assert changed.tolist() == [[False, False], [True, False], [False, False]]
        assert torch.equal(images, before)


def test_a_batch_in_another_memory_format_gives_the_same() -> None:
    images, params = _images(), sample_intensity(Draw(2, 1), 3, 2, ALWAYS)
    other = images.to(memory_format=torch.channels_last_3d)
    assert torch.equal(apply_intensity(images, params), apply_intensity(other, params))


@pytest.mark.parametrize("sigma", [0.5, 0.8, 1.0])
def test_blur_equals_scipy(sigma: float) -> None:
    rows = _images()[:, 0]
    out = intensity.blur(rows, np.array([sigma, 0.6, 1.0]))
    radius = int(np.ceil(4 * sigma))
    expected = ndimage.gaussian_filter(rows[0].double().numpy(), sigma, mode="nearest", radius=radius)
    assert np.abs(out[0].numpy() - expected).max() < 5e-6  # float32 sums of 27 weights on values up to 8


def test_brightness_and_contrast() -> None:
    rows = _images()[:, 0]
    assert torch.equal(intensity.brightness(rows, np.array([2.0, 1.0, 0.5]))[2], rows[2] * 0.5)
    less, more = (intensity.contrast(rows, np.full(3, f)) for f in (0.5, 1.25))
    # Halving a float is exact up to the rounding of adding the mean.
    assert torch.allclose(less.std(dim=(1, 2, 3)), rows.std(dim=(1, 2, 3)) / 2, rtol=1e-5)
    assert torch.allclose(less.mean(dim=(1, 2, 3)), rows.mean(dim=(1, 2, 3)), atol=1e-6)
    assert (more.amax(dim=(1, 2, 3)) <= rows.amax(dim=(1, 2, 3))).all()
    assert (more.std(dim=(1, 2, 3)) > rows.std(dim=(1, 2, 3))).all()


def test_gamma_keeps_order_mean_and_deviation() -> None:
    rows = _images()[:, 0]
    out = intensity.gamma(rows, np.array([0.7, 1.0, 1.5]))
    for statistic in (torch.mean, torch.std):
        assert torch.allclose(statistic(out, dim=(1, 2, 3)), statistic(rows, dim=(1, 2, 3)), atol=1e-5)
    order = rows[0].flatten().argsort()
    assert (out[0].flatten()[order].diff() >= 0).all()
    assert torch.allclose(out[1], rows[1], atol=1e-5)  # exponent 1 rounds only
    skew = ((out - rows.mean(dim=(1, 2, 3), keepdim=True)) ** 3).mean(dim=(1, 2, 3))
    assert skew[0] < skew[1] < skew[2]  # a large exponent draws out the bright end
    constant = torch.full((1, 4, 4, 4), 3.0)
    assert torch.equal(intensity.gamma(constant, np.array([1.5])), constant)


def test_low_resolution_loses_detail_but_keeps_a_ramp_and_the_spared_axis() -> None:
    ramp = torch.arange(16.0).view(1, 16, 1, 1).expand(1, 16, 8, 8)
    out = intensity.low_resolution(ramp, np.array([0.5]))
    # Nearest picks the upper one of each two voxels, half a voxel off; linear keeps the slope away from the ends.
    assert torch.allclose(out[0, 2:-2], ramp[0, 2:-2] + 0.5, atol=1e-5)
    noise = _images()[:1, 0]
    assert intensity.low_resolution(noise, np.array([0.5])).std() < noise.std()
    assert torch.equal(intensity.low_resolution(noise, np.array([0.5]), axes=()), noise)


def test_noise_has_its_deviation_and_changes_with_the_seed() -> None:
    images = torch.zeros((2, 1, 20, 20, 20))
    params = replace(sample_intensity(Draw(0), 2, 1, ALWAYS), noise_deviation=np.array([[0.1], [0.1]]), **_neutral())
    out = apply_intensity(images, params)
    # The deviation of 8,000 draws is off by 0.8 % at one standard deviation.
    assert torch.allclose(out.std(dim=(1, 2, 3, 4)), torch.tensor(0.1), rtol=0.04)
    assert not torch.equal(out[0], out[1])


def _neutral() -> dict[str, np.ndarray]:
    off = sample_intensity(Draw(0), 2, 1, OFF)
    names = ("blur_sigma", "brightness", "contrast", "low_resolution", "gamma", "inverted_gamma")
    return {name: getattr(off, name) for name in names}


def test_how_often_each_change_happens() -> None:
    params = sample_intensity(Draw(0), 3000, 1, Augmentation())
    # 4 standard deviations of 3,000 draws are at most 0.034.
    assert (params.noise_deviation > 0).mean() == pytest.approx(0.1, abs=0.034)
    assert (params.gamma != 1).mean() == pytest.approx(0.3, abs=0.034)
    assert (params.gamma[params.gamma != 1] < 1).mean() == pytest.approx(0.5, abs=0.07)
    assert params.low_resolution.min() >= 0.5
