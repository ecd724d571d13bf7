"""What a run's settings are settled to where it is made, and that another machine changes nothing of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from semiseg.data.planner import PlanSettings
from semiseg.errors import ConfigError
from semiseg.methods.settings import MethodSettings
from semiseg.predict import device
from semiseg.run_folder import settle
from semiseg.settings import RunSettings, read_settings, write_settings
from semiseg.train.settings import TrainSettings


@pytest.fixture
def gpu_of_24_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "choose_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(device, "gpu_bytes", lambda name: 24 * 10**9)


@pytest.mark.usefixtures("gpu_of_24_gb")
def test_a_plan_is_made_for_the_gpu_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled = settle(tmp_path, RunSettings())
    assert (settled.plan.device, settled.plan.memory_budget_gb) == ("cuda", 20.4)
    (tmp_path / "plan.toml").touch()
    monkeypatch.setattr(device, "gpu_bytes", lambda name: 80 * 10**9)
    assert settle(tmp_path, RunSettings()).plan == settled.plan == read_settings(tmp_path / "run.toml").plan


@pytest.mark.usefixtures("gpu_of_24_gb")
@pytest.mark.parametrize("plan", [PlanSettings(memory_budget_gb=10.0), PlanSettings(device="cpu")])
def test_what_was_asked_for_stays(tmp_path: Path, plan: PlanSettings) -> None:
    settled = settle(tmp_path, RunSettings(plan=plan)).plan
    assert settled.memory_budget_gb == plan.memory_budget_gb


def test_steps_from_minutes_are_found_anew_where_what_they_were_timed_for_changes(tmp_path: Path) -> None:
    settle(tmp_path, RunSettings(train=TrainSettings(device="cpu", budget_minutes=5)))
    (tmp_path / "plan.toml").touch()
    made = read_settings(tmp_path / "run.toml")
    timed = replace(
        made,
        train=replace(made.train, steps=77, calibrated=True),
        method=replace(made.method, label_scope="scan", label_scans=20, rounds=2),
    )
    write_settings(tmp_path / "run.toml", timed)
    assert settle(tmp_path, made) == timed
    longer = settle(tmp_path, replace(made, train=replace(made.train, budget_minutes=8)))
    assert (longer.train.budget_minutes, longer.train.calibrated) == (8, False)
    assert (longer.method.label_scope, longer.method.label_scans, longer.method.rounds) == ("auto", 0, None)


def test_what_was_labelled_is_a_difference_where_it_was_said(tmp_path: Path) -> None:
    said = RunSettings(
        train=TrainSettings(device="cpu", budget_minutes=5, steps=77, calibrated=True),
        method=MethodSettings(label_scope="scan", label_scans=20),
    )
    settle(tmp_path, said)
    for name in ("plan.toml", "checkpoints"):
        (tmp_path / name).touch()
    assert settle(tmp_path, said).method == said.method
    assert settle(tmp_path, replace(said, method=MethodSettings(label_scope="scan"))).method == said.method
    with pytest.raises(ConfigError, match=r"method.label_scans"):
        settle(tmp_path, replace(said, method=MethodSettings(label_scope="scan", label_scans=30)))
    with pytest.raises(ConfigError, match=r"method.rounds"):
        settle(tmp_path, replace(said, method=MethodSettings(label_scope="scan", rounds=2)))


def test_a_run_of_an_older_version_has_the_rounds_that_are_usual(tmp_path: Path) -> None:
    """They were written where nothing was said of them."""
    older = RunSettings(method=MethodSettings(rounds=3), train=TrainSettings(device="cpu"))
    settle(tmp_path, older)
    for name in ("plan.toml", "checkpoints"):
        (tmp_path / name).touch()
    assert settle(tmp_path, replace(older, method=MethodSettings())).method.rounds == 3
    with pytest.raises(ConfigError, match=r"method.rounds = 3 in the run, 2 now"):
        settle(tmp_path, replace(older, method=MethodSettings(rounds=2)))


def test_without_a_gpu_the_planner_decides(tmp_path: Path) -> None:
    settled = settle(tmp_path, RunSettings(plan=PlanSettings(device="cuda"), train=TrainSettings(device="cpu"))).plan
    assert settled.memory_budget_gb is None


def test_a_derivative_that_was_settled_stays(tmp_path: Path) -> None:
    """A run that began on a CPU goes on as it began elsewhere."""
    settle(tmp_path, RunSettings(method=MethodSettings(directional_derivative="central")))
    for name in ("plan.toml", "checkpoints"):
        (tmp_path / name).touch()
    assert settle(tmp_path, RunSettings()).method.directional_derivative == "central"
    with pytest.raises(ConfigError, match=r"directional_derivative = 'central' in the run, 'forward' now"):
        settle(tmp_path, RunSettings(method=MethodSettings(directional_derivative="forward")))
