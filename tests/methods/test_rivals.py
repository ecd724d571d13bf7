"""The published rivals: what is theirs, against formulas written out here, and that a resume is exact."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from networks import CLASSES, TINY, tiny_unet
from torch import Tensor, nn

from semiseg.augment.cutmix import sample_boxes
from semiseg.data.plan import ChannelNormalisation, Plan
from semiseg.errors import ConfigError
from semiseg.io.dataset import LabelScheme
from semiseg.losses import supervised_loss
from semiseg.methods.agreement import agreement
from semiseg.methods.base import HIDDEN, Batch, Method, UnlabelledBatch
from semiseg.methods.build import build_method
from semiseg.methods.copy_paste import BOX_EDGE, CopyPaste, largest_components, mixed_both_ways
from semiseg.methods.cross_pseudo import CrossPseudo
from semiseg.methods.learner import label_images, ramp_up
from semiseg.methods.mean_teacher import MeanTeacher, certainty_limit, masked_mse
from semiseg.methods.optimiser import NamedOptimiser, gradients_of
from semiseg.methods.phases import Phases
from semiseg.methods.pseudo_rounds import PseudoRounds
from semiseg.methods.settings import MethodSettings
from semiseg.methods.supervised import Supervised
from semiseg.methods.timeline import Timeline
from semiseg.randomness import Draw

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (6, 6, 6)
RIVALS = ["mean_teacher", "cross_pseudo", "copy_paste", "pseudo_rounds"]
PLAN = Plan(
    dataset="made up",
    channels=("MRI",),
    labels=LabelScheme(names={0: "background", 1: "a", 2: "b"}),
    spacing_mm=(1.0, 1.0, 1.0),
    anisotropic_axis=None,
    patch=SHAPE,
    batch=2,
    normalisation=(ChannelNormalisation(scheme="zscore"),),
    teacher=TINY,
    student=TINY,
)


def built(name: str, phases: Phases, *, ignore: int | None = None, **changes: Any) -> Method:
    settings = MethodSettings(name=name, **({"learning_rate": 0.01} | changes))  # type: ignore[arg-type]
    student = tiny_unet(1, torch.float32)
    options: dict[str, Any] = {"ignore": ignore, "autocast": None}
    if name == "supervised":
        return Supervised(student, settings, phases, **options)
    if name == "cross_pseudo":
        return CrossPseudo(student, tiny_unet(2, torch.float32), settings, phases, **options)
    kinds = {"mean_teacher": MeanTeacher, "copy_paste": CopyPaste, "pseudo_rounds": PseudoRounds}
    return kinds[name](student, settings, phases, **options)


def batches(step: int) -> tuple[Batch, UnlabelledBatch]:
    generator = torch.Generator().manual_seed(step)
    images, weak, noise = torch.randn((3, 2, 1, *SHAPE), generator=generator)
    labels = torch.randint(0, CLASSES, (2, *SHAPE), generator=generator)
    return Batch(images, labels), UnlabelledBatch(weak, weak + 0.3 * noise)


def run(trained: Method, start: int, stop: int) -> list[dict[str, Tensor]]:
    rows = []
    for step in range(start, stop):
        labelled, unlabelled = batches(step)
        given = unlabelled if trained.needs_unlabelled(step) else None
        rows.append(trained.step(labelled, given, Draw(seed=4, step=step)))
    return rows


def stepped(network: nn.Module, loss: Tensor, settings: MethodSettings) -> dict[str, Tensor]:
    """The weights of a network after one optimiser step down a loss."""
    sgd = NamedOptimiser(network, settings)
    sgd.step(gradients_of(loss, sgd.parameters), settings.first_learning_rate)
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in network.named_parameters()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        # The same float32 operations; sums may be taken in another order where batches are joined.
        torch.testing.assert_close(value, b[name], rtol=1e-5, atol=1e-6)


# What all have.


@pytest.mark.parametrize("name", RIVALS)
def test_a_resumed_run_goes_on_exactly(name: str) -> None:
    phases = Phases.of_steps(2, 8, 9)
    options: dict[str, Any] = {"uncertainty_passes": 2} if name == "mean_teacher" else {}
    whole = built(name, phases, **options)
    run(whole, 0, 9)
    begun = built(name, phases, **options)
    run(begun, 0, 5)
    tensors, numbers = begun.state()
    resumed = built(name, phases, **options)
    resumed.load_state({key: value.clone() for key, value in tensors.items()}, dict(numbers))
    run(resumed, 5, 9)
    expected, found = whole.state(), resumed.state()
    assert expected[1] == found[1]
    assert expected[0].keys() == found[0].keys()
    assert all(torch.equal(value, found[0][key]) for key, value in expected[0].items())


@pytest.mark.parametrize("name", RIVALS)
def test_they_are_built_from_plan_and_settings(name: str) -> None:
    settings = MethodSettings(name=name)  # type: ignore[arg-type]
    phases = Phases.of(settings, Timeline.of_steps(12))
    method = build_method(PLAN, settings, phases, seed=3, device=torch.device("cpu"))
    assert method.evaluated == "student_average"
    assert method.labeller in method.networks
    rows = run(method, 0, 12)
    assert all(torch.isfinite(value) for row in rows for value in row.values())
    for step in range(12):
        judged = method.judged(step)
        assert judged.network in method.networks
        assert judged.loss in rows[step]
    begin, end = {"pseudo_rounds": (4, 10), "copy_paste": (3, 12)}.get(name, (0, 12))
    assert [step for step in range(12) if method.needs_unlabelled(step)] == list(range(begin, end))


@pytest.mark.parametrize("name", RIVALS)
def test_voxels_of_the_ignore_value_do_not_count(name: str) -> None:
    labelled, unlabelled = batches(0)
    nothing = Batch(labelled.images, torch.full_like(labelled.labels, 7))
    metrics = built(name, Phases.of_steps(0, 9, 9), ignore=7).step(nothing, unlabelled, Draw(seed=4))
    assert metrics["labelled_loss"] == 0
    some = Batch(labelled.images, labelled.labels.clone())
    some.labels[:, :, :2] = 7
    rows = [
        built(name, Phases.of_steps(0, 9, 9), ignore=7).step(batch, unlabelled, Draw(seed=4))
        for batch in (labelled, some)
    ]
    assert 0 < rows[1]["labelled_loss"] != rows[0]["labelled_loss"]


def test_weights_of_the_unlabelled_rise_as_published() -> None:
    assert ramp_up(0, 10) == pytest.approx(math.exp(-5))
    assert ramp_up(5, 10) == pytest.approx(math.exp(-5 / 4))
    assert ramp_up(10, 10) == ramp_up(25, 10) == ramp_up(0, 0) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "mean_teacher", "ema_decay": 0}, "ema_decay = 0, but the teacher of mean_teacher is the average"),
        ({"name": "copy_paste", "ema_decay": 0}, "the teacher of copy_paste is the average"),
        ({"name": "pseudo_rounds", "rounds": 0}, "method.rounds = 0"),
        ({"unlabelled_weight": -1.0}, "method.unlabelled_weight = -1.0"),
        ({"ramp_fraction": 2.0}, "method.ramp_fraction = 2.0"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MethodSettings(**changes)


# Mean Teacher.


def test_the_mean_teacher_is_the_students_moving_average() -> None:
    method = built("mean_teacher", Phases.of_steps(0, 9, 9), ema_decay=0.3)
    expected = copy.deepcopy(method.networks["student"].state_dict())
    for step in range(5):
        run(method, step, step + 1)
        decay = min(0.3, (1 + step) / (10 + step))
        for name, value in method.networks["student"].state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
    found = method.networks["student_average"].state_dict()
    for name, value in expected.items():
        if value.is_floating_point():
            # lerp rounds once where the formula rounds twice, five times over.
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("ramp_fraction", "ramp"), [(0.0, 1.0), (1.0, math.exp(-5 * (7 / 9) ** 2))])
def test_a_step_of_mean_teacher_is_labels_and_squared_differences(ramp_fraction: float, ramp: float) -> None:
    """At step 2 of 9."""
    changes: dict[str, Any] = {"unlabelled_weight": 3.0, "ramp_fraction": ramp_fraction}
    settings = MethodSettings(name="mean_teacher", learning_rate=0.01, **changes)
    method = built("mean_teacher", Phases.of_steps(0, 9, 9), **changes)
    labelled, unlabelled = batches(2)
    student = tiny_unet(1, torch.float32).train()
    q = copy.deepcopy(student).eval()(unlabelled.weak).softmax(1).detach()
    logits = student(torch.cat([labelled.images, unlabelled.strong]))
    loss = supervised_loss(labelled.labels, logits[:2]) + 3.0 * ramp * ((logits[2:].softmax(1) - q) ** 2).mean()
    expected = stepped(student, loss, settings)
    run(method, 2, 3)
    assert_same(weights(method.networks["student"]), expected)


def test_an_uncertainty_aware_step_follows_the_teacher_where_it_is_sure() -> None:
    changes: dict[str, Any] = {"uncertainty_passes": 4, "ramp_fraction": 1.0}
    settings = MethodSettings(name="mean_teacher", learning_rate=0.01, **changes)
    method = built("mean_teacher", Phases.of_steps(0, 9, 9), **changes)
    student = tiny_unet(1, torch.float32).train()
    for network in (student, *method.networks.values()):  # decided on some voxels, which it is not as it begins
        network.get_submodule("head").weight.data.mul_(8.0)  # type: ignore[union-attr, operator]
    labelled, unlabelled = batches(0)
    teacher = copy.deepcopy(student).eval()
    generator = torch.Generator().manual_seed(Draw(seed=4, step=0).torch_seed("uncertainty"))
    noise = [(0.1 * torch.randn(unlabelled.weak.shape, generator=generator)).clamp(-0.2, 0.2) for _ in range(4)]
    with torch.no_grad():
        q = teacher(unlabelled.weak).softmax(1)
        mean = torch.stack([teacher(unlabelled.weak + one).softmax(1) for one in noise]).mean(0)
    sure = torch.special.entr(mean).sum(1) < (0.75 + 0.25 * math.exp(-5)) * math.log(CLASSES)
    assert 0.1 < sure.float().mean() < 0.9
    logits = student(torch.cat([labelled.images, unlabelled.strong]))
    squares = ((logits[2:].softmax(1) - q) ** 2).mean(1)
    loss = supervised_loss(labelled.labels, logits[:2])
    loss = loss + settings.weight_of_unlabelled * math.exp(-5) * squares[sure].mean()
    expected = stepped(student, loss, settings)
    (row,) = run(method, 0, 1)
    assert float(row["sure"]) == pytest.approx(float(sure.float().mean()))
    assert_same(weights(method.networks["student"]), expected)


def test_only_voxels_that_the_teacher_is_sure_of_count() -> None:
    p, q = torch.rand(2, 3, 2, 2, 2), torch.rand(2, 3, 2, 2, 2)
    mask = torch.zeros(2, 1, 2, 2, 2)
    assert masked_mse(p, q, mask) == 0
    mask[1, 0, 1, 1] = 1
    expected = ((p[1, :, 1, 1] - q[1, :, 1, 1]) ** 2).mean()
    torch.testing.assert_close(masked_mse(p, q, mask), expected)
    assert certainty_limit(0.0, 3) == pytest.approx(0.75 * math.log(3))
    assert certainty_limit(1.0, 3) == pytest.approx(math.log(3))


def test_uncertainty_is_the_entropy_of_noisy_passes() -> None:
    method = built("mean_teacher", Phases.of_steps(0, 100, 100), uncertainty_passes=3)
    assert isinstance(method, MeanTeacher)
    head = method.networks["student_average"].get_submodule("head")
    assert isinstance(head, nn.Conv3d)
    _, unlabelled = batches(0)
    head.weight.data.zero_()
    head.bias.data.copy_(torch.tensor([0.0, 0.0, 0.0]))  # type: ignore[union-attr]
    _, sure = method._taught(unlabelled.weak, 0.0, Draw(seed=1))
    assert sure.sum() == 0  # the entropy is ln K everywhere
    head.bias.data.copy_(torch.tensor([9.0, 0.0, 0.0]))  # type: ignore[union-attr]
    _, sure = method._taught(unlabelled.weak, 0.0, Draw(seed=1))
    assert sure.mean() == 1


# Cross pseudo supervision.


@pytest.mark.parametrize(("ramp_fraction", "ramp"), [(0.0, 1.0), (1.0, math.exp(-5 * (7 / 9) ** 2))])
def test_each_network_learns_the_hard_labels_of_the_other(ramp_fraction: float, ramp: float) -> None:
    """At step 2 of 9."""
    settings = MethodSettings(name="cross_pseudo", learning_rate=0.01)
    method = built("cross_pseudo", Phases.of_steps(0, 9, 9), unlabelled_weight=2.0, ramp_fraction=ramp_fraction)
    labelled, unlabelled = batches(2)
    pair = [tiny_unet(1, torch.float32).train(), tiny_unet(2, torch.float32).train()]
    logits = [network(torch.cat([labelled.images, unlabelled.strong])) for network in pair]
    expected = []
    for mine, other, network in ((0, 1, pair[0]), (1, 0, pair[1])):
        taught = logits[other].argmax(1)
        loss = supervised_loss(labelled.labels, logits[mine][:2]) + 2.0 * ramp * supervised_loss(taught, logits[mine])
        expected.append(stepped(network, loss, settings))
    run(method, 2, 3)
    assert_same(weights(method.networks["student"]), expected[0])
    assert_same(weights(method.networks["partner"]), expected[1])


def test_the_two_begin_differently() -> None:
    settings = MethodSettings(name="cross_pseudo")
    method = build_method(PLAN, settings, Phases.of(settings, Timeline.of_steps(4)), seed=3, device=torch.device("cpu"))
    first, second = weights(method.networks["student"]), weights(method.networks["partner"])
    assert not torch.equal(first["head.weight"], second["head.weight"])


# Bidirectional copy-paste.


def test_boxes_go_both_ways() -> None:
    labelled = Batch(torch.full((2, 1, 4, 4, 4), 1.0), torch.full((2, 4, 4, 4), 1))
    labelled.images[1], labelled.labels[1] = 2.0, 2
    images, labels = torch.full((2, 1, 4, 4, 4), 10.0), torch.full((2, 4, 4, 4), 5)
    boxes = np.array([[[0, 0, 0], [2, 4, 4]], [[1, 1, 1], [3, 3, 3]]])
    mixed, truth, taught = mixed_both_ways(labelled, images, labels, boxes)
    assert mixed.shape == (2, 1, 4, 4, 4)  # as many as there are labelled patches, as published
    assert (mixed[0, 0, :2] == 10).all()  # an unlabelled box in the first labelled patch
    assert (mixed[0, 0, 2:] == 1).all()
    assert (mixed[1, 0, :2] == 2).all()  # a box of the other labelled patch in the second unlabelled one
    assert (mixed[1, 0, 2:] == 10).all()
    for values, true, pseudo in zip(mixed, truth, taught, strict=True):
        from_unlabelled = values[0] == 10
        assert torch.equal(true == HIDDEN, from_unlabelled)
        assert torch.equal(pseudo == HIDDEN, ~from_unlabelled)
        assert torch.equal(true[~from_unlabelled].float(), values[0][~from_unlabelled])
        assert (pseudo[from_unlabelled] == 5).all()


@pytest.mark.parametrize(("count", "expected"), [(1, 2), (3, 4), (4, 4)])
def test_every_patch_is_used_once_where_there_are_pairs(count: int, expected: int) -> None:
    labelled = Batch(
        torch.arange(count).float().view(-1, 1, 1, 1, 1).expand(-1, 1, 4, 4, 4), torch.ones((count, 4, 4, 4))
    )
    boxes = np.array([[[0, 0, 0], [2, 4, 4]]] * count)
    mixed, _, _ = mixed_both_ways(labelled, 10 + labelled.images, torch.ones((count, 4, 4, 4)), boxes)
    assert len(mixed) == expected
    assert set(mixed.unique().tolist()) == {*range(count), *range(10, 10 + count)}


def test_a_step_of_copy_paste_weighs_the_two_sides() -> None:
    settings = MethodSettings(name="copy_paste", learning_rate=0.01)
    method = built("copy_paste", Phases.of_steps(0, 9, 9))
    labelled, unlabelled = batches(0)
    student = tiny_unet(1, torch.float32).train()
    labels = largest_components(copy.deepcopy(student).eval()(unlabelled.weak).argmax(1))
    boxes = sample_boxes(Draw(seed=4, step=0), 2, SHAPE, BOX_EDGE)
    assert (boxes[:, 1] - boxes[:, 0] == 4).all()  # two thirds of 6
    images, truth, taught = mixed_both_ways(labelled, unlabelled.strong, labels, boxes)
    logits = student(images)
    loss = torch.zeros(())
    for way in (slice(0, 1), slice(1, 2)):  # the mean of both directions
        loss = loss + 0.5 * supervised_loss(truth[way], logits[way], ignore=HIDDEN)
        loss = loss + 0.5 * 0.5 * supervised_loss(taught[way], logits[way], ignore=HIDDEN)
    expected = stepped(student, loss, settings)
    run(method, 0, 1)
    assert_same(weights(method.networks["student"]), expected)


def test_pseudo_labels_keep_the_largest_component_of_each_class() -> None:
    labels = torch.zeros((2, 5, 5, 5), dtype=torch.int64)
    labels[0, :2, :2, :2], labels[0, 4, 4, 4] = 1, 1
    labels[0, 4, :2, :2] = 2
    labels[1, 0, 0, 0] = 2
    cleaned = largest_components(labels)
    expected = labels.clone()
    expected[0, 4, 4, 4] = 0
    assert torch.equal(cleaned, expected)


def test_before_unlabelled_patches_labelled_ones_are_pasted_into_each_other() -> None:
    settings = MethodSettings(name="copy_paste", learning_rate=0.01)
    method = built("copy_paste", Phases.of_steps(3, 9, 9))
    labelled, _ = batches(0)
    boxes = sample_boxes(Draw(seed=4, step=0), 2, SHAPE, BOX_EDGE)
    images, labels = labelled.images.clone(), labelled.labels.clone()
    for i, (start, stop) in enumerate(boxes):
        where = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        images[i][:, *where] = labelled.images[1 - i][:, *where]
        labels[i][where] = labelled.labels[1 - i][where]
    student = tiny_unet(1, torch.float32).train()
    expected = stepped(student, supervised_loss(labels, student(images)), settings)
    run(method, 0, 1)
    assert_same(weights(method.networks["student"]), expected)


def test_after_the_warm_up_copy_paste_goes_on_from_the_average() -> None:
    method = built("copy_paste", Phases.of_steps(3, 9, 9), ema_decay=0.5)
    run(method, 0, 3)
    before = copy.deepcopy(method.networks["student_average"].state_dict())
    method.learning_rate_factor = 0.0
    run(method, 3, 4)
    after = weights(method.networks["student"])
    assert all(torch.equal(value, before[name]) for name, value in after.items())


# Rounds.


def test_a_rounds_teacher_stands_still_and_the_next_is_the_student() -> None:
    method = built("pseudo_rounds", Phases.of_steps(2, 10, 10), rounds=3, ema_decay=0.5)
    run(method, 0, 2)
    seen = []
    for step in range(2, 8):
        settled = copy.deepcopy(weights(method.networks["student_average"]))
        run(method, step, step + 1)
        teacher = weights(method.networks["teacher"])
        seen.append(all(torch.equal(value, settled[name]) for name, value in teacher.items()))
    assert seen == [True, False, True, False, True, False]  # steps 2, 4 and 6 begin rounds


def test_the_first_teacher_is_held_against_the_network_of_a_fifth_of_the_warm_up_before() -> None:
    method = built("pseudo_rounds", Phases.of_steps(10, 14, 14), rounds=1, ema_decay=0.5)
    run(method, 0, 8)  # 0.8 of 10 steps
    early = copy.deepcopy(weights(method.networks["student_average"]))
    run(method, 8, 10)
    late = copy.deepcopy(weights(method.networks["student_average"]))
    assert method.scan_labellers(10) == ("student_average", "teacher")
    assert_same(weights(method.networks["teacher"]), early)  # what is to be held against the student now
    run(method, 10, 11)
    assert method.scan_labellers(11) == ("teacher", "teacher_before")
    for name, expected in (("teacher", late), ("teacher_before", early)):
        assert all(torch.equal(value, expected[key]) for key, value in weights(method.networks[name]).items())


@pytest.mark.parametrize("learnt_from", [False, True])
def test_where_nothing_was_to_be_learnt_the_next_round_is_held_against_a_later_network(learnt_from: bool) -> None:
    """Rounds could begin at 4, 7, 10 and 13 and do at 4 and 10: the network of step 7 is remembered, unless that of
    step 4 is the round's teacher."""
    method = built("pseudo_rounds", Phases.of_steps(4, 16, 20), rounds=4)
    method.shortest_round = 4
    assert list(method.labelling_steps) == [4, 10]
    kept = {}
    for step in range(10):
        kept[step] = copy.deepcopy(weights(method.networks[method.evaluated]))
        labelled, unlabelled = batches(step)
        method.step(labelled, unlabelled if learnt_from and step >= 4 else None, Draw(seed=4, step=step))
    assert_same(weights(method.networks["teacher"]), kept[4 if learnt_from else 7])


