"""Meta Pseudo Labels for 3D segmentation, and pseudo-labelling as its case without feedback.

One step of the training phase: the teacher labels the unlabelled patches -> the student's loss on those labels gives
its gradient -> a probe step measures what that gradient does to the student's loss on labelled patches -> the teacher
moves by that feedback and by its own supervised gradient -> the student takes its real step. A teacher that stands
still has labelled the whole scans before, and unlabelled patches come with its labels.
Shapes: B batch, C channels, K classes, D H W voxels. Symbols as in docs/method.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from semiseg.augment.cutmix import box_mask, sample_boxes
from semiseg.errors import ConfigError
from semiseg.losses import PseudoDice, one_hot, pseudo_label_loss
from semiseg.methods.base import Batch, Judged, UnlabelledBatch
from semiseg.methods.feedback import (
    NOT_TAUGHT,
    Probe,
    dense_feedback,
    dense_teacher_term,
    labelled_gradient_at,
    labelled_loss_at,
    real_probe,
    scalar_feedback,
    scalar_teacher_term,
    sgd_probe,
)
from semiseg.methods.learner import Learner, StudentMethod, label_images
from semiseg.methods.optimiser import Parameters, global_norm
from semiseg.methods.phases import Phases
from semiseg.methods.settings import MethodSettings
from semiseg.models.unet import UNet3d, batch_statistics_only
from semiseg.randomness import Draw

Metrics = dict[str, Tensor]
CERTAIN = 1e-7
"""Probability of the classes that a label map does not name."""
SMALLEST_FEEDBACK, LARGEST_FACTOR = 1e-12, 1e8
"""Where the meta gradient is normalised: a smaller norm is divided by this, so that no feedback stays no feedback, and
the largest factor."""
BOX_EDGE = (0.3, 0.7)
"""Range of a cut-mix box's edge relative to the patch's; around the 2/3 of bidirectional copy-paste."""


@dataclass(frozen=True)
class Lesson:
    """What the student is taught in one step, and the teacher's graph behind it.

    images: the student's batch. q: its pseudo-label with a graph to the teacher (cut-mix included). target: what the
    loss sees, without a graph. weight: confidence, or None. dice: its Dice.
    log_q: the teacher's log-probabilities, not cut-mixed. labels: its hard labels `(B, D, H, W)`, `NOT_TAUGHT` where
    cut-mix or low confidence hid them from the student.
    """

    images: Tensor
    q: Tensor
    target: Tensor
    weight: Tensor | None
    dice: PseudoDice
    log_q: Tensor
    labels: Tensor


class MetaPseudoLabels(StudentMethod):
    """Teacher and student; `feedback` None is plain pseudo-labelling."""

    def __init__(
        self,
        teacher: UNet3d,
        student: UNet3d,
        settings: MethodSettings,
        phases: Phases,
        *,
        ignore: int | None,
        autocast: torch.dtype | None,
    ) -> None:
        super().__init__(student, settings, phases, others={"teacher": teacher}, ignore=ignore, autocast=autocast)
        self.feedback = settings.feedback if settings.name == "mpl" else None
        self.labeller = "teacher"
        self.baseline = 0.0
        self._same_size = _sizes(teacher) == _sizes(student)
        if settings.student_start == "teacher" and not self._same_size:
            raise ConfigError('method.student_start = "teacher", but the networks differ in size: choose "fresh".')

    @property
    def teacher(self) -> Learner:
        """The one whose labels the student learns."""
        return self.learners["teacher"]

    @property
    def labelling_steps(self) -> Sequence[int]:
        """As `Method.labelling_steps`."""
        return [self.phases.warmup_stop] if self.settings.labels_whole_scans else ()

    def judged(self, step: int) -> Judged:
        """As `Method.judged`."""
        phase = self.phases.name(step)
        if phase == "warmup":
            return Judged(self.teacher.evaluated, "labelled_loss")
        return Judged(self.evaluated, "pseudo_loss" if phase == "train" else "student_labelled_loss")

    def scan_labellers(self, step: int) -> Sequence[str]:
        """As `Method.scan_labellers`."""
        return (self.teacher.evaluated,) if self.settings.labels_whole_scans else ()

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
        return self._training_step(labelled, unlabelled, draw)

    # One training step, in the order of updates that method.md sets.

    def _training_step(self, labelled: Batch, unlabelled: UnlabelledBatch, draw: Draw) -> Metrics:
        rate = self.settings.first_learning_rate * self.learning_rate_factor
        lesson = self._teach(labelled, unlabelled, draw)
        pseudo_loss, gradient = self._study(lesson)
        metrics = {"pseudo_loss": pseudo_loss, "confidence": lesson.log_q.detach().amax(1).exp().mean()}

        teacher_gradient: Parameters | None = None
        if self._teacher_moves(draw.step):
            loss = self.teacher.labelled_loss(labelled)
            metrics["labelled_loss"], teacher_gradient = loss.detach(), self.teacher.gradient(loss)
            if self.feedback:
                term, measured = self._feedback(lesson, gradient, labelled, rate)
                teacher_gradient, ratio = self._add_meta_gradient(teacher_gradient, term)
                metrics |= {"feedback": measured, "feedback_ratio": ratio}
        if self.settings.student_supervised_weight:
            with batch_statistics_only(self.student.network):
                loss = self.student.labelled_loss(labelled)
                extra = self.student.gradient(loss)
            gradient = _add(gradient, extra, self.settings.student_supervised_weight)
            metrics["student_labelled_loss"] = loss.detach()

        if teacher_gradient is not None:
            teacher_rate = self.settings.teacher_rate * rate
            metrics["teacher_gradient_norm"] = self.teacher.update(teacher_gradient, teacher_rate)
        metrics["gradient_norm"] = self.student.update(gradient, rate)
        return metrics

    def _teacher_moves(self, step: int) -> bool:
        every = self.settings.teacher_moves_every
        return every > 0 and step % every == 0

    def _teach(self, labelled: Batch, unlabelled: UnlabelledBatch, draw: Draw) -> Lesson:
        """The teacher labels the weak view, unless it labelled the whole scan before; its pass keeps a graph only if
        feedback will use it.

        Without feedback its average labels, which does not shake as a moving teacher does.
        """
        if unlabelled.labels is not None:
            log_q = one_hot(unlabelled.labels, self.student.network.classes).clamp_min(CERTAIN).log()
        else:
            wants_graph = self.feedback is not None and self._teacher_moves(draw.step)
            network = self.teacher.network if wants_graph else self.teacher.settled
            with torch.set_grad_enabled(wants_graph):
                log_q = self.soft_labels(unlabelled.weak, network)
        lesson = self._lesson(unlabelled.strong, log_q)
        return self._mixed(lesson, labelled, draw) if self.settings.cutmix_fraction else lesson

    def soft_labels(self, images: Tensor, network: nn.Module | None = None) -> Tensor:
        """The teacher's (or another network's) log-probabilities of images at the temperature, by `teacher_mode`; no
        state changes."""
        logits = label_images(network or self.teacher.network, images, self.settings.teacher_mode, self.autocast)
        return functional.log_softmax(logits / self.settings.temperature, dim=1)

    def _lesson(self, images: Tensor, log_q: Tensor) -> Lesson:
        """What the settings make of the teacher's labels for the student's images."""
        q = log_q.exp()
        target = q.detach()
        if self.settings.pseudo_label == "hard":
            target = one_hot(target.argmax(1), target.shape[1])
        weight, labels = None, log_q.detach().argmax(1)
        if self.settings.confidence_threshold > 0:
            confident = q.detach().amax(1) >= self.settings.confidence_threshold
            weight, labels = confident[:, None].float(), labels.masked_fill(~confident, NOT_TAUGHT)
        dice = PseudoDice(semimetric=self.settings.student_dice == "semimetric")
        if self.settings.student_dice == "off":
            dice = PseudoDice(torch.zeros_like(target[:, :1]))
        return Lesson(images, q, target, weight, dice, log_q, labels)

    def _mixed(self, lesson: Lesson, labelled: Batch, draw: Draw) -> Lesson:
        """Parts of the labelled patches and their labels in the place of parts of the student's.

        Voxels of the ignore value get weight 0. What was pasted depends on the teacher no more.
        """
        is_true = self._true_voxels(lesson.labels, draw)
        everywhere = is_true[:, None]
        pasted = one_hot(labelled.labels, lesson.q.shape[1])
        known = torch.ones_like(pasted[:, :1])
        if self.ignore is not None:
            known = (labelled.labels != self.ignore).float()[:, None]
        weight = lesson.weight
        if weight is not None or self.ignore is not None:
            weight = torch.where(everywhere, known, torch.ones_like(known) if weight is None else weight)
        return replace(
            lesson,
            images=torch.where(everywhere, labelled.images, lesson.images),
            q=torch.where(everywhere, pasted, lesson.q),
            target=torch.where(everywhere, pasted, lesson.target),
            weight=weight,
            labels=lesson.labels.masked_fill(is_true, NOT_TAUGHT),
        )

    def _true_voxels(self, labels: Tensor, draw: Draw) -> Tensor:
        """Where the student's patches are to be labelled ones, `(B, D, H, W)` bool."""
        depth, height, width = labels.shape[1:]
        if self.settings.used_cutmix_ways == "whole":
            mask = torch.zeros_like(labels, dtype=torch.bool)
        else:
            boxes = sample_boxes(draw, len(labels), (depth, height, width), BOX_EDGE)
            mask = box_mask(boxes, (depth, height, width), labels.device)
        if self.settings.used_cutmix_ways != "one":
            # Every second patch, whichever is first, so that each has both of its forms.
            first = int(draw.generator("which cut-mix is reversed").integers(2))
            mask[first::2] = ~mask[first::2]
        for i in range(len(mask)):
            if draw.at(sample=i).generator("whether to cut-mix").random() >= self.settings.cutmix_fraction:
                mask[i] = False
        return mask

    def _study(self, lesson: Lesson) -> tuple[Tensor, Parameters]:
        """The student's one pass on its batch, which moves its running statistics, and its gradient."""
        loss = pseudo_label_loss(lesson.target, self.student.logits(lesson.images), lesson.weight, lesson.dice)
        return loss.detach(), self.student.gradient(loss)

    def _feedback(self, lesson: Lesson, gradient: Parameters, labelled: Batch, rate: float) -> tuple[Tensor, Tensor]:
        """The teacher's meta term, with a graph, and the number to log. Differences and derivatives are in float32; the
        gradient after the probe is in the precision of training, as others are."""
        parameters = {k: v.detach() for k, v in self.student.optimiser.parameters.items()}
        probe = self._probe(parameters, gradient, rate)
        images, labels = labelled.images, labelled.labels
        if self.feedback == "dense":
            with torch.autocast(images.device.type, self.autocast, enabled=self.autocast is not None):
                _, g_plus = labelled_gradient_at(self.student.network, probe.parameters, images, labels, self.ignore)
            feedback = dense_feedback(
                self.student.network,
                parameters,
                lesson.images,
                lesson.target,
                lesson.weight,
                probe,
                g_plus,
                dice=lesson.dice,
                derivative=self.settings.derivative_on(images.device.type),
                epsilon=self.settings.central_epsilon,
            )
            return dense_teacher_term(feedback, lesson.q), feedback.abs().sum()
        before = labelled_loss_at(self.student.network, parameters, images, labels, self.ignore)
        after = labelled_loss_at(self.student.network, probe.parameters, images, labels, self.ignore)
        h = scalar_feedback(before, after)
        term = scalar_teacher_term(h, self.baseline, lesson.log_q, lesson.labels)
        decay = self.settings.baseline_decay
        self.baseline = decay * self.baseline + (1 - decay) * float(h)
        return term, h

    def _probe(self, parameters: Parameters, gradient: Parameters, rate: float) -> Probe:
        if self.settings.probe == "sgd":
            return sgd_probe(parameters, gradient, self.settings.probe_rate)
        return real_probe(
            parameters,
            gradient,
            self.student.optimiser.momentum(),
            rate=rate,
            momentum=self.settings.momentum,
            weight_decay=self.settings.used_weight_decay,
            clip=self.settings.gradient_clip,
            nesterov=self.settings.momentum > 0,
        )

    def _add_meta_gradient(self, supervised: Parameters, term: Tensor) -> tuple[Parameters, Tensor]:
        """The teacher's gradient with the meta term's added, and the ratio of the two norms as added."""
        meta = self.teacher.gradient(term)
        meta_norm, supervised_norm = global_norm(meta), global_norm(supervised)
        scale: Tensor = torch.full_like(meta_norm, self.settings.feedback_weight)
        if self.settings.normalises_feedback:
            wanted = self.settings.feedback_ratio * supervised_norm
            scale = (wanted / meta_norm.clamp_min(SMALLEST_FEEDBACK)).clamp_max(LARGEST_FACTOR)
        ratio = scale * meta_norm / supervised_norm.clamp_min(1e-12)
        return {name: value + scale * meta[name] for name, value in supervised.items()}, ratio

    # Where a phase begins.

    def _start_student(self) -> None:
        """After the warm-up the student begins from the teacher where the sizes agree, unless told otherwise.

        Where the warm-up decays on its own, the teacher too goes on from its averaged weights.
        """
        settled = self.teacher.settled
        if self.settings.ema_decay and self.settings.used_restart_rate:
            self.teacher.restart(settled)
        if self._same_size and self.settings.student_start != "fresh":
            self.student.restart(settled)

    def feedback_map(self, labelled: Batch, images: Tensor) -> tuple[Tensor, Tensor]:
        """For a look at it: the teacher's labels `(B, D, H, W)` of a patch and the feedback on them.

        With `d = dJ/dq` it is `sum_k q_k d_k - d_y`: positive where the label given helped the student, against what
        the pseudo-label spreads over all classes, and negative where it hurt. No state changes.
        """
        with torch.no_grad():
            lesson = self._lesson(images, self.soft_labels(images))
        with batch_statistics_only(self.student.network):
            loss = pseudo_label_loss(lesson.target, self.student.network(images), lesson.weight, lesson.dice)
            gradient = self.student.gradient(loss)
        parameters = {k: v.detach() for k, v in self.student.optimiser.parameters.items()}
        probe = sgd_probe(parameters, gradient, self.settings.probe_rate)
        _, g_plus = labelled_gradient_at(
            self.student.network, probe.parameters, labelled.images, labelled.labels, self.ignore
        )
        feedback = dense_feedback(
            self.student.network,
            parameters,
            images,
            lesson.target,
            lesson.weight,
            probe,
            g_plus,
            dice=lesson.dice,
        )
        given = lesson.log_q.argmax(1)
        return given, (lesson.q * feedback).sum(1) - feedback.gather(1, given[:, None])[:, 0]

    def state(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """As `Method.state`."""
        tensors, numbers = super().state()
        return tensors, numbers | {"baseline": self.baseline}

    def load_state(self, tensors: dict[str, Tensor], numbers: dict[str, float]) -> None:
        """As `Method.load_state`."""
        super().load_state(tensors, numbers)
        self.baseline = numbers["baseline"]


def _sizes(network: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, value.shape) for name, value in network.state_dict().items()]


def _add(a: Parameters, b: Parameters, weight: float = 1.0) -> Parameters:
    return {name: value + weight * b[name] for name, value in a.items()}
