"""Cross-entropy plus soft Dice, for label maps and for soft pseudo-labels.

Shapes: B batch, K classes, D H W voxels. With targets `t` (one-hot or soft), probabilities `p` and voxel weights `w`:

    L_ce   = -(1/N) sum_i w_i sum_k t_ik log p_ik                      N = number of voxels that count (w > 0)
    L_dice = 1 - mean_{k>=1} (2 sum_i w_i t_ik p_ik + s) / (sum_i w_i t_ik + sum_i w_i p_ik + s)

Dice sums run over the whole batch, that of all ranks, so that an organ that one patch holds and another does not is
counted once. So does N.
The background class is left out of Dice, as in nnU-Net.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from semiseg.world import share, size, total

DICE_SMOOTH = 1e-5
"""Keeps an organ that is absent from target and prediction at Dice 1; in voxels."""

_SPACE = (0, 2, 3, 4)


def one_hot(labels: Tensor, classes: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """`(B, D, H, W)` labels to `(B, K, D, H, W)`; values outside 0..K-1 (ignore) give all zeros."""
    values = torch.arange(classes, device=labels.device).view(1, classes, 1, 1, 1)
    return (labels[:, None] == values).to(dtype)


def supervised_loss(labels: Tensor, logits: Tensor, ignore: int | None = None) -> Tensor:
    """Cross-entropy + Dice of logits `(B, K, D, H, W)` against a label map `(B, D, H, W)`.

    Voxels of value `ignore` count in neither term. If a batch holds nothing else the loss is a zero with a graph.
    """
    sums = LossSums.of(labels, logits, ignore)
    return share(sums.cross_entropy, sums.voxels) + _dice_term(total(sums.dice))


@dataclass(frozen=True)
class LossSums:
    """What `supervised_loss` adds up over voxels: sums of parts of a scan, added, are those of the scan.

    cross_entropy: `-sum_i w_i sum_k t_ik log p_ik`. voxels: how many count. dice: `(2, K)`, overlaps, and
    sizes of target and prediction together.
    """

    cross_entropy: Tensor
    voxels: Tensor | int
    dice: Tensor

    @staticmethod
    def of(labels: Tensor, logits: Tensor, ignore: int | None = None, unknown: Sequence[int] = ()) -> LossSums:
        """Of logits `(B, K, D, H, W)` and a label map `(B, D, H, W)`, with a graph. unknown: as in `marginal_loss`."""
        log_p = functional.log_softmax(logits, dim=1)
        target = one_hot(labels, logits.shape[1], dtype=log_p.dtype)
        # A sum over all classes: torch's `nll_loss` adds up in any order on a GPU.
        if ignore is None:
            return LossSums(-(target * log_p).sum(), labels.numel(), _dice_sums(target, log_p.exp(), None))
        weight = (labels != ignore).to(log_p.dtype)[:, None]
        if unknown:
            return _partial_sums(labels == ignore + 1, target, log_p, weight, unknown)
        return LossSums(-(target * log_p * weight).sum(), weight.sum(), _dice_sums(target, log_p.exp(), weight))

    def __add__(self, other: LossSums) -> LossSums:
        """Of both parts."""
        return LossSums(self.cross_entropy + other.cross_entropy, self.voxels + other.voxels, self.dice + other.dice)

    def loss(self) -> Tensor:
        """`supervised_loss` of the parts together, on this rank alone."""
        return self.cross_entropy / torch.as_tensor(self.voxels).clamp_min(1) + _dice_term(self.dice)


def _partial_sums(is_open: Tensor, target: Tensor, log_p: Tensor, weight: Tensor, unknown: Sequence[int]) -> LossSums:
    """`LossSums` where `is_open` voxels `(B, D, H, W)` are the background or one of the unknown organs."""
    opened = is_open.to(log_p.dtype)[:, None]
    possible = (0, *unknown)  # not as an index, which would be sent to a GPU in each step
    either = torch.logsumexp(torch.stack([log_p[:, k] for k in possible], dim=1), dim=1, keepdim=True)
    by_class = torch.cat([weight - opened if k in possible else weight for k in range(log_p.shape[1])], dim=1)
    cross_entropy = -(target * log_p * weight).sum() - (either * opened).sum()
    return LossSums(cross_entropy, weight.sum(), _dice_sums(target, log_p.exp(), by_class))


def partial_loss(unknown: Sequence[int]) -> Losses:
    """The losses where some label maps do not know these organs: `labelled` is `marginal_loss` where the data set's
    `ignore` is given."""

    def labelled(labels: Tensor, logits: Tensor, ignore: int | None) -> Tensor:
        if ignore is None or ignore < 0:
            return supervised_loss(labels, logits, ignore)
        return marginal_loss(labels, logits, ignore, unknown)

    return CROSS_ENTROPY_DICE._replace(labelled=labelled)


def marginal_loss(labels: Tensor, logits: Tensor, ignore: int, unknown: Sequence[int]) -> Tensor:
    """`supervised_loss` where voxels `ignore + 1` are the background or an unknown organ (Shi et al., Medical Image
    Analysis 2021). With U the background and these organs, such a voxel adds `-log sum_{k in U} p_k` to the
    cross-entropy; in Dice it counts for the other organs, of which it is none, and for those of U not at all."""
    sums = LossSums.of(labels, logits, ignore, unknown)
    return share(sums.cross_entropy, sums.voxels) + _dice_term(total(sums.dice))


def pseudo_label_loss(q: Tensor, logits: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy + Dice of the student's logits against pseudo-labels `q` `(B, K, D, H, W)`, soft or one-hot.

    Dice's overlap is `sum_i w min(q, p)` in the place of `sum_i w q p` (Wang et al. 2023, arXiv 2303.16296). For hard
    labels both are the same; for soft ones it is least at `p = q`, whereas soft Dice is least at an organ that is
    larger than labelled. weight: `(B, 1, D, H, W)`, of each voxel, without gradient; None is 1 everywhere. N counts all
    voxels.
    """
    log_p = functional.log_softmax(logits, dim=1)
    weighted = log_p if weight is None else log_p * weight
    count = logits.numel() / logits.shape[1]
    return share(-(q * weighted).sum(), count) + _dice_loss(q, log_p.exp(), weight, semimetric=True)


