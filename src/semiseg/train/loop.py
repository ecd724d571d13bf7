"""The training loop: steps, schedule, checkpoints, validation and logs. It knows nothing of teachers.

A run folder is its memory: if it is killed at any moment, the same call goes on from the last checkpoint to the same
weights, bit for bit on a CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semiseg.augment.settings import AugmentSettings
from semiseg.augment.views import labelled_view, unlabelled_views
from semiseg.data.batches import Batch as StoredBatch
from semiseg.data.batches import BatchSource
from semiseg.data.plan import Plan
from semiseg.errors import ConfigError, TrainingError
from semiseg.files import remove_leftovers
from semiseg.methods.base import Batch, Method, UnlabelledBatch
from semiseg.methods.phases import Phases
from semiseg.methods.settings import MethodSettings
from semiseg.predict.engines.torch_engine import TorchEngine
from semiseg.randomness import Draw
from semiseg.train.checkpoint import Checkpoint, load_latest, save_checkpoint
from semiseg.train.journal import Journal
from semiseg.train.refresh import predicted_locations
from semiseg.train.schedule import Schedule
from semiseg.train.settings import TrainSettings
from semiseg.train.validate import validate
from semiseg.types import AnyArray


@dataclass(frozen=True)
class TrainingData:
    """The source of a run's batches, and the stored cases (folders) that the loop itself looks at."""

    source: BatchSource
    unlabelled: tuple[Path, ...]
    validation: tuple[Path, ...]


@dataclass(frozen=True)
class Place:
    """Where and how batches are made ready: the same for every step."""

    plan: Plan
    augment: AugmentSettings
    device: torch.device
    autocast: torch.dtype | None


_Inputs = tuple[int, Batch, UnlabelledBatch | None]


@dataclass
class _Clock:
    """Seconds of training over all sessions of a run."""

    before: float = 0.0
    began: float = 0.0
    inputs: float = 0.0
    """Of them, what steps waited for their batches since `input_share` was asked for: reading and augmentation."""
    asked: float = 0.0

    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.began

    def timed(self, inputs: Iterator[_Inputs]) -> Iterator[_Inputs]:
        """The same batches, with the time that each takes counted."""
        while True:
            began = time.perf_counter()
            batch = next(inputs, None)
            self.inputs += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def input_share(self) -> float:
        """The share of the time since the last call that steps waited for their batches. On a GPU, which is not waited
        for, what is queued there for augmentation is not in it."""
        now = time.perf_counter()
        share = self.inputs / max(now - max(self.asked, self.began), 1e-9)
        self.inputs, self.asked = 0.0, now
        return share


def train_method(
    run: Path,
    method: Method,
    data: TrainingData,
    place: Place,
    *,
    settings: TrainSettings,
    method_settings: MethodSettings,
    origin: str,
    quiet: bool = False,
) -> None:
    """Train to the last step, going on from the newest checkpoint in `run/checkpoints` if there is one.

    origin: hash of what the run is made of; a checkpoint of another one is refused with `ConfigError`. Leaves
    checkpoints and `metrics.jsonl`. Raises `TrainingError` where a loss is not finite (the last good checkpoint
    stays) or the device's memory does not suffice.
    """
    phases = Phases.of(method_settings, settings.steps)
    schedule = Schedule(settings, phases, method_settings)
    checkpoints = run / "checkpoints"
    clock = _Clock(began=time.perf_counter())
    locations: dict[str, Any] = {}
    epoch_losses: list[float] = []
    start, share = 0, 0.0
    remove_leftovers(checkpoints)
    if checkpoint := load_latest(checkpoints):
        if checkpoint.card.get("origin") != origin:
            raise ConfigError(
                f"{checkpoints}: trained with another plan, other cases or other settings than the run has now. Use "
                "another run folder, undo the change, or delete the checkpoints to train anew."
            )
        start = checkpoint.step
        locations, epoch_losses = _restore(checkpoint, method, schedule, clock)

    with Journal(run, settings, start=start, quiet=quiet) as journal:
        if start:
            journal.note(f"Going on from step {start} of {settings.steps}.")
        inputs = step_inputs(data, method, phases, settings, place, start, locations)
        for step, labelled, unlabelled in clock.timed(inputs):
            if schedule.begin(step):
                epoch_losses = []
            method.learning_rate_factor = schedule.factor(step)
            try:
                journal.collect(method.step(labelled, unlabelled, Draw(seed=settings.seed, step=step)))
            except torch.OutOfMemoryError as error:
                raise TrainingError(_out_of_memory(place.plan, place.device)) from error

            done = step + 1
            judged = method.judged(step)
            last, ends_epoch = done == settings.steps, done % settings.epoch_steps == 0
            row: dict[str, Any] = {}
            saves = done % settings.checkpoint_every == 0 or last
            if done % settings.log_every == 0 or ends_epoch or saves:
                row = _finite(journal.means(), step, checkpoints)
                share = clock.input_share()
                epoch_losses += [row[judged.loss]] if judged.loss in row else []
            if data.validation and (last or (ends_epoch and _validates(done, settings))):
                engine = TorchEngine(method.networks[judged.network], place.device, place.autocast)
                row |= validate(data.validation, engine, place.plan)
            if ends_epoch and (epoch_losses or "validation_loss" in row):
                loss = row.get("validation_loss", sum(epoch_losses) / max(1, len(epoch_losses)))
                epoch_losses = []
                if schedule.end_epoch(loss):
                    journal.note(f"Step {done}: no better loss; the learning rate is reduced.")
            if row:
                rate = method_settings.first_learning_rate * method.learning_rate_factor
                head: dict[str, Any] = {"step": done, "phase": phases.name(step), "seconds": round(clock.seconds(), 2)}
                head["input_share"] = round(share, 3)
                journal.write(head | {"learning_rate": rate} | row)
            if saves:
                snapshot = _snapshot(done, method, schedule, clock, locations, epoch_losses, origin)
                _check_finite_state(snapshot, checkpoints)
                save_checkpoint(checkpoints, snapshot)


