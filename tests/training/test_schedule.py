"""The learning rate against its formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from semiseg.errors import ConfigError
from semiseg.methods.phases import Phases
from semiseg.methods.settings import PseudoRoundsSettings, RoundPhases
from semiseg.methods.timeline import Stretch, Timeline
from semiseg.training import schedule as schedules
from semiseg.training.schedule import Schedule
from semiseg.training.settings import TrainSettings

PHASES = Phases.of_steps(4, 16, 20)


def schedule(phases: Phases = PHASES, restart_rate: float = 0.0, **changes: Any) -> Schedule:
    return Schedule(TrainSettings(**changes), phases, restart_rate)


def test_poly_runs_over_warm_up_and_training_and_anew_over_fine_tuning() -> None:
    found = [schedule().factor(step) for step in range(20)]
    expected = [(1 - step / 16) ** 0.9 for step in range(16)] + [0.1 * (1 - step / 4) ** 0.9 for step in range(4)]
    assert found == pytest.approx(expected, rel=1e-12)
    assert found[0] == 1.0
    assert found[16] == 0.1


def test_poly_without_fine_tuning_and_without_training() -> None:
    assert schedule(Phases.of_steps(0, 5, 5)).factor(4) == pytest.approx(0.2**0.9)
    assert schedule(Phases.of_steps(0, 0, 5)).factor(0) == pytest.approx(0.1)


def test_poly_starts_anew_for_each_phase_where_asked_to() -> None:
    found = [schedule(restart_rate=0.5).factor(step) for step in range(20)]
    warm_up = [(1 - step / 4) ** 0.9 for step in range(4)]
    training = [0.5 * (1 - step / 12) ** 0.9 for step in range(12)]
    assert found == pytest.approx(warm_up + training + [0.1 * (1 - step / 4) ** 0.9 for step in range(4)], rel=1e-12)


def test_pre_training_decays_on_its_own_and_labels_begin_with_a_rise() -> None:
    phases = Phases.of(PseudoRoundsSettings(phases=RoundPhases(pretrain=0.2)), Timeline.of_steps(100))
    one = schedule(phases)
    assert [one.factor(step) for step in (0, 10, 19)] == pytest.approx([1.0, 0.5**0.9, 0.05**0.9], rel=1e-9)
    top = 0.95**0.9  # after 4 of the 80 steps
    assert [one.factor(step) for step in (20, 21, 23, 24)] == pytest.approx([0, top / 4, 3 * top / 4, top], rel=1e-9)
    assert one.factor(60) == pytest.approx(0.5**0.9)
    assert [one.begin(step) for step in (0, 19, 20, 21)] == [False, False, True, False]


def test_the_rate_falls_by_the_share_of_the_run_where_the_pace_changes() -> None:
    """The first 10 steps take a fifth of the run, and then each a fifth of that: what counts is the time."""
    timeline = Timeline((Stretch(0, 0.0, 0.02), Stretch(10, 0.2, 0.004)))
    phases = Phases.of(PseudoRoundsSettings(phases=RoundPhases(warmup=0.4, finetune=0.2)), timeline)
    assert (phases.warmup_stop, phases.train_stop, phases.total) == (60, 160, 210)
    one = schedule(phases)
    assert [one.factor(step) for step in (0, 5, 10, 60, 110)] == pytest.approx(
        [((0.8 - done) / 0.8) ** 0.9 for done in (0.0, 0.1, 0.2, 0.4, 0.6)], rel=1e-9
    )
    assert one.factor(185) == pytest.approx(0.1 * 0.5**0.9)


def test_without_a_warm_up_there_is_nothing_to_start_anew() -> None:
    """Supervised training is one phase: it begins at the whole rate."""
    whole, plain = (schedule(Phases.of_steps(0, 10, 10), restart_rate=rate) for rate in (0.5, 0.0))
    assert [whole.factor(step) for step in range(10)] == [plain.factor(step) for step in range(10)]
    assert whole.factor(0) == 1.0


@pytest.fixture
def plateau(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Another patience and another smoothing than the paper's."""

    def changed(patience: int, smoothing: float) -> None:
        monkeypatch.setattr(schedules, "PLATEAU_PATIENCE", patience)
        monkeypatch.setattr(schedules, "PLATEAU_SMOOTHING", smoothing)

    return changed


def test_a_plateau_is_looked_for_in_each_phase_by_itself(plateau: Callable[..., None]) -> None:
    plateau(patience=2, smoothing=0.0)
    s = schedule(schedule="plateau", restart_rate=0.5)
    assert not s.begin(0)
    assert [s.end_epoch(1.0) for _ in range(2)] == [False, False]
    assert not s.begin(3)
    assert s.begin(4)
    # Another loss, higher than the best of the warm-up, and as many epochs to wait as ever.
    assert [s.end_epoch(9.0) for _ in range(3)] == [False, False, True]
    assert s.factor(4) == pytest.approx(0.5 * 0.2)
    assert s.begin(16)


def test_poly_hears_of_losses_and_keeps_its_way() -> None:
    s = schedule()
    assert not any(s.end_epoch(5.0) for _ in range(100))
    assert s.factor(0) == 1.0


def test_the_plateau_waits_for_the_smoothed_loss(plateau: Callable[..., None]) -> None:
    """Against the rule written out: patience 2, decay 0.5, factor 0.2."""
    plateau(patience=2, smoothing=0.5)
    s = schedule(schedule="plateau")
    # Smoothed: 4, 3, 3 (wait 1), 3.5 (wait 2: reduced), 3.25 (wait 1), 2.125 (better), 4.06 (1), 5.03 (2: reduced).
    losses = [4.0, 2.0, 3.0, 4.0, 3.0, 1.0, 6.0, 6.0]
    assert [s.end_epoch(loss) for loss in losses] == [False, False, False, True, False, False, False, True]
    assert s.factor(15) == pytest.approx(0.04)
    assert s.state["best"] == 2.125
    assert s.factor(16) == pytest.approx(0.1)  # fine-tuning begins with its own rate


def test_the_papers_plateau() -> None:
    """30 epochs, a fifth, and a loss that jumps up once and stays there."""
    s = schedule(schedule="plateau")
    assert not s.end_epoch(1.0)
    reduced = [s.end_epoch(2.0) for _ in range(60)]
    assert [index for index, value in enumerate(reduced, start=1) if value] == [30, 60]
    assert s.factor(0) == pytest.approx(0.04)


def test_its_memory_goes_and_comes_back(plateau: Callable[..., None]) -> None:
    plateau(patience=3, smoothing=0.3)
    options: dict[str, Any] = {"schedule": "plateau"}
    whole, resumed = schedule(**options), schedule(**options)
    losses = [3.0, 2.0, 2.5, 2.6, 2.7, 2.0, 2.0, 2.0, 2.9]
    told = [whole.end_epoch(loss) for loss in losses]
    first = schedule(**options)
    assert [first.end_epoch(loss) for loss in losses[:4]] == told[:4]
    resumed.state.update(first.state)
    assert [resumed.end_epoch(loss) for loss in losses[4:]] == told[4:]
    assert resumed.state == whole.state
    assert any(told)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"log_every": 0},
        {"minutes": 0.0},
        {"minutes": math.inf},
        {"validation_fraction": 1.0},
    ],
)
def test_bad_settings_are_refused_by_name(changes: dict[str, Any]) -> None:
    name, value = next(iter(changes.items()))
    with pytest.raises(ConfigError, match=f"train.{name} = {value}"):
        TrainSettings(**changes)
