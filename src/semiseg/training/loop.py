"""The training loop: steps, schedule, checkpoints, validation and logs. It knows nothing of teachers.

A run folder is its memory: if it is killed at any moment, the same call goes on from the last checkpoint to the same
weights, bit for bit on a CPU.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from semiseg.errors import ConfigError, TrainingError
from semiseg.files import remove_leftovers
from semiseg.methods.base import Method
from semiseg.methods.phases import Phases
from semiseg.prediction.engines.torch_engine import TorchEngine
from semiseg.randomness import Draw
from semiseg.training.checkpoint import Checkpoint, CheckpointWriter, load_latest, not_finite
from semiseg.training.inputs import Feed, Place, TrainingData
from semiseg.training.journal import Journal
from semiseg.training.loop_state import LoopState
from semiseg.training.origin import OTHER_CASES, Origin, changed
from semiseg.training.out_of_memory import named_out_of_memory
from semiseg.training.pace import Pace
from semiseg.training.schedule import Schedule
from semiseg.training.settings import EPOCH_STEPS, TrainSettings
from semiseg.training.settled import Settled, read_settled
from semiseg.training.validate import validate
from semiseg.world import agree, first_alone, first_sample, gathered, rank, size

VALIDATION_SHARE = 0.05
"""Of the time of a run by minutes that validation may take."""


def train_method(
    run: Path,
    method: Method,
    data: TrainingData,
    place: Place,
    *,
    settings: TrainSettings,
    origin: Origin,
    retry_threads: Callable[[], int] = lambda: 0,
    quiet: bool = False,
) -> tuple[int, float]:
    """Train to the last step, going on from the newest checkpoint in `run/checkpoints` if there is one; returns steps
    and seconds of the whole run.

    origin: what the run is made of; a checkpoint of another one is refused with `ConfigError`. Leaves
    checkpoints and `metrics.jsonl`. retry_threads: tries how many threads are fastest, where the pace collapses. Raises
    `TrainingError` where a loss is not finite (the last good checkpoint stays) or the device's memory does not suffice.
    """
    checkpoints = run / "checkpoints"
    first_alone(partial(remove_leftovers, checkpoints))
    checkpoint = _latest(checkpoints, origin, settings)
    step = checkpoint.step if checkpoint else 0
    before = checkpoint.numbers["seconds"] if checkpoint else 0.0
    pace = Pace(run, settings, step=step, seconds=before, fastest_threads=retry_threads)
    state = LoopState(Schedule(settings, Phases.of(method.settings, pace.timeline), method.settings.parts.restart_rate))
    if checkpoint:
        method.phases = state.schedule.phases
        state.restore(checkpoint, method)
    validation = ValidationClock(settings)
    writer, said = CheckpointWriter(checkpoints), Journal(run, settings, start=step, pace=pace, quiet=quiet)
    with writer, said as journal, named_out_of_memory(place):
        if step:
            journal.note(f"Going on from step {step} of about {pace.timeline.total}.")
        _use_threads(pace)
        feed = Feed(data, method, settings, place, state.locations, journal.note)
        while step < pace.timeline.total:
            method.phases = state.schedule.phases = Phases.of(method.settings, pace.timeline)
            stop = agree(pace.stop_after(step))
            inputs = state.clock.timed(feed.steps(step, stop, state.schedule.phases), lambda: feed.pausing)
            for number, labelled, unlabelled in inputs:
                if state.schedule.begin(number):
                    state.epoch_losses = []
                method.learning_rate_factor = state.schedule.factor(number)
                draw = Draw(seed=settings.seed, step=number, sample=first_sample(len(labelled.images)))
                journal.collect(method.step(labelled, unlabelled, draw))
                step = number + 1
                _log(step, stop, state, method, place, data, journal, validation, checkpoints)
            first_alone(lambda: pace.look(step, state.clock.seconds(), feed.pausing))  # noqa: B023 (called at once)
            pace.timeline = agree(pace.timeline)
            _use_threads(pace)
            feed.pausing = 0.0
            saved = state.checkpoint(step, method, origin)
            _check_equal_state(saved, checkpoints)
            first_alone(partial(writer.save, saved))
        first_alone(writer.wait)
        first_alone(pace.finish)
    return step, state.clock.seconds()


def _use_threads(pace: Pace) -> None:
    if pace.threads:
        torch.set_num_threads(pace.threads)


def _log(
    done: int,
    stop: int,
    state: LoopState,
    method: Method,
    place: Place,
    data: TrainingData,
    journal: Journal,
    validation: ValidationClock,
    checkpoints: Path,
) -> None:
    """After a step: a row of metrics where one is due, validation with it, and the end of an epoch."""
    schedule = state.schedule
    last, ends_epoch = done == schedule.phases.total, done % EPOCH_STEPS == 0
    row: dict[str, float] = {}
    if journal.is_due(done) or ends_epoch or done == stop:
        row = _finite(journal.means(), done, checkpoints) | {"input_share": round(state.clock.input_share(), 3)}
    judged = method.judged(done - 1)
    if judged.loss in row:
        state.epoch_losses.append(row[judged.loss])
    if data.validation and (last or (ends_epoch and validation.is_due(done))):
        engine = TorchEngine(method.networks[judged.network], place.device, place.autocast)
        with validation.timed():
            row |= validate(data.validation, engine, place.plan, place.device)
    by_validation = bool(data.validation) and schedule.settings.validation_every > 0
    if ends_epoch and _rate_was_reduced(state, row.get("validation_loss"), by_validation=by_validation):
        journal.note(f"Step {done}: no better loss; the learning rate is reduced.")
    if row:
        rate = method.settings.optimiser.learning_rate * method.learning_rate_factor
        seconds = round(state.clock.seconds(), 2)
        head = {"step": done, "phase": schedule.phases.name(done - 1), "seconds": seconds, "learning_rate": rate}
        journal.write(head | row | _gpu_peak(place.device))


class ValidationClock:
    """When validation is due: every so many epochs, and in a run by minutes not before twenty times the time that the
    last one took."""

    def __init__(self, settings: TrainSettings) -> None:
        self._settings = settings
        self._took, self._ended = 0.0, time.perf_counter()

    def is_due(self, done: int) -> bool:
        """After so many steps, at the end of an epoch."""
        every = self._settings.validation_every
        if not every or (done // EPOCH_STEPS) % every:
            return False
        waited = time.perf_counter() - self._ended >= self._took / VALIDATION_SHARE
        return self._settings.steps is not None or agree(waited)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Within: a validation."""
        began = time.perf_counter()
        yield
        self._ended = time.perf_counter()
        self._took = self._ended - began


