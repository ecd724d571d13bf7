"""The histogram of one scan put on another: what labelled scans lack in looks, all scans show.

A monotone map between the quantiles of two scans, as in histogram matching (Nyul and Udupa 1999), of a strength from
nothing to all. For intensities that have no unit, MRI; Hounsfield units mean the same in every scan.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from semiseg.io.store import StoredCase
from semiseg.ops.normalise import dark_limit
from semiseg.randomness import Draw
from semiseg.types import FloatArray

SHARES = (0.01, 0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 0.99)
"""Of the voxels that are not dark, whose quantiles describe a scan."""


def quantiles(channel: FloatArray) -> tuple[float, ...]:
    """The darkest value of a channel `(Z, Y, X)`, but for half a percent, and the quantiles of what is not dark."""
    low = float(np.percentile(channel, 0.5))
    bright = channel[channel > dark_limit(channel)]
    return (low, *map(float, np.quantile(bright if bright.size else channel, SHARES)))


def with_other_histogram(
    image: FloatArray,
    own: StoredCase,
    others: Sequence[StoredCase],
    draw: Draw,
    probability: float,
    channels: Sequence[int],
) -> FloatArray:
    """A patch `(C, Z, Y, X)` of a scan, with that probability in the looks of another one, by half on average.

    channels: those whose intensities have no unit.
    """
    generator = draw.generator("histogram")
    happens, strength = generator.random(2)
    other = others[int(generator.integers(len(others)))]
    if happens >= probability:
        return image
    out = image.copy()
    for channel in channels:
        source, target = (np.array(case.channel_quantiles[channel]) for case in (own, other))
        out[channel] = mapped(image[channel], source, source + strength * (target - source))
    return out


def mapped(values: FloatArray, source: FloatArray, target: FloatArray) -> FloatArray:
    """Values, any shape, by the map that takes rising `source` to `target`: linear between them, a shift beyond."""
    inside = np.interp(values, source, target)
    beyond = np.minimum(values - source[0], 0) + np.maximum(values - source[-1], 0)
    return np.asarray(inside + beyond, dtype=np.float32)
