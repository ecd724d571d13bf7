"""Intensities brought to network units, as nnU-Net does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf, isfinite, sqrt

import numpy as np

from semiseg.types import FloatArray

SMALLEST_DEVIATION = 1e-8
DARK_SHARE = 0.1
_ONE_VALUE = 1e-6
"""Of what voxels lie above the dark by: they vary by less than this share if all have one value."""


def normalise_ct(image: FloatArray, *, low: float, high: float, mean: float, deviation: float) -> FloatArray:
    """`(clip(image, low, high) - mean) / deviation`, float32, any shape; the four numbers in Hounsfield units.

    A deviation under 1e-8 counts as 1e-8, nnU-Net's guard against constant images.
    """
    clipped = np.clip(image, np.float32(low), np.float32(high)).astype(np.float32, copy=False)
    clipped -= np.float32(mean)
    clipped /= np.float32(max(deviation, SMALLEST_DEVIATION))
    return clipped


def normalise_zscore(image: FloatArray, *, mean: float, deviation: float) -> FloatArray:
    """`(image - mean) / deviation`, float32, any shape; the two are the scan's (`mean_and_deviation`)."""
    return ((image - np.float32(mean)) / np.float32(max(deviation, SMALLEST_DEVIATION))).astype(np.float32)


def mean_and_deviation(pieces: Callable[[], Iterable[FloatArray]], above: float = -inf) -> tuple[float, float]:
    """The mean and the deviation of a scan that comes in pieces, once for each of the two; of its voxels above a value,
    or of all where none is, or where those have one value: a mask as a second channel, say.

    Both are summed in float64: intensities of MRI reach 1e6, where float32 sums of millions of voxels lose digits.
    """
    count, total = 0, 0.0
    for piece in pieces():
        counted = piece[piece > above]
        count += counted.size
        total += float(counted.sum(dtype=np.float64))
    if count == 0:
        return mean_and_deviation(pieces)
    mean = total / count
    squares = sum(float(np.square(piece[piece > above] - mean, dtype=np.float64).sum()) for piece in pieces())
    deviation = sqrt(squares / count)
    if isfinite(above) and deviation <= _ONE_VALUE * (mean - above):
        return mean_and_deviation(pieces)
    return mean, deviation


def dark_limit(values: FloatArray) -> float:
    """What is darker is air and margin in MRI: a tenth of the way from the 0.5 to the 99.5 percentile of a scan."""
    low, high = np.percentile(values, (0.5, 99.5))
    return float(low + DARK_SHARE * (high - low))
