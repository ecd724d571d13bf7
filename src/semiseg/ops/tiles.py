"""Tiles of a sliding window and how they are blended."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from semiseg.types import FloatArray, Shape


def tile_starts(size: int, tile: int, step: float) -> list[int]:
    """Starts of the fewest evenly spread tiles that cover `size` voxels with at most `step * tile` between them.

    As in nnU-Net: the first starts at 0 and the last ends at `size`. `size` must be at least `tile`.
    """
    if size <= tile:
        return [0]
    count = int(np.ceil((size - tile) / (tile * step))) + 1
    return sorted({round(i * (size - tile) / (count - 1)) for i in range(count)})


@lru_cache(maxsize=8)
def gaussian_importance(tile: Shape) -> FloatArray:
    """Weights of a tile's voxels, 1 in the middle and falling off as a Gaussian of an eighth of the tile's edge.

    Kept away from zero (at least 1e-3), so that a voxel which lies in one tile's corner only stays defined.
    """
    axes = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in tile]
    weights = axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]
    return np.asarray(np.maximum(weights / weights.max(), 1e-3), dtype=np.float32)
