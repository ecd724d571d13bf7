"""What a step is given: augmented batches on the device, phase by phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from semiseg.augment.settings import AugmentSettings
from semiseg.augment.views import labelled_view, unlabelled_views
from semiseg.data.batches import Batch as StoredBatch
from semiseg.data.batches import BatchSource
from semiseg.data.plan import Plan
from semiseg.io.store import StoredCase, open_labels
from semiseg.methods.base import Batch, Method, UnlabelledBatch
from semiseg.methods.phases import Phases
from semiseg.predict.engines.torch_engine import TorchEngine
from semiseg.predict.window import Window
from semiseg.randomness import Draw
from semiseg.train.progress import every_so_often
from semiseg.train.refresh import predicted_locations
from semiseg.train.scan_labels import AgreedLabels, agreed_most, folders_of, label_file, label_scans
from semiseg.train.settings import TrainSettings
from semiseg.transfer import to_device
from semiseg.types import AnyArray, Shape

StepInputs = tuple[int, Batch, UnlabelledBatch | None]


@dataclass(frozen=True)
class TrainingData:
    """The source of a run's batches, and the stored cases (folders) that the loop itself looks at. scan_labels: folder
    for labels of whole unlabelled scans; None gives them blank ones, for steps that are only timed."""

    source: BatchSource
    unlabelled: tuple[Path, ...]
    validation: tuple[Path, ...]
    scan_labels: Path | None = None


@dataclass(frozen=True)
class Place:
    """Where and how batches are made ready: the same for every step. warmup_patch: size of labelled patches in
    the warm-up; None is the plan's. label_mirror: whether whole scans are labelled with their mirror image.
    round_share: share of these that counts, where two networks label them."""

    plan: Plan
    augment: AugmentSettings
    device: torch.device
    autocast: torch.dtype | None
    warmup_patch: Shape | None = None
    label_mirror: bool = False
    round_share: float = 1.0

    def labelling_window(self, *, renewed: bool = False) -> Window:
        """By which the teacher labels whole scans: the patch that it was trained on, and what `label_mirror` says.

        renewed: the teacher has the weights of a student.
        """
        trained = self.augment.mirror_axes if self.augment.enabled else ()
        mirrored = trained[-1:] if self.label_mirror else ()
        patch = self.plan.patch if renewed else self.warmup_patch or self.plan.patch
        return Window(patch=patch, mirror_axes=mirrored, labels=self.plan.labels)


def step_inputs(
    data: TrainingData,
    method: Method,
    phases: Phases,
    settings: TrainSettings,
    place: Place,
    start: int = 0,
    locations: dict[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[StepInputs]:
    """Step and augmented batches for all steps from `start` on, phase by phase.

    A method's `scan_labellers` label the unlabelled scans before the first of their patches. Else, where
    `refresh_steps` asks for it, its labeller predicts some of them in between, into `locations`. say: told how far
    labelling is.
    """
    locations = {} if locations is None else locations
    cuts = {start, phases.warmup_stop, phases.train_stop, phases.total, *method.scans_labelled_anew}
    labels_scans = bool(method.scan_labellers(phases.warmup_stop))
    refreshes: set[int] = set()
    if settings.refresh_steps and data.unlabelled and not labels_scans:
        refreshes = set(range(phases.warmup_stop, phases.train_stop, settings.refresh_steps)) - {0}  # knows nothing yet
    if locations:
        data.source.publish(dict(locations), from_step=start)
    labelled_scans = False
    stops = sorted(cut for cut in cuts | refreshes if cut >= start)
    for begin, end in pairwise(stops):
        unlabelled = method.needs_unlabelled(begin)
        if unlabelled and (begin in method.scans_labelled_anew or not labelled_scans):
            renewals = sum(step <= begin for step in method.scans_labelled_anew)
            labellers = [
                (method.networks[name], place.labelling_window(renewed=renewals > age))
                for age, name in enumerate(method.scan_labellers(begin))
            ]
            if labellers:
                _label_scans(data, labellers, settings, place, begin, say)
            labelled_scans = True
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


def _label_scans(
    data: TrainingData,
    labellers: Sequence[tuple[nn.Module, Window]],
    settings: TrainSettings,
    place: Place,
    step: int,
    say: Callable[[str], None],
) -> None:
    """From `step` on unlabelled patches come with the first network's labels, hidden where the second contradicts it,
    and some lie on the classes that the first found; with `round_share`, from the scans alone on which both agree most.
    """
    if data.scan_labels is None:
        data.source.publish_labels(lambda case: np.zeros(case.shape_zyx, dtype=np.uint8))
        return
    folders = folders_of(data.scan_labels, labellers, data.unlabelled)
    progress = every_so_often(say, "The teacher labels unlabelled scans: {} of {}.")
    for (network, window), folder in reversed(list(zip(labellers, folders, strict=True))):
        engine = TorchEngine(network, place.device, place.autocast)
        found = label_scans(data.unlabelled, folder, engine, window, place.plan, seed=settings.seed, progress=progress)
    filtered = len(folders) > 1 and place.round_share < 1
    among = agreed_most(data.unlabelled, folders, place.round_share) if filtered else None
    data.source.publish(found, from_step=step, among=among)

    def labels_of(case: StoredCase) -> Any:
        maps = [open_labels(label_file(folder, case.id), case.shape_zyx) for folder in folders]
        return maps[0] if len(maps) == 1 else AgreedLabels(*maps)

    data.source.publish_labels(labels_of)


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
    pseudo = None if stored.pseudo_labels is None else (send(stored.pseudo_labels), place.plan.labels)
    weak, strong, given = unlabelled_views(send(stored.unlabelled), draw, place.augment, pseudo)
    return labelled, UnlabelledBatch(layout(weak), layout(strong), given)
