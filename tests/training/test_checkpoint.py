"""Checkpoints are whole or not there, keep every bit, and say which one is damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from semiseg.errors import ModelError, TrainingError
from semiseg.training import checkpoint as module
from semiseg.training.checkpoint import Checkpoint, CheckpointWriter, load_latest, save_checkpoint


def tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn((2, 3, 4, 4, 4), generator=generator)
    return {
        "network/a/weight": weight.contiguous(memory_format=torch.channels_last_3d),
        "network/a/half": weight[0, 0, 0].bfloat16(),
        "network/a/count": torch.tensor(7),
        "network/a/odd": torch.tensor([math.inf, -0.0, 1e-45]),
    }


def save(folder: Path, step: int, numbers: dict[str, float] | None = None) -> Checkpoint:
    locations = {"case": {1: [[1, 2, 3]]}}
    saved = Checkpoint(step, tensors(step), numbers or {"x": 0.5}, locations, {"evaluated": "student"})
    save_checkpoint(folder, saved)
    return saved


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    saved = save(tmp_path, 100)
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert loaded.step == 100
    assert loaded.tensors.keys() == saved.tensors.keys()
    for name, value in saved.tensors.items():
        assert loaded.tensors[name].dtype == value.dtype
        assert torch.equal(loaded.tensors[name], value), name
    assert math.copysign(1, float(loaded.tensors["network/a/odd"][1])) == -1
    assert loaded.locations == {"case": {"1": [[1, 2, 3]]}}
    assert loaded.card["evaluated"] == "student"


def test_numbers_come_back_exactly(tmp_path: Path) -> None:
    numbers = {"inf": math.inf, "minus": -math.inf, "third": 1 / 3, "tiny": 5e-324, "huge": 1e308, "zero": -0.0}
    save(tmp_path, 1, numbers)
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert loaded.numbers == numbers
    assert math.copysign(1, loaded.numbers["zero"]) == -1
    save(tmp_path, 2, {"nan": math.nan})
    again = load_latest(tmp_path)
    assert again is not None
    assert math.isnan(again.numbers["nan"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "none") is None
    for step in (1, 2, 30, 100):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-000030", "step-000100"]


def test_the_newest_is_the_one_of_the_most_steps(tmp_path: Path) -> None:
    """Beyond 999,999 steps names no longer sort as text."""
    for step in (999_999, 1_000_000, 1_000_001):
        save(tmp_path, step)
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert loaded.step == 1_000_001
    assert names(tmp_path) == ["step-1000000", "step-1000001"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5, {"x": 1.0})
    save(tmp_path, 5, {"x": 2.0})
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert loaded.numbers == {"x": 2.0}


def test_a_checkpoint_that_breaks_off_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    seen: list[list[str]] = []

    def breaks_off(path: Path, value: object) -> None:
        """The weights are written, the card is not."""
        seen.append(names(tmp_path))
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_json", breaks_off)
        with pytest.raises(OSError, match="no space"):
            save(tmp_path, 2)
    assert all("step-000002" not in found for found in seen)
    assert len(seen[0]) == 2
    assert names(tmp_path) == ["step-000001"]
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert loaded.step == 1


def test_what_a_killed_writer_left_is_not_seen(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".tmp-00000000-77-step-000002").mkdir()
    (tmp_path / ".tmp-00000000-77-step-000002" / "state.safetensors").write_bytes(b"half")
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert loaded.step == 1


def flip_a_bit(newest: Path) -> None:
    state = newest / "state.safetensors"
    data = bytearray(state.read_bytes())
    data[-1] ^= 1
    state.write_bytes(data)


def other_format(newest: Path) -> None:
    card = json.loads((newest / "card.json").read_text())
    (newest / "card.json").write_text(json.dumps(card | {"format": 99}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, r"state\.safetensors: missing or damaged"),
        (lambda newest: (newest / "state.safetensors").unlink(), r"state\.safetensors: missing or damaged"),
        (other_format, "a checkpoint of format 99, not 2"),
        (lambda newest: (newest / "card.json").unlink(), r"card\.json: there is no such file"),
        (lambda newest: (newest / "card.json").write_text("{"), r"card\.json: not valid JSON"),
        (lambda newest: (newest / "card.json").write_text("[]"), "a checkpoint of format None"),
    ],
)
def test_a_damaged_checkpoint_is_named_with_the_remedy(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(tmp_path / "step-000002")
    with pytest.raises(ModelError, match=rf"step-000002.*{message}|{message}.*Delete this folder"):
        load_latest(tmp_path)
    with pytest.raises(ModelError, match="Delete this folder to go on from the checkpoint before it"):
        load_latest(tmp_path)


# Beside the steps.


def state(value: float, step: int) -> Checkpoint:
    return Checkpoint(step, {"weight": torch.full((3,), value)}, {}, {"case": {}}, {})


def test_what_is_written_beside_the_steps_is_the_state_as_it_was(tmp_path: Path) -> None:
    given = state(1.0, 5)
    with CheckpointWriter(tmp_path) as writer:
        writer.save(given)
        given.tensors["weight"].fill_(2.0)  # the next step
        given.locations["other"] = {}
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert loaded.tensors["weight"].tolist() == [1.0, 1.0, 1.0]
    assert loaded.locations == {"case": {}}


def test_a_state_that_is_not_finite_is_refused_at_the_next_one_at_the_latest(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path) as writer:
        writer.save(state(1.0, 4))
        writer.save(state(math.nan, 8))
        with pytest.raises(TrainingError, match="step 8: weight is not finite"):
            writer.save(state(1.0, 12))
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-000004"]


def test_the_last_one_is_waited_for_and_its_failure_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.write_text("a file in its place")
    with pytest.raises(OSError, match="checkpoints"), CheckpointWriter(folder) as writer:
        writer.save(state(1.0, 4))


def test_what_stopped_the_steps_is_told_in_the_place_of_what_the_writer_met(tmp_path: Path) -> None:
    def stopped() -> None:
        with CheckpointWriter(tmp_path) as writer:
            writer.save(state(math.nan, 4))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
