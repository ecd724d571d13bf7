"""Training on an NVIDIA GPU against the CPU; skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from semiseg.files import read_jsonl
from semiseg.methods.base import Batch, UnlabelledBatch
from semiseg.methods.mpl import MetaPseudoLabels
from semiseg.randomness import Draw
from semiseg.training import session
from semiseg.training.settled import read_settled

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
Command = Callable[..., Any]
DEVICE = "cuda"
METHODS: dict[str, dict[str, object]] = {
    "supervised": {"method.name": "supervised"},
    "pseudo_label": {"method.name": "pseudo_label"},
    "pseudo_label, patches": {
        "method.name": "pseudo_label",
        "method.label_scope": "patch",
        "train.refresh_steps": 2,
    },
    "dense": {"method.name": "mpl", "method.feedback": "dense"},
    "scalar": {"method.name": "mpl", "method.feedback": "scalar"},
    "mean_teacher": {"method.name": "mean_teacher", "method.uncertainty_passes": 2},
    "cross_pseudo": {"method.name": "cross_pseudo"},
    "copy_paste": {"method.name": "copy_paste"},
    "pseudo_rounds": {"method.name": "pseudo_rounds", "method.rounds": 2},
}
TENSOR_FLOAT_32 = 2e-2
"""Relative. TensorFloat-32, which the GPU's convolutions use, keeps 10 bits of a factor (1e-3), and what six steps at a
high rate make of such differences is some ten times as much."""


def trained(
    command: Command, run: Path, data: Path, tiny: list[str], device: str, settings: dict[str, object]
) -> list[dict[str, Any]]:
    """The rows of the log of a run of six steps."""
    answer = command(*command_of(run, data, tiny, device, settings))
    assert answer.code == 0, answer.err
    return read_jsonl(run / "metrics.jsonl")


def command_of(run: Path, data: Path, tiny: list[str], device: str, settings: dict[str, object]) -> list[str | Path]:
    settings = {"train.device": device, "predict.device": device} | settings
    return ["run", run, "--data", data, *tiny, *(f for key, v in settings.items() for f in ("--set", f"{key}={v}"))]


def losses(row: dict[str, Any]) -> dict[str, float]:
    """Of a row of the log; there is always one."""
    found = {key: float(value) for key, value in row.items() if key.endswith("loss")}
    assert found
    return found


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_the_losses_of_the_cpu(
    semiseg_command: Command, phantoms: Path, tmp_path: Path, tiny: list[str], name: str
) -> None:
    rows = {
        device: trained(semiseg_command, tmp_path / device, phantoms, tiny, device, METHODS[name])
        for device in ("cpu", DEVICE)
    }
    assert len(rows["cpu"]) == len(rows[DEVICE]) == 6
    for expected, found in zip(rows["cpu"], rows[DEVICE], strict=True):
        assert losses(found) == pytest.approx(losses(expected), rel=TENSOR_FLOAT_32, abs=1e-3)
    # What torch holds of a GPU comes in blocks of 2 MiB and more (its allocator's); the most of it never shrinks.
    held = [row["gpu_peak_mb"] for row in rows[DEVICE]]
    assert held[0] >= 2
    assert held == sorted(held)
    assert "gpu_peak_mb" not in rows["cpu"][0]


@pytest.mark.parametrize("name", ["supervised", "dense", "scalar"])
def test_bfloat16_learns_on_a_gpu(
    semiseg_command: Command, phantoms: Path, tmp_path: Path, tiny: list[str], name: str
) -> None:
    settings = METHODS[name] | {"train.precision": "auto", "train.steps": 40}
    rows = trained(semiseg_command, tmp_path / "run", phantoms, tiny, DEVICE, settings)
    assert read_settled(tmp_path / "run").precision == "bfloat16"
    learnt = [row["labelled_loss"] for row in rows if "labelled_loss" in row]
    assert learnt[-1] < 0.8 * learnt[0]


def test_a_stopped_run_goes_on(
    semiseg_command: Command, phantoms: Path, tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(semiseg_command, tmp_path / "whole", phantoms, tiny, DEVICE, METHODS["dense"])
    step = MetaPseudoLabels.step

    def stopped(method: MetaPseudoLabels, labelled: Batch, unlabelled: UnlabelledBatch | None, draw: Draw) -> Any:
        if draw.step == 4:
            raise KeyboardInterrupt
        return step(method, labelled, unlabelled, draw)

    with monkeypatch.context() as patch:
        patch.setattr(MetaPseudoLabels, "step", stopped)
        patch.setattr(session, "rehearse", lambda _: None)
        begun = command_of(tmp_path / "begun", phantoms, tiny, DEVICE, METHODS["dense"])
        assert semiseg_command(*begun).code == 130
    rows = trained(semiseg_command, tmp_path / "begun", phantoms, tiny, DEVICE, METHODS["dense"])
    assert [row["step"] for row in rows] == [row["step"] for row in whole]
    for expected, found in zip(whole, rows, strict=True):
        assert losses(found) == pytest.approx(losses(expected), rel=TENSOR_FLOAT_32, abs=1e-3)


def test_minutes_become_steps_on_a_gpu(
    semiseg_command: Command, phantoms: Path, tmp_path: Path, tiny: list[str]
) -> None:
    pairs = zip(tiny[::2], tiny[1::2], strict=True)
    flags = [flag for pair in pairs if not pair[1].startswith("train.steps") for flag in pair]
    rows = trained(semiseg_command, tmp_path / "run", phantoms, flags, DEVICE, {"train.minutes": 0.05})
    settled = read_settled(tmp_path / "run")
    assert settled.device == DEVICE
    assert settled.finished
    assert rows[-1]["step"] == settled.laid_down().total > 6  # type: ignore[union-attr]
