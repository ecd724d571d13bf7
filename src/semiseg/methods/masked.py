"""Self-supervised pre-training, then labels alone: what many would choose in the place of pseudo-labels."""

from __future__ import annotations

from torch import Tensor

from semiseg.methods.base import Batch, UnlabelledBatch
from semiseg.methods.pretraining import PretrainedMethod
from semiseg.methods.settings import MaskedSettings
from semiseg.randomness import Draw


class Masked(PretrainedMethod[MaskedSettings]):
    """One network, which has seen unlabelled scans before labels."""

    def learns_from_unlabelled(self, step: int) -> bool:
        """As `PretrainedMethod.learns_from_unlabelled`."""
        return False

    def learn(self, labelled: Batch, unlabelled: UnlabelledBatch | None, draw: Draw) -> dict[str, Tensor]:
        """As `PretrainedMethod.learn`."""
        return self.labelled_step(labelled)
