"""Cross pseudo supervision (Chen et al., CVPR 2021): two networks of different beginnings teach each other.

Each learns from labels, and from the other's hard labels of all patches, labelled and unlabelled, with a weight that
rises: published networks were trained on other images before, these know nothing at first. Shapes: B batch, C
channels, K classes, D H W voxels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semiseg.losses import supervised_loss
from semiseg.methods.base import Batch, UnlabelledBatch
from semiseg.methods.learner import StudentMethod
from semiseg.methods.phases import Phases
from semiseg.methods.settings import MethodSettings
from semiseg.models.unet import UNet3d
from semiseg.randomness import Draw


class CrossPseudo(StudentMethod):
    """Two students, of which one is validated and shipped."""

    def __init__(
        self,
        student: UNet3d,
        partner: UNet3d,
        settings: MethodSettings,
        phases: Phases,
        *,
        ignore: int | None,
        autocast: torch.dtype | None,
    ) -> None:
        super().__init__(student, settings, phases, others={"partner": partner}, ignore=ignore, autocast=autocast)

    def step(self, labelled: Batch, unlabelled: UnlabelledBatch | None, draw: Draw) -> dict[str, Tensor]:
        """As `Method.step`."""
        if unlabelled is None:
            return self.labelled_step(labelled)
        weight = self.settings.weight_of_unlabelled * self.ramp(draw.step, self.settings.ramp_fraction)
        count = len(labelled.images)
        both = torch.cat([labelled.images, unlabelled.strong])  # one pass over both, as published
        student, partner = self.learners.values()
        logits = [learner.logits(both) for learner in (student, partner)]
        labels = [x.detach().argmax(1) for x in logits]
        supervised = [supervised_loss(labelled.labels, x[:count], ignore=self.ignore) for x in logits]
        crossed = [supervised_loss(labels[1 - i], x) for i, x in enumerate(logits)]
        norm = student.step(supervised[0] + weight * crossed[0], self.learning_rate_factor)
        partner.step(supervised[1] + weight * crossed[1], self.learning_rate_factor)
        return {
            "labelled_loss": supervised[0].detach(),
            "pseudo_loss": crossed[0].detach(),
            "agreement": (labels[0] == labels[1]).float().mean(),
            "gradient_norm": norm,
        }
