"""Tiles cover a volume as the step asks, and their blending weights are a positive, symmetric bell."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semiseg.ops.tiles import gaussian_importance, tile_boxes, tile_starts


@settings(deadline=None)
@given(size=st.integers(1, 400), tile=st.integers(1, 128), step=st.floats(0.1, 1.0))
def test_tiles_cover_an_axis(size: int, tile: int, step: float) -> None:
    starts = tile_starts(size, tile, step)
    if size <= tile:
        assert starts == [0]
        return
    assert starts[0] == 0
    assert starts[-1] + tile == size
    gaps = [b - a for a, b in pairwise(starts)]
    assert min(gaps) >= 0
    assert max(gaps) <= tile  # no voxel is left out, even at step 1
    # Rounding to whole voxels may add less than one.
    assert max(gaps) < tile * step + 1
    # One tile fewer, evenly spread, would be farther apart than the step allows.
    assert len(starts) == 2 or (size - tile) / (len(starts) - 2) > tile * step * (1 - 1e-12)


@pytest.mark.parametrize(
    ("size", "tile", "step", "starts"),
    [
        (10, 4, 0.5, [0, 2, 4, 6]),
        (10, 4, 1.0, [0, 3, 6]),
        (5, 4, 0.5, [0, 1]),
        (4, 4, 0.5, [0]),
        # nnU-Net's own example of its sliding window: 110 voxels, tiles of 64, half a tile apart.
        (110, 64, 0.5, [0, 23, 46]),
    ],
)
def test_known_starts(size: int, tile: int, step: float, starts: list[int]) -> None:
    assert tile_starts(size, tile, step) == starts


@settings(deadline=None, max_examples=30)
@given(
    shape=st.tuples(*[st.integers(4, 20)] * 3),
    tile=st.tuples(*[st.integers(1, 4)] * 3),
    step=st.sampled_from([0.3, 0.5, 1.0]),
)
def test_every_voxel_lies_in_a_tile(shape: tuple[int, int, int], tile: tuple[int, int, int], step: float) -> None:
    seen = np.zeros(shape, int)
    for box in tile_boxes(shape, tile, step):
        assert box.shape == tile
        part = seen[box.slices()]
        assert part.shape == tile  # inside of the volume
        part += 1
    assert seen.min() >= 1


def test_the_z_axis_is_the_slowest() -> None:
    starts = [box.start for box in tile_boxes((4, 4, 4), (2, 4, 2), 1.0)]
    assert starts == [(0, 0, 0), (0, 0, 2), (2, 0, 0), (2, 0, 2)]


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
