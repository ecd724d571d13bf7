"""Exported files, read by the programs that they are for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pytest
import torch

from semiseg.data.plan import Plan
from semiseg.errors import ConfigError
from semiseg.models.build import build_network
from semiseg.prediction.engines.opening import open_engine
from semiseg.prediction.exchange import export_model
from semiseg.prediction.model import Model, load_model, save_model

Command = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("one_thread")


def tiles(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 1, 8, 8, 8)).astype(np.float32)


def run_file(file: Path, given: np.ndarray) -> np.ndarray:
    if file.suffix == ".onnx":
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(["logits"], {"tiles": given})[0])
    if file.suffix == ".xml":
        # By itself OpenVINO computes in bfloat16 where the processor has it.
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        return np.asarray(openvino.Core().compile_model(file, "CPU", options)(given)[0])
    with torch.inference_mode():
        return np.asarray(torch.export.load(file).module()(torch.from_numpy(given)).numpy())


@pytest.mark.parametrize(("form", "count"), [("onnx", 3), ("openvino", 3), ("torch", 1)])
def test_the_file_gives_the_models_logits(
    model: Model, model_folder: Path, tmp_path: Path, semiseg_command: Callable[..., Any], form: str, count: int
) -> None:
    answer = semiseg_command("export", model_folder, "--to", form, "--output", tmp_path / "out")
    assert answer.code == 0, answer.err
    file = Path(answer.out.strip())
    expected = open_engine(model, "torch", device="cpu").run(tiles(count))
    # As between engines: batch norm folded, and sums in another order.
    np.testing.assert_allclose(run_file(file, tiles(count)), expected, atol=1e-4 * np.abs(expected).max())
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["model_hash"] == model.hash
    assert card["file"] == file.name
    assert card["outputs"] == {"logits": ["N", 3, 8, 8, 8]}
    assert (tmp_path / "out" / "plan.toml").is_file()


def test_what_is_in_the_way_is_kept(model: Model, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        export_model(model, "onnx", tmp_path)
    assert (tmp_path / "precious").read_text() == "mine"
    export_model(model, "onnx", tmp_path / "out")
    export_model(model, "onnx", tmp_path / "out")  # an export is replaced by the next


def test_a_model_is_never_replaced_by_its_export(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    with pytest.raises(ConfigError, match="is there already"):
        export_model(load_model(folder), "onnx", folder)
    assert (folder / "weights.safetensors").is_file()


def test_what_an_export_cannot_do_is_said(plan: Plan, tmp_path: Path, semiseg_command: Command) -> None:
    poses = {"poses": [{"axes": [0, 1, 2], "flipped": [1]}]}
    thick = replace(plan, anisotropic_axis=0)
    save_model(
        tmp_path / "model",
        build_network(plan.student, channels=1, classes=3, seed=1),
        thick,
        role="student",
        card=poses,
    )
    told = semiseg_command("export", tmp_path / "model", "--to", "torch", "--output", tmp_path / "out")
    assert "in another orientation (Y flipped). The exported network does not" in " ".join(told.out.split())
