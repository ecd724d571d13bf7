"""Pseudo-labelling: a teacher learns from labels, then a student from what the teacher says of unlabelled scans.

The teacher labels whole scans once, after the warm-up, or each patch as it is drawn. Half of what the student sees has
true labels in their place. Shapes: B batch, C channels, K classes, D H W voxels. Symbols as in docs/method.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from semiseg.augment.cutmix import box_mask, sample_boxes
from semiseg.losses import one_hot
from semiseg.methods.base import Batch, Judged, UnlabelledBatch
from semiseg.methods.learner import Learner, StudentMethod, label_images
from semiseg.methods.optimiser import Parameters
from semiseg.methods.settings import MplSettings, PseudoLabelSettings
from semiseg.models.layers import Network
from semiseg.randomness import Draw

Metrics = dict[str, Tensor]
CERTAIN = 1e-7
"""Probability of the classes that a label map does not name."""
NOT_TAUGHT = -100
"""In the teacher's hard labels: a voxel whose label the student was not taught."""
BOX_EDGE = (0.3, 0.7)
"""Range of a box's edge relative to the patch's; around the 2/3 of bidirectional copy-paste."""


@dataclass(frozen=True)
class Lesson:
    """What the student is taught in one step, and the teacher's graph behind it.

    images: the student's batch. q: its pseudo-label, true labels included, with a graph to the teacher. weight: 0 where
    true labels are to be ignored, or None. log_q: the teacher's log-probabilities, without true labels. labels: its
    hard labels `(B, D, H, W)`, `NOT_TAUGHT` where true ones hid them from the student.
    """

    images: Tensor
    q: Tensor
    weight: Tensor | None
    log_q: Tensor
    labels: Tensor


Settings = TypeVar("Settings", bound=PseudoLabelSettings | MplSettings)


