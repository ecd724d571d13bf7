"""Losses against formulas written out, and their derivative with respect to pseudo-labels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from semiseg.losses import (
    CROSS_ENTROPY_DICE,
    DICE_SMOOTH,
    one_hot,
    partial_loss,
    pseudo_label_gradient,
    pseudo_label_loss,
    supervised_loss,
)
from semiseg.methods.base import HIDDEN
from soft_dice import dice_per_class


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((2, 4, 3, 4, 5), generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, 4, (2, 3, 4, 5), generator=generator)


def test_supervised_loss_is_cross_entropy_plus_dice_over_the_batch() -> None:
    logits, labels = batch()
    p = logits.softmax(1)
    cross_entropy = -torch.stack([p[b, labels[b, z, y, x], z, y, x].log() for b, z, y, x in _all(labels)]).mean()
    dice = []
    for k in (1, 2, 3):
        target = (labels == k).double()
        overlap = (target * p[:, k]).sum()
        dice.append((2 * overlap + DICE_SMOOTH) / (target.sum() + p[:, k].sum() + DICE_SMOOTH))
    expected = cross_entropy + 1 - torch.stack(dice).mean()
    assert torch.allclose(supervised_loss(labels, logits), expected, atol=1e-12)


def test_an_open_voxel_is_the_background_or_an_unknown_organ() -> None:
    """Against the formula: 1 is known, 2 and 3 are not."""
    ignore, opened, unknown = 4, 5, (2, 3)
    logits, labels = batch()
    labels[:, 0], labels[:, 1] = opened, ignore
    p = logits.softmax(1)
    cross_entropy, counted = torch.zeros((), dtype=torch.float64), 0
    for b, z, y, x in _all(labels):
        value = int(labels[b, z, y, x])
        if value != ignore:
            chance = p[b, [0, 2, 3], z, y, x].sum() if value == opened else p[b, value, z, y, x]
            cross_entropy, counted = cross_entropy - chance.log(), counted + 1
    dice = []
    for k in (1, 2, 3):
        weight = (labels != ignore) & ((labels != opened) | (k not in unknown))
        target, w = (labels == k).double(), weight.double()
        overlap = (w * target * p[:, k]).sum()
        dice.append((2 * overlap + DICE_SMOOTH) / ((w * target).sum() + (w * p[:, k]).sum() + DICE_SMOOTH))
    expected = cross_entropy / counted + 1 - torch.stack(dice).mean()
    found = partial_loss(unknown).labelled(labels, logits, ignore)
    assert torch.allclose(found, expected, atol=1e-12)


def test_labels_that_know_all_organs_have_the_usual_loss() -> None:
    logits, labels = batch()
    assert torch.equal(partial_loss((2,)).labelled(labels, logits, 4), supervised_loss(labels, logits, 4))
    assert torch.equal(partial_loss((2,)).labelled(labels, logits, HIDDEN), supervised_loss(labels, logits, HIDDEN))


def _all(labels: Tensor) -> list[tuple[int, ...]]:
    return [tuple(int(v) for v in row) for row in torch.ones_like(labels).nonzero()]


def test_ignored_voxels_count_in_nothing() -> None:
    logits, labels = batch()
    labels[0, 0] = 9
    other = logits.clone()
    other[0, :, 0] += torch.randn((4, 4, 5), generator=torch.Generator().manual_seed(1))
    loss = supervised_loss(labels, logits, ignore=9)
    assert torch.equal(loss, supervised_loss(labels, other, ignore=9))
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(supervised_loss(labels, logits, ignore=9), logits)
    assert torch.count_nonzero(gradient[0, :, 0]) == 0
    assert torch.count_nonzero(gradient[0, :, 1]) > 0


def test_a_batch_of_ignored_voxels_has_no_gradient_and_no_nan() -> None:
    logits, labels = batch()
    logits.requires_grad_()
    loss = supervised_loss(torch.full_like(labels, 9), logits, ignore=9)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(loss)
    assert torch.count_nonzero(gradient) == 0


def test_hard_pseudo_labels_give_the_supervised_loss() -> None:
    logits, labels = batch()
    hard = one_hot(labels, 4, dtype=torch.float64)
    assert torch.allclose(pseudo_label_loss(hard, logits), supervised_loss(labels, logits), atol=1e-12)


def soft_labels(seed: int = 2) -> tuple[Tensor, Tensor]:
    """For logits of `batch`: probabilities of each voxel, and a weight of 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn((2, 4, 3, 4, 5), generator=generator, dtype=torch.float64).softmax(1)
    return q, (torch.rand((2, 1, 3, 4, 5), generator=generator) > 0.3).double()


