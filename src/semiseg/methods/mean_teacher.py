"""Mean Teacher (Tarvainen and Valpola 2017), and its uncertainty-aware form (Yu et al., MICCAI 2019: UA-MT).

The student learns from labels, and to agree with its own moving average (the teacher) on unlabelled patches of which
both see another view. Shapes: B batch, C channels, K classes, D H W voxels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from semiseg.methods.base import Batch, UnlabelledBatch
from semiseg.methods.learner import StudentMethod, label_images
from semiseg.methods.settings import MeanTeacherSettings
from semiseg.randomness import Draw
from semiseg.world import share, size

NOISE, LARGEST_NOISE = 0.1, 0.2
"""Deviation and limit of the Gaussian noise on the images of an uncertainty pass, in normalised intensities (UA-MT)."""


class MeanTeacher(StudentMethod[MeanTeacherSettings]):
    """Student and averaged teacher; with `uncertainty_passes` the teacher is followed only where it is sure."""

    def step(self, labelled: Batch, unlabelled: UnlabelledBatch | None, draw: Draw) -> dict[str, Tensor]:
        """As `Method.step`."""
        if unlabelled is None:
            return self.labelled_step(labelled)
        ramp = self.ramp(draw.step)
        with torch.no_grad():
            p, sure = self._taught(unlabelled.weak, ramp, draw)
        # One pass over both batches, as published: batch norm sees them together.
        logits = self.student.logits(torch.cat([labelled.images, unlabelled.strong]))
        count = len(labelled.images)
        loss = self.losses.labelled(labelled.labels, logits[:count], self.ignore)
        consistency = masked_mse(functional.softmax(logits[count:], dim=1), p, sure)
        weight = self.settings.unlabelled_weight * ramp
        norm = self.student.step(loss + weight * consistency, self.learning_rate_factor)
        return {
            "labelled_loss": loss.detach(),
            "consistency": consistency.detach(),
            "unlabelled_weight": loss.new_full((), weight),
            "sure": sure.mean(),
            "gradient_norm": norm,
        }

    def _taught(self, images: Tensor, ramp: float, draw: Draw) -> tuple[Tensor, Tensor]:
        """The teacher's probabilities `(B, K, D, H, W)`, and 1 where they count, `(B, 1, D, H, W)`."""
        p = self._probabilities(images)
        if not self.settings.uncertainty_passes:
            return p, torch.ones_like(p[:, :1])
        generator = torch.Generator(images.device).manual_seed(draw.at(sample=0).torch_seed("uncertainty"))
        own, everything = slice(draw.sample, draw.sample + len(images)), (len(images) * size(), *images.shape[1:])
        total = torch.zeros_like(p)
        for _ in range(self.settings.uncertainty_passes):
            noise = torch.randn(everything, generator=generator, device=images.device)[own]
            noisy = images + (NOISE * noise).clamp(-LARGEST_NOISE, LARGEST_NOISE)
            total += self._probabilities(noisy)
        mean = total / self.settings.uncertainty_passes
        entropy = -(mean * mean.clamp_min(1e-12).log()).sum(1, keepdim=True)
        return p, (entropy < certainty_limit(ramp, p.shape[1])).to(p.dtype)

    def _probabilities(self, images: Tensor) -> Tensor:
        teacher = self.student.settled
        return label_images(teacher, images, self.autocast).softmax(1)


def masked_mse(p: Tensor, q: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of probabilities over classes and the voxels of the mask `(B, 1, D, H, W)`; 0 without
    any."""
    squares = (p - q).square().mean(1, keepdim=True) * mask
    return share(squares.sum(), mask.sum())


def certainty_limit(ramp: float, classes: int) -> float:
    """The largest entropy at which a voxel counts: 3/4 of the largest possible, `ln K`, rising to all of it (UA-MT)."""
    return (0.75 + 0.25 * ramp) * math.log(classes)
