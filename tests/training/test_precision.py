"""Which precision is chosen, and that a trial decides on a CPU."""

from __future__ import annotations

import pytest
import torch

from semiseg.errors import ConfigError
from semiseg.training import precision
from semiseg.training.precision import autocast_dtype, choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("setting", ["float32", "bfloat16"])
def test_what_is_asked_for_is_taken(setting: str) -> None:
    assert choose_precision(setting, CPU) == setting


def test_mps_stays_in_float32() -> None:
    assert choose_precision("auto", torch.device("mps")) == "float32"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_a_gpu_uses_bfloat16_where_its_convolutions_do(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A T4 (7.5) stores bfloat16, and torch says that it supports it."""
    gpu = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability if device == gpu else (0, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Made Up 7")
    assert choose_precision("auto", gpu) == expected
    if expected == "float32":
        with pytest.raises(
            ConfigError, match=r"train\.precision = 'bfloat16', but Made Up 7 does not .* float32 or auto"
        ):
            choose_precision("bfloat16", gpu)


@pytest.mark.parametrize(("half", "expected"), [(0.5, "bfloat16"), (0.9, "float32"), (3.0, "float32")])
def test_a_cpu_uses_bfloat16_where_it_is_clearly_faster(
    half: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = {torch.bfloat16: (half, torch.ones(3)), torch.float32: (1.0, torch.ones(3))}
    monkeypatch.setattr(precision, "_trial", lambda dtype: trials[dtype])
    assert choose_precision("auto", CPU) == expected


def test_a_cpu_whose_bfloat16_is_wrong_stays_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = {torch.bfloat16: (0.1, torch.zeros(3)), torch.float32: (1.0, torch.ones(3))}
    monkeypatch.setattr(precision, "_trial", lambda dtype: trials[dtype])
    assert choose_precision("auto", CPU) == "float32"


@pytest.mark.usefixtures("one_thread")
def test_the_trial_runs_and_leaves_torchs_random_state() -> None:
    state = torch.get_rng_state()
    (half_seconds, half), (seconds, gradient) = precision._trial(torch.bfloat16), precision._trial(torch.float32)
    assert half_seconds > 0
    assert seconds > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(half, gradient)


def test_autocast() -> None:
    assert autocast_dtype("bfloat16") is torch.bfloat16
    assert autocast_dtype("float32") is None
