"""Mirroring; along the left-right axis it exchanges the classes of mirror pairs.

B batch, C channel, K class, D H W (= Z Y X).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from semiseg.augment.draws import generators
from semiseg.augment.settings import Augmentation
from semiseg.io.dataset import LabelScheme
from semiseg.randomness import Draw
from semiseg.transfer import to_device
from semiseg.types import BoolArray


def sample_flips(draw: Draw, n: int, settings: Augmentation, purpose: str = "mirror") -> BoolArray:
    """Which of the axes Z, Y, X each of the n samples is mirrored along, (n, 3) bool."""
    flips = np.zeros((n, 3), dtype=bool)
    if settings.enabled:
        allowed = np.isin(np.arange(3), settings.mirror_axes)
        for i, generator in enumerate(generators(draw, n, purpose)):
            flips[i] = (generator.random(3) < 0.5) & allowed
    return flips


def mirror_images(images: Tensor, flips: BoolArray) -> Tensor:
    """The batch (B, ..., D, H, W) with each sample mirrored along its axes; its own inverse, bit for bit."""
    return _mirrored(images, flips, 0, lambda image: image)


def mirror_labels(labels: Tensor, flips: BoolArray, scheme: LabelScheme) -> Tensor:
    """Label maps (B, D, H, W) mirrored, with mirror pairs exchanged where left and right were; its own
    inverse.

    scheme: gives the pairs and the axis. Values that are no class, such as the ignore value, stay.
    """
    order = scheme.permutation()
    return _mirrored(labels, flips, scheme.mirror_axis, lambda label: _exchanged(label, order))


def mirror_classes(q: Tensor, flips: BoolArray, scheme: LabelScheme) -> Tensor:
    """Class maps (logits or probabilities, (B, K, D, H, W)) mirrored, with the channels of mirror pairs
    exchanged where left and right were; its own inverse, bit for bit, and differentiable.

    scheme: gives the pairs and the axis; it has K classes.
    """
    order = to_device(np.array(scheme.permutation()), q.device)
    return _mirrored(q, flips, scheme.mirror_axis, lambda classes: classes[order])


def _mirrored(batch: Tensor, flips: BoolArray, exchange_axis: int, exchange: Callable[[Tensor], Tensor]) -> Tensor:
    if not flips.any():
        return batch
    samples = [
        exchange(_flip(sample, flip)) if flip[exchange_axis] else _flip(sample, flip)
        for sample, flip in zip(batch, flips, strict=True)
    ]
    return torch.stack(samples)


def _flip(sample: Tensor, flip: BoolArray) -> Tensor:
    """A sample (..., D, H, W) mirrored along the axes that are True."""
    return sample.flip([int(axis) - 3 for axis in np.flatnonzero(flip)])


def _exchanged(label: Tensor, permutation: Sequence[int]) -> Tensor:
    out = label
    for value, other in enumerate(permutation):
        if value != other:
            out = out.masked_fill(label == value, other)
    return out
