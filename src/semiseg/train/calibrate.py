"""From a budget in minutes to a number of steps: once per run, by timing each phase on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

from semiseg.methods import MethodSettings, Phases
from semiseg.methods.phases import PhaseName

WARM, TIMED = 4, 12
"""Steps of each phase before the clock starts, and steps that are timed: whole turns of a usual teacher_every."""


def calibrated_steps(
    minutes: float,
    settings: MethodSettings,
    run_steps: Callable[[Phases, Callable[[int], None]], object],
) -> int:
    """Steps that take `minutes` at the phases' shares.

    run_steps: trains a scratch copy through the given phases and calls back before each step. The time of a phase's
    step is the mean, since steps with feedback take longer than those without.
    """
    length = WARM + TIMED
    phases = Phases(length, 2 * length, 3 * length) if settings.uses_unlabelled else Phases(0, length, length)
    times: list[float] = []
    run_steps(phases, lambda step: times.append(time.perf_counter()))
    times.append(time.perf_counter())
    seconds = [b - a for a, b in pairwise(times)]
    per_step: dict[PhaseName, float] = {}
    for start in range(0, len(seconds), length):
        per_step[phases.name(start)] = sum(seconds[start + WARM : start + length]) / TIMED
    shares = _shares(settings)
    mean = sum(share * per_step[name] for name, share in shares.items())
    return max(1, round(60 * minutes / mean))


def _shares(settings: MethodSettings) -> dict[PhaseName, float]:
    probe = Phases.of(settings, 1_000_000)
    warmup, train = probe.warmup_stop, probe.train_stop - probe.warmup_stop
    counts: dict[PhaseName, int] = {"warmup": warmup, "train": train, "finetune": probe.total - probe.train_stop}
    return {name: count / probe.total for name, count in counts.items() if count}
