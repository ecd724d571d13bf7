"""How sure a network is of the label map that it gives to a scan, by which the pose of the scan is found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


def expected_dice(parts: Iterable[Any]) -> float:
    """The Dice that a network expects of its own labels: for each organ that it finds, twice the probability inside of
    it by its voxels and all of its probability, `2 sum_i [y_i = k] p_ik / (sum_i [y_i = k] + sum_i p_ik)`; the mean
    over these organs, and 0 where it finds none.

    parts: logits `(K, rows, Y, X)`, arrays or tensors, together a whole scan.
    """
    inside, voxels, whole = np.zeros(1), np.zeros(1), np.zeros(1)
    for logits in parts:
        for number in range(logits.shape[1]):  # a row at a time: little beside the window itself
            row = logits[:, number]
            values = row if isinstance(row, np.ndarray) else row.float().cpu().numpy()
            shares = np.exp(values - values.max(axis=0))
            shares /= shares.sum(axis=0)
            labels, classes = shares.argmax(axis=0).ravel(), len(shares)
            inside = inside + np.bincount(labels, shares.max(axis=0).ravel(), minlength=classes)
            voxels = voxels + np.bincount(labels, minlength=classes)
            whole = whole + shares.sum(axis=(1, 2), dtype=np.float64)
    found = voxels[1:] > 0
    return float((2 * inside[1:] / (voxels[1:] + whole[1:]))[found].mean()) if found.any() else 0.0
