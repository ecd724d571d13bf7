"""Pseudo-labels without feedback, and what this method and Meta Pseudo Labels have in common: phases, what the student
is taught, sizes, building, and that a resume is exact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from method_runs import (
    PHASES,
    SHAPE,
    TRAINING,
    WIDER,
    batches,
    copied,
    resumed,
    rows,
    run,
    running,
    same,
    scan_labels,
    weights_of,
)
from networks import CLASSES, TINY, tiny_unet
from torch import Tensor

from semiseg.augment.cutmix import box_mask, sample_boxes
from semiseg.data.plan import ChannelNormalisation, Plan
from semiseg.errors import ModelError
from semiseg.io.dataset import LabelScheme
from semiseg.losses import one_hot, supervised_loss
from semiseg.methods.base import Batch
from semiseg.methods.build import build_method
from semiseg.methods.mpl import MetaPseudoLabels
from semiseg.methods.optimiser import global_norm
from semiseg.methods.phases import Phases
from semiseg.methods.pseudo_label import (
    BOX_EDGE,
    CERTAIN,
    NOT_TAUGHT,
    Lesson,
    PseudoLabel,
    TeacherAndStudent,
)
from semiseg.methods.settings import OptimiserSettings, SupervisedSettings, TeacherPhases, method_settings
from semiseg.methods.supervised import Supervised
from semiseg.models.build import build_network
from semiseg.models.unet import UNet3d
from semiseg.randomness import Draw

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS: dict[str, type[TeacherAndStudent[Any]]] = {"pseudo_label": PseudoLabel, "mpl": MetaPseudoLabels}
BOTH = pytest.mark.parametrize("name", list(KINDS))
IGNORE = 9


def plain(self: object, lesson: Lesson, labelled: Batch, draw: Draw) -> Lesson:
    """In the place of `_mixed`: the student has the teacher's labels alone."""
    return lesson


def apart(self: object) -> None:
    """In the place of `_start_student`: the student stays other than the teacher."""


def method(
    name: str = "pseudo_label",
    span: Phases = TRAINING,
    *,
    student: UNet3d | None = None,
    ignore: int | None = None,
    changed: dict[str, Any] | None = None,
    **settings: Any,
) -> TeacherAndStudent[Any]:
    """Without averages, so that a test can follow each step.

    span: the phases by their steps. changed: attributes of the class that are others. settings: of the method.
    """
    attributes = {"average_decay": 0.0} | (changed or {})
    kind = cast(type[TeacherAndStudent[Any]], type("Changed", (KINDS[name],), attributes))
    optimiser, beginning = OptimiserSettings(learning_rate=0.01), TeacherPhases(restart_rate=0.0)
    given = method_settings(name, **({"optimiser": optimiser, "phases": beginning} | settings))
    networks = {"teacher": tiny_unet(1, torch.float32), "student": student or tiny_unet(2, torch.float32)}
    return kind(networks, given, span, ignore=ignore)


# Labels of whole scans.


def test_labels_that_were_made_before_are_what_the_student_learns() -> None:
    trained, other = method(changed={"_mixed": plain}), method()
    assert trained.scan_labellers(0) == ("teacher",)
    labelled, unlabelled = batches(0)
    labels = scan_labels(5)
    metrics = trained.step(labelled, replace(unlabelled, labels=labels), Draw(seed=4, step=0))
    other._start_student()
    # For hard labels the semimetric is soft Dice, so the loss is that of true labels.
    expected = supervised_loss(labels, other.student.network(unlabelled.strong))
    assert torch.allclose(metrics["pseudo_loss"], expected, rtol=1e-5)  # the classes that are not named have 1e-7


def test_whole_scans_are_labelled_once_after_the_warm_up() -> None:
    averaged = {"average_decay": 0.9}
    trained = method(span=PHASES, changed=averaged, label_scans=7)
    assert list(trained.labelling_steps) == [PHASES.warmup_stop]
    assert [trained.scan_labellers(step) for step in range(2, 6)] == [("teacher_average",)] * 4
    assert trained.scans_to_label == 7


