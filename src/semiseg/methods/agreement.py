"""Where two teachers agree on their labels: a filter for pseudo-labels. Shapes: B batch, D H W voxels."""

from __future__ import annotations

import torch
from torch import Tensor

from semiseg.losses import one_hot


def contradicted(labels: Tensor, others: Tensor, classes: int, least: float) -> Tensor:
    """Where label maps `(B, D, H, W)` do not count, as bool: at voxels on which two of them disagree, and in patches of
    which `agreement` is below `least`."""
    agreed = agreement(labels, others, classes) >= least
    return (labels != others) | ~agreed[:, None, None, None]


def agreement(a: Tensor, b: Tensor, classes: int) -> Tensor:
    """Mean Dice over the organs that one of two label maps `(B, D, H, W)` has, a patch each; 1 where both have none."""
    first, second = one_hot(a, classes)[:, 1:].flatten(2), one_hot(b, classes)[:, 1:].flatten(2)
    sizes = first.sum(2) + second.sum(2)
    dice = 2 * (first * second).sum(2) / sizes.clamp_min(1.0)
    present = (sizes > 0).to(dice.dtype)
    return torch.where(present.sum(1) > 0, (dice * present).sum(1) / present.sum(1).clamp_min(1.0), 1.0)
