"""The published rivals, and rounds: what is theirs, against formulas written out here, and that a resume is exact.
What all methods have is tested here, too."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial
from typing import Any, cast

import method_runs
import numpy as np
import pytest
import torch
from method_runs import resumed, scan_labels
from networks import CLASSES, tiny_unet
from torch import Tensor, nn

import plans
from semiseg.augment.cutmix import sample_boxes
from semiseg.losses import CROSS_ENTROPY_DICE, Losses, supervised_loss
from semiseg.methods.base import HIDDEN, Batch, UnlabelledBatch
from semiseg.methods.build import build_method
from semiseg.methods.copy_paste import BOX_EDGE, CopyPaste, largest_components, mixed_both_ways
from semiseg.methods.cross_pseudo import CrossPseudo
from semiseg.methods.learner import StudentMethod, label_images, ramp_up
from semiseg.methods.masked import Masked
from semiseg.methods.mean_teacher import MeanTeacher, certainty_limit, masked_mse
from semiseg.methods.mpl import MetaPseudoLabels
from semiseg.methods.optimiser import NamedOptimiser, gradients_of
from semiseg.methods.phases import Phases
from semiseg.methods.pseudo_label import PseudoLabel
from semiseg.methods.pseudo_rounds import PseudoRounds
from semiseg.methods.settings import OptimiserSettings, method_settings
from semiseg.methods.supervised import Supervised
from semiseg.methods.timeline import Timeline
from semiseg.randomness import Draw

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (6, 6, 6)
RIVALS = ["mean_teacher", "cross_pseudo", "copy_paste", "pseudo_rounds"]
KINDS: dict[str, type[StudentMethod[Any]]] = {
    "supervised": Supervised,
    "pseudo_rounds": PseudoRounds,
    "masked": Masked,
    "pseudo_label": PseudoLabel,
    "mpl": MetaPseudoLabels,
    "mean_teacher": MeanTeacher,
    "cross_pseudo": CrossPseudo,
    "copy_paste": CopyPaste,
}
SEEDS = {"student": 1, "partner": 2, "teacher": 3}
SLOW = OptimiserSettings(learning_rate=0.01)
PLAN = replace(plans.PLAN, patch=SHAPE)
THRICE = Losses(
    lambda labels, logits, ignore: 3 * CROSS_ENTROPY_DICE.labelled(labels, logits, ignore),
    lambda q, logits, weight: 3 * CROSS_ENTROPY_DICE.pseudo(q, logits, weight),
    lambda q, logits, weight: 3 * CROSS_ENTROPY_DICE.pseudo_gradient(q, logits, weight),
)
batches = partial(method_runs.batches, shape=SHAPE)
run = partial(method_runs.rows, shape=SHAPE)
"""The metrics of the steps from one to another."""


def built(
    name: str,
    phases: Phases,
    *,
    ignore: int | None = None,
    average_decay: float = 0.99,
    losses: Losses = CROSS_ENTROPY_DICE,
    **changes: Any,
) -> StudentMethod[Any]:
    kind = type("Changed", (KINDS[name],), {"average_decay": average_decay})
    settings = method_settings(name, **({"optimiser": SLOW} | changes))
    networks = {role: tiny_unet(SEEDS[role], torch.float32) for role in KINDS[name].learner_names}
    return cast(StudentMethod[Any], kind(networks, settings, phases, losses=losses, ignore=ignore))


def with_labels(unlabelled: UnlabelledBatch, step: int = 0) -> UnlabelledBatch:
    """As where whole scans were labelled."""
    return replace(unlabelled, labels=scan_labels(step, SHAPE))


def stepped(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The weights of a network after one optimiser step down a loss."""
    sgd = NamedOptimiser(network, SLOW)
    sgd.step(gradients_of(loss, sgd.parameters), SLOW.learning_rate)
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
    options: dict[str, Any] = {"uncertainty_passes": 2} if name == "mean_teacher" else {}
    resumed(lambda: built(name, Phases.of_steps(2, 8, 9), **options), 5, 9, SHAPE)


@pytest.mark.parametrize("name", RIVALS)
def test_they_are_built_from_plan_and_settings(name: str) -> None:
    settings = method_settings(name)
    phases = Phases.of(settings, Timeline.of_steps(12))
    method = build_method(PLAN, settings, phases, seed=3, device=torch.device("cpu"))
    assert isinstance(method, KINDS[name])
    assert method.settings == settings
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