def test_patches_are_labelled_as_they_come_where_that_is_wanted_or_the_teacher_moves() -> None:
    for trained in (method(span=PHASES, label_scope="patch"), method("mpl", PHASES)):
        assert list(trained.labelling_steps) == []
        assert [trained.scan_labellers(step) for step in range(8)] == [()] * 8


# Phases.


@BOTH
def test_the_warm_up_trains_the_teacher_only(name: str) -> None:
    trained = method(name, PHASES)
    teacher, student = copied(trained.teacher.network), copied(trained.student.network)
    metrics = run(trained, 0, 2)
    assert same(copied(trained.student.network), student)
    assert not same(copied(trained.teacher.network), teacher)
    assert metrics.keys() == {"labelled_loss", "gradient_norm"}
    assert [trained.needs_unlabelled(step) for step in range(8)] == [False] * 2 + [True] * 4 + [False] * 2


@BOTH
def test_the_student_begins_from_the_teacher(name: str) -> None:
    trained, teacher_only = method(name, PHASES), method(name, PHASES, changed={"_start_student": apart})
    run(trained, 0, 3)
    run(teacher_only, 0, 2)
    # What a student does that had the teacher's state all along (no step of its own came before).
    teacher_only.student.network.load_state_dict(teacher_only.teacher.network.state_dict())
    run(teacher_only, 2, 3)
    assert same(copied(trained.student.network), copied(teacher_only.student.network))


@BOTH
def test_the_student_begins_from_the_teachers_average_where_there_is_one(name: str) -> None:
    trained = method(name, PHASES, changed={"average_decay": 0.9})
    run(trained, 0, 2)
    average = copied(trained.networks["teacher_average"])
    assert not same(average, copied(trained.teacher.network))
    trained._start_student()
    assert same(copied(trained.student.network), average)
    assert same(copied(trained.networks["student_average"]), average)


@BOTH
def test_after_a_warm_up_of_its_own_the_teacher_goes_on_from_its_average(name: str) -> None:
    for restart in (0.0, 0.5):
        phases = TeacherPhases(restart_rate=restart)
        trained = method(name, PHASES, changed={"average_decay": 0.9}, phases=phases)
        run(trained, 0, PHASES.warmup_stop)
        teacher, average = copied(trained.teacher.network), copied(trained.teacher.settled)
        assert not same(teacher, average)
        trained._start_student()
        assert same(copied(trained.teacher.network), average if restart else teacher)
        assert bool(trained.teacher.optimiser.momentum()) == (not restart)


@BOTH
def test_fine_tuning_moves_the_student_only(name: str) -> None:
    trained = method(name, PHASES, changed={"average_decay": 0.9})
    run(trained, 0, 6)
    teachers = {network: copied(trained.networks[network]) for network in ("teacher", "teacher_average")}
    students = {network: copied(trained.networks[network]) for network in ("student", "student_average")}
    metrics = run(trained, 6, 8)
    assert all(same(copied(trained.networks[network]), before) for network, before in teachers.items())
    assert not any(same(copied(trained.networks[network]), before) for network, before in students.items())
    assert metrics.keys() == {"student_labelled_loss", "gradient_norm"}


@BOTH
def test_without_unlabelled_patches_the_student_learns_from_labels(name: str) -> None:
    """Where the loop has none for a step of training."""
    trained, fine_tuned = method(name), method(name, Phases.of_steps(0, 1, 9))
    labelled, _ = batches(1)
    metrics = [one.step(labelled, None, Draw(seed=4, step=1)) for one in (trained, fine_tuned)]
    assert metrics[0].keys() == {"student_labelled_loss", "gradient_norm"}
    assert same(metrics[0], metrics[1])
    assert same(copied(trained.student.network), copied(fine_tuned.student.network))


@BOTH
@pytest.mark.parametrize(
    ("decay", "evaluated", "doubter"), [(0.0, "student", "teacher"), (0.9, "student_average", "teacher_average")]
)
def test_which_network_is_evaluated_which_labels_and_which_may_contradict_it(
    name: str, decay: float, evaluated: str, doubter: str
) -> None:
    trained = method(name, changed={"average_decay": decay})
    assert (trained.evaluated, trained.labeller, trained.doubter) == (evaluated, "teacher", doubter)
    assert {evaluated, doubter} <= trained.networks.keys()


