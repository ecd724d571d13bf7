"""Supervised training: the baseline, and the ceiling when all labels are given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from semiseg.losses import deep_supervised_loss
from semiseg.methods.base import Batch, Judged, UnlabelledBatch
from semiseg.methods.optimiser import Average, NamedOptimiser, flatten_state, gradients_of, restore_state
from semiseg.methods.settings import MethodSettings
from semiseg.models.unet import UNet3d
from semiseg.randomness import Draw


class Supervised:
    """One network, trained on labels alone."""

    def __init__(self, student: UNet3d, settings: MethodSettings, *, ignore: int | None, autocast: torch.dtype | None):
        self.settings = settings
        self.ignore = ignore
        self.autocast = autocast
        self.student = student.train()
        self.optimiser = NamedOptimiser(student, settings)
        self.average = Average(student, settings.ema_decay) if settings.ema_decay else None
        self.networks: dict[str, nn.Module] = {"student": student}
        if self.average:
            self.networks["student_average"] = self.average.network
        self.evaluated = "student_average" if self.average else "student"
        self.labeller: str | None = None
        self.scans_labelled_anew: Sequence[int] = ()
        self.learning_rate_factor = 1.0

    def judged(self, step: int) -> Judged:
        return Judged(self.evaluated, "labelled_loss")

    def scan_labeller(self, step: int) -> str | None:
        return None

    def needs_unlabelled(self, step: int) -> bool:
        return False

    def step(self, labelled: Batch, unlabelled: UnlabelledBatch | None, draw: Draw) -> dict[str, Tensor]:
        with torch.autocast(labelled.images.device.type, self.autocast, enabled=self.autocast is not None):
            outputs = self.student.deep_logits(labelled.images)
        loss = deep_supervised_loss(labelled.labels, [o.float() for o in outputs], ignore=self.ignore)
        gradients = gradients_of(loss, self.optimiser.parameters)
        norm = self.optimiser.step(gradients, self.settings.first_learning_rate * self.learning_rate_factor)
        if self.average:
            self.average.update(self.student)
        return {"labelled_loss": loss.detach(), "gradient_norm": norm}

    def state(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        numbers = {"average_updates": float(self.average.updates)} if self.average else {}
        return flatten_state(self.networks, {"student": self.optimiser}), numbers

    def load_state(self, tensors: dict[str, Tensor], numbers: dict[str, float]) -> None:
        restore_state(tensors, self.networks, {"student": self.optimiser})
        if self.average:
            self.average.updates = int(numbers["average_updates"])
