"""Meta Pseudo Labels as the loop drives it: who moves when, what feedback does, and that a resume is exact."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar, Literal

import pytest
import torch
from exact_feedback import exact_labelled_loss, sgd_step
from method_runs import PHASES, TRAINING, batches, copied, resumed, run, running, same, weights_of
from networks import SOFT_DICE, tiny_unet
from torch import Tensor, nn

from semiseg.losses import CROSS_ENTROPY_DICE, Losses, supervised_loss
from semiseg.methods import mpl, optimiser
from semiseg.methods.base import Batch
from semiseg.methods.feedback import dense_feedback, labelled_loss_at, sgd_probe
from semiseg.methods.learner import StudentMethod
from semiseg.methods.mpl import MetaPseudoLabels
from semiseg.methods.optimiser import NamedOptimiser, Parameters, global_norm, gradients_of
from semiseg.methods.phases import Phases
from semiseg.methods.pseudo_label import NOT_TAUGHT, Lesson, PseudoLabel
from semiseg.methods.settings import MplSettings, OptimiserSettings, PseudoLabelSettings
from semiseg.randomness import Draw

pytestmark = pytest.mark.usefixtures("one_thread")

Feedback = Literal["dense", "scalar"]
BOTH = pytest.mark.parametrize("feedback", ["dense", "scalar"])


class Mixed(MetaPseudoLabels):
    """Without averages, and with a student that stays other than the teacher: a test can follow each step."""

    average_decay: ClassVar[float] = 0.0
    probe_rate: ClassVar[float] = 0.1

    def _start_student(self) -> None:
        """As it is."""


class Plain(Mixed):
    """The same, and the student has the teacher's labels alone."""

    def _mixed(self, lesson: Lesson, labelled: Batch, draw: Draw) -> Lesson:
        return lesson


class Still(Plain):
    """The same, with a probe that does not move."""

    probe_rate: ClassVar[float] = 0.0


class Averaged(Plain):
    """`Plain` with averages."""

    average_decay: ClassVar[float] = 0.9


class WithoutFeedback(PseudoLabel):
    """As `Plain`, but for the feedback."""

    average_decay: ClassVar[float] = 0.0

    def _start_student(self) -> None:
        """As it is."""

    def _mixed(self, lesson: Lesson, labelled: Batch, draw: Draw) -> Lesson:
        return lesson


def networks() -> dict[str, Any]:
    return {"teacher": tiny_unet(1, torch.float32), "student": tiny_unet(2, torch.float32)}


SLOW = OptimiserSettings(learning_rate=0.01)
AT_ONCE = OptimiserSettings(learning_rate=1.0, momentum=0.0)


def method(
    kind: type[MetaPseudoLabels] = Plain,
    phases: Phases = TRAINING,
    *,
    losses: Losses = CROSS_ENTROPY_DICE,
    **changes: Any,
) -> MetaPseudoLabels:
    """With a teacher that moves at the student's rate, in each step."""
    given: dict[str, Any] = {"optimiser": SLOW, "teacher_every": 1, "teacher_rate": 1.0}
    return kind(networks(), MplSettings(**(given | changes)), phases, losses=losses)


def supervised_teacher(settings: OptimiserSettings = SLOW) -> Tensor:
    """The teacher after one step by its labels alone, and nothing of this class."""
    teacher = tiny_unet(1, torch.float32).train()
    labelled, _ = batches(0)
    loss = supervised_loss(labelled.labels, teacher(labelled.images))
    sgd = NamedOptimiser(teacher, settings)
    sgd.step(gradients_of(loss, sgd.parameters), settings.learning_rate)
    return weights_of(teacher)


def teacher_after(trained: MetaPseudoLabels) -> Tensor:
    run(trained)
    return weights_of(trained.teacher.network)


@pytest.fixture
def plain_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimiser steps by the gradient alone: with `AT_ONCE` a step's difference is the gradient."""
    monkeypatch.setattr(optimiser, "WEIGHT_DECAY", 0.0)
    monkeypatch.setattr(optimiser, "LARGEST_NORM", math.inf)


def teacher_gradient(**changes: Any) -> Tensor:
    """The gradient that the teacher took in its first step, where steps are plain."""
    start = weights_of(tiny_unet(1, torch.float32))
    return start - teacher_after(method(optimiser=AT_ONCE, **changes))


# Who moves when.


def test_without_feedback_the_teacher_learns_from_labels_alone() -> None:
    assert torch.equal(teacher_after(method(feedback_ratio=0.0)), supervised_teacher())


def test_each_kind_of_feedback_moves_the_teacher_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plain, "probe_rate", 1.0)  # scalar feedback is as large as the probe makes it
    dense, scalar = (teacher_after(method(feedback=kind)) for kind in ("dense", "scalar"))
    none = supervised_teacher()
    for a, b in ((dense, none), (scalar, none), (dense, scalar)):
        assert not torch.allclose(a, b, atol=1e-7)  # a step is of the order of 1e-2


