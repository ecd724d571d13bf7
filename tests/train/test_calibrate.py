"""Steps from minutes, with a clock that the test turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from semiseg.methods import MethodSettings, Phases
from semiseg.train import calibrate
from semiseg.train.calibrate import TIMED, WARM, calibrated_steps


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
                self.now += seconds(phases.name(step), step % (WARM + TIMED))

        return run


def constant(**phases: float) -> Callable[[str, int], float]:
    return lambda phase, number: phases[phase]


def settings(**changes: Any) -> MethodSettings:
    return MethodSettings(warmup_fraction=0.5, finetune_fraction=0.1, **changes)


def test_the_phases_count_by_their_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Clock(monkeypatch).steps(constant(warmup=0.1, train=1.0, finetune=0.5))
    # 0.5 * 0.1 + 0.4 * 1 + 0.1 * 0.5 = 0.5 seconds a step.
    assert calibrated_steps(10, settings(), run) == 1200


def test_supervised_training_has_one_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Phases] = []
    run = Clock(monkeypatch).steps(constant(train=0.25))

    def watched(phases: Phases, before: Callable[[int], None]) -> None:
        seen.append(phases)
        run(phases, before)

    assert calibrated_steps(1, settings(name="supervised"), watched) == 240
    assert seen == [Phases(0, WARM + TIMED, WARM + TIMED)]


def test_slow_first_steps_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Clock(monkeypatch).steps(lambda phase, number: 50.0 if number < WARM else 0.5)
    assert calibrated_steps(1, settings(), run) == 120


def test_steps_with_feedback_and_without_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fourth training step is slow: the mean over whole turns is exact."""

    def seconds(phase: str, number: int) -> float:
        return 2.5 if phase == "train" and number % 4 == 0 else 0.5

    # Training: 1 second a step. Together 0.5 * 0.5 + 0.4 * 1 + 0.1 * 0.5 = 0.7.
    run = Clock(monkeypatch).steps(seconds)
    assert calibrated_steps(7, settings(teacher_every=4), run) == 600


def test_there_is_always_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Clock(monkeypatch).steps(constant(warmup=100.0, train=100.0, finetune=100.0))
    assert calibrated_steps(0.01, settings(), run) == 1


def test_a_phase_that_a_run_does_not_have_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Clock(monkeypatch).steps(constant(warmup=99.0, train=0.5, finetune=99.0))
    method = MethodSettings(warmup_fraction=0, finetune_fraction=0)
    assert calibrated_steps(1, method, run) == 120