@pytest.mark.parametrize(
    ("name", "doubter", "without_averages"),
    [
        ("supervised", "student", None),
        ("mean_teacher", "student", None),
        ("copy_paste", "student", None),
        ("cross_pseudo", "partner_average", "partner"),
        ("masked", "student", None),
        ("pseudo_rounds", "teacher", "teacher"),
        ("pseudo_label", "teacher_average", "teacher"),
        ("mpl", "teacher_average", "teacher"),
    ],
)
def test_which_network_may_contradict_the_one_that_is_shipped(
    name: str, doubter: str, without_averages: str | None
) -> None:
    """One that learnt by itself or earlier, or else that of which the shipped one is the average."""
    for decay, expected in ((0.99, doubter), (0.0, without_averages)):
        method = built(name, Phases.of_steps(1, 8, 9), average_decay=decay)
        assert method.doubter == expected
        assert method.doubter != method.evaluated
        assert expected is None or expected in method.networks


@pytest.mark.parametrize("name", KINDS)
def test_a_method_says_what_the_loop_asks_of_it(name: str) -> None:
    """How many scans it labels at a time, and after how many steps its kinds of step come round again."""
    options: dict[str, Any] = {"label_scans": 9} if name in ("pseudo_rounds", "pseudo_label") else {}
    method = built(name, Phases.of_steps(1, 8, 9), **options)
    assert method.scans_to_label == (9 if options else 0)
    assert method.period == (4 if name == "mpl" else 1)
    assert bool(method.labelling_steps) == bool(options)
    assert all(bool(method.scan_labellers(step)) == bool(options) for step in range(1, 6))
    labelled, unlabelled = batches(0)
    assert (method.feedback_map(labelled, unlabelled.weak) is None) == (name != "mpl")


@pytest.mark.parametrize("name", KINDS)
def test_a_method_learns_by_the_losses_that_it_is_given(name: str) -> None:
    """Three times as large, and so are the losses that are told; the network learns otherwise."""
    labelled, unlabelled = batches(0)
    taught = unlabelled if name == "mpl" else with_labels(unlabelled)
    for given in (taught, None):
        rows, students = [], []
        for losses in (CROSS_ENTROPY_DICE, THRICE):
            method = built(name, Phases.of_steps(0, 8, 9), losses=losses)
            rows.append(method.step(labelled, given, Draw(seed=4)))
            students.append(weights(method.networks["student"]))
        told = {"labelled_loss", "pseudo_loss", "student_labelled_loss"} & rows[0].keys()
        assert told
        for key in told:
            # The same sums in float32.
            assert float(rows[1][key]) == pytest.approx(3 * float(rows[0][key]), rel=1e-5)
        assert any(not torch.equal(value, students[1][key]) for key, value in students[0].items())


@pytest.mark.parametrize("name", RIVALS)
def test_voxels_of_the_ignore_value_do_not_count(name: str) -> None:
    labelled, unlabelled = batches(0)
    unlabelled = with_labels(unlabelled)
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


RAMPS = pytest.mark.parametrize(
    ("phases", "ramp"),
    [(Phases.of_steps(0, 9, 9), math.exp(-5 * (7 / 9) ** 2)), (Phases.of_steps(1, 3, 9), math.exp(-5 / 4))],
)
"""How far the weight of the unlabelled is up at step 2: by the share of the training phase."""


# Mean Teacher.


def test_the_mean_teacher_is_the_students_moving_average() -> None:
    method = built("mean_teacher", Phases.of_steps(0, 9, 9), average_decay=0.3)
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


@RAMPS
def test_a_step_of_mean_teacher_is_labels_and_squared_differences(phases: Phases, ramp: float) -> None:
    method = built("mean_teacher", phases, unlabelled_weight=3.0)
    labelled, unlabelled = batches(2)
    student = tiny_unet(1, torch.float32).train()
    q = copy.deepcopy(student).eval()(unlabelled.weak).softmax(1).detach()
    logits = student(torch.cat([labelled.images, unlabelled.strong]))
    loss = supervised_loss(labelled.labels, logits[:2]) + 3.0 * ramp * ((logits[2:].softmax(1) - q) ** 2).mean()
    expected = stepped(student, loss)
    run(method, 2, 3)
    assert_same(weights(method.networks["student"]), expected)


def test_an_uncertainty_aware_step_follows_the_teacher_where_it_is_sure() -> None:
    method = built("mean_teacher", Phases.of_steps(0, 9, 9), uncertainty_passes=4)
    student = tiny_unet(1, torch.float32).train()
    for network in (student, *method.networks.values()):  # decided on some voxels, which it is not as it begins
        network.get_submodule("head").weight.data.mul_(8.0)  # type: ignore[operator]
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
    loss = loss + 0.2 * math.exp(-5) * squares[sure].mean()
    expected = stepped(student, loss)
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