def test_the_student_goes_on_as_it_is_where_training_begins() -> None:
    """Its weights, not its average, and its momentum: the learning rate falls once."""
    method = built("pseudo_rounds", Phases.of_steps(2, 8, 8), ema_decay=0.5)
    labels_alone = built("supervised", Phases.of_steps(0, 8, 8), ema_decay=0.5)
    run(method, 0, 2)
    run(labels_alone, 0, 2)
    labelled, _ = batches(2)
    for one in (method, labels_alone):
        one.step(labelled, None, Draw(seed=4, step=2))  # a round whose labels are not to be trusted
    found = method.networks["student"].state_dict()
    assert all(torch.equal(value, found[name]) for name, value in labels_alone.networks["student"].state_dict().items())


@pytest.mark.parametrize("step", [4, 5])
def test_a_step_of_rounds_learns_true_labels_and_those_that_two_rounds_agree_on(step: int) -> None:
    """One patch of two with its true labels and one with the round's, the first or the second of each in turn; in the
    rounds of 2 to 8 the second of three begins at step 4, its teacher the student as it is."""
    changes: dict[str, Any] = {"label_scope": "patch", "round_agreement": 0.0, "ema_decay": 0.0}
    settings = MethodSettings(name="pseudo_rounds", learning_rate=0.01, unlabelled_weight=2.0, **changes)
    method = built("pseudo_rounds", Phases.of_steps(2, 10, 10), unlabelled_weight=2.0, rounds=3, **changes)
    labelled, unlabelled = batches(step)
    before, student = tiny_unet(9, torch.float32), tiny_unet(1, torch.float32).train()
    if step == 4:
        method.networks["teacher"].load_state_dict(before.state_dict())  # of the first round
    else:
        method.networks["teacher"].load_state_dict(student.state_dict())
        method.networks["teacher_before"].load_state_dict(before.state_dict())
    teachers = [copy.deepcopy(student).eval(), before.eval()]
    a, b = (teacher(unlabelled.weak).argmax(1) for teacher in teachers)
    turn = slice(step % 2, None, 2)
    labels = a.masked_fill(a != b, HIDDEN)[turn]
    assert 0 < (labels == HIDDEN).float().mean() < 1
    logits = student(torch.cat([labelled.images[turn], unlabelled.strong[turn]]))
    assert len(logits) == len(labelled.images)  # a step costs as much as one on labels alone
    loss = supervised_loss(labelled.labels[turn], logits[:1])
    loss = (loss + 2.0 * supervised_loss(labels, logits[1:], ignore=HIDDEN)) / 2
    expected = stepped(student, loss, settings)
    run(method, step, step + 1)
    assert_same(weights(method.networks["student"]), expected)