def pseudo_label_gradient(q: Tensor, logits: Tensor, weight: Tensor | None = None) -> Tensor:
    """d `pseudo_label_loss` / d `q`, an explicit function of the student's logits: `(B, K, D, H, W)`.

    Cross-entropy gives `-(w/N) log p`; a class of Dice with overlap I, sizes Q and P gives
    `-(w/(K-1)) (2 m (Q+P+s) - (2I+s)) / (Q+P+s)^2`, with m 1 where q < p and 0 elsewhere. This is what dense feedback
    differentiates along the probe.
    """
    classes = logits.shape[1]
    log_p = functional.log_softmax(logits, dim=1)
    p = log_p.exp()
    w = torch.ones_like(p[:, :1]) if weight is None else weight
    gradient = -log_p * w / (logits.numel() / classes * size())
    overlap = total((w * torch.minimum(q, p)).sum(_SPACE, keepdim=True))
    slope = (q < p).to(p.dtype)
    sizes = total((w * q).sum(_SPACE, keepdim=True) + (w * p).sum(_SPACE, keepdim=True)) + DICE_SMOOTH
    of_dice = -w * (2 * slope * sizes - (2 * overlap + DICE_SMOOTH)) / sizes.square() / max(1, classes - 1)
    foreground = torch.ones(1, classes, 1, 1, 1, dtype=p.dtype, device=p.device)
    foreground[:, 0] = 0.0
    return gradient + of_dice * foreground


class Losses(NamedTuple):
    """What methods learn by. labelled: `(labels, logits, ignore)`, as `supervised_loss`. pseudo: `(q, logits, weight)`,
    as `pseudo_label_loss`. pseudo_gradient: its derivative by q, which dense feedback needs."""

    labelled: Callable[[Tensor, Tensor, int | None], Tensor]
    pseudo: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    pseudo_gradient: Callable[[Tensor, Tensor, Tensor | None], Tensor]


CROSS_ENTROPY_DICE = Losses(supervised_loss, pseudo_label_loss, pseudo_label_gradient)


def _dice_loss(target: Tensor, p: Tensor, weight: Tensor | None, *, semimetric: bool = False) -> Tensor:
    return _dice_term(total(_dice_sums(target, p, weight, semimetric=semimetric)))


def _dice_sums(target: Tensor, p: Tensor, weight: Tensor | None, *, semimetric: bool = False) -> Tensor:
    """Overlap of target and prediction, and their sizes added, of each class: `(2, K)`."""
    overlap = torch.minimum(target, p) if semimetric else target * p
    if weight is not None:
        overlap, target, p = overlap * weight, target * weight, p * weight
    return torch.stack([overlap.sum(_SPACE), target.sum(_SPACE) + p.sum(_SPACE)])


def _dice(sums: Tensor) -> Tensor:
    return (2 * sums[0] + DICE_SMOOTH) / (sums[1] + DICE_SMOOTH)


def _dice_term(sums: Tensor) -> Tensor:
    return 1 - _dice(sums)[1:].mean() if sums.shape[1] > 1 else sums.new_zeros(())