def _latest(checkpoints: Path, origin: Origin, settings: TrainSettings) -> Checkpoint | None:
    """The newest checkpoint, if there is one; raises `ConfigError` where it is of another run than this."""
    checkpoint = load_latest(checkpoints)
    if checkpoint is None:
        return None
    before = checkpoint.card.get("origin")
    if not isinstance(before, dict):
        raise ConfigError(
            f"{checkpoints}: does not say what it was trained with. Use another run folder, or delete the checkpoints "
            "to train anew."
        )
    length = {"train.steps": settings.steps, "train.minutes": settings.minutes if settings.steps is None else None}
    if _is_trained_on(checkpoint, before, settings, read_settled(checkpoints.parent)):
        before = before | length
    if lines := changed(before, origin | length):
        places = ["the data folder"] if OTHER_CASES in lines else []
        places += ["run.toml or plan.toml"] if lines != [OTHER_CASES] else []
        raise ConfigError(
            f"{checkpoints}: trained with another plan, other cases or other settings than the run has now:\n  "
            + "\n  ".join(lines)
            + f"\nUndo the change in {' and '.join(places)}, use another run folder, or delete the checkpoints to "
            "train anew."
        )
    return checkpoint


def _is_trained_on(checkpoint: Checkpoint, before: Origin, settings: TrainSettings, settled: Settled) -> bool:
    """Whether the run had ended, and was asked for more since."""
    if settings.steps is not None:
        return checkpoint.step == before.get("train.steps") and settings.steps > checkpoint.step
    then = before.get("train.minutes")
    ended = settled.finished or settled.minutes == settings.minutes  # stopped before the first checkpoint of the rest
    return ended and then is not None and settings.minutes > then


def _gpu_peak(device: torch.device) -> dict[str, int]:
    """What this process has had of a GPU's memory at most, in MB; nothing of a CPU."""
    return {"gpu_peak_mb": round(torch.cuda.max_memory_reserved(device) / 1e6)} if device.type == "cuda" else {}


def _rate_was_reduced(state: LoopState, validation_loss: float | None, *, by_validation: bool) -> bool:
    """Close an epoch: the schedule is told its loss, on validation cases if it goes by these, and nothing of an epoch
    that was not validated; or else the mean of its rows."""
    losses, state.epoch_losses = state.epoch_losses, []
    if validation_loss is None and (by_validation or not losses):
        return False
    return state.schedule.end_epoch(sum(losses) / len(losses) if validation_loss is None else validation_loss)


def _finite(row: dict[str, float], step: int, checkpoints: Path) -> dict[str, float]:
    """The row itself; raises `TrainingError` that names what is not finite in it."""
    bad = [key for key, value in row.items() if not math.isfinite(value)]
    if bad:
        raise TrainingError(not_finite(step, ", ".join(bad), checkpoints))
    return row


def _check_equal_state(checkpoint: Checkpoint, checkpoints: Path) -> None:
    """Ranks that have drifted apart would train other networks each, in silence: raises `TrainingError`, as it does for
    values that are not finite, which no remedy for drift would mend."""
    if size() == 1:
        return
    digest, spoilt = hashlib.sha256(), ""
    for name, value in checkpoint.tensors.items():
        if not spoilt and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            spoilt = name
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    said = list(gathered({f"{rank():06d}": (spoilt, digest.hexdigest())}).values())
    if bad := next((name for name, _ in said if name), ""):
        raise TrainingError(not_finite(checkpoint.step, bad, checkpoints))
    if drifted := [str(number) for number, one in enumerate(said) if one != said[0]]:
        raise TrainingError(
            f"step {checkpoint.step}: the weights of rank {', '.join(drifted)} are not those of the first rank. Give "
            "the same command again, which goes on from the last checkpoint."
        )
