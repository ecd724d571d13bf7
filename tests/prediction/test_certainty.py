"""How sure a network is of its labels: the Dice that it expects of them, by their agreement with the mirror image's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engines import Sides
from scipy.special import softmax

from semiseg.prediction.certainty import Certainty, MirroredBeside, seen_twice


def _logits(seed: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 3, (4, 6, 5, 7)).astype(np.float32)
    logits[3] = -50  # never found, and no part of the mean
    return logits


def _expected(shares: np.ndarray) -> float:
    labels = shares.argmax(axis=0)
    each = [2 * shares[k][labels == k].sum() / ((labels == k).sum() + shares[k].sum()) for k in (1, 2)]
    return float(np.mean(each))


def test_it_is_the_expected_dice_over_all_parts() -> None:
    logits, certainty = _logits(0), Certainty(4)
    labels = np.concatenate([certainty.add(logits[:, :2]), certainty.add(torch.from_numpy(logits[:, 2:]))])
    assert np.array_equal(labels, logits.argmax(axis=0))
    # Sums of float32 probabilities over 210 voxels.
    assert certainty.value == pytest.approx(_expected(softmax(logits.astype(np.float64), axis=0)), abs=1e-6)


def test_what_the_mirror_image_contradicts_is_less_sure() -> None:
    one, other, certainty = _logits(0), _logits(1), Certainty(4)
    labels = certainty.add(np.concatenate([one, other]))
    shares = (softmax(one.astype(np.float64), axis=0) + softmax(other.astype(np.float64), axis=0)) / 2
    assert np.array_equal(labels, shares.argmax(axis=0))
    a, b = one.argmax(axis=0), other.argmax(axis=0)
    agree = np.mean([2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()) for k in (1, 2)])
    assert certainty.value == pytest.approx(_expected(shares) * agree, abs=1e-6)


def test_the_mirror_image_is_laid_back_beside() -> None:
    """Of an engine that is equivariant but for two classes that change places along the axis."""
    tiles = np.random.default_rng(0).normal(size=(2, 1, 4, 5, 6)).astype(np.float32)
    engine = Sides(2)
    twice = seen_twice(engine, (0, 2))
    assert isinstance(twice, MirroredBeside)
    logits = twice.run(tiles)
    assert np.allclose(logits[:, [0, 1, 2]], logits[:, [3, 5, 4]])
    assert seen_twice(engine, ()) is engine


def test_surer_is_higher_and_nothing_found_is_nothing() -> None:
    labels = np.zeros((3, 4, 4), dtype=int)
    labels[1:, :2] = 1
    one_hot = np.stack([labels == 0, labels == 1]).astype(np.float32)
    sure = []
    for scale in (1, 3, 20):
        certainty = Certainty(2)
        certainty.add(scale * one_hot)
        sure.append(certainty.value)
    assert sure == sorted(sure)
    assert sure[-1] == pytest.approx(1, abs=1e-6)
    empty = Certainty(2)
    empty.add(np.stack([np.ones((2, 3, 3)), np.zeros((2, 3, 3))]))
    assert empty.value == 0
