"""Resampling of tensors against scipy and against the same in numpy, on every device that is there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from semiseg.ops.resample import resample_image
from semiseg.ops.resample_torch import resample_tensor

SIZES = st.tuples(*[st.integers(1, 40)] * 3)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
# Sums of at most some dozen float32 products of numbers near 1, in another order.
ROUNDING = 2e-5


def _image(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("device", DEVICES)
@given(
    shape=SIZES,
    out=SIZES,
    axis=st.sampled_from([None, 0, 1, 2]),
    order=st.sampled_from([0, 1, 3]),
    clip=st.booleans(),
)
@settings(max_examples=60)
def test_the_same_as_in_numpy(
    device: str, shape: tuple[int, int, int], out: tuple[int, int, int], axis: int | None, order: int, clip: bool
) -> None:
    image = _image((2, *shape))
    expected = resample_image(image, out, axis, order=order, clip=clip)
    found = resample_tensor(torch.from_numpy(image).to(device), out, axis, order=order, clip=clip)
    assert found.device.type == device
    np.testing.assert_allclose(found.cpu().numpy(), expected, atol=ROUNDING)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order", [0, 1, 3])
def test_the_same_as_scipy_where_nothing_is_clipped(device: str, order: int) -> None:
    image = _image((1, 21, 70, 33))
    out = (34, 45, 50)
    factors = np.divide(out, image.shape[1:])
    expected = ndimage.zoom(image[0].astype(np.float64), factors, order=order, mode="nearest", grid_mode=True)
    found = resample_tensor(torch.from_numpy(image).to(device), out, order=order, clip=False)
    np.testing.assert_allclose(found[0].cpu().numpy(), expected, atol=ROUNDING)


def test_the_same_shape_is_a_copy() -> None:
    image = torch.from_numpy(_image((1, 3, 4, 5)))
    found = resample_tensor(image, (3, 4, 5))
    assert torch.equal(found, image)
    found[:] = 0
    assert image.any()