@BOTH
def test_each_phase_is_judged_by_what_trains_in_it(name: str) -> None:
    trained = method(name, PHASES, changed={"average_decay": 0.9})
    found = [(judged.network, judged.loss) for judged in map(trained.judged, range(PHASES.total))]
    assert found == (
        [("teacher_average", "labelled_loss")] * 2
        + [("student_average", "pseudo_loss")] * 4
        + [("student_average", "student_labelled_loss")] * 2
    )
    metrics = rows(method(name, PHASES), 0, PHASES.total)
    assert all(judged in row for (_, judged), row in zip(found, metrics, strict=True))


# The teacher.


@pytest.mark.parametrize("label_scope", ["scan", "patch"])
def test_a_teacher_without_feedback_labels_and_moves_not_at_all(label_scope: str) -> None:
    trained = method(label_scope=label_scope, changed={"average_decay": 0.9})
    before = {network: copied(trained.networks[network]) for network in trained.networks}
    metrics = run(trained, 0, 3)
    for network in ("teacher", "teacher_average"):
        assert same(copied(trained.networks[network]), before[network])
    for network in ("student", "student_average"):
        assert not same(copied(trained.networks[network]), before[network])
    assert metrics.keys() == {"pseudo_loss", "confidence", "gradient_norm"}
    assert trained.period == 1


def test_the_teacher_labels_by_its_running_statistics_and_moves_none() -> None:
    trained = method(label_scope="patch", changed={"_mixed": plain})
    teacher = tiny_unet(1, torch.float32).eval()
    labelled, unlabelled = batches(0)
    with torch.no_grad():
        q = (teacher(unlabelled.weak) / 0.5).softmax(1)
    metrics = trained.step(labelled, unlabelled, Draw(seed=4))
    assert float(metrics["confidence"]) == pytest.approx(float(q.amax(1).mean()), rel=1e-6)
    assert trained.teacher.network.training
    assert same(copied(trained.teacher.network), copied(teacher), only=running)


# What the student is taught.


def lesson_of(
    trained: TeacherAndStudent[Any], step: int = 0, labels: Tensor | None = None, scans: Tensor | None = None
) -> Lesson:
    """Of the batches of a step. labels: true ones of the labelled patches. scans: labels of whole unlabelled scans."""
    labelled, unlabelled = batches(step)
    draw = Draw(seed=4, step=step)
    labelled = labelled if labels is None else replace(labelled, labels=labels)
    return trained._mixed(trained._taught(replace(unlabelled, labels=scans), draw), labelled, draw)


@BOTH
def test_labels_are_soft_and_sharpened_by_the_temperature(name: str) -> None:
    _, unlabelled = batches(0)
    soft = lesson_of(method(name, changed={"_mixed": plain}))
    with torch.no_grad():
        logits = tiny_unet(1, torch.float32).eval()(unlabelled.weak)
    # The same float32 operations but for the order of a sum.
    torch.testing.assert_close(soft.q.detach(), (logits / 0.5).softmax(1), rtol=1e-5, atol=1e-7)
    assert torch.equal(soft.q, soft.log_q.exp())
    assert torch.equal(soft.labels, soft.q.argmax(1))
    assert torch.equal(soft.images, unlabelled.strong)
    assert soft.weight is None
    sharp = lesson_of(method(name, changed={"_mixed": plain, "temperature": 0.1}))
    assert float(sharp.q.detach().amax(1).mean()) > float(soft.q.detach().amax(1).mean())


def test_labels_of_whole_scans_are_hard() -> None:
    scans = scan_labels(3)
    hard = lesson_of(method(changed={"_mixed": plain}), scans=scans)
    assert torch.equal(hard.labels, scans)
    assert float((hard.q - one_hot(scans, CLASSES)).abs().max()) <= 1.01 * CERTAIN  # rounding of a logarithm
    assert not hard.q.requires_grad


def boxes_of(step: int) -> Tensor:
    boxes = sample_boxes(Draw(seed=4, step=step), 2, SHAPE, BOX_EDGE)
    return box_mask(boxes, SHAPE, torch.device("cpu"))