def _validates(done: int, settings: TrainSettings) -> bool:
    return settings.validation_every > 0 and (done // settings.epoch_steps) % settings.validation_every == 0


def step_inputs(
    data: TrainingData,
    method: Method,
    phases: Phases,
    settings: TrainSettings,
    place: Place,
    start: int = 0,
    locations: dict[str, Any] | None = None,
) -> Iterator[_Inputs]:
    """Step and augmented batches for all steps from `start` on, phase by phase.

    Where `refresh_steps` asks for it the method's labeller predicts unlabelled scans in between, into `locations`.
    """
    locations = {} if locations is None else locations
    cuts = {start, phases.warmup_stop, phases.train_stop, phases.total}
    refreshes: set[int] = set()
    if settings.refresh_steps and data.unlabelled:
        refreshes = set(range(phases.warmup_stop, phases.train_stop, settings.refresh_steps)) - {0}  # knows nothing yet
    if locations:
        data.source.publish(dict(locations), from_step=start)
    stops = sorted(cut for cut in cuts | refreshes if cut >= start)
    for begin, end in pairwise(stops):
        unlabelled = method.needs_unlabelled(begin)
        if unlabelled and method.labeller and begin in refreshes:
            turn = (begin - phases.warmup_stop) // settings.refresh_steps
            engine = TorchEngine(method.networks[method.labeller], place.device, place.autocast)
            locations |= predicted_locations(
                data.unlabelled, turn, settings.refresh_cases, engine, place.plan, settings.seed
            )
            data.source.publish(dict(locations), from_step=begin)
        for stored in data.source.iterate(begin, end, unlabelled=unlabelled):
            yield stored.step, *_views(stored, Draw(seed=settings.seed, step=stored.step), place)


def _views(stored: StoredBatch, draw: Draw, place: Place) -> tuple[Batch, UnlabelledBatch | None]:
    """The batch on the device, augmented there."""

    def send(array: AnyArray) -> Tensor:
        return torch.from_numpy(array).to(place.device, non_blocking=True)

    def layout(images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last_3d)

    images, labels = labelled_view(send(stored.images), send(stored.labels), draw, place.augment, place.plan.labels)
    labelled = Batch(layout(images), labels)
    if stored.unlabelled is None:
        return labelled, None
    weak, strong = unlabelled_views(send(stored.unlabelled), draw, place.augment)
    return labelled, UnlabelledBatch(layout(weak), layout(strong))


def _finite(row: dict[str, float], step: int, checkpoints: Path) -> dict[str, float]:
    """The row itself; raises `TrainingError` that names what is not finite in it."""
    bad = [key for key, value in row.items() if not math.isfinite(value)]
    if bad:
        raise TrainingError(_not_finite(step + 1, ", ".join(bad), checkpoints))
    return row


def _check_finite_state(snapshot: Checkpoint, checkpoints: Path) -> None:
    """A step whose loss was finite may still have spoilt the weights: such a state must not become a checkpoint."""
    for name, tensor in snapshot.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TrainingError(_not_finite(snapshot.step, name, checkpoints))


def _not_finite(step: int, what: str, checkpoints: Path) -> str:
    return (
        f"step {step}: {what} is not finite. Lower method.learning_rate, or look for damaged intensities with "
        f"`semiseg check`. The last good checkpoint is in {checkpoints}."
    )


def _out_of_memory(plan: Plan, device: torch.device) -> str:
    return (
        f"no memory left on {device} for a batch of {plan.batch} patches of {plan.patch}: lower plan.batch or "
        "plan.patch (or plan.memory_budget_gb, and prepare again). Finished checkpoints are kept."
    )


def _snapshot(
    step: int,
    method: Method,
    schedule: Schedule,
    clock: _Clock,
    locations: dict[str, Any],
    epoch_losses: list[float],
    origin: str,
) -> Checkpoint:
    tensors, numbers = method.state()
    numbers = {f"method/{k}": v for k, v in numbers.items()} | {f"schedule/{k}": v for k, v in schedule.state.items()}
    numbers |= {f"epoch_loss/{i:06d}": value for i, value in enumerate(epoch_losses)}
    numbers["seconds"] = clock.seconds()
    card = {
        "origin": origin,
        "evaluated": method.evaluated,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    return Checkpoint(step, tensors, numbers, locations, card)


def _restore(
    checkpoint: Checkpoint, method: Method, schedule: Schedule, clock: _Clock
) -> tuple[dict[str, Any], list[float]]:
    def part(prefix: str) -> dict[str, float]:
        return {k.removeprefix(prefix): v for k, v in checkpoint.numbers.items() if k.startswith(prefix)}

    method.load_state(checkpoint.tensors, part("method/"))
    schedule.state.update(part("schedule/"))
    clock.before = checkpoint.numbers["seconds"]
    losses = [value for _, value in sorted(part("epoch_loss/").items())]
    # JSON has text keys only; classes are numbers.
    locations = {case: {int(k): v for k, v in found.items()} for case, found in checkpoint.locations.items()}
    return locations, losses
