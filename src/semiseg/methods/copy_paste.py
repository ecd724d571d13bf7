"""Bidirectional copy-paste (Bai et al., CVPR 2023: BCP): every patch of the student is half labelled, half not.

A box of one patch is pasted into another, in both directions: unlabelled into labelled and labelled into unlabelled.
The student learns the true labels on one side of the border and its moving average's on the other. Before, it is
trained on labelled patches pasted into each other. On many ranks patches are paired within the part of each.
Shapes: B batch, C channels, K classes, D H W voxels.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from semiseg.augment.cutmix import apply_cutmix, sample_boxes
from semiseg.methods.base import HIDDEN, Batch, UnlabelledBatch
from semiseg.methods.learner import StudentMethod, label_images
from semiseg.methods.settings import CopyPasteSettings
from semiseg.ops.cleaning import largest_component
from semiseg.randomness import Draw

BOX_EDGE = (2 / 3, 2 / 3)
"""The box's edge relative to the patch's, as published."""


class CopyPaste(StudentMethod[CopyPasteSettings]):
    """A student and its moving average, which labels."""

    pseudo_loss: ClassVar[str] = "pseudo_loss"

    def step(self, labelled: Batch, unlabelled: UnlabelledBatch | None, draw: Draw) -> dict[str, Tensor]:
        """As `Method.step`."""
        if draw.step == self.phases.warmup_stop > 0 and self.student.average:
            self.student.restart(self.student.average.network)
        if unlabelled is None:
            warm = self.phases.name(draw.step) == "warmup"
            return self.labelled_step(self._among_labelled(labelled, draw) if warm else labelled)
        with torch.no_grad():
            logits = label_images(self.student.settled, unlabelled.weak, self.autocast)
        labels = largest_components(logits.argmax(1))
        images, truth, taught = mixed_both_ways(labelled, unlabelled.strong, labels, self._boxes(labelled, draw))
        if self.ignore is not None:
            truth = truth.masked_fill(truth >= self.ignore, HIDDEN)
        logits = self.student.logits(images)
        both = zip(truth.chunk(2), taught.chunk(2), logits.chunk(2), strict=True)
        losses = [[self.losses.labelled(labels, x, HIDDEN) for labels in pair] for *pair, x in both]
        # Each direction by itself, as published: the voxels of boxes weigh as much as those around them.
        loss_true, loss_taught = (torch.stack(found).mean() for found in zip(*losses, strict=True))
        loss = loss_true + self.settings.unlabelled_weight * loss_taught
        norm = self.student.step(loss, self.learning_rate_factor)
        return {"labelled_loss": loss_true.detach(), "pseudo_loss": loss_taught.detach(), "gradient_norm": norm}

    def _boxes(self, labelled: Batch, draw: Draw) -> np.ndarray:
        depth, height, width = labelled.labels.shape[1:]
        return sample_boxes(draw, len(labelled.images), (depth, height, width), BOX_EDGE)

    def _among_labelled(self, labelled: Batch, draw: Draw) -> Batch:
        """Each patch with a box of the one before."""
        boxes = self._boxes(labelled, draw)
        return Batch(
            apply_cutmix(labelled.images, labelled.images.roll(1, 0), boxes)[0],
            apply_cutmix(labelled.labels, labelled.labels.roll(1, 0), boxes)[0],
        )


def mixed_both_ways(
    labelled: Batch, images: Tensor, labels: Tensor, boxes: np.ndarray
) -> tuple[Tensor, Tensor, Tensor]:
    """Unlabelled boxes in the first half of the labelled patches, then labelled boxes, from the other half, in the
    second half of the unlabelled ones: `B` patches, as published (one patch is its own other half, and gives 2).

    images, labels: the unlabelled patches and their pseudo-labels `(B, D, H, W)`. boxes: one for each patch of a half,
    used in both directions. Returns images, and the true and the pseudo-labels with `HIDDEN` where the other counts.
    """
    half = math.ceil(len(images) / 2)
    first, second, boxes = slice(half), slice(len(images) - half, None), boxes[:half]
    hidden = torch.full_like(labels[first], HIDDEN)
    mixed = torch.cat(
        [
            apply_cutmix(labelled.images[first], images[first], boxes)[0],
            apply_cutmix(images[second], labelled.images[second], boxes)[0],
        ]
    )
    truth = torch.cat(
        [
            apply_cutmix(labelled.labels[first], hidden, boxes)[0],
            apply_cutmix(hidden, labelled.labels[second], boxes)[0],
        ]
    )
    taught = torch.cat([apply_cutmix(hidden, labels[first], boxes)[0], apply_cutmix(labels[second], hidden, boxes)[0]])
    return mixed, truth, taught


def largest_components(labels: Tensor) -> Tensor:
    """Label maps `(B, D, H, W)` with the largest component of each class; what is removed becomes background."""
    cleaned = labels.to(torch.int16, copy=True).cpu().numpy()
    for patch in cleaned:
        for value in np.unique(patch[patch > 0]):
            mask = patch == value
            patch[mask & ~largest_component(mask)] = 0
    return torch.from_numpy(cleaned).to(labels)