def test_a_batch_of_one_patch_is_true_and_pseudo_labelled() -> None:
    method = built("pseudo_rounds", Phases.of_steps(0, 8, 8), label_scope="patch")
    labelled, unlabelled = batches(3)
    one = Batch(labelled.images[:1], labelled.labels[:1])
    row = method.step(one, UnlabelledBatch(unlabelled.weak[:1], unlabelled.strong[:1]), Draw(seed=1, step=3))
    assert all(torch.isfinite(row[name]) for name in ("labelled_loss", "pseudo_loss"))


def test_rounds_label_whole_scans() -> None:
    """By who is the teacher from then on; the state of it before may contradict it, in the first round too."""
    method = built("pseudo_rounds", Phases.of_steps(2, 10, 10), rounds=3)
    assert list(method.labelling_steps) == [2, 4, 6]
    found = [method.scan_labellers(step) for step in range(2, 8)]
    begins, goes_on = ("student_average", "teacher"), ("teacher", "teacher_before")
    assert found == [begins, goes_on] * 3
    assert built("pseudo_rounds", Phases.of_steps(2, 8, 8), label_scope="patch").scan_labellers(2) == ()
    labelled, unlabelled = batches(3)
    labels = torch.full_like(labelled.labels, HIDDEN)
    labels[1, :1] = 1  # of the patch that is pseudo-labelled in an odd step
    labels[0] = 1
    run(method, 2, 3)
    row = method.step(labelled, UnlabelledBatch(unlabelled.weak, unlabelled.strong, labels), Draw(seed=1, step=3))
    assert float(row["counted"]) == pytest.approx(1 / labels.shape[1])