@RAMPS
def test_each_network_learns_the_hard_labels_of_the_other(phases: Phases, ramp: float) -> None:
    method = built("cross_pseudo", phases, unlabelled_weight=2.0)
    labelled, unlabelled = batches(2)
    pair = [tiny_unet(1, torch.float32).train(), tiny_unet(2, torch.float32).train()]
    logits = [network(torch.cat([labelled.images, unlabelled.strong])) for network in pair]
    expected = []
    for mine, other, network in ((0, 1, pair[0]), (1, 0, pair[1])):
        taught = logits[other].argmax(1)
        loss = supervised_loss(labelled.labels, logits[mine][:2]) + 2.0 * ramp * supervised_loss(taught, logits[mine])
        expected.append(stepped(network, loss))
    run(method, 2, 3)
    assert_same(weights(method.networks["student"]), expected[0])
    assert_same(weights(method.networks["partner"]), expected[1])


def test_the_two_begin_differently() -> None:
    settings = method_settings("cross_pseudo")
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
    assert set(mixed.flatten().tolist()) == {*range(count), *range(10, 10 + count)}


def test_a_step_of_copy_paste_weighs_the_two_sides() -> None:
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
    expected = stepped(student, loss)
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
    method = built("copy_paste", Phases.of_steps(3, 9, 9))
    labelled, _ = batches(0)
    boxes = sample_boxes(Draw(seed=4, step=0), 2, SHAPE, BOX_EDGE)
    images, labels = labelled.images.clone(), labelled.labels.clone()
    for i, (start, stop) in enumerate(boxes):
        where = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        images[i][:, *where] = labelled.images[1 - i][:, *where]
        labels[i][where] = labelled.labels[1 - i][where]
    student = tiny_unet(1, torch.float32).train()
    expected = stepped(student, supervised_loss(labels, student(images)))
    run(method, 0, 1)
    assert_same(weights(method.networks["student"]), expected)


def test_after_the_warm_up_copy_paste_goes_on_from_the_average() -> None:
    method = built("copy_paste", Phases.of_steps(3, 9, 9), average_decay=0.5)
    run(method, 0, 3)
    before = copy.deepcopy(method.networks["student_average"].state_dict())
    method.learning_rate_factor = 0.0
    run(method, 3, 4)
    after = weights(method.networks["student"])
    assert all(torch.equal(value, before[name]) for name, value in after.items())


# Rounds.


def test_a_rounds_teacher_stands_still_and_the_next_is_the_student() -> None:
    method = built("pseudo_rounds", Phases.of_steps(2, 10, 10), rounds=3, average_decay=0.5)
    run(method, 0, 2)
    seen = []
    for step in range(2, 8):
        settled = copy.deepcopy(weights(method.networks["student_average"]))
        run(method, step, step + 1)
        teacher = weights(method.networks["teacher"])
        seen.append(all(torch.equal(value, settled[name]) for name, value in teacher.items()))
    assert seen == [True, False, True, False, True, False]  # steps 2, 4 and 6 begin rounds


def test_what_is_no_known_organ_may_be_an_unknown_one() -> None:
    """Background of pseudo-labels does not unteach an organ that their network does not find; organs it knows do."""
    method = built("pseudo_rounds", Phases.of_steps(2, 10, 10))
    assert isinstance(method, PseudoRounds)
    background = torch.zeros((1, 4, 4, 4), dtype=torch.long)
    sure = 40.0 * torch.eye(3).view(3, 1, 3, 1, 1, 1).expand(3, 1, 3, 4, 4, 4)
    known = [float(method._pseudo_loss(background, logits)) for logits in sure]
    assert known[0] < 1e-3
    assert min(known[1:]) > 10
    method.unknown = (1,)
    marginal = [float(method._pseudo_loss(background, logits)) for logits in sure]
    assert max(marginal[:2]) < 1e-3
    assert marginal[2] > 10
    assert [float(method._pseudo_loss(background + 1, logits)) for logits in sure] == marginal, "it knows none of those"
    assert float(method._pseudo_loss(background + 2, sure[1])) > 10


def test_the_first_teacher_is_held_against_the_network_of_a_fifth_of_the_warm_up_before() -> None:
    method = built("pseudo_rounds", Phases.of_steps(10, 14, 14), rounds=1, average_decay=0.5)
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
        given = with_labels(unlabelled, step) if learnt_from and step >= 4 else None
        method.step(labelled, given, Draw(seed=4, step=step))
    assert_same(weights(method.networks["teacher"]), kept[4 if learnt_from else 7])


