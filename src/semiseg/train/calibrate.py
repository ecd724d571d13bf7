"""From a budget in minutes to a number of steps: once per run, by timing each phase on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

from semiseg.errors import ConfigError
from semiseg.methods.phases import PhaseName, Phases
from semiseg.methods.settings import MethodSettings

WARM, TIMED = 4, 12
"""Steps of each phase before the clock starts, and steps that are timed."""
MOST_LABELLING = 0.5
"""Share of a budget that labelling whole scans may take."""
LARGEST_TURN = 2
"""A scratch run's teacher moves at least this often, so that both kinds of step are timed as often."""


def scratch_teacher_every(settings: MethodSettings) -> int:
    """`teacher_every` of the scratch run that is timed."""
    return min(settings.teacher_moves_every, LARGEST_TURN)


def calibrated_steps(
    minutes: float,
    settings: MethodSettings,
    run_steps: Callable[[Phases, Callable[[int], None]], object],
    *,
    refresh_seconds: float = 0.0,
    labelling_seconds: float = 0.0,
) -> int:
    """Steps that take `minutes` at the phases' shares, after what labelling takes once.

    run_steps: trains a scratch copy through the given phases, with `scratch_teacher_every`, and calls back before each
    step. Training steps in which the teacher moves and those in which it does not are timed apart.
    refresh_seconds: what refreshes cost each training step besides, on average. labelling_seconds: what labelling the
    unlabelled scans costs. Raises `ConfigError` where that is more than half of the budget.
    """
    if labelling_seconds > 60 * minutes * MOST_LABELLING:
        raise ConfigError(
            f"train.budget_minutes = {minutes:g}: the teacher would take {labelling_seconds / 60:.1f} minutes to label "
            "unlabelled scans, more than half of them. Give more minutes, have it label fewer scans "
            '(method.label_scans), or patches (method.label_scope = "patch").'
        )
    seconds_for_steps = 60 * minutes - labelling_seconds
    length = WARM + TIMED + 1  # the last step's time holds the first, cold, read of the next phase
    phases = Phases(length, 2 * length, 3 * length) if settings.uses_unlabelled else Phases(0, length, length)
    times: list[float] = []
    run_steps(phases, lambda step: times.append(time.perf_counter()))
    times.append(time.perf_counter())
    seconds = dict(enumerate(b - a for a, b in pairwise(times)))

    def mean(start: int, counts: Callable[[int], bool] = lambda step: True) -> float:
        timed = [seconds[step] for step in range(start + WARM, start + length - 1) if counts(step)]
        return sum(timed) / len(timed) if timed else 0.0

    if not settings.uses_unlabelled:
        return max(1, round(60 * minutes / mean(0)))
    every = scratch_teacher_every(settings)
    moves = mean(phases.warmup_stop, lambda step: every > 0 and step % every == 0)
    holds = mean(phases.warmup_stop, lambda step: every == 0 or step % every > 0)
    share = 1 / settings.teacher_moves_every if settings.teacher_moves_every else 0.0
    training = share * moves + (1 - share) * holds + refresh_seconds
    per_step = {"warmup": mean(0), "train": training, "finetune": mean(phases.train_stop)}
    return max(1, round(seconds_for_steps / sum(part * per_step[name] for name, part in _shares(settings).items())))


def _shares(settings: MethodSettings) -> dict[PhaseName, float]:
    probe = Phases.of(settings, 1_000_000)
    warmup, train = probe.warmup_stop, probe.train_stop - probe.warmup_stop
    counts: dict[PhaseName, int] = {"warmup": warmup, "train": train, "finetune": probe.total - probe.train_stop}
    return {name: count / probe.total for name, count in counts.items()}
