"""The sliding window with engines whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engines import Constant, Identity, Sides

from semiseg.errors import TrainingError
from semiseg.geometry import Box
from semiseg.io.dataset import LabelScheme
from semiseg.prediction.engines.torch_blend import DeviceBlend
from semiseg.prediction.sliding import blended_rows, sliding_window
from semiseg.prediction.window import Window, cheapest_axes

PATCH = (4, 6, 8)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(9, 11, 17), (4, 6, 8), (2, 11, 5), (1, 1, 1)])
@pytest.mark.parametrize("step", [0.5, 1.0])
def test_constant_logits_stay_constant(shape: tuple[int, int, int], step: float) -> None:
    logits = sliding_window(image(1, *shape), Constant(), Window(patch=PATCH, step=step))
    assert logits.shape == (3, *shape)
    assert logits.dtype == np.float32
    # A weighted mean of equal numbers: rounding of float32 sums of up to 27 tiles.
    assert np.allclose(logits, np.array([1, 2, 3])[:, None, None, None], rtol=1e-5)


@pytest.mark.parametrize("shape", [(9, 11, 17), (2, 11, 5)])
@pytest.mark.parametrize("tile_batch", [1, 4])
def test_the_identity_gives_the_image_back(shape: tuple[int, int, int], tile_batch: int) -> None:
    x = image(2, *shape)
    logits = sliding_window(x, Identity(), Window(patch=PATCH, tile_batch=tile_batch))
    assert np.allclose(logits, x, atol=1e-5)  # rounding of float32 sums of up to 27 tiles


def test_tiles_computed_together_give_the_same() -> None:
    x = image(1, 9, 11, 17)
    one, four = Sides(2), Sides(2)
    assert np.array_equal(
        sliding_window(x, one, Window(patch=PATCH)), sliding_window(x, four, Window(patch=PATCH, tile_batch=4))
    )  # fmt: skip
    assert set(one.batches) == {1}
    assert four.batches[0] == 4
    assert sum(four.batches) == sum(one.batches)


def test_a_small_scan_goes_on_beyond_its_borders() -> None:
    x = image(2, 2, 11, 5)
    seen: list[np.ndarray] = []

    class Watching(Identity):
        def logits(self, tiles: np.ndarray) -> np.ndarray:
            seen.append(tiles.copy())
            return super().logits(tiles)

    sliding_window(x, Watching(), Window(patch=PATCH))
    # Evenly on both sides, the odd voxel at the end.
    grown = np.pad(x, [(0, 0), (1, 1), (0, 0), (1, 2)], mode="edge")
    expected = [grown[:, :, start : start + 6] for start in (0, 2, 5)]
    assert len(seen) == len(expected)
    for (tile,), wanted in zip(seen, expected, strict=True):
        np.testing.assert_array_equal(tile, wanted)


@pytest.mark.parametrize("slices", [1, 3, 7, 40])
def test_any_number_of_slices_gives_one_label_map(slices: int) -> None:
    """A network that tells whether a voxel is brighter than its patch's mean finds the bright half in all of them."""

    class Brighter(Identity):
        def logits(self, tiles: np.ndarray) -> np.ndarray:
            above = tiles[:, :1] - tiles.mean(axis=(1, 2, 3, 4), keepdims=True)
            return np.concatenate([-above, above], axis=1)

    x = np.zeros((1, slices, 24, 32), np.float32)
    x[..., 16:] = 1.0
    logits = sliding_window(x, Brighter(), Window(patch=(12, 24, 32)))
    np.testing.assert_array_equal(logits.argmax(axis=0), x[0] > 0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirrored_prediction_of_an_equivariant_engine_changes_nothing(axis: int) -> None:
    """Exchanging the pair back undoes the mirroring exactly, along whatever axis left and right lie."""
    scheme = LabelScheme(names={0: "background", 1: "left", 2: "right"}, mirror_pairs=((1, 2),), mirror_axis=axis)
    x = image(1, 9, 11, 17)
    plain = sliding_window(x, Sides(axis), Window(patch=PATCH))
    mirrored_engine = Sides(axis)
    mirrored = sliding_window(x, mirrored_engine, Window(patch=PATCH, mirror_axes=(0, 1, 2), labels=scheme))
    # The mean of eight equal numbers: float32 rounding.
    assert np.allclose(mirrored, plain, atol=1e-5)
    tiles = Sides(axis)
    sliding_window(x, tiles, Window(patch=PATCH))
    assert sum(mirrored_engine.batches) == 8 * sum(tiles.batches)


@pytest.mark.parametrize("wrong", [0, 1])
def test_the_pair_must_be_exchanged_along_its_own_axis(wrong: int) -> None:
    scheme = LabelScheme(names={0: "background", 1: "left", 2: "right"}, mirror_pairs=((1, 2),), mirror_axis=wrong)
    x = image(1, 4, 6, 8)
    plain = sliding_window(x, Sides(2), Window(patch=PATCH))
    for labels in (scheme, None):
        found = sliding_window(x, Sides(2), Window(patch=PATCH, mirror_axes=(0, 1, 2), labels=labels))
        assert np.abs(found - plain).max() > 0.1


def test_only_the_named_axes_are_mirrored() -> None:
    x = image(1, 4, 6, 8)
    engine = Sides(2)
    found = sliding_window(x, engine, Window(patch=PATCH, mirror_axes=(0, 1)))
    assert len(engine.batches) == 4
    assert np.allclose(
        found, sliding_window(x, Sides(2), Window(patch=PATCH)), atol=1e-6
    )  # a mean of four equal numbers


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize("shape", [(9, 11, 17), (2, 11, 5), (4, 3, 30)])
def test_rolled_along_any_axis_it_is_the_same(shape: tuple[int, int, int], axes: tuple[int, int, int]) -> None:
    """The engine sees canonical tiles, and the rows come in order, each once."""
    x = image(1, *shape)
    whole = sliding_window(x, Sides(2), Window(patch=PATCH))
    along = x.transpose(0, *(axis + 1 for axis in axes))
    asked: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        return along[:, start:stop]

    window = Window(patch=PATCH, axes=axes)
    size = along.shape[1:]
    parts = [part.copy() for part in blended_rows(read, size, Sides(2), window)]
    rolled = np.concatenate(parts, axis=1)
    back = rolled.transpose(0, *(list(axes).index(axis) + 1 for axis in range(3)))
    # The same tiles summed in another order: float32 rounding of up to 27 of them.
    assert np.allclose(back, whole, atol=1e-5)
    assert [start for start, _ in asked[1:]] == [stop for _, stop in asked[:-1]]  # each row is read once
    assert (asked[0][0], asked[-1][1]) == (0, size[0])


def test_the_cheapest_axis_holds_the_thinnest_window() -> None:
    assert cheapest_axes((100, 410, 410), (64, 160, 160)) == (1, 0, 2)  # 160 x 100 x 410 < 64 x 410 x 410
    assert cheapest_axes((800, 512, 512), (64, 160, 160)) == (0, 1, 2)
    assert cheapest_axes((30, 30, 30), (32, 32, 32)) == (0, 1, 2)


def test_tiles_without_body_are_left_out_and_are_background() -> None:
    x = image(1, 4, 6, 32)
    asked: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def left_half(start: tuple[int, int, int], stop: tuple[int, int, int]) -> bool:
        asked.append((start, stop))
        return start[2] < 12

    engine = Constant()
    logits = sliding_window(x, engine, Window(patch=PATCH, step=1.0, holds_body=left_half))
    assert asked == [((0, 0, first), (4, 6, first + 8)) for first in (0, 8, 16, 24)]
    assert sum(engine.batches) == 2
    assert (logits.argmax(axis=0)[..., :16] == 2).all()
    assert (logits.argmax(axis=0)[..., 16:] == 0).all()
    assert np.isfinite(logits).all()
    nothing = Constant()
    sliding_window(x, nothing, Window(patch=PATCH, step=1.0, holds_body=lambda start, stop: False))
    assert sum(nothing.batches) == 1  # which tells the number of classes


def test_boxes_are_told_on_the_scan_also_where_it_is_padded() -> None:
    starts: list[tuple[int, ...]] = []

    def note(start: tuple[int, int, int], stop: tuple[int, int, int]) -> bool:
        starts.append(start)
        return True

    sliding_window(image(1, 2, 6, 8), Constant(), Window(patch=PATCH, holds_body=note))
    assert starts == [(-1, 0, 0)]  # the patch is two voxels thicker than the scan


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_tiles_are_laid_over_the_region_alone(axes: tuple[int, int, int]) -> None:
    x = image(1, 14, 20, 32)
    region = Box((5, 3, 10), (12, 13, 21))
    turned = Box(tuple(region.start[a] for a in axes), tuple(region.stop[a] for a in axes))
    asked: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def note(start: tuple[int, int, int], stop: tuple[int, int, int]) -> bool:
        asked.append((start, stop))
        return True

    window = Window(patch=PATCH, axes=axes, region=turned, holds_body=note)
    parts = blended_rows(
        lambda start, stop: x.transpose(0, *(a + 1 for a in axes))[:, start:stop],
        tuple(x.shape[1 + a] for a in axes),
        Constant(),
        window,
    )
    logits = np.concatenate([part.copy() for part in parts], axis=1)
    labels = logits.argmax(axis=0).transpose(np.argsort(axes))
    assert labels.shape == x.shape[1:]
    reached = np.zeros(labels.shape, dtype=bool)
    reached[region.slices()] = True
    assert (labels[reached] == 2).all()
    assert (labels[~reached] == 0).all()  # the region is no smaller than a patch, so tiles fit it exactly
    for axis, place in enumerate(axes):
        assert min(start[axis] for start, _ in asked) == region.start[place]
        assert max(stop[axis] for _, stop in asked) == region.stop[place]


def test_a_region_smaller_than_a_patch_is_grown_within_the_scan() -> None:
    x = image(1, 8, 8, 9)
    starts: list[tuple[int, ...]] = []

    def note(start: tuple[int, int, int], stop: tuple[int, int, int]) -> bool:
        starts.append(start)
        return True

    logits = sliding_window(x, Constant(), Window(patch=PATCH, region=Box((6, 0, 4), (7, 2, 6)), holds_body=note))
    assert starts == [(4, 0, 1)]  # around the middle of the region where there is room, and inside of the scan
    assert (logits.argmax(axis=0) == 2).sum() == np.prod(PATCH)


def test_where_no_tile_is_background_is_nearly_certain() -> None:
    logits = sliding_window(image(1, 14, 6, 8), Constant(), Window(patch=PATCH, region=Box((5, 0, 0), (9, 6, 8))))
    outside = np.exp(logits[:, 0, 0, 0])
    assert outside[0] / outside.sum() > 0.999


class OnDevice(Sides):
    """Computes by the same formula, and blends where it computes."""

    def __init__(self, axis: int, device: str) -> None:
        super().__init__(axis)
        self.device = torch.device(device)

    def blend(self, window: Window, size: tuple[int, int, int]) -> DeviceBlend:
        def run(tiles: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(self.run(tiles.cpu().numpy())).to(self.device)

        return DeviceBlend(run, self.device, 3, window, size)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("mirror_axes", [(), (0, 2)])
@pytest.mark.parametrize(
    ("shape", "region"),
    [((13, 11, 17), None), ((2, 11, 5), None), ((19, 20, 32), Box((5, 3, 10), (16, 13, 21)))],
)
def test_blended_on_a_device_it_is_the_same(
    device: str,
    axes: tuple[int, int, int],
    mirror_axes: tuple[int, ...],
    shape: tuple[int, int, int],
    region: Box | None,
) -> None:
    x = image(1, *shape)
    along = np.ascontiguousarray(x.transpose(0, *(axis + 1 for axis in axes)))
    if region is not None:
        region = Box(tuple(region.start[a] for a in axes), tuple(region.stop[a] for a in axes))
    scheme = LabelScheme(names={0: "background", 1: "left", 2: "right"}, mirror_pairs=((1, 2),), mirror_axis=2)
    window = Window(patch=PATCH, axes=axes, tile_batch=2, mirror_axes=mirror_axes, labels=scheme, region=region)

    def rows(engine: Sides) -> list[np.ndarray]:
        size = along.shape[1:]
        parts = blended_rows(lambda a, b: along[:, a:b], size, engine, window)
        return [part.copy() for part in parts]

    host, device_rows = rows(Sides(2)), rows(OnDevice(2, device))
    assert [part.shape for part in device_rows] == [part.shape for part in host]
    for mine, expected in zip(device_rows, host, strict=True):
        # A product and a sum in one operation rounds once where numpy rounds twice.
        np.testing.assert_allclose(mine, expected, atol=1e-5)


def test_rows_that_were_computed_ahead_are_read_after_the_next_were_begun() -> None:
    """While the engine works on the tiles of a row, the caller has the row before."""
    engine = OnDevice(2, "cpu")
    x = image(1, 16, 6, 8)
    begun = []
    window = Window(patch=PATCH, step=1.0)
    for _ in blended_rows(lambda a, b: x[:, a:b], (16, 6, 8), engine, window):
        begun.append(len(engine.batches))
    assert begun == [2, 3, 4, 4]


@pytest.mark.parametrize("failing", [0, 3])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, TrainingError])
def test_a_device_that_runs_out_of_memory_goes_on_in_main_memory(failing: int, error: type[Exception]) -> None:
    told: list[str] = []

    class Short(OnDevice):
        def blend(self, window: Window, size: tuple[int, int, int]) -> DeviceBlend:
            calls = iter(range(1000))

            def run(tiles: torch.Tensor) -> torch.Tensor:
                if next(calls) == failing:
                    raise error("no memory")
                return torch.from_numpy(self.run(tiles.cpu().numpy())).to(self.device)

            return DeviceBlend(run, self.device, 3, window, size, short=lambda: told.append("short"))

    x, window = image(1, 9, 11, 17), Window(patch=PATCH, tile_batch=2)
    for device in DEVICES:
        told.clear()
        found = sliding_window(x, Short(2, device), window)
        assert told == ["short"]
        # The sums are the same but for the order of a product and a sum on another device.
        assert np.allclose(found, sliding_window(x, OnDevice(2, device), window), atol=1e-5)


def test_a_device_without_room_for_a_single_tile_fails() -> None:
    def run(tiles: torch.Tensor) -> torch.Tensor:
        raise TrainingError("no memory left on cuda:0 for a tile of (4, 6, 8): use --device cpu.")

    blend = DeviceBlend(run, torch.device("cpu"), 3, Window(patch=PATCH), (9, 11, 17))
    with pytest.raises(TrainingError, match="no memory left"):
        blend.add(image(1, 4, 11, 17), [(slice(0, 6), slice(0, 8))])
