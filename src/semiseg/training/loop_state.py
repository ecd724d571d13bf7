"""What the training loop remembers beside the method's own state: it goes into a checkpoint and comes back from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from semiseg.methods.base import Method
from semiseg.training.checkpoint import Checkpoint
from semiseg.training.inputs import StepInputs
from semiseg.training.origin import Origin
from semiseg.training.schedule import Schedule


@dataclass
class Clock:
    """Seconds of training over all sessions of a run."""

    before: float = 0.0
    began: float = field(default_factory=time.perf_counter)
    inputs: float = 0.0
    """Of them, what steps waited for their batches since `input_share` was asked for: reading and augmentation."""
    asked: float = 0.0

    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.began

    def timed(self, inputs: Iterator[StepInputs], pausing: Callable[[], float]) -> Iterator[StepInputs]:
        """The same batches, with the time that each takes counted. pausing: seconds that went into labelling scans so
        far, which is no waiting."""
        while True:
            began, paused = time.perf_counter(), pausing()
            batch = next(inputs, None)
            self.inputs += time.perf_counter() - began - (pausing() - paused)
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


@dataclass
class LoopState:
    """locations: where the labeller found organs in unlabelled scans, by case and class. epoch_losses: of the rows of
    this epoch, whose mean the plateau is looked for in."""

    schedule: Schedule
    clock: Clock = field(default_factory=Clock)
    locations: dict[str, Any] = field(default_factory=dict)
    epoch_losses: list[float] = field(default_factory=list)

    def checkpoint(self, step: int, method: Method, origin: Origin) -> Checkpoint:
        """All that is needed to go on after `step` steps. origin: what the run is made of."""
        tensors, numbers = method.state()
        numbers = _named("method", numbers) | _named("schedule", self.schedule.state)
        numbers |= _named("epoch_loss", {f"{i:06d}": loss for i, loss in enumerate(self.epoch_losses)})
        numbers["seconds"] = self.clock.seconds()
        settings = self.schedule.settings
        minutes = settings.minutes if settings.steps is None else None
        card = {
            "origin": origin | {"train.steps": settings.steps, "train.minutes": minutes},
            "evaluated": method.evaluated,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        return Checkpoint(step, tensors, numbers, self.locations, card)

    def restore(self, checkpoint: Checkpoint, method: Method) -> None:
        """Put the loop and the method where they were."""
        numbers = checkpoint.numbers
        method.load_state(checkpoint.tensors, _of("method", numbers))
        self.schedule.state.update(_of("schedule", numbers))
        self.epoch_losses = [loss for _, loss in sorted(_of("epoch_loss", numbers).items())]
        self.clock.before = numbers["seconds"]
        # JSON has text keys only; classes are numbers.
        self.locations = {
            case: {int(number): places for number, places in found.items()}
            for case, found in checkpoint.locations.items()
        }


def _named(owner: str, numbers: dict[str, float]) -> dict[str, float]:
    return {f"{owner}/{name}": value for name, value in numbers.items()}


def _of(owner: str, numbers: dict[str, float]) -> dict[str, float]:
    prefix = f"{owner}/"
    return {name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)}