def test_feedback_does_not_change_what_the_student_does_in_its_step() -> None:
    """Both are taught by the teacher as it was before the step; probes leave the student as it was."""
    settings = PseudoLabelSettings(optimiser=SLOW, label_scope="patch")
    students: list[StudentMethod[Any]] = [WithoutFeedback(networks(), settings, TRAINING)]
    students += [method(feedback="dense"), method(feedback="scalar")]
    for trained in students:
        run(trained)
    without, dense, scalar = (copied(trained.student.network) for trained in students)
    assert same(without, dense)
    assert same(without, scalar)


def test_where_no_feedback_will_come_the_teachers_average_labels() -> None:
    trained = method(Averaged, Phases.of_steps(0, 9, 9), teacher_every=2)
    run(trained, 0, 1)  # teacher and average differ now
    _, unlabelled = batches(1)
    for step, network in ((1, trained.teacher.settled), (2, trained.teacher.network)):
        lesson = trained._taught(unlabelled, Draw(seed=4, step=step))
        assert lesson.log_q.requires_grad == (step == 2)
        assert torch.equal(lesson.log_q, trained.soft_labels(unlabelled.weak, network))
    assert not torch.equal(
        trained.soft_labels(unlabelled.weak, trained.teacher.settled),
        trained.soft_labels(unlabelled.weak, trained.teacher.network),
    )


def test_the_teacher_moves_with_its_feedback_every_so_many_steps() -> None:
    trained = method(teacher_every=3)
    measured, moved = [], []
    for step in range(5):
        before = copied(trained.teacher.network)
        measured.append("feedback" in run(trained, step, step + 1))
        moved.append(not same(copied(trained.teacher.network), before))
    assert measured == moved == [True, False, False, True, False]
    assert torch.equal(teacher_after(method(teacher_every=3)), teacher_after(method()))
    assert trained.period == 3


@pytest.mark.usefixtures("plain_steps")
def test_the_teachers_rate_is_its_own() -> None:
    """A plain SGD step's length is proportional to its rate; the student's step is the same."""
    plain = OptimiserSettings(learning_rate=0.01, momentum=0.0)
    whole, tenth = method(optimiser=plain), method(optimiser=plain, teacher_rate=0.1)
    start = weights_of(whole.teacher.network)
    run(whole), run(tenth)
    step = weights_of(whole.teacher.network) - start
    # Differences of float32 weights of about 1.
    torch.testing.assert_close(weights_of(tenth.teacher.network) - start, 0.1 * step, rtol=0, atol=1e-6)
    assert float(step.abs().max()) > 1e-4
    assert torch.equal(weights_of(whole.student.network), weights_of(tenth.student.network))


# How large feedback is.


@pytest.mark.usefixtures("plain_steps")
@pytest.mark.parametrize("ratio", [0.1, 0.7])
def test_the_feedback_ratio_is_the_ratio_of_the_gradients(ratio: float) -> None:
    supervised = teacher_gradient(feedback_ratio=0.0)
    meta = teacher_gradient(feedback_ratio=ratio) - supervised
    # Differences of float32 weights of the order of 1, of a meta gradient of the order of 0.1.
    assert float(meta.norm() / supervised.norm()) == pytest.approx(ratio, rel=1e-4)
    assert float(run(method(feedback_ratio=ratio))["feedback_ratio"]) == pytest.approx(ratio, rel=1e-5)


@pytest.mark.usefixtures("plain_steps")
def test_scalar_feedback_is_added_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plain, "probe_rate", 1.0)  # large enough to be seen in differences of weights
    supervised = teacher_gradient(feedback_ratio=0.0)
    meta = teacher_gradient(feedback="scalar") - supervised
    told = float(run(method(feedback="scalar"))["feedback_ratio"])
    # Differences of float32 weights of the order of 1, of a meta gradient of the order of 0.01.
    assert float(meta.norm() / supervised.norm()) == pytest.approx(told, rel=1e-3)


def fall_of_the_labelled_loss(trained: MetaPseudoLabels, lesson: Lesson, labelled: Batch) -> Tensor:
    """`h` across the probe, from functions that have tests of their own."""
    student = trained.student.network
    start = {name: value.detach() for name, value in student.named_parameters()}
    _, gradient = trained._study(lesson)
    probe = sgd_probe(start, gradient, trained.probe_rate)
    before, after = (
        labelled_loss_at(student, weights, labelled.images, labelled.labels, None) for weights in (start, probe)
    )
    return before - after


