"""Soft Dice written out, which losses are held against."""

from __future__ import annotations

import torch
from torch import Tensor

from semiseg.losses import DICE_SMOOTH


def dice_per_class(target: Tensor, p: Tensor, weight: Tensor | None = None, *, semimetric: bool = False) -> Tensor:
    """Of each class, background included, over the whole batch: `(K,)`. semimetric: as in `pseudo_label_loss`."""
    w = torch.ones_like(p) if weight is None else weight.expand_as(p)
    both = torch.minimum(target, p) if semimetric else target * p
    overlap, sizes = ((w * values).sum((0, 2, 3, 4)) for values in (both, target + p))
    return (2 * overlap + DICE_SMOOTH) / (sizes + DICE_SMOOTH)