def test_the_student_goes_on_as_it_is_where_training_begins() -> None:
    """Its weights, not its average, and its momentum: the learning rate falls once."""
    method = built("pseudo_rounds", Phases.of_steps(2, 8, 8), average_decay=0.5)
    labels_alone = built("supervised", Phases.of_steps(0, 8, 8), average_decay=0.5)
    run(method, 0, 2)
    run(labels_alone, 0, 2)
    labelled, _ = batches(2)
    for one in (method, labels_alone):
        one.step(labelled, None, Draw(seed=4, step=2))  # a round whose labels are not to be trusted
    found = method.networks["student"].state_dict()
    assert all(torch.equal(value, found[name]) for name, value in labels_alone.networks["student"].state_dict().items())


@pytest.mark.parametrize("step", [5, 6])
def test_a_step_of_rounds_learns_true_labels_and_those_of_the_round(step: int) -> None:
    """One patch of two with its true labels and one with the round's, by turns of two steps the first or the second of
    each; where these are hidden they do not count."""
    method = built("pseudo_rounds", Phases.of_steps(2, 10, 10), rounds=3)
    student = tiny_unet(1, torch.float32).train()
    labelled, unlabelled = batches(step)
    labels = scan_labels(step, SHAPE)
    labels[:, :2] = HIDDEN
    turn = slice(step // 2 % 2, None, 2)
    logits = student(torch.cat([labelled.images[turn], unlabelled.strong[turn]]))
    assert len(logits) == len(labelled.images)  # a step costs as much as one on labels alone
    loss = supervised_loss(labelled.labels[turn], logits[:1])
    loss = (loss + supervised_loss(labels[turn], logits[1:], ignore=HIDDEN)) / 2
    expected = stepped(student, loss)
    row = method.step(labelled, replace(unlabelled, labels=labels), Draw(seed=4, step=step))
    assert_same(weights(method.networks["student"]), expected)
    assert float(row["counted"]) == pytest.approx(4 / 6)


def test_a_step_of_rounds_without_labels_of_scans_learns_from_true_labels_alone() -> None:
    found = []
    for name in ("pseudo_rounds", "supervised"):
        method = built(name, Phases.of_steps(0, 9, 9))
        row = method.step(*batches(1), Draw(seed=4, step=1))
        assert row.keys() == {"labelled_loss", "gradient_norm"}
        found.append(weights(method.networks["student"]))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_batch_of_one_patch_is_true_and_pseudo_labelled() -> None:
    method = built("pseudo_rounds", Phases.of_steps(0, 8, 8))
    labelled, unlabelled = batches(3)
    one = Batch(labelled.images[:1], labelled.labels[:1])
    pseudo = UnlabelledBatch(unlabelled.weak[:1], unlabelled.strong[:1], scan_labels(3, SHAPE)[:1])
    row = method.step(one, pseudo, Draw(seed=1, step=3))
    assert all(torch.isfinite(row[name]) for name in ("labelled_loss", "pseudo_loss"))


def test_rounds_label_whole_scans() -> None:
    """By who is the teacher from then on; the state of it before may contradict it, in the first round too."""
    method = built("pseudo_rounds", Phases.of_steps(2, 10, 10), rounds=3)
    assert list(method.labelling_steps) == [2, 4, 6]
    found = [method.scan_labellers(step) for step in range(2, 8)]
    begins, goes_on = ("student_average", "teacher"), ("teacher", "teacher_before")
    assert found == [begins, goes_on] * 3
    labelled, unlabelled = batches(3)
    labels = torch.full_like(labelled.labels, HIDDEN)
    labels[1, :1] = 1  # of the patch that is pseudo-labelled in an odd step
    labels[0] = 1
    run(method, 2, 3)
    row = method.step(labelled, replace(unlabelled, labels=labels), Draw(seed=1, step=3))
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


# A teacher's labels.


def test_labelling_changes_nothing_and_is_by_running_statistics() -> None:
    network = tiny_unet(1, torch.float32)
    before = copy.deepcopy(network.state_dict())
    _, unlabelled = batches(0)
    logits = label_images(network, unlabelled.weak)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    alone = label_images(network, unlabelled.weak[:1])
    # A batch's statistics would be its own; sums may be taken in another order.
    assert torch.allclose(alone, logits[:1], atol=1e-5)
    assert torch.equal(logits, network.eval()(unlabelled.weak))
    label_images(network, unlabelled.weak)
    assert not network.training, "as it was before"