@pytest.mark.usefixtures("plain_steps")
@BOTH
def test_the_meta_gradient_is_that_of_the_labels_as_they_were_given(
    feedback: Feedback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By double backward through the student's probe and the teacher for dense feedback; for scalar feedback that of
    `h` times the cross-entropy of the labels."""
    monkeypatch.setattr(Plain, "probe_rate", 1.0)
    monkeypatch.setattr(mpl, "dense_feedback", partial(dense_feedback, derivative="forward"))
    trained = method(feedback=feedback)
    labelled, unlabelled = batches(0)
    lesson = trained._taught(unlabelled, Draw(seed=4))
    if feedback == "scalar":
        h = fall_of_the_labelled_loss(trained, lesson, labelled)
        term = h * nn.functional.nll_loss(lesson.log_q, lesson.labels)
        assert float(run(method(feedback="scalar"))["feedback"]) == pytest.approx(float(h), rel=1e-6)
    else:
        student = trained.student.network
        start: Parameters = dict(student.named_parameters())
        batch = (unlabelled.strong, lesson.q, None, labelled.images, labelled.labels)
        term = exact_labelled_loss(student, start, *batch, sgd_step(1.0))
    gradient = gradients_of(term, dict(trained.teacher.network.named_parameters()))
    expected = torch.cat([value.flatten() for value in gradient.values()])
    if feedback == "dense":  # which is brought to its share of the supervised gradient
        expected = 0.7 * supervised_norm() * expected / expected.norm()
    found = teacher_gradient(feedback=feedback, feedback_ratio=0.7) - teacher_gradient(feedback_ratio=0.0)
    # Differences of float32 weights of the order of 1.
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)
    assert float(expected.abs().max()) > 1e-3


def supervised_norm() -> Tensor:
    """Norm of the teacher's first gradient by its labels."""
    teacher = tiny_unet(1, torch.float32).train()
    labelled, _ = batches(0)
    loss = supervised_loss(labelled.labels, teacher(labelled.images))
    return global_norm(gradients_of(loss, dict(teacher.named_parameters())))


def test_dense_feedback_is_normalised_by_itself_and_scalar_is_not() -> None:
    assert float(run(method(feedback="dense"))["feedback_ratio"]) == pytest.approx(0.2, rel=1e-5)
    scalar, other = (float(run(method(feedback="scalar", feedback_ratio=r))["feedback_ratio"]) for r in (0.2, 0.9))
    assert 0 < scalar < 0.1
    assert scalar == other


@BOTH
def test_no_feedback_stays_none_when_it_is_normalised(feedback: Feedback) -> None:
    metrics = run(method(Still, feedback=feedback))
    assert float(metrics["feedback"]) == 0
    assert float(metrics["feedback_ratio"]) == 0
    assert torch.equal(teacher_after(method(Still, feedback=feedback)), supervised_teacher())


def test_a_feedback_below_the_floor_and_a_factor_above_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpl, "LARGEST_FACTOR", 1.0)
    raw = float(run(method())["feedback_ratio"])
    assert 0 < 2 * raw < 0.2
    monkeypatch.setattr(mpl, "LARGEST_FACTOR", 2.0)
    assert float(run(method())["feedback_ratio"]) == pytest.approx(2 * raw, rel=1e-5)
    monkeypatch.setattr(mpl, "SMALLEST_FEEDBACK", 1e3)
    assert float(run(method())["feedback_ratio"]) < raw


def test_the_central_difference_is_near_to_the_exact_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    """With soft Dice; in semiseg's own, single voxels are off (test_feedback.py)."""
    base = supervised_teacher()
    found = {}
    for derivative in (None, "forward", "central"):
        monkeypatch.setattr(mpl, "dense_feedback", partial(dense_feedback, derivative=derivative))
        found[derivative] = teacher_after(method(losses=SOFT_DICE)) - base
    assert not torch.equal(found["forward"], found["central"])
    assert torch.equal(found[None], found["central"]), "on a CPU"
    cosine = torch.nn.functional.cosine_similarity(found["forward"], found["central"], dim=0)
    # Kinks of ReLU and max pooling within the displacement, and float32 differences, cost some percent.
    assert float(cosine) > 0.99


def test_feedback_is_by_the_losses_that_are_given() -> None:
    """No derivative with respect to the labels, no dense feedback; a labelled loss that stays, no scalar feedback."""
    labelled, unlabelled = batches(0)
    usual = CROSS_ENTROPY_DICE
    without = usual._replace(pseudo_gradient=lambda q, logits, weight: torch.zeros_like(q))
    assert float(run(method(losses=without))["feedback"]) == 0
    measured = method(losses=without).feedback_map(labelled, unlabelled.weak)
    assert measured is not None
    assert torch.count_nonzero(measured[1]) == 0
    constant = usual._replace(labelled=lambda labels, logits, ignore: 1 + 0 * usual.labelled(labels, logits, ignore))
    assert float(run(method(losses=constant, feedback="scalar"))["feedback"]) == 0
    assert all(float(run(method(feedback=kind))["feedback"]) != 0 for kind in ("dense", "scalar"))


