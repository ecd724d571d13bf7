"""Tiles cover a volume as the step asks, and their blending weights are a positive, symmetric bell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semiseg.ops.tiles import gaussian_importance, tile_starts


@settings(max_examples=60)
@given(size=st.integers(4, 40), tile=st.integers(1, 4), step=st.sampled_from([0.1, 0.3, 0.5, 1.0]))
def test_every_voxel_lies_in_a_tile(size: int, tile: int, step: float) -> None:
    starts = tile_starts(size, tile, step)
    seen = np.zeros(size, int)
    for start in starts:
        assert start + tile <= size
        seen[start : start + tile] += 1
    assert seen.min() >= 1
    assert starts == sorted(set(starts))


@pytest.mark.parametrize("tile", [(8, 8, 8), (5, 16, 9), (1, 1, 1)])
def test_importance_is_a_bell(tile: tuple[int, int, int]) -> None:
    weights = gaussian_importance(tile)
    assert weights.shape == tile
    assert weights.dtype == np.float32
    assert weights.max() == 1
    assert weights.min() >= np.float32(1e-3)
    assert all(np.array_equal(weights, np.flip(weights, axis)) for axis in range(3))
    middle = weights[tile[0] // 2, tile[1] // 2]
    assert (np.diff(middle[tile[2] // 2 :]) <= 0).all()


def test_importance_falls_off_with_an_eighth_of_the_edge() -> None:
    line = gaussian_importance((1, 1, 33))[0, 0]
    # One sigma is 33/8 voxels from the middle.
    assert line[16 + 4] == pytest.approx(np.exp(-0.5 * (4 / (33 / 8)) ** 2), rel=1e-6)


def test_no_tile_is_laid_twice() -> None:
    assert tile_starts(12, 8, 0.1) == [0, 1, 2, 3, 4]
