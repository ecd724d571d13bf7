"""Intensities brought to network units, as nnU-Net does it."""

from __future__ import annotations

import numpy as np

from semiseg.types import FloatArray

_SMALLEST_DEVIATION = 1e-8


def normalise_ct(image: FloatArray, *, low: float, high: float, mean: float, deviation: float) -> FloatArray:
    """`(clip(image, low, high) - mean) / deviation`, float32, any shape; the four numbers in Hounsfield
    units.

    A deviation under 1e-8 counts as 1e-8, nnU-Net's guard against constant images.
    """
    clipped = np.clip(image, np.float32(low), np.float32(high)).astype(np.float32, copy=False)
    clipped -= np.float32(mean)
    clipped /= np.float32(max(deviation, _SMALLEST_DEVIATION))
    return clipped


def normalise_zscore(image: FloatArray) -> FloatArray:
    """`(image - mean) / deviation` with the mean and deviation of this image, float32, any shape.

    Both are summed in float64: intensities of MRI reach 1e6, where float32 sums of millions of voxels lose
    digits.
    """
    mean = float(image.mean(dtype=np.float64))
    deviation = float(image.std(dtype=np.float64))
    return ((image - np.float32(mean)) / np.float32(max(deviation, _SMALLEST_DEVIATION))).astype(np.float32)