def assert_true_voxels_are_the_labelled_patches(lesson: Lesson, name: str, step: int) -> Tensor:
    """And the others the unlabelled ones with what the teacher says of them; where the true voxels are."""
    labelled, unlabelled = batches(step)
    taught = lesson_of(method(name, changed={"_mixed": plain}), step)
    true = lesson.labels == NOT_TAUGHT
    assert torch.equal(lesson.images[:, 0][true], labelled.images[:, 0][true])
    assert torch.equal(lesson.images[:, 0][~true], unlabelled.strong[:, 0][~true])
    q = lesson.q.detach().movedim(1, -1)
    assert torch.equal(q[true], one_hot(labelled.labels, CLASSES).movedim(1, -1)[true])
    assert torch.equal(q[~true], taught.q.detach().movedim(1, -1)[~true])
    assert torch.equal(lesson.labels[~true], taught.labels[~true])
    assert torch.equal(lesson.log_q, taught.log_q)
    return true


@pytest.mark.parametrize("step", range(4))
def test_with_feedback_every_second_patch_is_a_labelled_one_with_a_box_and_the_others_have_one(step: int) -> None:
    true = assert_true_voxels_are_the_labelled_patches(lesson_of(method("mpl"), step), "mpl", step)
    inside = boxes_of(step)
    assert inside.flatten(1).any(1).all()
    assert not inside.flatten(1).all(1).any()
    reversed_ones = [torch.equal(true[i], ~inside[i]) for i in range(2)]
    assert sorted(reversed_ones) == [False, True]
    for i in range(2):
        assert torch.equal(true[i], ~inside[i] if reversed_ones[i] else inside[i])


@pytest.mark.parametrize("step", range(4))
def test_without_feedback_every_second_patch_is_a_labelled_one_and_the_others_are_not_touched(step: int) -> None:
    lesson = lesson_of(method(label_scope="patch"), step)
    true = assert_true_voxels_are_the_labelled_patches(lesson, "pseudo_label", step)
    assert sorted(true.flatten(1).float().mean(1).tolist()) == [0.0, 1.0]


@BOTH
def test_which_of_them_changes_from_step_to_step(name: str) -> None:
    trained = method(name)
    labels = torch.zeros(2, *SHAPE, dtype=torch.int64)
    shares = {float(trained._true_voxels(labels, Draw(seed=4, step=s))[0].float().mean()) > 0.5 for s in range(12)}
    assert shares == {False, True}


@BOTH
def test_pasted_voxels_of_the_ignore_value_do_not_count(name: str) -> None:
    labels = batches(0)[0].labels.clone()
    labels[:, :2] = IGNORE
    lesson = lesson_of(method(name, ignore=IGNORE), labels=labels)
    true, ignored = lesson.labels == NOT_TAUGHT, labels == IGNORE
    assert lesson.weight is not None
    weight = lesson.weight[:, 0]
    assert torch.count_nonzero(weight[true & ignored]) == 0
    assert (weight[true & ~ignored] == 1).all()
    assert (weight[~true] == 1).all()
    assert (true & ignored).any()
    assert (~true & ignored).any()


@BOTH
def test_ignored_voxels_teach_nobody(name: str) -> None:
    """Two batches that differ in the images' ignored labels only give the same networks."""
    results = []
    for value in (9, 200):
        labelled, unlabelled = batches(0)
        labels = labelled.labels.clone()
        labels[:, 1] = value
        trained = method(name, ignore=value, changed={"_start_student": apart})
        trained.step(Batch(labelled.images, labels), unlabelled, Draw(seed=4))
        results.append((copied(trained.teacher.network), copied(trained.student.network)))
    assert same(results[0][0], results[1][0])
    assert same(results[0][1], results[1][1])


# Sizes, resume, refusal.


def wider(seed: int = 3) -> UNet3d:
    return build_network(WIDER, channels=1, classes=CLASSES, seed=seed)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pseudo_label", {"label_scope": "scan"}),
        ("pseudo_label", {"label_scope": "patch"}),
        ("mpl", {"feedback": "dense"}),
        ("mpl", {"feedback": "scalar"}),
    ],
)
def test_a_student_of_another_size_starts_fresh(name: str, options: dict[str, Any]) -> None:
    trained = method(name, PHASES, student=wider(), changed={"average_decay": 0.9}, **options)
    run(trained, 0, 2)
    trained._start_student()
    assert same(copied(trained.student.network), copied(wider()))
    metrics = run(trained, 2, 6)
    assert all(torch.isfinite(value) for value in metrics.values())
    assert not same(copied(trained.student.network), copied(wider()))


