"""Changes of intensity, channel by channel, as nnU-Net does them (Isensee et al., Nature Methods 2021, supplement).

B batch, C channel, D H W (= Z Y X), R rows: the samples' channels in a row, R = B * C.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from semiseg.augment.draws import factor, sample_draws
from semiseg.augment.settings import Augmentation
from semiseg.randomness import Draw
from semiseg.transfer import to_device
from semiseg.types import DoubleArray

_SPATIAL = (-3, -2, -1)
_TINY = 1e-7
"""Smallest range and deviation that is divided by."""


@dataclass(frozen=True)
class IntensityParams:
    """One value a sample and channel, each (B, C); in brackets the value that changes nothing.

    noise_deviation (0) in normalised units and the seed of its device generator, blur_sigma (0) in voxels,
    brightness (1), contrast (1), low_resolution (1) the size of the reduced image on the axes listed in
    `axes`, gamma (1) and inverted_gamma (1) the exponents.
    """

    noise_deviation: DoubleArray
    noise_seed: NDArray[np.int64]
    blur_sigma: DoubleArray
    brightness: DoubleArray
    contrast: DoubleArray
    low_resolution: DoubleArray
    gamma: DoubleArray
    inverted_gamma: DoubleArray
    axes: tuple[int, ...] = (0, 1, 2)


def sample_intensity(
    draw: Draw, n: int, channels: int, settings: Augmentation, purpose: str = "intensity"
) -> IntensityParams:
    """Draw the changes of n samples of so many channels, each sample by its own key."""
    axes = tuple(axis for axis in range(3) if axis != settings.coarse_axis)
    columns = {name: np.full((n, channels), neutral) for name, neutral in _NEUTRAL.items()}
    seeds = np.zeros((n, channels), dtype=np.int64)
    if settings.enabled:
        for i, key in enumerate(sample_draws(draw, n)):
            generator = key.generator(purpose)
            for channel in range(channels):
                seeds[i, channel] = key.torch_seed(f"{purpose}/noise/{channel}")
                for name, value in _sample_channel(generator, settings).items():
                    columns[name][i, channel] = value
    return IntensityParams(**columns, noise_seed=seeds, axes=axes)


_NEUTRAL = {
    "noise_deviation": 0.0,
    "blur_sigma": 0.0,
    "brightness": 1.0,
    "contrast": 1.0,
    "low_resolution": 1.0,
    "gamma": 1.0,
    "inverted_gamma": 1.0,
}


def _sample_channel(generator: np.random.Generator, settings: Augmentation) -> dict[str, float]:
    """The changes of one channel that take place."""
    chances = {
        name: getattr(settings, name.removesuffix("_deviation").removesuffix("_sigma") + "_probability")
        for name in _NEUTRAL
    }
    happens = dict(zip(chances, generator.random(len(chances)), strict=True))
    values = {
        "noise_deviation": generator.uniform(*settings.noise_deviation),
        "blur_sigma": generator.uniform(*settings.blur_sigma),
        "brightness": factor(generator, settings.brightness),
        "contrast": factor(generator, settings.contrast),
        "low_resolution": generator.uniform(*settings.low_resolution),
        "gamma": factor(generator, settings.gamma),
        "inverted_gamma": factor(generator, settings.gamma),
    }
    return {name: value for name, value in values.items() if happens[name] < chances[name]}


def apply_intensity(images: Tensor, params: IntensityParams) -> Tensor:
    """The images (B, C, D, H, W), float32, with each change applied to the channels that drew it, in nnU-Net's order.

    Channels that drew nothing are bit for bit the input's; if none drew anything, the input itself is returned.
    """
    stages: list[tuple[DoubleArray, float, Callable[[Tensor, DoubleArray], Tensor]]] = [
        (params.blur_sigma, 0.0, blur),
        (params.brightness, 1.0, brightness),
        (params.contrast, 1.0, contrast),
        (params.low_resolution, 1.0, lambda rows, zooms: low_resolution(rows, zooms, params.axes)),
        (params.inverted_gamma, 1.0, lambda rows, exponents: -gamma(-rows, exponents)),
        (params.gamma, 1.0, gamma),
    ]
    noisy = np.flatnonzero(params.noise_deviation)
    if not noisy.size and all((values == neutral).all() for values, neutral, _ in stages):
        return images
    rows = images.reshape(-1, *images.shape[2:]).clone(memory_format=torch.contiguous_format)
    for row in map(int, noisy):
        generator = torch.Generator(device=rows.device).manual_seed(int(params.noise_seed.flat[row]))
        noise = torch.randn(rows[row].shape, generator=generator, device=rows.device, dtype=rows.dtype)
        rows[row] += float(params.noise_deviation.flat[row]) * noise
    for values, neutral, change in stages:
        chosen = np.flatnonzero(values != neutral)
        if chosen.size:
            index = to_device(chosen, rows.device)
            rows[index] = change(rows[index], values.flat[chosen])
    return rows.view(images.shape)


def _column(values: DoubleArray, like: Tensor) -> Tensor:
    """A value a row, shaped to broadcast over (R, D, H, W)."""
    return to_device(values.astype(np.float32), like.device).view(-1, 1, 1, 1)


def blur(rows: Tensor, sigmas: DoubleArray) -> Tensor:
    """Rows (R, D, H, W) convolved with a Gaussian of sigma voxels, cut off at 4 sigma, borders continued.

    Each axis is a weighted sum of shifted copies, which on a CPU is several times faster than a one-channel `conv3d`.
    """
    reach = math.ceil(4 * float(sigmas.max()))
    taps = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (taps[None] / sigmas[:, None]) ** 2)
    weights[np.abs(taps)[None] > np.ceil(4 * sigmas)[:, None]] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    columns = [_column(weights[:, tap], rows) for tap in range(len(taps))]
    for axis in (1, 2, 3):
        size = rows.shape[axis]
        places = torch.arange(-reach, size + reach, device=rows.device).clamp_(0, size - 1)
        padded = rows.index_select(axis, places)
        rows = torch.zeros_like(rows)
        for tap, column in enumerate(columns):
            rows += padded.narrow(axis, tap, size) * column
    return rows


def brightness(rows: Tensor, factors: DoubleArray) -> Tensor:
    """Rows (R, D, H, W) times their factors."""
    return rows * _column(factors, rows)


def contrast(rows: Tensor, factors: DoubleArray) -> Tensor:
    """Rows (R, D, H, W) stretched about their mean by their factors, clipped to the range that they had."""
    mean = rows.mean(dim=_SPATIAL, keepdim=True)
    low, high = rows.amin(dim=_SPATIAL, keepdim=True), rows.amax(dim=_SPATIAL, keepdim=True)
    return ((rows - mean) * _column(factors, rows) + mean).clamp(low, high)


def low_resolution(rows: Tensor, zooms: DoubleArray, axes: tuple[int, ...] = (0, 1, 2)) -> Tensor:
    """Rows (R, D, H, W) reduced to `zoom` of their size along the axes by nearest neighbour and enlarged linearly."""
    out = torch.empty_like(rows)
    for row, zoom in enumerate(zooms):
        size = [max(1, round(s * float(zoom))) if a in axes else s for a, s in enumerate(rows.shape[1:])]
        small = functional.interpolate(rows[row][None, None], size=size, mode="nearest-exact")
        out[row] = functional.interpolate(small, size=rows.shape[1:], mode="trilinear", align_corners=False)[0, 0]
    return out


def gamma(rows: Tensor, exponents: DoubleArray) -> Tensor:
    """Rows (R, D, H, W) bent by `((x - min) / range) ** exponent`, with their mean and deviation restored.

    A constant row stays as it is.
    """
    low = rows.amin(dim=_SPATIAL, keepdim=True)
    span = (rows.amax(dim=_SPATIAL, keepdim=True) - low).clamp_min(_TINY)
    mean, deviation = rows.mean(dim=_SPATIAL, keepdim=True), rows.std(dim=_SPATIAL, keepdim=True)
    bent = ((rows - low) / span) ** _column(exponents, rows)
    bent = bent - bent.mean(dim=_SPATIAL, keepdim=True)
    return bent / bent.std(dim=_SPATIAL, keepdim=True).clamp_min(_TINY) * deviation + mean
