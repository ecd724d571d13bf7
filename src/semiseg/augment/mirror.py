"""Mirroring; along the left-right axis it exchanges the classes of mirror pairs.

B batch, C channel, K class, D H W (= Z Y X).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from semiseg.augment.draws import generators
from semiseg.augment.settings import Augmentation
from semiseg.io.dataset import LabelScheme
from semiseg.randomness import Draw
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
    if not flips.any():
        return images
    axes = [[int(axis) - 3 for axis in np.flatnonzero(flip)] for flip in flips]
    return torch.stack([image.flip(along) for image, along in zip(images, axes, strict=True)])


def mirror_labels(labels: Tensor, flips: BoolArray, scheme: LabelScheme) -> Tensor:
    """Label maps (B, D, H, W) mirrored, with mirror pairs exchanged where left and right were; its own inverse.

    scheme: gives the pairs and the axis. Values that are no class, such as the ignore value, stay.
    """
    mirrored = mirror_images(labels, flips)
    for index in np.flatnonzero(flips[:, scheme.mirror_axis]):
        before = mirrored[int(index)].clone()
        for value, other in enumerate(scheme.permutation()):
            if value != other:
                mirrored[int(index)].masked_fill_(before == value, other)
    return mirrored
