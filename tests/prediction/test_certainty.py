"""The Dice that a network expects of its own labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax

from semiseg.prediction.certainty import expected_dice


def test_it_is_the_formula_over_all_parts() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (4, 6, 5, 7)).astype(np.float32)
    logits[3] = -50  # never found, and no part of the mean
    shares = softmax(logits.astype(np.float64), axis=0)
    labels = shares.argmax(axis=0)
    each = [2 * shares[k][labels == k].sum() / ((labels == k).sum() + shares[k].sum()) for k in (1, 2)]
    # Sums of float32 probabilities over 210 voxels.
    assert expected_dice([logits[:, :2], logits[:, 2:]]) == pytest.approx(np.mean(each), abs=1e-6)
    assert expected_dice(torch.from_numpy(part) for part in (logits[:, :1], logits[:, 1:])) == pytest.approx(
        np.mean(each), abs=1e-6
    )


def test_surer_is_higher_and_nothing_found_is_nothing() -> None:
    labels = np.zeros((3, 4, 4), dtype=int)
    labels[1:, :2] = 1
    one_hot = np.stack([labels == 0, labels == 1]).astype(np.float32)
    sure = [expected_dice([scale * one_hot]) for scale in (1, 3, 20)]
    assert sure == sorted(sure)
    assert sure[-1] == pytest.approx(1, abs=1e-6)
    assert expected_dice([np.stack([np.ones((2, 3, 3)), np.zeros((2, 3, 3))])]) == 0
