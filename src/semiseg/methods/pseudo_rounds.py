"""Pseudo-labelling in rounds, filtered by agreement between rounds (what FLARE22's winner, Huang et al., did by hand).

A network learns from labels alone at first. In every round then the network as it is labels unlabelled scans, whole or
patch by patch as they are drawn, and goes on with batches of which a half has true labels and the other half these;
voxels on which the network and an earlier state of it disagree do not count. A step costs as much as one on labels
alone, and the learning rate falls once over the whole run, so a round whose labels are not to be trusted is training on
labels alone. Shapes: B batch, C channels, K classes, D H W voxels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from semiseg.losses import supervised_loss
from semiseg.methods.agreement import contradicted
from semiseg.methods.base import HIDDEN, Batch, UnlabelledBatch
from semiseg.methods.learner import StudentMethod, label_images
from semiseg.methods.phases import Phases
from semiseg.methods.settings import MethodSettings
from semiseg.models.unet import UNet3d
from semiseg.randomness import Draw

SNAPSHOT = 0.8
"""Share of the warm-up after which the network is remembered, to be held against the one that labels first."""


class PseudoRounds(StudentMethod):
    """A student, the state of it that labels in this round, and the one before."""

    pseudo_loss = "pseudo_loss"

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
        self._teachers = {name: copy.deepcopy(student).requires_grad_(False) for name in ("teacher", "teacher_before")}
        self.networks |= self._teachers

    @property
    def _starts(self) -> list[int]:
        """The first steps of the rounds."""
        return [self.phases.warmup_stop, *self.phases.cuts(self.settings.rounds - 1)]

    @property
    def scans_labelled_anew(self) -> Sequence[int]:
        """As `Method.scans_labelled_anew`."""
        return self._starts[1:] if self.settings.labels_whole_scans else ()

    def scan_labellers(self, step: int) -> Sequence[str]:
        """As `Method.scan_labellers`; before the first step of a round the student is not its teacher yet."""
        if not self.settings.labels_whole_scans:
            return ()
        return (self.evaluated, "teacher") if step in self._starts else ("teacher", "teacher_before")

    def step(self, labelled: Batch, unlabelled: UnlabelledBatch | None, draw: Draw) -> dict[str, Tensor]:
        """As `Method.step`."""
        if draw.step in self._starts:
            self._teachers["teacher_before"].load_state_dict(self._teachers["teacher"].state_dict())
            self._remember()
        elif draw.step == self.phases.timeline.step_at(SNAPSHOT * self.phases.shares[0]):
            self._remember()
        if unlabelled is None:
            return self.labelled_step(labelled)
        labels = unlabelled.labels
        if labels is None:
            with torch.no_grad():
                labels = self._taught(unlabelled.weak)
        # Every second patch of each batch, whichever is first: patches on organs and anywhere come in turn.
        first = draw.step % 2 if len(labelled.images) > 1 else 0
        true, strong = Batch(labelled.images[first::2], labelled.labels[first::2]), unlabelled.strong[first::2]
        count, labels = len(true.images), labels[first::2]
        logits = self.student.logits(torch.cat([true.images, strong]))
        loss = supervised_loss(true.labels, logits[:count], ignore=self.ignore)
        pseudo = supervised_loss(labels, logits[count:], ignore=HIDDEN)
        total = (loss + self.settings.weight_of_unlabelled * pseudo) / 2
        norm = self.student.step(total, self.learning_rate_factor)
        return {
            "labelled_loss": loss.detach(),
            "pseudo_loss": pseudo.detach(),
            "counted": (labels != HIDDEN).float().mean(),
            "gradient_norm": norm,
        }

    def _remember(self) -> None:
        self._teachers["teacher"].load_state_dict(self.student.settled.state_dict())

    def _taught(self, images: Tensor) -> Tensor:
        """The labels `(B, D, H, W)` of this round, `HIDDEN` where they do not count."""
        (labels, classes), (before, _) = self._labels("teacher", images), self._labels("teacher_before", images)
        return labels.masked_fill(contradicted(labels, before, classes, self.settings.round_agreement), HIDDEN)

    def _labels(self, teacher: str, images: Tensor) -> tuple[Tensor, int]:
        logits = label_images(self._teachers[teacher], images, self.settings.teacher_mode, self.autocast)
        return logits.argmax(1), logits.shape[1]
