"""A model in a run with scores, and a hub that is a server of this machine."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from semiseg.data.case_hashes import hashed_ids
from semiseg.data.plan import ChannelNormalisation, NetworkPlan, Plan
from semiseg.files import write_json, write_jsonl, write_text
from semiseg.io.dataset import LabelScheme
from semiseg.models.build import build_network
from semiseg.prediction.model import load_model, save_model
from semiseg.prediction.postprocessing import write_steps
from semiseg.scoring.metrics import OrganScores
from semiseg.scoring.summary import CaseScores, summarise, write_summary

sys.path.insert(0, str(Path(__file__).parent))

from conftest_names import CASES
from hub_server import TOKEN, Hub, hub_server

NETWORK = NetworkPlan(features=(4, 6), kernels=((3, 3, 3),) * 2, strides=((1, 1, 1), (2, 2, 2)))
PLAN = Plan(
    dataset="made up",
    channels=("CT", "T1"),
    labels=LabelScheme(names={0: "background", 1: "left | x", 2: "right | x"}, mirror_pairs=((1, 2),)),
    spacing_mm=(2.0, 1.0, 1.5),
    anisotropic_axis=None,
    patch=(8, 8, 12),
    batch=2,
    normalisation=(
        ChannelNormalisation(scheme="ct", low=-100, high=200, mean=50, deviation=75),
        ChannelNormalisation(scheme="zscore"),
    ),
    teacher=NETWORK,
    student=NETWORK,
)


@pytest.fixture(scope="session")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as far as sharing looks at it; no test may change it."""
    run = tmp_path_factory.mktemp("sharing") / "run"
    network = build_network(NETWORK, channels=2, classes=3, seed=1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((4, 2, *PLAN.patch), generator=generator)
    with torch.no_grad():
        for _ in range(20):  # running statistics of a network that has seen something
            network.train()(noise)
        network.head.bias -= network.eval()(noise).mean((0, 2, 3, 4))  # each class is the likeliest somewhere
    card = {"method": "supervised", "steps": 7, "mirror_axes": [0, 2], "begun_from": str(run), "torch": "2"}
    card |= {"labelled_cases": hashed_ids(run, CASES), "unlabelled_cases": 3}
    save_model(run / "model", network, PLAN, role="student", card=card)
    write_steps(run / "model", {"steps": {"left | x": ["fill_holes"]}, "dice": {}, "cases": hashed_ids(run, CASES)})
    write_text(run / "run.toml", "")
    scores = OrganScores(dice=0.75, nsd=0.5, hd95_mm=2.0, volume_ml=1.0, reference_volume_ml=1.0)
    cases = [CaseScores(id=id, reference="r", prediction="p", image=None, organs={"a": scores}) for id in CASES]
    write_summary(run, summarise(cases, {1: "a"}, {"a": 1.0}, "standard"))
    rows = [{"id": id, "model": load_model(run).hash} for id in CASES]
    write_jsonl(run / "predictions" / "predictions.jsonl", rows)
    write_json(run / "cases.json", CASES)
    return run


@pytest.fixture
def run(made_run: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(made_run, tmp_path / "run"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub that the client asks, with a login."""
    client = pytest.importorskip("huggingface_hub")
    constants = importlib.import_module("huggingface_hub.constants")
    with hub_server() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running
        client.close_session()