@pytest.mark.parametrize("cut", [1, 2, 4, 7])
@pytest.mark.parametrize("label_scope", ["scan", "patch"])
@pytest.mark.parametrize("restart", [0.0, 0.5])
def test_a_resumed_run_goes_on_bit_for_bit(label_scope: str, restart: float, cut: int) -> None:
    phases = TeacherPhases(restart_rate=restart)
    averaged = {"average_decay": 0.9}
    resumed(lambda: method(span=PHASES, changed=averaged, phases=phases, label_scope=label_scope), cut, PHASES.total)


def supervised() -> Supervised:
    kind = cast(type[Supervised], type("Changed", (Supervised,), {"average_decay": 0.9}))
    return kind({"student": tiny_unet(1, torch.float32)}, SupervisedSettings(), PHASES)


def test_supervised_training_resumes_bit_for_bit() -> None:
    assert not any(supervised().needs_unlabelled(step) for step in range(PHASES.total))
    assert supervised().evaluated == "student_average"
    assert supervised().labeller is None
    resumed(supervised, 2, 5)


@BOTH
def test_a_state_of_another_method_is_refused(name: str) -> None:
    tensors, numbers = supervised().state()
    with pytest.raises(ModelError, match="network teacher"):
        method(name).load_state(tensors, numbers | {"baseline": 0.0})


@BOTH
def test_the_learning_rate_factor_scales_the_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semiseg.methods.optimiser.WEIGHT_DECAY", 0.0)
    moves = []
    for factor in (1.0, 0.25, 0.0):
        optimiser = OptimiserSettings(learning_rate=0.01, momentum=0.0)
        trained = method(name, changed={"_start_student": apart}, optimiser=optimiser)
        trained.learning_rate_factor = factor
        start = weights_of(trained.student.network)
        run(trained)
        moves.append(weights_of(trained.student.network) - start)
    assert float(moves[0].abs().max()) > 1e-4
    assert torch.allclose(moves[1], 0.25 * moves[0], atol=1e-6)  # differences of float32 weights around 1
    assert torch.count_nonzero(moves[2]) == 0


@BOTH
def test_metrics_are_detached_scalars(name: str) -> None:
    metrics = run(method(name))
    assert {"pseudo_loss", "confidence", "gradient_norm"} <= metrics.keys()
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())


# The building of methods.


@pytest.mark.parametrize("name", ["supervised", "pseudo_label", "mpl"])
def test_methods_are_built_from_the_plan(name: str) -> None:
    plan = Plan(
        dataset="made up",
        channels=("T1", "T2"),
        labels=LabelScheme(names={0: "background", 1: "a", 2: "b", 3: "c"}),
        spacing_mm=(1.0, 1.0, 1.0),
        anisotropic_axis=None,
        patch=SHAPE,
        batch=2,
        normalisation=(ChannelNormalisation(scheme="zscore"),) * 2,
        teacher=WIDER,
        student=TINY,
    )
    settings = method_settings(name)
    first, again, other = (
        build_method(plan, settings, PHASES, seed=seed, device=torch.device("cpu")) for seed in (0, 0, 1)
    )
    expected = {"student"} if name == "supervised" else {"teacher", "student"}
    assert first.networks.keys() == expected | {f"{network}_average" for network in expected}
    assert first.networks["student"](torch.zeros(1, 2, *SHAPE)).shape == (1, 4, *SHAPE)
    for network in expected:
        a, b, c = (weights_of(built.networks[network]) for built in (first, again, other))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        assert torch.equal(a, weights_of(first.networks[f"{network}_average"]))
    if name != "supervised":
        first_layer = first.networks["teacher"].get_parameter("encoder.0.0.weight")
        assert first_layer.shape[0] == 4
    assert float(global_norm(dict(first.networks["student"].named_parameters())).detach()) > 0
