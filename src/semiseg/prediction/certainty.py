"""How sure a network is of the label map that it gives to a scan, by which the pose of the scan is found.

Two things tell: the Dice that the network expects of its labels, and how far they agree with those of the mirror image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from semiseg.prediction.engines.base import Engine
from semiseg.prediction.export import largest_class
from semiseg.types import FloatArray, LabelArray


class MirroredBeside:
    """2K logits where an engine gives K: its own, and those of the mirror image along an axis as further classes."""

    def __init__(self, engine: Engine, axis: int) -> None:
        """axis: 0, 1 or 2 for Z, Y, X."""
        self._engine, self._axis = engine, axis + 2  # of tiles (N, C, D, H, W)
        self.name, self.precision = engine.name, engine.precision

    def run(self, tiles: FloatArray) -> FloatArray:
        """As `Engine.run`, `(N, 2K, D, H, W)`."""
        mirrored = self._engine.run(np.ascontiguousarray(np.flip(tiles, self._axis)))
        return np.concatenate([self._engine.run(tiles), np.flip(mirrored, self._axis)], axis=1)


def seen_twice(engine: Engine, mirror_axes: Sequence[int]) -> Engine:
    """The engine with the mirror image beside, where training mirrored along an axis; left and right organs are not
    exchanged."""
    return MirroredBeside(engine, mirror_axes[-1]) if mirror_axes else engine


class Certainty:
    """Adds up a scan, some rows at a time; `value` is 0 to 1.

    The expected Dice of an organ that is found is twice the probability inside of it by its voxels and all of its
    probability, `2 sum_i [y_i = k] p_ik / (sum_i [y_i = k] + sum_i p_ik)`; the value is its mean over these organs, by
    the mean Dice of the labels with those of the mirror image. It is 0 where no organ is found.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._sums = np.zeros((5, classes))

    def add(self, logits: Any) -> LabelArray:
        """logits: `(K, rows, Y, X)` or, from `seen_twice`, `(2K, rows, Y, X)`, an array or a tensor. Returns the labels
        `(rows, Y, X)` by the mean of the probabilities."""
        values = logits if isinstance(logits, np.ndarray) else logits.float().cpu().numpy()
        return np.stack([self._row(values[:, number]) for number in range(values.shape[1])])

    def _row(self, values: FloatArray) -> LabelArray:
        """A row at a time: little beside the window itself."""
        ways = [values[: self._classes], values[self._classes :]] if len(values) > self._classes else [values]
        shares = np.mean([softmax(way, axis=0) for way in ways], axis=0)
        labels = largest_class(shares)

        def counted(which: LabelArray, weights: Any = None) -> Any:
            return np.bincount(which.ravel(), weights, minlength=self._classes)

        one, other = (largest_class(way) for way in (ways[0], ways[-1]))
        inside = counted(labels, shares.max(axis=0).ravel())
        whole = shares.sum(axis=(1, 2), dtype=np.float64)
        self._sums += [inside, counted(labels), whole, counted(one[one == other]), counted(one) + counted(other)]
        return labels.astype(np.min_scalar_type(self._classes - 1))

    @property
    def value(self) -> float:
        """Of all that was added."""
        inside, voxels, whole, both, sizes = self._sums[:, 1:]
        found, seen = voxels > 0, sizes > 0
        if not found.any():
            return 0.0
        expected = np.mean(2 * inside[found] / (voxels[found] + whole[found]))
        return float(expected * np.mean(2 * both[seen] / sizes[seen]))
