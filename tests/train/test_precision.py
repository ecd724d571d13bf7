"""Which precision is chosen, and that a trial decides on a CPU."""

from __future__ import annotations

import pytest
import torch

from semiseg.train import precision
from semiseg.train.precision import autocast_dtype, choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("setting", ["float32", "bfloat16"])
def test_what_is_asked_for_is_taken(setting: str) -> None:
    assert choose_precision(setting, CPU) == setting


def test_mps_stays_in_float32() -> None:
    assert choose_precision("auto", torch.device("mps")) == "float32"


@pytest.mark.parametrize(("half", "expected"), [(0.5, "bfloat16"), (0.9, "float32"), (3.0, "float32")])
def test_a_cpu_uses_bfloat16_where_it_is_clearly_faster(
    half: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {torch.bfloat16: half, torch.float32: 1.0}
    monkeypatch.setattr(precision, "_seconds", lambda dtype: seconds[dtype])
    assert choose_precision("auto", CPU) == expected


@pytest.mark.usefixtures("one_thread")
def test_the_trial_runs_and_leaves_torchs_random_state() -> None:
    assert precision._seconds(torch.float32) > 0
    assert precision._seconds(torch.bfloat16) > 0


def test_autocast() -> None:
    assert autocast_dtype("bfloat16") is torch.bfloat16
    assert autocast_dtype("float32") is None
