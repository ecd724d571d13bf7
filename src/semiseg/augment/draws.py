"""How augmentation draws: one generator for each sample of the batch, keyed by its global index."""

from __future__ import annotations

import numpy as np

from semiseg.randomness import Draw


def sample_draws(draw: Draw, n: int) -> list[Draw]:
    """The keys of the n samples of a batch; `draw.sample` is the global index of its first one.

    On one device that is 0; on rank r it is r times the batch per device, so that ranks draw what one device would.
    """
    return [draw.at(sample=draw.sample + i) for i in range(n)]


def generators(draw: Draw, n: int, purpose: str) -> list[np.random.Generator]:
    """One generator for each of the n samples of a batch."""
    return [key.generator(purpose) for key in sample_draws(draw, n)]


def factor(generator: np.random.Generator, bounds: tuple[float, float]) -> float:
    """A factor from the range, half of the draws below 1 and half above where the range allows both (as nnU-Net)."""
    low, high = bounds
    below, where = generator.random(), generator.random()
    if low < 1 < high:
        low, high = (low, 1.0) if below < 0.5 else (1.0, high)
    return float(low + where * (high - low))
