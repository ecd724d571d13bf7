"""Stored cases whose voxels say which class they are, and an engine that reads it off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from semiseg.data.plan import ChannelNormalisation, NetworkPlan, Plan
from semiseg.io.dataset import LabelScheme
from semiseg.io.store import StoredCase, write_case
from semiseg.prediction.engines.torch_blend import DeviceBlend
from semiseg.prediction.window import Window
from semiseg.types import FloatArray, Shape

CLASSES = 3
NETWORK = NetworkPlan(features=(4, 6), kernels=((3, 3, 3),) * 2, strides=((1, 1, 1), (2, 2, 2)))


class Reader:
    """Sees class k where the image's intensity is k: logits 4 for it and 0 for the others."""

    name, precision = "reader", "float32"

    def run(self, tiles: FloatArray) -> FloatArray:
        classes = np.arange(CLASSES).reshape(1, CLASSES, 1, 1, 1)
        return (4 * (np.rint(tiles) == classes)).astype(np.float32)


class ReaderThatBlends(Reader):
    """Blends where it computes, as torch does on a GPU: rows come as tensors."""

    def blend(self, window: Window, size: Shape) -> DeviceBlend:
        cpu = torch.device("cpu")
        return DeviceBlend(lambda tiles: torch.from_numpy(self.run(tiles.numpy())), cpu, CLASSES, window, size)


@pytest.fixture(params=[Reader, ReaderThatBlends])
def engine(request: pytest.FixtureRequest) -> Reader:
    found: Reader = request.param()
    return found


@pytest.fixture
def plan() -> Plan:
    return Plan(
        dataset="made up",
        channels=("CT",),
        labels=LabelScheme(names={0: "background", 1: "liver", 2: "spleen"}),
        spacing_mm=(1.0, 1.0, 1.0),
        anisotropic_axis=None,
        patch=(4, 4, 4),
        batch=2,
        normalisation=(ChannelNormalisation(scheme="zscore"),),
        teacher=NETWORK,
        student=NETWORK,
    )


Store = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Write a case from the classes that its image shows and, if given, those of its label; returns its folder."""

    def write(name: str, shown: np.ndarray, label: np.ndarray | None = None) -> Path:
        z, y, x = shown.shape
        meta = StoredCase(
            id=name,
            shape_zyx=(z, y, x),
            spacing_mm=(1.0, 1.0, 1.0),
            source_shape_zyx=(z, y, x),
            source_spacing_mm=(1.0, 1.0, 1.0),
            hash="0",
            labelled=label is not None,
            channels=1,
            class_voxels={},
            class_locations={},
            body_locations=((0, 0, 0),),
        )
        stored = None if label is None else label.astype(np.uint8)
        write_case(tmp_path / name, image=shown[None].astype(np.float32), label=stored, meta=meta)
        return tmp_path / name

    return write
