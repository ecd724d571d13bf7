"""Meta Pseudo Labels as the loop drives it: who moves when, what each setting does, and that a resume is exact."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from exact_feedback import exact_labelled_loss, sgd_step
from networks import CLASSES, TINY, tiny_unet
from torch import Tensor, nn

from semiseg.augment.cutmix import box_mask, sample_boxes
from semiseg.data.plan import ChannelNormalisation, NetworkPlan, Plan
from semiseg.errors import ConfigError, ModelError
from semiseg.io.dataset import LabelScheme
from semiseg.losses import PseudoDice, supervised_loss
from semiseg.methods import mpl
from semiseg.methods.base import Batch, UnlabelledBatch
from semiseg.methods.build import build_method
from semiseg.methods.feedback import NOT_TAUGHT
from semiseg.methods.mpl import BOX_EDGE, MetaPseudoLabels
from semiseg.methods.optimiser import NamedOptimiser, global_norm, gradients_of
from semiseg.methods.phases import Phases
from semiseg.methods.settings import MethodSettings
from semiseg.methods.supervised import Supervised
from semiseg.methods.timeline import Timeline
from semiseg.models.unet import UNet3d, batch_statistics_only, build_unet
from semiseg.randomness import Draw

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (4, 4, 4)
PHASES = Phases.of_steps(2, 6, 8)
TRAINING = Phases.of_steps(0, 1000, 1000)
PLAIN = MethodSettings(
    name="mpl",
    cutmix_fraction=0,
    cutmix_ways="one",
    student_dice="soft",
    ema_decay=0,
    learning_rate=0.01,
    momentum=0.9,
    restart_rate=0,
    teacher_every=1,
    teacher_rate=1.0,
    teacher_mode="train",
    probe_rate=0.1,
)
"""No cut-mix and no averages, and a teacher that moves at the student's rate: a test can follow each step."""
WIDER = NetworkPlan(features=(4, 5), kernels=TINY.kernels, strides=TINY.strides)


def method(settings: MethodSettings = PLAIN, phases: Phases = TRAINING, **more: Any) -> MetaPseudoLabels:
    networks = {"teacher": tiny_unet(1, torch.float32), "student": tiny_unet(2, torch.float32)} | more
    ignore = networks.pop("ignore", None)
    return MetaPseudoLabels(**networks, settings=settings, phases=phases, ignore=ignore, autocast=None)


def fresh(**changes: Any) -> MethodSettings:
    """`PLAIN` with changes, and a student that stays other than the teacher."""
    return replace(PLAIN, student_start="fresh", **changes)


def batches(step: int) -> tuple[Batch, UnlabelledBatch]:
    generator = torch.Generator().manual_seed(step)
    images, weak, noise = torch.randn((3, 2, 1, *SHAPE), generator=generator)
    labels = torch.randint(0, CLASSES, (2, *SHAPE), generator=generator)
    return Batch(images, labels), UnlabelledBatch(weak, weak + 0.3 * noise)


def run(trained: MetaPseudoLabels | Supervised, start: int = 0, stop: int = 1) -> dict[str, Tensor]:
    """The metrics of the last of the steps `[start, stop)`."""
    metrics: dict[str, Tensor] = {}
    for step in range(start, stop):
        labelled, unlabelled = batches(step)
        given = unlabelled if trained.needs_unlabelled(step) else None
        metrics = trained.step(labelled, given, Draw(seed=4, step=step))
    return metrics


def copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor], *, only: Callable[[str], bool] = lambda name: True) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a if only(name))


