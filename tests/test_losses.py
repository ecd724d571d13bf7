"""Losses against formulas written out, and their derivative with respect to pseudo-labels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from semiseg.losses import (
    DICE_SMOOTH,
    PseudoDice,
    deep_supervised_loss,
    dice_per_class,
    one_hot,
    pseudo_label_gradient,
    pseudo_label_loss,
    supervised_loss,
)


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


@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_with_respect_to_pseudo_labels_is_the_explicit_formula(weighted: bool) -> None:
    logits, _ = batch()
    q = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).softmax(1)
    weight = (torch.rand((2, 1, 3, 4, 5), generator=torch.Generator().manual_seed(3)) > 0.3).double()
    w = weight if weighted else None
    q.requires_grad_()
    for dice in (PseudoDice(), PseudoDice(1 - weight), PseudoDice(torch.zeros_like(weight)), PseudoDice(None, True)):
        (expected,) = torch.autograd.grad(pseudo_label_loss(q, logits, w, dice), q)
        assert torch.allclose(pseudo_label_gradient(q.detach(), logits, w, dice), expected, atol=1e-14)


def test_soft_labels_are_met_exactly_by_cross_entropy_and_not_by_dice() -> None:
    """Why Dice may be left to true labels: against soft ones it wants another network than one that agrees."""
    logits, _ = batch()
    logits.requires_grad_()
    q = logits.detach().softmax(1)
    nowhere = PseudoDice(torch.zeros_like(q[:, :1]))
    (gradient,) = torch.autograd.grad(pseudo_label_loss(q, logits, None, nowhere), logits)
    # Zero but for rounding: p = q is where cross-entropy is least.
    assert float(gradient.abs().max()) < 1e-15
    (gradient,) = torch.autograd.grad(pseudo_label_loss(q, logits), logits)
    assert float(gradient.abs().max()) > 1e-4


def test_dice_as_a_semimetric_is_least_at_soft_labels_and_the_same_for_hard_ones() -> None:
    logits, labels = batch()
    q, semimetric = logits.softmax(1), PseudoDice(semimetric=True)
    at_labels = pseudo_label_loss(q, logits, None, semimetric)
    for seed in range(20):
        noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed), dtype=logits.dtype)
        assert pseudo_label_loss(q, logits + 0.1 * noise, None, semimetric) > at_labels
    sharper = 1.5 * logits
    assert dice_per_class(q, q, semimetric=True).min() == 1
    assert dice_per_class(q, sharper.softmax(1))[1:].mean() > dice_per_class(q, q)[1:].mean()  # what soft Dice wants
    hard = one_hot(labels, 4, dtype=torch.float64)
    # The same sums in another form: rounding.
    torch.testing.assert_close(pseudo_label_loss(hard, logits, None, semimetric), pseudo_label_loss(hard, logits))


def test_deep_supervision_weighs_levels_by_halves() -> None:
    logits, labels = batch()
    fine = logits.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    fine_labels = labels.repeat_interleave(2, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = (supervised_loss(fine_labels, fine) + 0.5 * supervised_loss(labels, logits)) / 1.5
    assert torch.allclose(deep_supervised_loss(fine_labels, [fine, logits]), expected, atol=1e-12)
