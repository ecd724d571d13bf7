"""Tiny networks and batches for the proofs, in float64 unless told otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import grad
from torch.nn import functional

from semiseg.data.plan import NetworkPlan
from semiseg.losses import Losses, supervised_loss
from semiseg.models.build import build_network
from semiseg.models.unet import UNet3d
from soft_dice import dice_per_class

CLASSES = 3
TINY = NetworkPlan(features=(3, 4), kernels=((3, 3, 3), (3, 3, 3)), strides=((1, 1, 1), (2, 2, 2)))


def tiny_unet(seed: int = 0, dtype: torch.dtype = torch.float64) -> UNet3d:
    """A two-level U-Net in train mode whose batch norms are not at their defaults."""
    network = build_network(TINY, channels=1, classes=CLASSES, seed=seed).to(dtype)
    generator = torch.Generator().manual_seed(seed + 100)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator).to(dtype)
    return network.train()


def smooth_twin(network: nn.Module) -> nn.Module:
    """ReLU to softplus, max pooling to average pooling, in place: a network that has all derivatives."""
    for name, child in network.named_children():
        if isinstance(child, nn.ReLU):
            setattr(network, name, nn.Softplus())
        elif isinstance(child, nn.MaxPool3d):
            setattr(network, name, nn.AvgPool3d(child.kernel_size))
        else:
            smooth_twin(child)
    return network


def cross_entropy(q: Tensor, logits: Tensor, weight: Tensor | None) -> Tensor:
    """Of soft labels; a mean over all voxels, as in `pseudo_label_loss`."""
    terms = q * functional.log_softmax(logits, dim=1)
    return -(terms if weight is None else terms * weight).sum() / (logits.numel() / logits.shape[1])


def soft_dice_loss(q: Tensor, logits: Tensor, weight: Tensor | None) -> Tensor:
    """Cross-entropy + soft Dice, which has all derivatives, as semiseg's own has not where a label is met exactly."""
    return cross_entropy(q, logits, weight) + 1 - dice_per_class(q, logits.softmax(1), weight)[1:].mean()


def labelled_cross_entropy(labels: Tensor, logits: Tensor, ignore: int | None) -> Tensor:
    return functional.cross_entropy(logits, labels, ignore_index=-100 if ignore is None else ignore)


SOFT_DICE = Losses(supervised_loss, soft_dice_loss, grad(soft_dice_loss))
CROSS_ENTROPY = Losses(labelled_cross_entropy, cross_entropy, grad(cross_entropy))


@dataclass(frozen=True)
class Problem:
    """An unlabelled and a labelled batch of two 4x4x4 patches."""

    unlabelled: Tensor
    q: Tensor
    weight: Tensor
    images: Tensor
    labels: Tensor


def problem(seed: int = 0, dtype: torch.dtype = torch.float64) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return Problem(
        unlabelled=normal(2, 1, 4, 4, 4),
        q=(2 * normal(2, CLASSES, 4, 4, 4)).softmax(1),
        weight=(normal(2, 1, 4, 4, 4) > -0.5).to(dtype),
        images=normal(2, 1, 4, 4, 4),
        labels=torch.randint(0, CLASSES, (2, 4, 4, 4), generator=generator),
    )