def test_rounds_are_of_one_length() -> None:
    found = {rounds: built("pseudo_rounds", Phases.of_steps(20, 100, 100), rounds=rounds) for rounds in (1, 2, 3, 4)}
    assert {rounds: list(method.labelling_steps) for rounds, method in found.items()} == {
        1: [20],
        2: [20, 50],
        3: [20, 40, 60],
        4: [20, 35, 50, 65],
    }
    assert list(built("pseudo_rounds", Phases.of_steps(30, 100, 100)).labelling_steps) == list(range(30, 80, 10))


@pytest.mark.parametrize(("warmup", "train", "end"), [(30, 100, 80), (30, 70, 70), (85, 100, 100)])
def test_the_last_fifth_of_a_run_learns_from_true_labels_alone(warmup: int, train: int, end: int) -> None:
    """Or what fine-tuning takes; not where the warm-up takes so long that nothing else would be learnt from."""
    method = built("pseudo_rounds", Phases.of_steps(warmup, train, 100))
    assert [step for step in range(100) if method.needs_unlabelled(step)] == list(range(warmup, end))
    assert tuple(method.turns) == (warmup, end)


def test_rounds_in_which_labelling_would_take_long_join_the_one_before() -> None:
    """And the first begins later; the states that are compared are those of the last possible beginnings."""
    method = built("pseudo_rounds", Phases.of_steps(30, 100, 100))
    for shortest, expected in ((10, [*range(30, 80, 10)]), (20, [30, 50, 70]), (35, [40]), (999, [70])):
        method.shortest_round = shortest
        assert list(method.labelling_steps) == expected
        assert [method.needs_unlabelled(step) for step in (expected[0] - 1, expected[0])] == [False, True]
    method.shortest_round = 35
    run(method, 0, 30)
    early = copy.deepcopy(weights(method.networks["student_average"]))
    run(method, 30, 41)
    assert_same(weights(method.networks["teacher_before"]), early)


