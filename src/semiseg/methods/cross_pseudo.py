"""Cross pseudo supervision (Chen et al., CVPR 2021): two networks of different beginnings teach each other.

Each learns from labels, and from the other's hard labels of all patches, labelled and unlabelled, with a weight that
rises: published networks were trained on other images before, these know nothing at first. Shapes: B batch, C
channels, K classes, D H W voxels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from semiseg.methods.base import Batch, UnlabelledBatch
from semiseg.methods.learner import StudentMethod
from semiseg.methods.settings import CrossPseudoSettings
from semiseg.models.layers import Network
from semiseg.randomness import Draw


class CrossPseudo(StudentMethod[CrossPseudoSettings]):
    """Two students, of which one is validated and shipped."""

    learner_names: ClassVar[tuple[str, ...]] = ("student", "partner")

    def set_up(self, networks: Mapping[str, Network]) -> None:
        """As `StudentMethod.set_up`."""
        super().set_up(networks)
        self.doubter = self.learners["partner"].evaluated

    def step(self, labelled: Batch, unlabelled: UnlabelledBatch | None, draw: Draw) -> dict[str, Tensor]:
        """As `Method.step`."""
        if unlabelled is None:
            return self.labelled_step(labelled)
        weight = self.settings.unlabelled_weight * self.ramp(draw.step)
        count = len(labelled.images)
        both = torch.cat([labelled.images, unlabelled.strong])  # one pass over both, as published
        student, partner = self.learners.values()
        logits = [learner.logits(both) for learner in (student, partner)]
        labels = [x.detach().argmax(1) for x in logits]
        supervised = [self.losses.labelled(labelled.labels, x[:count], self.ignore) for x in logits]
        crossed = [self.losses.labelled(labels[1 - i], x, None) for i, x in enumerate(logits)]
        norm = student.step(supervised[0] + weight * crossed[0], self.learning_rate_factor)
        partner.step(supervised[1] + weight * crossed[1], self.learning_rate_factor)
        return {
            "labelled_loss": supervised[0].detach(),
            "pseudo_loss": crossed[0].detach(),
            "agreement": (labels[0] == labels[1]).float().mean(),
            "gradient_norm": norm,
        }
