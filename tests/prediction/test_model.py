"""The model folder: what was saved comes back, and every damage is named with the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from semiseg.data.plan import Plan, write_plan
from semiseg.errors import ModelError
from semiseg.files import hash_files
from semiseg.models.build import build_network, count_parameters
from semiseg.prediction.engines.torch_engine import load_network
from semiseg.prediction.model import Model, load_model, save_model

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def test_a_model_comes_back_bit_for_bit(plan: Plan, tmp_path: Path) -> None:
    network = build_network(plan.student, channels=1, classes=3, seed=9)
    save_model(tmp_path / "m", network, plan, role="student", card={"method": "mpl", "steps": 7})
    model = load_model(tmp_path / "m")
    assert model.plan == plan
    assert model.card["steps"] == 7
    assert model.card["parameters"] == count_parameters(network)
    assert model.card["classes"] == {"0": "background", "1": "left_x", "2": "right_x"}
    assert model.hash == hash_files([tmp_path / "m" / "weights.safetensors", tmp_path / "m" / "plan.toml"])
    loaded = load_network(model)
    assert not loaded.training
    found = loaded.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in network.state_dict().items())


def test_the_teachers_sizes(plan: Plan, tmp_path: Path) -> None:
    network = build_network(plan.teacher, channels=1, classes=3, seed=9)
    save_model(tmp_path / "m", network, plan, role="teacher", card={})
    assert load_model(tmp_path / "m").weights()["head.weight"].shape[1] == 5


def test_a_run_folder_stands_for_its_model(folder: Path) -> None:
    assert load_model(folder.parent).folder == folder


def test_nothing_of_it_is_pickled(model_folder: Path) -> None:
    names = ["card.json", "network.onnx", "plan.toml", "weights.safetensors"]
    assert sorted(file.name for file in model_folder.iterdir()) == names


def edit_card(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        card = json.loads((folder / "card.json").read_text())
        (folder / "card.json").write_text(json.dumps(card | changes))

    return edit


def cut(folder: Path) -> None:
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


def not_weights(folder: Path) -> None:
    """Not a safetensors file, but the one that the card describes."""
    (folder / "weights.safetensors").write_bytes(b"no tensors in here")
    edit_card(weights_sha256=hash_files([folder / "weights.safetensors"]))(folder)


def flip_a_bit(folder: Path) -> None:
    weights = folder / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)


def weights_that_are_not_finite(folder: Path) -> None:
    file = folder / "weights.safetensors"
    values = load_file(file)
    next(value for value in values.values() if value.dtype == np.float32)[...] = np.nan
    save_file(values, file)
    edit_card(weights_sha256=hash_files([file]))(folder)


def other_sizes(folder: Path) -> None:
    text = (folder / "plan.toml").read_text()
    assert "    4,\n    6,\n" in text
    (folder / "plan.toml").write_text(text.replace("    4,\n    6,\n", "    4,\n    8,\n"))


def test_the_card_counts_the_parameters_of_an_average(model: Model, folder: Path) -> None:
    """An average is not trained, so that its parameters need no gradient."""
    network = load_network(model).requires_grad_(False)
    count = sum(p.numel() for p in network.parameters())
    save_model(folder.parent / "average", network, model.plan, role="student", card={})
    assert load_model(folder.parent / "average").card["parameters"] == count > 0


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "card.json").unlink(), r"model: no model here"),
    (lambda folder: (folder / "card.json").write_text("{"), r"card\.json: not valid JSON"),
    (lambda folder: (folder / "card.json").write_text("[]"), r"card\.json: not a card of format 2"),
    (edit_card(format=99), r"card\.json: not a card of format 2"),
    (edit_card(role="pupil"), r"card\.json: role is 'pupil'"),
    (edit_card(role="teacher"), r"weights\.safetensors: does not fit plan\.toml"),
    (lambda folder: (folder / "weights.safetensors").unlink(), r"weights\.safetensors: missing"),
    (cut, r"weights\.safetensors: missing, or not the file"),
    (flip_a_bit, r"weights\.safetensors: missing, or not the file"),
    (not_weights, r"weights\.safetensors: cannot be read"),
    (lambda folder: (folder / "plan.toml").unlink(), r"plan\.toml: there is no such file"),
    (lambda folder: (folder / "plan.toml").write_text("patch = 3"), r"plan\.toml: dataset"),
    (other_sizes, r"plan\.toml: missing, or not the file that card"),
    (edit_card(mirror_axes=[7]), r"card\.json: mirror_axes are \[7\]"),
    (edit_card(poses=7), r"card\.json: poses: "),
    (edit_card(poses=[{"axes": [0, 2.0, 1], "flipped": []}]), r"card\.json: poses: .* is no pose"),
    (edit_card(poses=[{"axes": [0, 2, 1], "flipped": []}]), r"card\.json: poses are not in the plane of thick slices"),
    (weights_that_are_not_finite, r"weights\.safetensors: .* has values that are not finite"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_every_damage_is_named(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=message):
        load_network(load_model(folder))


def test_an_edited_plan_is_not_the_models(folder: Path, model: Model) -> None:
    """What fits the weights may still be another grid, or other classes."""
    write_plan(folder / "plan.toml", replace(model.plan, patch=(16, 8, 8)))
    with pytest.raises(ModelError, match=r"plan\.toml: missing, or not the file that card\.json describes"):
        load_model(folder)