def test_the_baseline_is_the_moving_average_of_the_scalar_feedback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpl, "BASELINE_DECAY", 0.75)
    trained = method(feedback="scalar")
    expected = 0.0
    for step in range(3):
        expected = 0.75 * expected + 0.25 * float(run(trained, step, step + 1)["feedback"])
    assert float(trained.baseline) == pytest.approx(expected, rel=1e-6)
    assert trained.baseline != 0


# Running statistics.


@BOTH
def test_running_statistics_move_by_one_pass_each(feedback: Feedback) -> None:
    """The student's by its own batch, the teacher's by its labelled pass, whatever is measured besides."""
    trained = method(feedback=feedback)
    run(trained)
    labelled, unlabelled = batches(0)
    teacher, student = tiny_unet(1, torch.float32), tiny_unet(2, torch.float32)
    with torch.no_grad():
        teacher(labelled.images)
        student(unlabelled.strong)
    assert same(copied(trained.teacher.network), copied(teacher), only=running)
    assert same(copied(trained.student.network), copied(student), only=running)


# What reaches the teacher.


@BOTH
def test_pasted_regions_carry_no_gradient_to_the_teacher(feedback: Feedback) -> None:
    trained = method(Mixed, feedback=feedback)
    labelled, unlabelled = batches(0)
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.retain_grad()
            seen.append(output)

    trained.teacher.network.head.register_forward_hook(keep)
    lesson = trained._mixed(trained._taught(unlabelled, Draw(seed=4)), labelled, Draw(seed=4))
    _, gradient = trained._study(lesson)
    term, _ = trained._feedback(lesson, gradient, labelled)
    term.backward()  # type: ignore[no-untyped-call]
    (logits,) = seen
    assert logits.grad is not None
    reached = logits.grad.abs().amax(1)
    true = lesson.labels == NOT_TAUGHT
    assert true.flatten(1).any(1).all()
    assert torch.count_nonzero(reached[true]) == 0
    assert (reached[~true] > 0).all()


# Resume, metrics, the map.


@pytest.mark.parametrize("cut", [1, 2, 4, 7])
@BOTH
def test_a_resumed_run_goes_on_bit_for_bit(feedback: Feedback, cut: int) -> None:
    """With all that keeps a state or draws, and a teacher that moves in steps 2 and 4."""

    class Full(MetaPseudoLabels):
        average_decay: ClassVar[float] = 0.9

    settings = MplSettings(feedback=feedback, teacher_every=2)
    resumed(lambda: Full(networks(), settings, PHASES), cut, PHASES.total)


def test_the_map_of_feedback_is_the_exact_one_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """`sum_k q_k d_k - d_y`, with `d = dJ/dq` by double backward across the same probe."""
    trained = method()
    run(trained)
    before = {name: copied(network) for name, network in trained.networks.items()}
    labelled, unlabelled = batches(0)
    monkeypatch.setattr(mpl, "dense_feedback", partial(dense_feedback, derivative="forward"))
    measured = trained.feedback_map(labelled, unlabelled.weak)
    assert measured is not None
    labels, feedback = measured
    assert all(same(copied(network), before[name]) for name, network in trained.networks.items())
    assert all(p.grad is None for p in trained.student.network.parameters())

    trained.teacher.network.eval()
    with torch.no_grad():
        q = (trained.teacher.network(unlabelled.weak) / 0.5).softmax(1)
    q.requires_grad_()
    start: Parameters = dict(trained.student.network.named_parameters())
    loss = exact_labelled_loss(
        trained.student.network, start, unlabelled.weak, q, None, labelled.images, labelled.labels, sgd_step(0.1)
    )
    (d,) = torch.autograd.grad(loss, q)
    assert torch.equal(labels, q.argmax(1))
    expected = (q.detach() * d).sum(1) - d.gather(1, labels[:, None])[:, 0]
    # Two ways of the same second derivative, in float32.
    assert float((feedback - expected).norm() / expected.norm()) < 1e-3
    assert float(expected.min()) < 0 < float(expected.max())

    monkeypatch.setattr(mpl, "dense_feedback", dense_feedback)
    central = trained.feedback_map(labelled, unlabelled.weak)
    assert central is not None
    # As for central differences in test_feedback.py.
    assert float((central[1] - expected).norm() / expected.norm()) < 0.05


def test_scalar_feedback_has_no_map() -> None:
    assert method(feedback="scalar").feedback_map(batches(0)[0], batches(0)[1].weak) is None


def test_metrics_are_detached_scalars() -> None:
    metrics = run(method())
    assert {"pseudo_loss", "confidence", "labelled_loss", "feedback", "feedback_ratio"} < metrics.keys()
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())
    assert float(metrics["teacher_gradient_norm"]) > 0