@pytest.mark.parametrize("weighted", [False, True])
def test_the_pseudo_label_loss_is_cross_entropy_plus_a_semimetric_dice_over_the_batch(weighted: bool) -> None:
    (logits, _), (q, weight) = batch(), soft_labels()
    p, w = logits.softmax(1), weight[:, 0] if weighted else torch.ones_like(weight[:, 0])
    cross_entropy = -torch.stack([(w * q[:, k] * p[:, k].log()).sum() for k in range(4)]).sum() / w.numel()
    dice = []
    for k in (1, 2, 3):
        overlap = (w * torch.where(q[:, k] < p[:, k], q[:, k], p[:, k])).sum()
        sizes = (w * q[:, k]).sum() + (w * p[:, k]).sum()
        dice.append((2 * overlap + DICE_SMOOTH) / (sizes + DICE_SMOOTH))
    expected = cross_entropy + 1 - torch.stack(dice).mean()
    assert torch.allclose(pseudo_label_loss(q, logits, weight if weighted else None), expected, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_with_respect_to_pseudo_labels_is_the_explicit_formula(weighted: bool) -> None:
    (logits, _), (q, weight) = batch(), soft_labels()
    w = weight if weighted else None
    q.requires_grad_()
    (expected,) = torch.autograd.grad(pseudo_label_loss(q, logits, w), q)
    assert torch.allclose(pseudo_label_gradient(q.detach(), logits, w), expected, atol=1e-14)


def test_voxels_of_no_weight_teach_nothing() -> None:
    (logits, _), (q, weight) = batch(), soft_labels()
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(pseudo_label_loss(q, logits, weight), logits)
    off = (weight[:, 0] == 0)[:, None].expand_as(gradient)
    assert torch.count_nonzero(gradient[off]) == 0
    assert torch.count_nonzero(gradient[~off]) > 0
    assert torch.count_nonzero(pseudo_label_gradient(q, logits.detach(), weight)[off]) == 0


def test_soft_dice_is_not_least_where_soft_labels_are_met() -> None:
    """Why pseudo-labels have a Dice of their own: against soft ones soft Dice wants another network than one that
    agrees."""
    logits, _ = batch()
    logits.requires_grad_()
    q = logits.detach().softmax(1)
    (gradient,) = torch.autograd.grad(dice_per_class(q, logits.softmax(1))[1:].mean(), logits)
    assert float(gradient.abs().max()) > 1e-4


def test_dice_as_a_semimetric_is_least_at_soft_labels_and_the_same_for_hard_ones() -> None:
    logits, labels = batch()
    q = logits.softmax(1)
    at_labels = pseudo_label_loss(q, logits)
    for seed in range(20):
        noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed), dtype=logits.dtype)
        assert pseudo_label_loss(q, logits + 0.1 * noise) > at_labels
    sharper = 1.5 * logits
    assert dice_per_class(q, q, semimetric=True).min() == 1
    assert dice_per_class(q, sharper.softmax(1))[1:].mean() > dice_per_class(q, q)[1:].mean()  # what soft Dice wants
    hard, p = one_hot(labels, 4, dtype=torch.float64), logits.softmax(1)
    # The same sums in another form: rounding.
    torch.testing.assert_close(dice_per_class(hard, p, semimetric=True), dice_per_class(hard, p))


def test_the_losses_that_methods_have_by_default_are_these() -> None:
    (logits, labels), (q, weight) = batch(), soft_labels()
    labels[0, 0] = 9
    losses = CROSS_ENTROPY_DICE
    assert torch.equal(losses.labelled(labels, logits, 9), supervised_loss(labels, logits, 9))
    assert torch.equal(losses.pseudo(q, logits, weight), pseudo_label_loss(q, logits, weight))
    assert torch.equal(losses.pseudo_gradient(q, logits, weight), pseudo_label_gradient(q, logits, weight))


def test_a_partial_label_moves_nothing_for_the_unknown_organ() -> None:
    """Organ 3 is unknown in the second sample: its voxels and background are ignored, as `data.partial` has it."""
    logits, labels = batch()
    ignore = 4
    whole = labels.clone()
    labels[1][(labels[1] == 3) | (labels[1] == 0)] = ignore
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(supervised_loss(labels, logits, ignore), logits)
    unknown = (labels == ignore)[:, None].expand_as(gradient)
    assert unknown.any()
    assert (gradient[unknown] == 0).all()  # nothing there is pushed anywhere, in cross-entropy or in Dice
    # Whatever lies in these voxels, a whole organ 3 or none, the loss is the same.
    moved = torch.where(unknown, 10 * torch.randn_like(logits), logits)
    assert supervised_loss(labels, moved, ignore) == supervised_loss(labels, logits, ignore)
    # An organ that is ignored in one patch is not absent there: its Dice is that of the other patch.
    alone = supervised_loss(labels, logits, ignore) - supervised_loss(labels[:1], logits[:1], ignore)
    only_first = torch.full_like(labels[:1], ignore)
    both = supervised_loss(torch.cat([whole[:1], only_first]), logits, ignore)
    assert torch.allclose(both, supervised_loss(whole[:1], logits[:1]), atol=1e-12)
    assert alone != 0  # what is known of the second patch is learnt
