"""From a budget in minutes to a number of steps: once per run, by timing each phase on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from semiseg.errors import ConfigError
from semiseg.methods.phases import PhaseName, Phases
from semiseg.methods.settings import MethodSettings
from semiseg.predict.engines.torch_engine import TorchEngine
from semiseg.train.refresh import predicted_locations
from semiseg.train.scan_labels import label_scans
from semiseg.train.session import Session, scratch_steps, scratch_teacher_every

WARM, TIMED = 4, 12
"""Steps of each phase before the clock starts, and steps that are timed."""
MOST_LABELLING = 0.5
"""Share of a budget that labelling whole scans may take."""
TIMED_SCANS = 4
"""Unlabelled scans that are labelled to know how long all take."""
USUAL_LABELLING = 0.25
"""Share of the budget in which unlabelled scans are labelled, if nothing is said of their number."""
LEAST_SCANS = 16
"""Fewer scans are too few for a student to learn from."""
SCANS_A_ROUND = 24
"""Where there is time for fewer in each of several rounds, there are fewer rounds."""
PLAINLY_MORE = 4
"""So many budgets for the fewest scans that suffice, by the first one, and no other is timed."""


def calibrated(session: Session) -> Session:
    """The session with the number of steps that the budget in minutes allows here, and with `method.label_scope`,
    `label_scans` and `rounds` settled where they are open. A scratch copy is trained for some seconds.

    Validations are not in it: they come on top. Raises `ConfigError` where scans are to be labelled and cannot be.
    """
    asked = session.method.rounds
    session, labelling = _with_labelling(session)

    def waited_for(before: Callable[[int], None], step: int) -> None:
        if session.device.type == "cuda":  # steps are queued there; the clock is to see them done
            torch.cuda.synchronize(session.device)
        before(step)

    count = calibrated_steps(
        session.train.budget_minutes,
        session.method,
        lambda phases, before: scratch_steps(session, phases, partial(waited_for, before), settled=True),
        refresh_seconds=_refresh_seconds(session),
        labelling_seconds=labelling,
    )
    phases = Phases.of(session.method, count)
    if session.method.rounds and asked is None:  # each takes a step at least
        fewer = max(1, min(session.method.rounds, phases.train_stop - phases.warmup_stop))
        session = replace(session, method=replace(session.method, rounds=fewer))
    return replace(session, train=replace(session.train, steps=count, calibrated=True))


def _with_labelling(session: Session) -> tuple[Session, float]:
    """The session with `method.label_scope`, `label_scans` and `rounds` settled, and the seconds that labelling takes.

    All scans are labelled if a quarter of the budget suffices, else as many as that does for, in as many rounds, up to
    the usual number, as leave `SCANS_A_ROUND` for each. Where one round has too few to learn from, all scans are
    labelled, in half of the budget at most, or patches.
    """
    method, (once, times, scans) = session.method, _labelling_seconds(session)
    if not method.labels_whole_scans:
        return session, 0.0
    budget = 60 * session.train.budget_minutes

    def affordable(times: int, share: float = USUAL_LABELLING) -> int:
        return int(budget * share / (once * times)) if once else scans

    if method.name == "pseudo_rounds" and method.rounds is None:
        enough, share = min(scans, SCANS_A_ROUND), USUAL_LABELLING
        if method.label_scans:  # so many were asked for
            enough, share = scans, MOST_LABELLING
        usual, times = times, next((fewer for fewer in range(times, 1, -1) if affordable(fewer, share) >= enough), 1)
        method = replace(method, rounds=times if times < usual else None)
    seconds = once * times * scans
    if not method.label_scans and (count := affordable(times)) < scans:
        if count >= LEAST_SCANS:
            method, seconds = replace(method, label_scans=count), once * times * count
        elif method.label_scope == "auto" and seconds > budget * MOST_LABELLING:
            return replace(session, method=replace(session.method, label_scope="patch")), 0.0
    return replace(session, method=replace(method, label_scope="scan")), seconds


def _labelling_seconds(session: Session) -> tuple[float, int, int]:
    """What it takes to label a scan once, from some of them by a new network; how often each is labelled, and how many
    there are. From one alone, if it plainly takes too long for enough scans to be labelled."""
    phases = Phases.of(session.method, session.train.steps)
    method, data = session.build(phases), session.open_data()
    labellers = method.scan_labellers(phases.warmup_stop)
    if not labellers or not data.unlabelled:
        return 0.0, 1, 0
    engine = TorchEngine(method.networks[labellers[0]], session.device, session.place.autocast)
    window, times, scans = session.place.labelling_window(), 1 + len(method.scans_labelled_anew), len(data.unlabelled)

    def seconds(cases: Sequence[Path]) -> float:
        with TemporaryDirectory() as folder:
            began = time.perf_counter()
            label_scans(cases, Path(folder), engine, window, session.plan, seed=session.train.seed)
            return (time.perf_counter() - began) / len(cases)

    first = seconds(data.unlabelled[:1])  # finds nothing loaded: more than the others take
    if first * min(scans, LEAST_SCANS) > 60 * session.train.budget_minutes * PLAINLY_MORE:
        return first, times, scans
    return seconds(data.unlabelled[:: math.ceil(scans / TIMED_SCANS)]), times, scans


def _refresh_seconds(session: Session) -> float:
    """What the refreshes of predicted places cost a training step on average, from one refresh by a new network.

    Not the first: on a GPU that one loads what all later ones find loaded.
    """
    method, data = session.build(Phases.of(session.method, session.train.steps)), session.open_data()
    labels_scans = session.method.labels_whole_scans
    if not session.train.refresh_steps or not method.labeller or labels_scans or not data.unlabelled:
        return 0.0
    engine = TorchEngine(method.networks[method.labeller], session.device, session.place.autocast)

    def refresh(cases: int) -> float:
        began = time.perf_counter()
        predicted_locations(data.unlabelled, 0, cases, engine, session.plan, session.train.seed)
        return time.perf_counter() - began

    refresh(1)
    return refresh(session.train.refresh_cases) / session.train.refresh_steps


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
            '(method.label_scans), in fewer rounds (method.rounds), or patches (method.label_scope = "patch").'
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
