"""Supervised training: the baseline, and the ceiling when all labels are given."""

from __future__ import annotations

from torch import Tensor

from semiseg.methods.base import Batch, UnlabelledBatch
from semiseg.methods.learner import StudentMethod
from semiseg.methods.settings import MethodSettings
from semiseg.randomness import Draw


class Supervised(StudentMethod[MethodSettings]):
    """One network, trained on labels alone."""

    def needs_unlabelled(self, step: int) -> bool:
        """As `Method.needs_unlabelled`."""
        return False

    def step(self, labelled: Batch, unlabelled: UnlabelledBatch | None, draw: Draw) -> dict[str, Tensor]:
        """As `Method.step`."""
        return self.labelled_step(labelled)