def test_voxels_and_patches_that_two_rounds_disagree_on_do_not_count() -> None:
    method = built("pseudo_rounds", Phases.of_steps(0, 9, 9), rounds=3, round_agreement=0.0)
    assert isinstance(method, PseudoRounds)
    _, unlabelled = batches(0)
    labels = {}
    same = method._taught(unlabelled.weak)
    method.networks["teacher_before"].load_state_dict(tiny_unet(9, torch.float32).state_dict())
    for name in ("teacher", "teacher_before"):
        labels[name] = copy.deepcopy(method.networks[name]).eval()(unlabelled.weak).argmax(1)
    assert torch.equal(same, labels["teacher"])  # nothing to disagree on
    differ = labels["teacher"] != labels["teacher_before"]
    assert differ.any()
    assert torch.equal(method._taught(unlabelled.weak), labels["teacher"].masked_fill(differ, HIDDEN))
    strict = built("pseudo_rounds", Phases.of_steps(0, 9, 9), rounds=3, round_agreement=1.0)
    assert isinstance(strict, PseudoRounds)
    strict.networks["teacher_before"].load_state_dict(tiny_unet(9, torch.float32).state_dict())
    assert (strict._taught(unlabelled.weak) == HIDDEN).all()


def test_agreement_is_the_mean_dice_of_organs_that_are_there() -> None:
    a, b = torch.zeros((3, 1, 1, 4), dtype=torch.int64), torch.zeros((3, 1, 1, 4), dtype=torch.int64)
    a[0, 0, 0], b[0, 0, 0] = torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 0, 0])  # Dice 2/3 of class 1
    a[1, 0, 0], b[1, 0, 0] = torch.tensor([1, 2, 0, 0]), torch.tensor([1, 0, 2, 0])  # 1 and 0
    torch.testing.assert_close(agreement(a, b, 3), torch.tensor([2 / 3, 0.5, 1.0]))


# A teacher's labels.


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_labelling_changes_nothing(mode: Any) -> None:
    network = tiny_unet(1, torch.float32)
    before = copy.deepcopy(network.state_dict())
    _, unlabelled = batches(0)
    logits = label_images(network, unlabelled.weak, mode)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    other = label_images(network, unlabelled.weak[:1], mode)
    assert torch.allclose(other, logits[:1], atol=1e-5) == (mode == "eval")  # a batch's statistics are its own