def weights_of(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def running(name: str) -> bool:
    return "running" in name or "num_batches" in name


# Labels of whole scans.


def test_labels_that_were_made_before_are_what_the_student_learns() -> None:
    settings = MethodSettings(name="pseudo_label", warmup_fraction=0, cutmix_fraction=0, ema_decay=0)
    trained = method(settings)
    assert trained.scan_labellers(0) == ("teacher",)
    labelled, unlabelled = batches(0)
    labels = torch.randint(0, CLASSES, (2, *SHAPE), generator=torch.Generator().manual_seed(5))
    metrics = trained.step(labelled, replace(unlabelled, labels=labels), Draw(seed=4, step=0))
    other = method(settings)
    other._start_student()
    # For hard labels the semimetric is soft Dice, so the loss is that of true labels.
    expected = supervised_loss(labels, other.student.network(unlabelled.strong))
    assert torch.allclose(metrics["pseudo_loss"], expected, rtol=1e-5)  # the classes that are not named have 1e-7


def test_a_teacher_that_moves_labels_patches() -> None:
    assert method(MethodSettings(name="pseudo_label")).scan_labellers(0) == ("teacher_average",)
    for changes in ({"name": "mpl"}, {"teacher_every": 2}, {"confidence_threshold": 0.5}):
        assert method(MethodSettings(**{"name": "pseudo_label"} | changes)).scan_labellers(0) == ()
        with pytest.raises(
            ConfigError, match=r'^method.label_scope = "scan" labels once, with hard labels, but \w+ = '
        ):
            MethodSettings(**{"name": "pseudo_label", "label_scope": "scan"} | changes)
    assert method(MethodSettings(name="pseudo_label", label_scope="patch")).scan_labellers(0) == ()
    assert not MethodSettings(name="supervised", label_scope="scan").labels_whole_scans, "of no meaning there"


def test_which_way_patches_are_mixed_is_the_methods_own() -> None:
    assert [MethodSettings(name=name).used_cutmix_ways for name in ("pseudo_label", "mpl")] == ["whole", "both"]
    assert MethodSettings(cutmix_ways="one").used_cutmix_ways == "one"


# Phases.


def test_the_warm_up_trains_the_teacher_only() -> None:
    trained = method(phases=PHASES)
    teacher, student = copied(trained.teacher.network), copied(trained.student.network)
    metrics = run(trained, 0, 2)
    assert same(copied(trained.student.network), student)
    assert not same(copied(trained.teacher.network), teacher)
    assert metrics.keys() == {"labelled_loss", "gradient_norm"}
    assert [trained.needs_unlabelled(step) for step in range(8)] == [False] * 2 + [True] * 4 + [False] * 2


def test_the_student_begins_from_the_teacher() -> None:
    trained, teacher_only = method(phases=PHASES), method(phases=PHASES)
    run(trained, 0, 3)
    run(teacher_only, 0, 2)
    # What a student does that had the teacher's state all along (no step of its own came before).
    teacher_only.student.network.load_state_dict(teacher_only.teacher.network.state_dict())
    teacher_only._same_size = False
    run(teacher_only, 2, 3)
    assert same(copied(trained.student.network), copied(teacher_only.student.network))


def test_the_student_begins_from_the_teachers_average_where_there_is_one() -> None:
    trained = method(replace(PLAIN, ema_decay=0.9), PHASES)
    run(trained, 0, 2)
    average = copied(trained.networks["teacher_average"])
    assert not same(average, copied(trained.teacher.network))
    trained._start_student()
    assert same(copied(trained.student.network), average)
    assert same(copied(trained.networks["student_average"]), average)


def test_where_no_feedback_will_come_the_teachers_average_labels() -> None:
    settings = replace(PLAIN, name="mpl", feedback="dense", ema_decay=0.9, teacher_every=2)
    trained = method(settings, Phases.of_steps(0, 9, 9))
    run(trained, 0, 1)  # teacher and average differ now
    labelled, unlabelled = batches(1)
    for step, network in ((1, trained.teacher.settled), (2, trained.teacher.network)):
        lesson = trained._teach(labelled, unlabelled, Draw(seed=4, step=step))
        assert lesson.log_q.requires_grad == (step == 2)
        assert torch.equal(lesson.log_q, trained.soft_labels(unlabelled.weak, network))


def test_a_fresh_student_stays_as_it_was() -> None:
    trained = method(fresh(ema_decay=0.9), PHASES)
    student = copied(trained.student.network)
    run(trained, 0, 2)
    trained._start_student()
    assert same(copied(trained.student.network), student)


def test_fine_tuning_moves_the_student_only() -> None:
    trained = method(replace(PLAIN, ema_decay=0.9), PHASES)
    run(trained, 0, 6)
    teachers = {name: copied(trained.networks[name]) for name in ("teacher", "teacher_average")}
    students = {name: copied(trained.networks[name]) for name in ("student", "student_average")}
    metrics = run(trained, 6, 8)
    assert all(same(copied(trained.networks[name]), before) for name, before in teachers.items())
    assert not any(same(copied(trained.networks[name]), before) for name, before in students.items())
    assert metrics.keys() == {"student_labelled_loss", "gradient_norm"}


@pytest.mark.parametrize(("ema_decay", "evaluated"), [(0.0, "student"), (0.9, "student_average")])
def test_which_network_is_evaluated(ema_decay: float, evaluated: str) -> None:
    trained = method(replace(PLAIN, ema_decay=ema_decay))
    assert trained.evaluated == evaluated
    assert evaluated in trained.networks


# Feedback.


def supervised_teacher(settings: MethodSettings = PLAIN) -> Tensor:
    """The teacher after one step by its labels alone, and nothing of this class."""
    teacher = tiny_unet(1, torch.float32).train()
    labelled, _ = batches(0)
    loss = supervised_loss(labelled.labels, teacher(labelled.images))
    sgd = NamedOptimiser(teacher, settings)
    sgd.step(gradients_of(loss, sgd.parameters), settings.first_learning_rate)
    return weights_of(teacher)


def test_without_feedback_the_teacher_learns_from_labels_alone() -> None:
    trained = method(fresh(name="pseudo_label"))
    metrics = run(trained)
    assert torch.equal(weights_of(trained.teacher.network), supervised_teacher())
    assert "feedback" not in metrics


def teacher_after(settings: MethodSettings, steps: int = 1) -> Tensor:
    trained = method(settings)
    run(trained, 0, steps)
    return weights_of(trained.teacher.network)


def test_each_kind_of_feedback_moves_the_teacher_its_own_way() -> None:
    dense = teacher_after(fresh(feedback="dense"))
    scalar = teacher_after(fresh(feedback="scalar", feedback_weight=10.0))
    none = supervised_teacher()
    for a, b in ((dense, none), (scalar, none), (dense, scalar)):
        assert not torch.allclose(a, b, atol=1e-7)  # a step is of the order of 1e-2


def test_feedback_does_not_change_what_the_student_does_in_its_step() -> None:
    """Both are taught by the teacher as it was before the step; probes leave the student as it was."""
    students = []
    for changes in ({"name": "pseudo_label"}, {"feedback": "dense"}, {"feedback": "scalar"}):
        trained = method(fresh(**changes))
        run(trained)
        students.append(copied(trained.student.network))
    assert same(students[0], students[1])
    assert same(students[0], students[2])


def teacher_gradient(settings: MethodSettings) -> Tensor:
    """The gradient that the teacher took in its first step, from a plain step of rate 1 without clipping."""
    plain = replace(settings, momentum=0.0, weight_decay=0.0, gradient_clip=0.0, learning_rate=1.0)
    return weights_of(tiny_unet(1, torch.float32)) - teacher_after(plain)


@pytest.mark.parametrize("feedback", ["dense", "scalar"])
@pytest.mark.parametrize("ratio", [0.1, 0.7])
def test_the_feedback_ratio_is_the_ratio_of_the_gradients(feedback: str, ratio: float) -> None:
    settings = fresh(feedback=feedback, feedback_normalise="on", feedback_ratio=ratio)
    supervised = teacher_gradient(replace(settings, name="pseudo_label"))
    meta = teacher_gradient(settings) - supervised
    # Differences of float32 weights of the order of 1, of a meta gradient of the order of 0.1.
    assert float(meta.norm() / supervised.norm()) == pytest.approx(ratio, rel=1e-4)
    assert float(run(method(settings))["feedback_ratio"]) == pytest.approx(ratio, rel=1e-5)


def test_dense_feedback_is_normalised_by_itself_and_scalar_is_not() -> None:
    assert float(run(method(fresh(feedback="dense")))["feedback_ratio"]) == pytest.approx(0.2, rel=1e-5)
    assert float(run(method(fresh(feedback="scalar")))["feedback_ratio"]) < 0.1
    off = fresh(feedback="dense", feedback_normalise="off")
    one, three = (
        float(run(method(replace(off, feedback_weight=w)))["feedback_ratio"]) for w in (1.0, 3.0)
    )  # fmt: skip
    assert three == pytest.approx(3 * one, rel=1e-5)


@pytest.mark.parametrize("feedback", ["dense", "scalar"])
def test_no_feedback_stays_none_when_it_is_normalised(feedback: str) -> None:
    settings = fresh(feedback=feedback, feedback_normalise="on", probe_rate=0.0)
    metrics = run(method(settings))
    assert float(metrics["feedback"]) == 0
    assert float(metrics["feedback_ratio"]) == 0
    assert torch.equal(teacher_after(settings), supervised_teacher(settings))


def test_a_feedback_below_the_floor_and_a_factor_above_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    free = fresh(feedback="dense", feedback_normalise="off")
    raw = float(run(method(free))["feedback_ratio"])
    normalised = fresh(feedback="dense", feedback_ratio=0.2)
    monkeypatch.setattr(mpl, "LARGEST_FACTOR", 2.0)
    assert float(run(method(normalised))["feedback_ratio"]) == pytest.approx(2 * raw, rel=1e-5)
    monkeypatch.setattr(mpl, "SMALLEST_FEEDBACK", 1e3)
    assert float(run(method(normalised))["feedback_ratio"]) < raw


def test_the_teacher_moves_with_its_feedback_every_so_many_steps() -> None:
    trained = method(fresh(teacher_every=3))
    measured, moved = [], []
    for step in range(5):
        before = copied(trained.teacher.network)
        measured.append("feedback" in run(trained, step, step + 1))
        moved.append(not same(copied(trained.teacher.network), before))
    assert measured == moved == [True, False, False, True, False]
    assert torch.equal(teacher_after(fresh(teacher_every=3)), teacher_after(fresh()))


def test_a_teacher_that_is_held_labels_and_moves_not_at_all() -> None:
    settings = fresh(name="pseudo_label", teacher_every=0)
    trained = method(settings)
    teacher, student = copied(trained.teacher.network), copied(trained.student.network)
    metrics = run(trained, 0, 3)
    assert same(copied(trained.teacher.network), teacher)
    assert not same(copied(trained.student.network), student)
    assert "pseudo_loss" in metrics
    assert "labelled_loss" not in metrics


def test_the_teachers_rate_is_its_own() -> None:
    """A plain SGD step's length is proportional to its rate; the student's step is the same."""
    plain = replace(fresh(), momentum=0.0, weight_decay=0.0, gradient_clip=0.0)
    start = weights_of(method(plain).teacher.network)
    whole, tenth = method(plain), method(replace(plain, teacher_rate=0.1))
    run(whole), run(tenth)
    step = weights_of(whole.teacher.network) - start
    # Differences of float32 weights of about 1.
    torch.testing.assert_close(weights_of(tenth.teacher.network) - start, 0.1 * step, rtol=0, atol=1e-6)
    assert float(step.abs().max()) > 1e-4
    assert torch.equal(weights_of(whole.student.network), weights_of(tenth.student.network))


def test_after_a_warm_up_of_its_own_the_teacher_goes_on_from_its_average() -> None:
    for restart in (0.0, 0.5):
        settings = replace(PLAIN, name="pseudo_label", ema_decay=0.9, teacher_every=0, restart_rate=restart)
        trained = method(settings, PHASES)
        run(trained, 0, PHASES.warmup_stop)
        teacher, average = copied(trained.teacher.network), copied(trained.teacher.settled)
        assert not same(teacher, average)
        run(trained, PHASES.warmup_stop, PHASES.warmup_stop + 1)
        assert same(copied(trained.teacher.network), average if restart else teacher)


def test_the_central_difference_is_near_to_the_exact_derivative() -> None:
    base = supervised_teacher()
    exact, central, usual = (
        teacher_after(fresh(feedback="dense", directional_derivative=kind)) - base
        for kind in ("forward", "central", "auto")
    )
    assert not torch.equal(exact, central)
    assert torch.equal(usual, central), "on a CPU"
    assert MethodSettings().derivative_on("cuda") == "forward"
    cosine = torch.nn.functional.cosine_similarity(exact, central, dim=0)
    # Kinks of ReLU and max pooling within the displacement, and float32 differences, cost some percent.
    assert float(cosine) > 0.99


def test_the_real_probe_is_the_students_own_step() -> None:
    """The scalar `h` across the real probe is the fall of the labelled loss over the student's next state."""
    from semiseg.methods.feedback import labelled_loss_at

    trained = method(fresh(feedback="scalar", probe="real", gradient_clip=0.5))
    run(trained, 0, 2)
    labelled, _ = batches(2)

    def loss() -> Tensor:
        now = {k: v.detach() for k, v in trained.student.network.named_parameters()}
        return labelled_loss_at(trained.student.network, now, labelled.images, labelled.labels, None)

    before = loss()
    metrics = run(trained, 2, 3)
    # A difference of float32 losses of the order of 1.
    assert float(metrics["feedback"]) == pytest.approx(float(before - loss()), abs=1e-6)
    assert abs(float(metrics["feedback"])) > 1e-4
    dense = fresh(feedback="dense", probe="real", gradient_clip=0.01)
    assert float(run(method(dense))["feedback"]) > 0


def test_the_baseline_is_the_moving_average_of_the_scalar_feedback() -> None:
    trained = method(fresh(feedback="scalar", baseline_decay=0.75))
    expected = 0.0
    for step in range(3):
        expected = 0.75 * expected + 0.25 * float(run(trained, step, step + 1)["feedback"])
    assert trained.baseline == pytest.approx(expected, rel=1e-6)
    assert trained.baseline != 0


# Running statistics.


@pytest.mark.parametrize("feedback", ["dense", "scalar"])
def test_running_statistics_move_by_one_pass_each(feedback: str) -> None:
    """The student's by its own batch, the teacher's by its labelled pass, whatever is measured besides."""
    settings = fresh(feedback=feedback, student_supervised_weight=1.0)
    trained = method(settings)
    run(trained)
    labelled, unlabelled = batches(0)
    teacher, student = tiny_unet(1, torch.float32), tiny_unet(2, torch.float32)
    with torch.no_grad():
        teacher(labelled.images)
        student(unlabelled.strong)
    assert same(copied(trained.teacher.network), copied(teacher), only=running)
    assert same(copied(trained.student.network), copied(student), only=running)


def test_the_teacher_can_label_with_running_statistics() -> None:
    trained, usual = method(fresh(teacher_mode="eval")), method(fresh())
    teacher = tiny_unet(1, torch.float32).eval()
    labelled, unlabelled = batches(0)
    with torch.no_grad():
        q = (teacher(unlabelled.weak) / PLAIN.temperature).softmax(1)
        teacher.train()(labelled.images)
    metrics, others = run(trained), run(usual)
    assert float(metrics["confidence"]) == pytest.approx(float(q.amax(1).mean()), rel=1e-6)
    assert float(others["confidence"]) != pytest.approx(float(q.amax(1).mean()), rel=1e-3)
    assert trained.teacher.network.training
    assert same(copied(trained.teacher.network), copied(teacher), only=running)


# What the student is taught.


def lesson_of(settings: MethodSettings, step: int = 0, **more: Any) -> tuple[Any, Batch, UnlabelledBatch]:
    labelled, unlabelled = batches(step)
    labelled = replace(labelled, **more)
    ignore = 9 if (labelled.labels == 9).any() else None
    return method(settings, ignore=ignore)._teach(labelled, unlabelled, Draw(seed=4, step=step)), labelled, unlabelled


def test_soft_and_hard_labels_and_the_temperature() -> None:
    soft, _, unlabelled = lesson_of(fresh())
    hard, _, _ = lesson_of(fresh(pseudo_label="hard"))
    sharp, _, _ = lesson_of(fresh(temperature=0.1))
    assert torch.equal(soft.target, soft.q.detach())
    assert torch.equal(soft.images, unlabelled.strong)
    assert torch.equal(hard.target.sum(1), torch.ones(2, *SHAPE))
    assert torch.equal(hard.target.argmax(1), soft.q.argmax(1))
    assert set(hard.target.unique().tolist()) == {0.0, 1.0}
    assert float(sharp.q.detach().amax(1).mean()) > float(soft.q.detach().amax(1).mean())
    assert not hard.target.requires_grad
    assert hard.q.requires_grad


def test_hard_labels_train() -> None:
    assert torch.isfinite(torch.stack(list(run(method(fresh(pseudo_label="hard")), 0, 2).values()))).all()


def test_voxels_below_the_confidence_threshold_do_not_count() -> None:
    lesson, _, _ = lesson_of(fresh(confidence_threshold=0.6))
    confident = lesson.q.detach().amax(1, keepdim=True) >= 0.6
    assert 0 < int(confident.sum()) < confident.numel()
    assert torch.equal(lesson.weight, confident.float())
    none = method(fresh(confidence_threshold=1.0, weight_decay=0.0))
    student = weights_of(none.student.network)
    metrics = run(none)
    # The weights are zero everywhere, so nothing is learnt and nothing is fed back.
    assert torch.equal(weights_of(none.student.network), student)
    assert float(metrics["feedback"]) == 0


def boxes_of(lesson_step: int, fraction: float) -> Tensor:
    draw = Draw(seed=4, step=lesson_step)
    boxes = sample_boxes(draw, 2, SHAPE, BOX_EDGE)
    for i in range(2):
        if draw.at(sample=i).generator("whether to cut-mix").random() >= fraction:
            boxes[i] = 0
    return box_mask(boxes, SHAPE, torch.device("cpu"))


def test_cut_mix_pastes_patches_and_their_labels() -> None:
    lesson, labelled, unlabelled = lesson_of(replace(fresh(), cutmix_fraction=1.0))
    inside = boxes_of(0, 1.0)
    assert inside.flatten(1).any(1).all()
    assert not inside.all()
    assert torch.equal(lesson.images[:, 0][inside], labelled.images[:, 0][inside])
    assert torch.equal(lesson.images[:, 0][~inside], unlabelled.strong[:, 0][~inside])
    assert torch.equal(lesson.target.argmax(1)[inside], labelled.labels[inside])
    assert torch.equal(lesson.target.amax(1)[inside], torch.ones(int(inside.sum())))
    plain, _, _ = lesson_of(fresh())
    assert torch.equal(lesson.target.movedim(1, -1)[~inside], plain.target.movedim(1, -1)[~inside])


@pytest.mark.parametrize("step", range(4))
def test_cut_mix_both_ways_makes_every_second_patch_a_labelled_one_with_a_box(step: int) -> None:
    settings = replace(fresh(), cutmix_fraction=1.0, cutmix_ways="both")
    trained = method(settings)
    labelled, unlabelled = batches(step)
    lesson = trained._teach(labelled, unlabelled, Draw(seed=4, step=step))
    inside = boxes_of(step, 1.0)
    true = lesson.labels == NOT_TAUGHT
    reversed_ones = [torch.equal(true[i], ~inside[i]) for i in range(2)]
    assert sorted(reversed_ones) == [False, True]
    for i in range(2):
        assert torch.equal(true[i], ~inside[i] if reversed_ones[i] else inside[i])
    assert torch.equal(lesson.images[:, 0][true], labelled.images[:, 0][true])
    assert torch.equal(lesson.images[:, 0][~true], unlabelled.strong[:, 0][~true])


@pytest.mark.parametrize("step", range(4))
def test_whole_patches_may_be_mixed_in_the_place_of_boxes(step: int) -> None:
    """One of two is a labelled patch, the other is not touched."""
    trained = method(replace(fresh(), cutmix_fraction=1.0, cutmix_ways="whole"))
    labelled, unlabelled = batches(step)
    lesson = trained._teach(labelled, unlabelled, Draw(seed=4, step=step))
    true = int((lesson.labels[0] == NOT_TAUGHT).all())  # 1: the first
    first, second = (labelled.images, unlabelled.strong) if true else (unlabelled.strong, labelled.images)
    assert torch.equal(lesson.images, torch.stack([first[0], second[1]]))
    assert (lesson.labels[true] != NOT_TAUGHT).all()
    assert torch.equal(lesson.target[1 - true].argmax(0), labelled.labels[1 - true])


def test_which_of_them_changes_from_step_to_step() -> None:
    trained = method(replace(fresh(), cutmix_fraction=1.0, cutmix_ways="both"))
    _, unlabelled = batches(0)
    labels = torch.zeros(len(unlabelled.weak), *SHAPE, dtype=torch.int64)
    shares = {float(trained._true_voxels(labels, Draw(seed=4, step=s))[0].float().mean()) > 0.5 for s in range(12)}
    assert shares == {False, True}


def test_dice_of_the_student_may_be_off() -> None:
    lesson, _, _ = lesson_of(replace(fresh(), cutmix_fraction=1.0, student_dice="off"))
    assert lesson.dice.weight is not None
    assert not lesson.dice.weight.any()
    plain, _, _ = lesson_of(replace(fresh(), cutmix_fraction=1.0))
    assert plain.dice == PseudoDice()
    assert lesson_of(fresh(student_dice="semimetric"))[0].dice == PseudoDice(semimetric=True)


def test_the_share_of_patches_that_are_mixed() -> None:
    mixed = [bool(boxes_of(step, 0.3)[i].any()) for step in range(100) for i in range(2)]
    # 200 draws of 0.3: four deviations are 0.13.
    assert sum(mixed) / len(mixed) == pytest.approx(0.3, abs=0.13)
    assert not boxes_of(0, 0.0).any()


@pytest.mark.parametrize("feedback", ["dense", "scalar"])
def test_pasted_regions_carry_no_gradient_to_the_teacher(feedback: str) -> None:
    settings = replace(fresh(feedback=feedback, feedback_normalise="on"), cutmix_fraction=1.0)
    trained = method(settings)
    labelled, unlabelled = batches(0)
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.retain_grad()
            seen.append(output)

    trained.teacher.network.head.register_forward_hook(keep)
    lesson = trained._teach(labelled, unlabelled, Draw(seed=4))
    _, gradient = trained._study(lesson)
    term, _ = trained._feedback(lesson, gradient, labelled, 0.1)
    term.backward()
    (logits,) = seen
    assert logits.grad is not None
    reached = logits.grad.abs().amax(1)
    inside = boxes_of(0, 1.0)
    assert torch.count_nonzero(reached[inside]) == 0
    assert (reached[~inside] > 0).all()


@pytest.mark.parametrize("feedback", ["dense", "scalar"])
def test_unsure_voxels_carry_no_gradient_to_the_teacher_by_scalar_feedback(feedback: str) -> None:
    """The student was not taught there, so the change of its loss says nothing of these labels."""
    trained = method(fresh(feedback=feedback, confidence_threshold=0.6))
    labelled, unlabelled = batches(0)
    lesson = trained._teach(labelled, unlabelled, Draw(seed=4))
    _, gradient = trained._study(lesson)
    term, _ = trained._feedback(lesson, gradient, labelled, 0.1)
    (reached,) = torch.autograd.grad(term, lesson.log_q)
    unsure = lesson.weight[:, 0] == 0
    assert torch.count_nonzero(reached.abs().amax(1)[unsure]) == 0
    assert torch.count_nonzero(reached) > 0


def test_pasted_voxels_of_the_ignore_value_do_not_count() -> None:
    labels = batches(0)[0].labels.clone()
    labels[:, :2] = 9
    for threshold in (0.0, 0.6):
        settings = replace(fresh(confidence_threshold=threshold), cutmix_fraction=1.0)
        lesson, _, _ = lesson_of(settings, labels=labels)
        inside, ignored = boxes_of(0, 1.0), labels == 9
        weight = lesson.weight[:, 0]
        assert torch.count_nonzero(weight[inside & ignored]) == 0
        assert (weight[inside & ~ignored] == 1).all()
        sure = lesson.log_q.detach().amax(1).exp() >= threshold
        assert torch.equal(weight[~inside], sure[~inside].float())


def test_ignored_voxels_teach_nobody() -> None:
    """Two batches that differ in the images' ignored labels only give the same networks."""
    results = []
    for value in (9, 200):
        labelled, unlabelled = batches(0)
        labels = labelled.labels.clone()
        labels[:, 1] = value
        settings = replace(fresh(student_supervised_weight=1.0), cutmix_fraction=1.0)
        trained = method(settings, ignore=value)
        trained.step(Batch(labelled.images, labels), unlabelled, Draw(seed=4))
        results.append((copied(trained.teacher.network), copied(trained.student.network)))
    assert same(results[0][0], results[1][0])
    assert same(results[0][1], results[1][1])


def test_the_students_own_supervised_term() -> None:
    trained = method(fresh(name="pseudo_label", student_supervised_weight=2.0))
    metrics = run(trained)
    student = tiny_unet(2, torch.float32)
    labelled, _ = batches(0)
    expected = supervised_loss(labelled.labels, student(labelled.images))
    assert float(metrics["student_labelled_loss"]) == pytest.approx(float(expected.detach()), rel=1e-5)
    extra = gradients_of(expected, dict(student.named_parameters()))

    def gradient(weight: float) -> Tensor:
        settings = fresh(name="pseudo_label", student_supervised_weight=weight, learning_rate=1.0)
        plain = method(replace(settings, momentum=0.0, weight_decay=0.0, gradient_clip=0.0))
        run(plain)
        return weights_of(tiny_unet(2, torch.float32)) - weights_of(plain.student.network)

    flat = torch.cat([value.flatten() for value in extra.values()])
    # Differences of float32 weights of the order of 1.
    assert torch.allclose(gradient(2.0) - gradient(0.0), 2 * flat, atol=1e-5)


# Sizes, resume, refusal.


def wider(seed: int = 3) -> UNet3d:
    return build_unet(WIDER, channels=1, classes=CLASSES, seed=seed)


@pytest.mark.parametrize("feedback", ["dense", "scalar"])
def test_a_student_of_another_size_starts_fresh(feedback: str) -> None:
    trained = method(replace(PLAIN, feedback=feedback, ema_decay=0.9, cutmix_fraction=0.5), PHASES, student=wider())
    run(trained, 0, 2)
    trained._start_student()
    assert same(copied(trained.student.network), copied(wider()))
    metrics = run(trained, 2, 6)
    assert all(torch.isfinite(value) for value in metrics.values())
    assert not same(copied(trained.student.network), copied(wider()))


def test_a_student_of_another_size_cannot_start_from_the_teacher() -> None:
    with pytest.raises(ConfigError, match=r"student_start.*differ in size"):
        method(replace(PLAIN, student_start="teacher"), student=wider())


FULL = MethodSettings(
    name="mpl",
    momentum=0.9,
    ema_decay=0.9,
    cutmix_fraction=0.5,
    student_supervised_weight=0.5,
)
"""Everything on that keeps a state or draws."""


@pytest.mark.parametrize("cut", [1, 2, 4, 7])
@pytest.mark.parametrize(("feedback", "optimiser"), [("dense", "sgd"), ("scalar", "sgd"), ("dense", "adamw")])
def test_a_resumed_run_goes_on_bit_for_bit(feedback: str, optimiser: str, cut: int) -> None:
    settings = replace(FULL, feedback=feedback, optimiser=optimiser)
    whole, first, second = (method(settings, PHASES) for _ in range(3))
    run(whole, 0, 8)
    run(first, 0, cut)
    tensors, numbers = first.state()
    kept = {name: value.clone() for name, value in tensors.items()}
    for network in second.networks.values():  # what it was before must not matter
        for value in network.state_dict().values():
            value.zero_()
    second.load_state(kept, dict(numbers))
    run(second, cut, 8)
    for name, network in whole.networks.items():
        assert same(copied(network), copied(second.networks[name])), name
    assert whole.state()[1] == second.state()[1]
    assert whole.state()[0].keys() == second.state()[0].keys()


def test_supervised_training_resumes_bit_for_bit() -> None:
    settings = MethodSettings(name="supervised", momentum=0.9, ema_decay=0.9)

    def supervised() -> Supervised:
        return Supervised(tiny_unet(1, torch.float32), settings, PHASES, ignore=None, autocast=None)

    whole, first, second = supervised(), supervised(), supervised()
    assert not whole.needs_unlabelled(3)
    run(whole, 0, 5)
    run(first, 0, 2)
    second.load_state(*first.state())
    run(second, 2, 5)
    for name, network in whole.networks.items():
        assert same(copied(network), copied(second.networks[name])), name
    assert whole.evaluated == "student_average"


def test_a_state_of_another_method_is_refused() -> None:
    settings = MethodSettings(name="supervised", ema_decay=0)
    tensors, numbers = Supervised(tiny_unet(1, torch.float32), settings, PHASES, ignore=None, autocast=None).state()
    with pytest.raises(ModelError, match="network teacher"):
        method().load_state(tensors, numbers | {"baseline": 0.0})


def test_the_learning_rate_factor_scales_the_step() -> None:
    settings = fresh(momentum=0.0, weight_decay=0.0)
    moves = []
    for factor in (1.0, 0.25, 0.0):
        trained = method(settings)
        trained.learning_rate_factor = factor
        start = weights_of(trained.student.network)
        run(trained)
        moves.append(weights_of(trained.student.network) - start)
    assert torch.allclose(moves[1], 0.25 * moves[0], atol=1e-6)  # differences of float32 weights around 1
    assert torch.count_nonzero(moves[2]) == 0


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_feedback_map_is_the_exact_one_and_changes_nothing(mode: Any) -> None:
    """`sum_k q_k d_k - d_y`, with `d = dJ/dq` by double backward across the same probe."""
    trained = method(fresh(teacher_mode=mode))
    run(trained)
    before = {name: copied(network) for name, network in trained.networks.items()}
    labelled, unlabelled = batches(0)
    labels, feedback = trained.feedback_map(labelled, unlabelled.weak)
    assert all(same(copied(network), before[name]) for name, network in trained.networks.items())
    assert all(p.grad is None for p in trained.student.network.parameters())

    trained.teacher.network.train(mode == "train")
    with batch_statistics_only(trained.teacher.network) if mode == "train" else nullcontext(), torch.no_grad():
        q = (trained.teacher.network(unlabelled.weak) / PLAIN.temperature).softmax(1)
    q.requires_grad_()
    start = dict(trained.student.network.named_parameters())
    step = sgd_step(PLAIN.probe_rate)
    loss = exact_labelled_loss(
        trained.student.network, start, unlabelled.weak, q, None, labelled.images, labelled.labels, step
    )
    (d,) = torch.autograd.grad(loss, q)
    assert torch.equal(labels, q.argmax(1))
    expected = (q.detach() * d).sum(1) - d.gather(1, labels[:, None])[:, 0]
    # Two ways of the same second derivative, in float32.
    assert float((feedback - expected).norm() / expected.norm()) < 1e-3
    assert float(expected.min()) < 0 < float(expected.max())


def test_metrics_are_detached_scalars() -> None:
    metrics = run(method(fresh(student_supervised_weight=1.0)))
    assert {"pseudo_loss", "confidence", "labelled_loss", "feedback", "feedback_ratio"} < metrics.keys()
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "magic"}, "method.name = 'magic'"),
        ({"warmup_fraction": 1.5}, "method.warmup_fraction = 1.5"),
        ({"confidence_threshold": -0.1}, "method.confidence_threshold"),
        ({"warmup_fraction": 0.7, "finetune_fraction": 0.4}, "exceed 1"),
        ({"momentum": 1.0}, "method.momentum = 1.0"),
        ({"ema_decay": -0.1}, "method.ema_decay"),
        ({"temperature": 0.0}, "method.temperature = 0.0"),
        ({"name": "mpl", "teacher_every": 0}, "method.teacher_every = 0 holds the teacher still"),
        ({"name": "mpl", "teacher_rate": 0.0}, "method.teacher_rate = 0 holds the teacher still"),
        ({"teacher_every": -1}, "method.teacher_every = -1"),
        ({"feedback_ratio": -0.2}, "method.feedback_ratio = -0.2"),
        ({"restart_rate": -0.5}, "method.restart_rate = -0.5"),
        ({"learning_rate": -1.0}, "method.learning_rate"),
        ({"optimiser": "adamw", "probe": "real"}, 'method.probe = "real" is derived for SGD'),
        ({"probe_rate": -1.0}, "method.probe_rate"),
    ],
)
def test_bad_settings_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        MethodSettings(**changes)


