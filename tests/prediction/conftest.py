"""A tiny trained model, and the way to `engines.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from semiseg.data.plan import ChannelNormalisation, NetworkPlan, Plan
from semiseg.io.dataset import LabelScheme
from semiseg.models.build import build_network
from semiseg.prediction.model import Model, load_model, save_model

sys.path.insert(0, str(Path(__file__).parent))

NETWORK = NetworkPlan(features=(4, 6), kernels=((3, 3, 3),) * 2, strides=((1, 1, 1), (2, 2, 2)))


@pytest.fixture(scope="session")
def plan() -> Plan:
    labels = LabelScheme(names={0: "background", 1: "left_x", 2: "right_x"}, mirror_pairs=((1, 2),))
    return Plan(
        dataset="made up",
        channels=("CT",),
        labels=labels,
        spacing_mm=(2.0, 1.0, 1.0),
        anisotropic_axis=None,
        patch=(8, 8, 8),
        batch=2,
        normalisation=(ChannelNormalisation(scheme="ct", low=-100, high=200, mean=50, deviation=75),),
        teacher=NetworkPlan(features=(5, 6), kernels=((3, 3, 3),) * 2, strides=((1, 1, 1), (2, 2, 2))),
        student=NETWORK,
    )


@pytest.fixture(scope="session")
def model_folder(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that no test may change."""
    folder = tmp_path_factory.mktemp("model") / "model"
    network = build_network(NETWORK, channels=1, classes=3, seed=1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((4, 1, *plan.patch), generator=generator)
    with torch.no_grad():
        for _ in range(20):  # running statistics of a network that has seen something
            network.train()(noise)
        network.head.bias -= network.eval()(noise).mean((0, 2, 3, 4))  # each class is the likeliest somewhere
    save_model(folder, network, plan, role="student", card={"method": "mpl", "steps": 7, "mirror_axes": [0, 2]})
    return folder


@pytest.fixture(scope="session")
def model(model_folder: Path) -> Model:
    return load_model(model_folder)
