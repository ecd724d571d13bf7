"""Supervised training: the baseline, and the ceiling when all labels are given."""

from __future__ import annotations

import torch
from torch import Tensor

from semiseg.methods.base import Batch, UnlabelledBatch
from semiseg.methods.learner import StudentMethod
from semiseg.methods.phases import Phases
from semiseg.methods.settings import MethodSettings
from semiseg.models.unet import UNet3d
from semiseg.randomness import Draw


class Supervised(StudentMethod):
    """One network, trained on labels alone."""

    def __init__(
        self,
        student: UNet3d,
        settings: MethodSettings,
        phases: Phases,
        *,
        ignore: int | None,
        autocast: torch.dtype | None,
    ) -> None:
        super().__init__(student, settings, phases, ignore=ignore, autocast=autocast)
        self.labeller = None

    def needs_unlabelled(self, step: int) -> bool:
        """As `Method.needs_unlabelled`."""
        return False

    def step(self, labelled: Batch, unlabelled: UnlabelledBatch | None, draw: Draw) -> dict[str, Tensor]:
        """As `Method.step`."""
        return self.labelled_step(labelled)
