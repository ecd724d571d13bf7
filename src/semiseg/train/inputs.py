"""What a step is given: augmented batches on the device, phase by phase."""

from __future__ import annotations

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
from semiseg.methods.base import Batch, Method, UnlabelledBatch
from semiseg.methods.phases import Phases
from semiseg.predict.engines.torch_engine import TorchEngine
from semiseg.randomness import Draw
from semiseg.train.refresh import predicted_locations
from semiseg.train.settings import TrainSettings
from semiseg.transfer import to_device
from semiseg.types import AnyArray, Shape

StepInputs = tuple[int, Batch, UnlabelledBatch | None]


@dataclass(frozen=True)
class TrainingData:
    """The source of a run's batches, and the stored cases (folders) that the loop itself looks at."""

    source: BatchSource
    unlabelled: tuple[Path, ...]
    validation: tuple[Path, ...]


@dataclass(frozen=True)
class Place:
    """Where and how batches are made ready: the same for every step. warmup_patch: size of labelled patches in
    the warm-up; None is the plan's."""

    plan: Plan
    augment: AugmentSettings
    device: torch.device
    autocast: torch.dtype | None
    warmup_patch: Shape | None = None


def step_inputs(
    data: TrainingData,
    method: Method,
    phases: Phases,
    settings: TrainSettings,
    place: Place,
    start: int = 0,
    locations: dict[str, Any] | None = None,
) -> Iterator[StepInputs]:
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
        patch = place.warmup_patch if phases.name(begin) == "warmup" else None
        for stored in data.source.iterate(begin, end, unlabelled=unlabelled, patch=patch):
            yield stored.step, *_views(stored, Draw(seed=settings.seed, step=stored.step), place)


def _views(stored: StoredBatch, draw: Draw, place: Place) -> tuple[Batch, UnlabelledBatch | None]:
    """The batch on the device, augmented there."""

    def send(array: AnyArray) -> Tensor:
        return to_device(array, place.device)

    def layout(images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last_3d)

    images, labels = labelled_view(send(stored.images), send(stored.labels), draw, place.augment, place.plan.labels)
    labelled = Batch(layout(images), labels)
    if stored.unlabelled is None:
        return labelled, None
    weak, strong = unlabelled_views(send(stored.unlabelled), draw, place.augment)
    return labelled, UnlabelledBatch(layout(weak), layout(strong))