class TeacherAndStudent(StudentMethod[Settings], Generic[Settings]):
    """A teacher, its student and the steps that both kinds have in common."""

    learner_names: ClassVar[tuple[str, ...]] = ("student", "teacher")
    pseudo_loss: ClassVar[str] = "pseudo_loss"
    temperature: ClassVar[float] = 0.5
    """Divides the teacher's logits before the softmax; below 1 sharpens the pseudo-label."""
    boxes: ClassVar[bool] = False
    """Where true labels are put: every second patch of the student's, whole; or a box of each patch, and all but a box
    of every second one, so that each patch has some of the teacher's."""

    def set_up(self, networks: Mapping[str, Network]) -> None:
        """As `StudentMethod.set_up`."""
        super().set_up(networks)
        self.labeller = "teacher"
        self.doubter = self.teacher.evaluated
        self._same_size = _sizes(networks["teacher"]) == _sizes(networks["student"])

    @property
    def teacher(self) -> Learner:
        """The one whose labels the student learns."""
        return self.learners["teacher"]

    def judged(self, step: int) -> Judged:
        """As `Method.judged`."""
        phase = self.phases.name(step)
        if phase == "warmup":
            return Judged(self.teacher.evaluated, "labelled_loss")
        return Judged(self.evaluated, "pseudo_loss" if phase == "train" else "student_labelled_loss")

    def step(self, labelled: Batch, unlabelled: UnlabelledBatch | None, draw: Draw) -> Metrics:
        """As `Method.step`."""
        if draw.step == self.phases.warmup_stop:
            self._start_student()
        phase = self.phases.name(draw.step)
        if phase == "warmup":
            return self.teacher.labelled_step(labelled, self.learning_rate_factor)
        if phase == "finetune" or unlabelled is None:
            metrics = self.student.labelled_step(labelled, self.learning_rate_factor)
            return {"student_labelled_loss": metrics.pop("labelled_loss")} | metrics
        rate = self.settings.optimiser.learning_rate * self.learning_rate_factor
        lesson = self._mixed(self._taught(unlabelled, draw), labelled, draw)
        pseudo_loss, gradient = self._study(lesson)
        metrics = {"pseudo_loss": pseudo_loss, "confidence": lesson.log_q.detach().amax(1).exp().mean()}
        metrics |= self._move_teacher(lesson, gradient, labelled, draw, rate)
        metrics["gradient_norm"] = self.student.update(gradient, rate)
        return metrics

    def _move_teacher(self, lesson: Lesson, gradient: Parameters, labelled: Batch, draw: Draw, rate: float) -> Metrics:
        """What the teacher learns in a step of training, before the student moves: nothing here."""
        return {}

    def _wants_graph(self, draw: Draw) -> bool:
        """Whether the teacher learns from this step's labels."""
        return False

    def _taught(self, unlabelled: UnlabelledBatch, draw: Draw) -> Lesson:
        """The teacher labels the weak view, unless it labelled the whole scan before. Where it does not learn from this
        step its average labels, which does not shake as a moving teacher does."""
        if unlabelled.labels is not None:
            labels = one_hot(unlabelled.labels, self.student.network.classes, dtype=unlabelled.strong.dtype)
            log_q = labels.clamp_min(CERTAIN).log()
        else:
            with torch.set_grad_enabled(self._wants_graph(draw)):
                log_q = self.soft_labels(
                    unlabelled.weak, self.teacher.network if self._wants_graph(draw) else self.teacher.settled
                )
        return taught_lesson(unlabelled.strong, log_q)

    def soft_labels(self, images: Tensor, network: nn.Module) -> Tensor:
        """A network's log-probabilities of images at the temperature; no state changes."""
        return functional.log_softmax(label_images(network, images, self.autocast) / self.temperature, dim=1)

    def _mixed(self, lesson: Lesson, labelled: Batch, draw: Draw) -> Lesson:
        """Parts of the labelled patches and their labels in the place of parts of the student's.

        Voxels of which the label is not known get weight 0. What was pasted depends on the teacher no more.
        """
        is_true = self._true_voxels(lesson.labels, draw)
        everywhere = is_true[:, None]
        weight = None
        if self.ignore is not None:
            known = (labelled.labels < self.ignore).float()[:, None]
            weight = torch.where(everywhere, known, torch.ones_like(known))
        return replace(
            lesson,
            images=torch.where(everywhere, labelled.images, lesson.images),
            q=torch.where(everywhere, one_hot(labelled.labels, lesson.q.shape[1]), lesson.q),
            weight=weight,
            labels=lesson.labels.masked_fill(is_true, NOT_TAUGHT),
        )

    def _true_voxels(self, labels: Tensor, draw: Draw) -> Tensor:
        """Where the student's patches are to be labelled ones, `(B, D, H, W)` bool."""
        depth, height, width = labels.shape[1:]
        mask = torch.zeros_like(labels, dtype=torch.bool)
        if self.boxes:
            boxes = sample_boxes(draw, len(labels), (depth, height, width), BOX_EDGE)
            mask = box_mask(boxes, (depth, height, width), labels.device)
        # Every second patch of the whole batch, whichever is first, so that each has both of its forms.
        first = int(draw.at(sample=0).generator("which cut-mix is reversed").integers(2)) - draw.sample
        mask[first % 2 :: 2] = ~mask[first % 2 :: 2]
        return mask

    def _study(self, lesson: Lesson) -> tuple[Tensor, Parameters]:
        """The student's one pass on its batch, which moves its running statistics, and its gradient."""
        loss = self.losses.pseudo(lesson.q.detach(), self.student.logits(lesson.images), lesson.weight)
        return loss.detach(), self.student.gradient(loss)

    def _start_student(self) -> None:
        """After the warm-up the student begins from the teacher where the sizes agree. Where the warm-up decays on its
        own, the teacher too goes on from its averaged weights."""
        settled = self.teacher.settled
        if self.teacher.average and self.settings.phases.restart_rate:
            self.teacher.restart(settled)
        if self._same_size:
            self.student.restart(settled)


class PseudoLabel(TeacherAndStudent[PseudoLabelSettings]):
    """The teacher stands still once it labels."""

    def set_up(self, networks: Mapping[str, Network]) -> None:
        """As `StudentMethod.set_up`."""
        super().set_up(networks)
        self.scans_to_label = self.settings.label_scans

    @property
    def labelling_steps(self) -> Sequence[int]:
        """As `Method.labelling_steps`."""
        return [self.phases.warmup_stop] if self.settings.label_scope == "scan" else ()

    def scan_labellers(self, step: int) -> Sequence[str]:
        """As `Method.scan_labellers`."""
        return (self.teacher.evaluated,) if self.settings.label_scope == "scan" else ()


def taught_lesson(images: Tensor, log_q: Tensor) -> Lesson:
    """The teacher's labels for the student's images."""
    return Lesson(images, log_q.exp(), None, log_q, log_q.detach().argmax(1))


def _sizes(network: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, value.shape) for name, value in network.state_dict().items()]
