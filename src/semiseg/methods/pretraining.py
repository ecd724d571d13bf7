"""Self-supervised pre-training by a masked autoencoder (He et al., CVPR 2022; for 3D scans and U-Nets Wald et al.,
arXiv 2410.23132).

Blocks of an unlabelled patch are hidden, and the network learns to fill them in: with the hidden voxels M of an image x
and the image h of which they are 0 (the mean of an image that is normalised),

    L = 1/|M| sum_{v in M} (f(h)_v - x_v)^2

A block is as large as a voxel of the network's deepest level. Then the network goes on with labels, with a new last
layer. Shapes: B batch, C channels, D H W voxels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from semiseg.augment.draws import generators
from semiseg.errors import ConfigError
from semiseg.methods.base import Batch, Judged, UnlabelledBatch
from semiseg.methods.learner import Learner, Settings, StudentMethod
from semiseg.models.layers import Network
from semiseg.randomness import Draw
from semiseg.transfer import to_device
from semiseg.types import Shape
from semiseg.world import share

HIDDEN_SHARE = 0.75
"""Of a patch's blocks, as published."""
PRETRAINED = "pretrained"
"""Name of the network that fills in; the student with another last layer."""


def hidden_voxels(draw: Draw, n: int, shape: Shape, block: Shape, device: torch.device) -> Tensor:
    """Which voxels of each of n patches are hidden: `(n, 1, D, H, W)` bool. draw: that of the first patch."""
    counts = [-(-size // edge) for size, edge in zip(shape, block, strict=True)]
    hidden = np.zeros((n, prod(counts)), dtype=bool)
    for row, generator in zip(hidden, generators(draw, n, "hidden blocks"), strict=True):
        row[generator.permutation(len(row))[: round(HIDDEN_SHARE * len(row))]] = True
    mask = to_device(hidden.reshape(n, 1, *counts), device)
    for axis, (edge, size) in enumerate(zip(block, shape, strict=True), start=2):
        mask = mask.repeat_interleave(edge, axis).narrow(axis, 0, size)
    return mask


def reconstruction_loss(images: Tensor, filled: Tensor, hidden: Tensor) -> Tensor:
    """The mean square of `filled - images`, both `(B, C, D, H, W)`, over hidden voxels `(B, 1, D, H, W)` of the batch
    of all ranks."""
    weight = hidden.to(images.dtype)
    return share(((filled - images).square() * weight).sum(), weight.sum() * images.shape[1])


class PretrainedMethod(StudentMethod[Settings]):
    """A student that may have been pre-trained. A method says how it learns afterwards: `learn`."""

    def set_up(self, networks: Mapping[str, Network]) -> None:
        """As `StudentMethod.set_up`. Raises `ConfigError` for a network whose last layer has no name."""
        super().set_up(networks)
        if not self.settings.pretrained:
            return
        network = copy.deepcopy(networks["student"])
        if not isinstance(head := getattr(network, "head", None), nn.Conv3d):
            raise ConfigError(
                f"method.phases.pretrain: network {network.plan.kind!r} has no last layer `head` that is an nn.Conv3d. "
                "Give it that name, or set pretrain = 0."
            )
        filling = nn.Conv3d(head.in_channels, network.channels, 1).to(head.weight)
        for parameter in filling.parameters():  # which no seed is needed for
            nn.init.zeros_(parameter)
        network.head = filling
        strides = network.plan.strides
        self._block: Shape = tuple(prod(level[axis] for level in strides) for axis in range(3))  # type: ignore[assignment]
        self._filler = Learner(
            PRETRAINED,
            network,
            self.settings.optimiser,
            losses=self.losses,
            average_decay=self.average_decay,
            ignore=self.ignore,
            autocast=self.autocast,
        )
        self.learners[PRETRAINED] = self._filler
        self.networks |= self._filler.networks

    def learn(self, labelled: Batch, unlabelled: UnlabelledBatch | None, draw: Draw) -> dict[str, Tensor]:
        """What `Method.step` does once the network is pre-trained."""
        raise NotImplementedError

    def learns_from_unlabelled(self, step: int) -> bool:
        """Whether such a step looks at unlabelled patches."""
        return super().needs_unlabelled(step)

    def needs_unlabelled(self, step: int) -> bool:
        """As `Method.needs_unlabelled`."""
        return self.is_pretraining(step) or self.learns_from_unlabelled(step)

    def judged(self, step: int) -> Judged:
        """As `Method.judged`."""
        judged = super().judged(step)
        return Judged(judged.network, "reconstruction_loss") if self.is_pretraining(step) else judged

    def step(self, labelled: Batch, unlabelled: UnlabelledBatch | None, draw: Draw) -> dict[str, Tensor]:
        """As `Method.step`."""
        if self.is_pretraining(draw.step):
            return self._fill_in(labelled.images if unlabelled is None else unlabelled.weak, draw)
        if self.settings.pretrained and draw.step == self.phases.pretrain_stop:
            self._hand_over()
        return self.learn(labelled, unlabelled, draw)

    def is_pretraining(self, step: int) -> bool:
        """Whether a step fills in."""
        return step < self.phases.pretrain_stop

    def _fill_in(self, images: Tensor, draw: Draw) -> dict[str, Tensor]:
        depth, height, width = images.shape[2:]
        hidden = hidden_voxels(draw, len(images), (depth, height, width), self._block, images.device)
        loss = reconstruction_loss(images, self._filler.logits(images.masked_fill(hidden, 0.0)), hidden)
        norm = self._filler.step(loss, self.learning_rate_factor)
        return {"reconstruction_loss": loss.detach(), "gradient_norm": norm}

    def _hand_over(self) -> None:
        """The student goes on from what was learnt, with its own last layer."""
        found = self._filler.settled.state_dict()
        own = self.student.network.state_dict()
        begun = copy.deepcopy(self.student.network)
        begun.load_state_dict({name: own[name] if name.startswith("head.") else found[name] for name in own})
        self.student.restart(begun)
