"""Steps from minutes, with a clock that the test turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from semiseg.errors import ConfigError
from semiseg.methods.phases import Phases
from semiseg.methods.settings import MethodSettings
from semiseg.train import calibrate
from semiseg.train.calibrate import TIMED, WARM, calibrated_steps, scratch_teacher_every

LENGTH = WARM + TIMED + 1


class Clock:
    """Time passes only when a step takes some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(calibrate.time, "perf_counter", lambda: self.now)

    def steps(self, seconds: Callable[[str, int], float]) -> Callable[[Phases, Callable[[int], None]], None]:
        """A scratch run whose steps take `seconds(phase, number within the phase)`."""

        def run(phases: Phases, before: Callable[[int], None]) -> None:
            for step in range(phases.total):
                before(step)
                self.now += seconds(phases.name(step), step % LENGTH)

        return run


def constant(**phases: float) -> Callable[[str, int], float]:
    return lambda phase, number: phases[phase]


def settings(**changes: Any) -> MethodSettings:
    return MethodSettings(**{"name": "mpl", "warmup_fraction": 0.5, "finetune_fraction": 0.1} | changes)


def test_the_phases_count_by_their_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Clock(monkeypatch).steps(constant(warmup=0.1, train=1.0, finetune=0.5))
    # 0.5 * 0.1 + 0.4 * 1 + 0.1 * 0.5 = 0.5 seconds a step.
    assert calibrated_steps(10, settings(), run) == 1200


def test_refreshes_count_as_part_of_the_training_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Clock(monkeypatch).steps(constant(warmup=0.1, train=0.5, finetune=0.5))
    # 0.5 * 0.1 + 0.4 * (0.5 + 0.5) + 0.1 * 0.5 = 0.5 seconds a step.
    assert calibrated_steps(10, settings(), run, refresh_seconds=0.5) == 1200


def test_labelling_takes_its_time_once(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Clock(monkeypatch).steps(constant(warmup=0.1, train=1.0, finetune=0.5))
    # 0.5 seconds a step, as above, of 10 minutes less 4.
    assert calibrated_steps(10, settings(), run, labelling_seconds=240) == 720
    with pytest.raises(ConfigError, match=r"^train.budget_minutes = 10: the teacher would take 5.1 minutes to label "):
        calibrated_steps(10, settings(), run, labelling_seconds=306)


def test_supervised_training_has_one_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Phases] = []
    run = Clock(monkeypatch).steps(constant(train=0.25))

    def watched(phases: Phases, before: Callable[[int], None]) -> None:
        seen.append(phases)
        run(phases, before)

    assert calibrated_steps(1, settings(name="supervised"), watched) == 240
    assert seen == [Phases(0, LENGTH, LENGTH)]


def test_slow_first_steps_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the last of a phase, whose time holds the first read of the next one."""
    run = Clock(monkeypatch).steps(lambda phase, number: 0.5 if WARM <= number < LENGTH - 1 else 50.0)
    assert calibrated_steps(1, settings(), run) == 120


@pytest.mark.parametrize("every", [1, 2, 3, 4, 5, 16])
def test_steps_in_which_the_teacher_moves_are_timed_apart(monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    """They take 2.5 seconds and all others 0.5, however rare they are."""
    method = settings(teacher_every=every)

    def seconds(phase: str, number: int) -> float:
        step = LENGTH + number
        return 2.5 if phase == "train" and step % scratch_teacher_every(method) == 0 else 0.5

    run = Clock(monkeypatch).steps(seconds)
    expected = 60 * 7 / (0.5 * 0.5 + 0.4 * (2.5 / every + 0.5 * (1 - 1 / every)) + 0.1 * 0.5)
    assert calibrated_steps(7, method, run) == round(expected)


def test_a_teacher_that_is_held_never_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Clock(monkeypatch).steps(constant(warmup=0.5, train=0.5, finetune=0.5))
    assert calibrated_steps(1, settings(name="pseudo_label", teacher_every=0), run) == 120


def test_there_is_always_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Clock(monkeypatch).steps(constant(warmup=100.0, train=100.0, finetune=100.0))
    assert calibrated_steps(0.01, settings(), run) == 1


def test_a_phase_that_a_run_does_not_have_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Clock(monkeypatch).steps(constant(warmup=99.0, train=0.5, finetune=99.0))
    method = MethodSettings(warmup_fraction=0, finetune_fraction=0)
    assert calibrated_steps(1, method, run) == 120
