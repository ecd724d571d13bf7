"""Pseudo-labelling in rounds, filtered by agreement between rounds (what FLARE22's winner, Huang et al., did by hand).

In every round a network that stands still labels the unlabelled patches, as they are drawn or in whole scans before,
and the student learns from these labels and from the true ones; then the student labels for the next round. From the
second round on, voxels on which the last two rounds disagree do not count, nor do patches that they disagree on
altogether (where patches are labelled). Shapes: B batch, C channels, K classes, D H W voxels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from semiseg.errors import ConfigError
from semiseg.losses import supervised_loss
from semiseg.methods.agreement import contradicted
from semiseg.methods.base import HIDDEN, Batch, UnlabelledBatch
from semiseg.methods.learner import StudentMethod, label_images
from semiseg.methods.phases import Phases
from semiseg.methods.settings import MethodSettings
from semiseg.models.unet import UNet3d
from semiseg.randomness import Draw


class PseudoRounds(StudentMethod):
    """A student, the network that labels in this round, and the one that labelled in the round before."""

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
        length = phases.train_stop - phases.warmup_stop
        if not length:
            raise ConfigError(
                "method.warmup_fraction and method.finetune_fraction leave no step to learn from unlabelled scans in. "
                "Lower one of them."
            )
        rounds = settings.rounds_of(length)
        if length < rounds:
            raise ConfigError(
                f"method.rounds = {rounds}, but only {length} steps follow the warm-up. Raise train.steps."
            )
        self._starts = [phases.warmup_stop, *phases.cuts(rounds - 1)]
        self._teachers = {name: copy.deepcopy(student).requires_grad_(False) for name in ("teacher", "teacher_before")}
        self.networks |= self._teachers
        if settings.labels_whole_scans:
            self.scans_labelled_anew = self._starts[1:]

    def scan_labellers(self, step: int) -> Sequence[str]:
        """As `Method.scan_labellers`; before the first step of a round the student is not its teacher yet."""
        if not self.settings.labels_whole_scans:
            return ()
        now = (self.evaluated, "teacher") if step in self._starts else ("teacher", "teacher_before")
        return now[: 1 + self._after_the_first_round(step)]

    def step(self, labelled: Batch, unlabelled: UnlabelledBatch | None, draw: Draw) -> dict[str, Tensor]:
        """As `Method.step`."""
        if draw.step in self._starts:
            self._begin_round(first=draw.step == self._starts[0])
        if unlabelled is None:
            return self.labelled_step(labelled)
        labels = unlabelled.labels
        if labels is None:
            with torch.no_grad():
                labels = self._taught(unlabelled.weak, draw.step)
        count = len(labelled.images)
        logits = self.student.logits(torch.cat([labelled.images, unlabelled.strong]))
        loss = supervised_loss(labelled.labels, logits[:count], ignore=self.ignore)
        pseudo = supervised_loss(labels, logits[count:], ignore=HIDDEN)
        total = loss + self.settings.weight_of_unlabelled * pseudo
        norm = self.student.step(total, self.learning_rate_factor)
        return {
            "labelled_loss": loss.detach(),
            "pseudo_loss": pseudo.detach(),
            "counted": (labels != HIDDEN).float().mean(),
            "gradient_norm": norm,
        }

    def _after_the_first_round(self, step: int) -> bool:
        return any(step >= start for start in self._starts[1:])

    def _begin_round(self, *, first: bool) -> None:
        teacher, before = self._teachers["teacher"], self._teachers["teacher_before"]
        before.load_state_dict(teacher.state_dict())
        teacher.load_state_dict(self.student.settled.state_dict())
        if first and self.settings.restart_rate:
            self.student.restart(teacher)

    def _taught(self, images: Tensor, step: int) -> Tensor:
        """The labels `(B, D, H, W)` of this round, `HIDDEN` where they do not count."""
        labels, classes = self._labels("teacher", images)
        if not self._after_the_first_round(step):
            return labels
        before, _ = self._labels("teacher_before", images)
        return labels.masked_fill(contradicted(labels, before, classes, self.settings.round_agreement), HIDDEN)

    def _labels(self, teacher: str, images: Tensor) -> tuple[Tensor, int]:
        logits = label_images(self._teachers[teacher], images, self.settings.teacher_mode, self.autocast)
        return logits.argmax(1), logits.shape[1]
