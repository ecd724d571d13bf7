"""Meta Pseudo Labels for 3D segmentation: a teacher that learns from what its labels do to the student.

One step of the training phase: the teacher labels the unlabelled patches -> the student's loss on those labels gives
its gradient -> a probe step measures what that gradient does to the student's loss on labelled patches -> the teacher
moves by that feedback and by its own supervised gradient -> the student takes its real step.
Shapes: B batch, C channels, K classes, D H W voxels. Symbols as in docs/method.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from semiseg.methods.base import Batch
from semiseg.methods.feedback import (
    dense_feedback,
    dense_teacher_term,
    labelled_gradient_at,
    labelled_loss_at,
    scalar_feedback,
    scalar_teacher_term,
    sgd_probe,
)
from semiseg.methods.optimiser import Parameters, global_norm
from semiseg.methods.pseudo_label import Lesson, Metrics, TeacherAndStudent, taught_lesson
from semiseg.methods.settings import MplSettings
from semiseg.models.layers import Network, batch_statistics_only
from semiseg.randomness import Draw
from semiseg.world import total

SMALLEST_FEEDBACK, LARGEST_FACTOR = 1e-12, 1e8
"""Where the meta gradient is normalised: a smaller norm is divided by this, so that no feedback stays no feedback, and
the largest factor."""
BASELINE_DECAY = 0.99
"""Of the moving average that scalar feedback is compared with."""


class MetaPseudoLabels(TeacherAndStudent[MplSettings]):
    """A teacher that moves every so many steps, by labels and by the student's feedback."""

    boxes: ClassVar[bool] = True
    probe_rate: ClassVar[float] = 0.01
    """Learning rate of the student's step across which feedback is measured: plain SGD, since momentum would replay old
    pseudo-labels and credit the wrong ones."""

    def set_up(self, networks: Mapping[str, Network]) -> None:
        """As `StudentMethod.set_up`."""
        super().set_up(networks)
        self.baseline = torch.zeros((), dtype=torch.float64)
        self.period = self.settings.teacher_every

    def _wants_graph(self, draw: Draw) -> bool:
        return draw.step % self.settings.teacher_every == 0

    def _move_teacher(self, lesson: Lesson, gradient: Parameters, labelled: Batch, draw: Draw, rate: float) -> Metrics:
        if not self._wants_graph(draw):
            return {}
        term, measured = self._feedback(lesson, gradient, labelled)
        # Before the labelled pass, which moves the running statistics that the labels were made with.
        meta = self.teacher.gradient(term)
        loss = self.teacher.labelled_loss(labelled)
        teacher_gradient, ratio = self._add_meta_gradient(self.teacher.gradient(loss), meta)
        norm = self.teacher.update(teacher_gradient, self.settings.teacher_rate * rate)
        return {
            "labelled_loss": loss.detach(),
            "feedback": measured,
            "feedback_ratio": ratio,
            "teacher_gradient_norm": norm,
        }

    def _feedback(self, lesson: Lesson, gradient: Parameters, labelled: Batch) -> tuple[Tensor, Tensor]:
        """The teacher's meta term, with a graph, and the number to log. Differences and derivatives are in float32; the
        gradient after the probe is in the precision of training, as others are."""
        student, images, labels = self.student.network, labelled.images, labelled.labels
        parameters = {k: v.detach() for k, v in self.student.optimiser.parameters.items()}
        probe = sgd_probe(parameters, gradient, self.probe_rate)
        if self.settings.feedback == "dense":
            with torch.autocast(images.device.type, self.autocast, enabled=self.autocast is not None):
                _, g_plus = labelled_gradient_at(student, probe, images, labels, self.ignore, self.losses)
            feedback = dense_feedback(
                student,
                parameters,
                lesson.images,
                lesson.q.detach(),
                lesson.weight,
                g_plus,
                rate=self.probe_rate,
                losses=self.losses,
            )
            return dense_teacher_term(feedback, lesson.q), total(feedback.abs().sum())
        before = labelled_loss_at(student, parameters, images, labels, self.ignore, self.losses)
        after = labelled_loss_at(student, probe, images, labels, self.ignore, self.losses)
        h = scalar_feedback(before, after)
        term = scalar_teacher_term(h, self.baseline.to(h), lesson.log_q, lesson.labels)
        self.baseline = BASELINE_DECAY * self.baseline + (1 - BASELINE_DECAY) * h.double()
        return term, h

    def _add_meta_gradient(self, supervised: Parameters, meta: Parameters) -> tuple[Parameters, Tensor]:
        """The teacher's gradient with the meta term's added, and the ratio of the two norms as added. Dense feedback is
        brought to its share of the supervised gradient; scalar feedback is taken as it is (the paper)."""
        meta_norm, supervised_norm = global_norm(meta), global_norm(supervised)
        scale = torch.ones_like(meta_norm)
        if self.settings.feedback == "dense":
            wanted = self.settings.feedback_ratio * supervised_norm
            scale = (wanted / meta_norm.clamp_min(SMALLEST_FEEDBACK)).clamp_max(LARGEST_FACTOR)
        ratio = scale * meta_norm / supervised_norm.clamp_min(1e-12)
        scaled = torch._foreach_mul([meta[name] for name in supervised], scale)
        added = torch._foreach_add(list(supervised.values()), scaled)
        return dict(zip(supervised, added, strict=True)), ratio

    def feedback_map(self, labelled: Batch, images: Tensor) -> tuple[Tensor, Tensor] | None:
        """As `Method.feedback_map`, of dense feedback.

        With `d = dJ/dq` it is `sum_k q_k d_k - d_y`: positive where the label given helped the student, against what
        the pseudo-label spreads over all classes, and negative where it hurt.
        """
        if self.settings.feedback != "dense":
            return None
        student = self.student.network
        with torch.no_grad():
            lesson = taught_lesson(images, self.soft_labels(images, self.teacher.network))
        with batch_statistics_only(student):
            gradient = self.student.gradient(self.losses.pseudo(lesson.q, student(images), None))
        parameters = {k: v.detach() for k, v in self.student.optimiser.parameters.items()}
        probe = sgd_probe(parameters, gradient, self.probe_rate)
        _, g_plus = labelled_gradient_at(student, probe, labelled.images, labelled.labels, self.ignore, self.losses)
        feedback = dense_feedback(
            student, parameters, images, lesson.q, None, g_plus, rate=self.probe_rate, losses=self.losses
        )
        given = lesson.labels
        return given, (lesson.q * feedback).sum(1) - feedback.gather(1, given[:, None])[:, 0]

    def state(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """As `Method.state`."""
        tensors, numbers = super().state()
        return tensors, numbers | {"baseline": float(self.baseline)}

    def load_state(self, tensors: dict[str, Tensor], numbers: dict[str, float]) -> None:
        """As `Method.load_state`."""
        super().load_state(tensors, numbers)
        self.baseline = torch.tensor(numbers["baseline"], dtype=torch.float64)