# Phases and the building of methods.


def test_each_phase_is_judged_by_what_trains_in_it() -> None:
    trained = method(replace(PLAIN, ema_decay=0.9), PHASES)
    found = [(judged.network, judged.loss) for judged in map(trained.judged, range(PHASES.total))]
    assert found == (
        [("teacher_average", "labelled_loss")] * 2
        + [("student_average", "pseudo_loss")] * 4
        + [("student_average", "student_labelled_loss")] * 2
    )
    assert all(judged in run(method(PLAIN, PHASES), 0, step + 1) for step, (_, judged) in enumerate(found))


def test_a_warm_up_that_leaves_the_student_no_step_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method.warmup_fraction = 0.9 takes all of the 3 steps"):
        Phases.of(MethodSettings(warmup_fraction=0.9), Timeline.of_steps(3))
    supervised = MethodSettings(name="supervised", warmup_fraction=1.0, finetune_fraction=0.0)
    assert Phases.of(supervised, Timeline.of_steps(3)).total == 3


def test_phases_of_a_run() -> None:
    settings = MethodSettings(warmup_fraction=0.3, finetune_fraction=0.2)
    phases = Phases.of(settings, Timeline.of_steps(10))
    assert phases == Phases.of_steps(3, 8, 10)
    assert [phases.name(step) for step in range(10)] == ["warmup"] * 3 + ["train"] * 5 + ["finetune"] * 2
    assert Phases.of(MethodSettings(name="supervised"), Timeline.of_steps(10)) == Phases.of_steps(0, 10, 10)


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
    settings = MethodSettings(name=name, ema_decay=0)  # type: ignore[arg-type]
    first, again, other = (
        build_method(plan, settings, PHASES, seed=seed, device=torch.device("cpu")) for seed in (0, 0, 1)
    )
    expected = {"student"} if name == "supervised" else {"teacher", "student"}
    assert first.networks.keys() == expected
    assert first.networks["student"](torch.zeros(1, 2, *SHAPE)).shape == (1, 4, *SHAPE)
    for network in expected:
        a, b, c = (weights_of(built.networks[network]) for built in (first, again, other))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    if name != "supervised":
        assert first.networks["teacher"].encoder[0][0].weight.shape[0] == 4  # type: ignore[index,union-attr]
    assert float(global_norm(dict(first.networks["student"].named_parameters())).detach()) > 0
