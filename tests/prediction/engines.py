"""Engines that are no networks: what they answer is known, so the way through prediction can be checked exactly."""

from __future__ import annotations

import numpy as np

from semiseg.types import FloatArray


class Engine:
    """Answers by a formula and remembers how many tiles it was given at a time."""

    name, precision = "formula", "float32"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, tiles: FloatArray) -> FloatArray:
        self.batches.append(len(tiles))
        return self.logits(tiles)

    def logits(self, tiles: FloatArray) -> FloatArray:
        raise NotImplementedError


class Constant(Engine):
    """The same logits in every voxel: 1, 2, ..., K."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.values = np.arange(1, classes + 1, dtype=np.float32)

    def logits(self, tiles: FloatArray) -> FloatArray:
        return np.broadcast_to(self.values[:, None, None, None], (len(tiles), len(self.values), *tiles.shape[2:]))


class Identity(Engine):
    """The channels themselves."""

    def logits(self, tiles: FloatArray) -> FloatArray:
        return tiles.copy()


class Sides(Engine):
    """Classes 1 and 2 are the brighter and the darker voxel along an axis: mirrored along it, they change places.

    Class 0 is a symmetric function of the neighbourhood. An equivariant network of three classes, made by hand.
    """

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis + 1  # of a tile without channels (N, D, H, W)

    def logits(self, tiles: FloatArray) -> FloatArray:
        image = tiles[:, 0]
        ahead, behind = np.roll(image, -1, self.axis), np.roll(image, 1, self.axis)
        return np.stack([np.tanh(image), image - ahead + 0.5 * behind, image - behind + 0.5 * ahead], axis=1)
