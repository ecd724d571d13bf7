"""Logits that stay where they were blended give the labels of the way through main memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engines import Sides

from semiseg.io.scans import RawChannel
from semiseg.ops.operators import zoom_taps
from semiseg.ops.resample_torch import apply_taps
from semiseg.prediction.engines.torch_blend import DeviceBlend
from semiseg.prediction.export import LabelExport
from semiseg.prediction.model import Model
from semiseg.prediction.predictor import predict_labels
from semiseg.prediction.settings import PredictSettings
from semiseg.prediction.window import Window
from semiseg.types import Shape

pytestmark = pytest.mark.usefixtures("one_thread")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def smooth(classes: int, shape: Shape) -> np.ndarray:
    """Logits with regions of each class."""
    noise = np.random.default_rng(0).normal(size=(classes, *(n // 3 + 2 for n in shape))).astype(np.float32)
    return np.ascontiguousarray(noise.repeat(3, 1).repeat(3, 2).repeat(3, 3)[:, : shape[0], : shape[1], : shape[2]])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("anisotropic_axis", [None, 0])
@pytest.mark.parametrize("shape_out", [(20, 31, 40), (11, 20, 23), (33, 17, 23)])
def test_labels_are_those_of_main_memory(device: str, anisotropic_axis: int | None, shape_out: Shape) -> None:
    """Rows in pieces; some as arrays, as background is: no voxel differs, but where classes are equal by rounding."""
    shape_in = (20, 17, 23)
    logits = smooth(5, shape_in)
    host = LabelExport(shape_in, shape_out, 5, anisotropic_axis)
    mixed = LabelExport(shape_in, shape_out, 5, anisotropic_axis)
    for number, start in enumerate(range(0, 20, 4)):
        part = logits[:, start : start + 4]
        host.add(part)
        mixed.add(part if number in (0, 4) else torch.from_numpy(part).to(device))
    assert len(np.unique(host.labels)) == 5
    assert np.count_nonzero(host.labels != mixed.labels) <= 1e-4 * host.labels.size


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("axis", [1, 2])
def test_taps_give_the_same_bits(order: int, axis: int) -> None:
    logits = smooth(3, (1, 17, 23))[:, 0]
    taps = zoom_taps(logits.shape[axis], 29, order)
    assert np.array_equal(apply_taps(taps, torch.from_numpy(logits), axis).numpy(), taps.apply(logits, axis))


class OnDevice(Sides):
    """Computes by the same formula, and blends where it computes."""

    windows: list[Window]

    def __init__(self, axis: int) -> None:
        super().__init__(axis)
        self.windows = []

    def blend(self, window: Window, size: Shape) -> DeviceBlend:
        self.windows.append(window)
        return DeviceBlend(
            lambda tiles: torch.from_numpy(self.run(tiles.numpy())), torch.device("cpu"), 3, window, size
        )


def test_a_scan_with_air_around_it(model: Model) -> None:
    """Rows before and after the body come as arrays, the others as tensors."""
    scan = np.full((40, 24, 20), -1000, dtype=np.int16)
    scan[14:27, 4:20, 3:17] = np.random.default_rng(0).normal(30, 80, (13, 16, 14))
    settings = PredictSettings(device="cpu", mirror=False)
    engine = OnDevice(2)
    found, host = (
        predict_labels([RawChannel(scan)], (2.5, 0.8, 0.9), model, made, settings).labels for made in (engine, Sides(2))
    )
    assert [window.rows_stay for window in engine.windows] == [True]
    assert len(np.unique(host)) == 3
    # The blend itself rounds in another order: a voxel may lie on an edge.
    assert np.count_nonzero(found != host) <= 1e-3 * host.size
