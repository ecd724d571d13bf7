"""Validation: loss and Dice of cases whose prediction is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from semiseg.data.plan import Plan
from semiseg.losses import supervised_loss
from semiseg.prediction.engines.base import Engine
from semiseg.training.validate import validate

Store = Callable[..., Path]
CPU = torch.device("cpu")


def classes(seed: int, shape: tuple[int, int, int] = (6, 7, 5), top: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, shape)


def dice(pairs: list[tuple[np.ndarray, np.ndarray]], value: int) -> float:
    """Voxels of all cases pooled."""
    overlap = sum(np.sum((a == value) & (b == value)) for a, b in pairs)
    return float(2 * overlap / sum(np.sum(a == value) + np.sum(b == value) for a, b in pairs))


def test_dice_and_loss_equal_the_definition(store: Store, engine: Engine, plan: Plan) -> None:
    pairs = [(classes(1), classes(2)), (classes(3, (4, 4, 9)), classes(4, (4, 4, 9)))]
    cases = [store(f"case{i}", *pair) for i, pair in enumerate(pairs)]
    found = validate(cases, engine, plan, CPU)
    organs = {name: dice(pairs, value) for value, name in ((1, "liver"), (2, "spleen"))}
    assert found["validation_dice/liver"] == pytest.approx(organs["liver"], abs=1e-12)
    assert found["validation_dice/spleen"] == pytest.approx(organs["spleen"], abs=1e-12)
    assert found["validation_dice"] == pytest.approx(np.mean(list(organs.values())), abs=1e-12)
    losses = []
    for shown, label in pairs:
        logits = torch.from_numpy(4.0 * (shown == np.arange(3).reshape(3, 1, 1, 1)))[None]
        losses.append(float(supervised_loss(torch.from_numpy(label)[None], logits)))
    assert found["validation_loss"] == pytest.approx(np.mean(losses), rel=1e-5)  # float32 against float64


def test_a_perfect_prediction_and_one_that_is_wrong_everywhere(store: Store, engine: Engine, plan: Plan) -> None:
    shown = classes(1)
    right = validate([store("right", shown, shown)], engine, plan, CPU)
    wrong = validate([store("wrong", shown, (shown + 1) % 3)], engine, plan, CPU)
    assert right["validation_dice"] == 1
    assert wrong["validation_dice"] == 0
    assert right["validation_loss"] < wrong["validation_loss"]


def test_ignored_voxels_count_in_nothing(store: Store, engine: Engine, plan: Plan) -> None:
    shown, label = classes(1), classes(2)
    ignored = label.copy()
    ignored[:3] = 9
    with_ignore = replace(plan, labels=replace(plan.labels, ignore=9))
    found = validate([store("a", shown, ignored)], engine, with_ignore, CPU)
    expected = dice([(shown[3:], label[3:])], 1)
    assert found["validation_dice/liver"] == pytest.approx(expected, abs=1e-12)
    half = validate([store("b", shown[3:], label[3:])], engine, plan, CPU)
    assert found["validation_loss"] == pytest.approx(half["validation_loss"], rel=1e-5)  # order of float32 sums


def test_an_organ_that_is_nowhere_is_left_out(store: Store, engine: Engine, plan: Plan) -> None:
    shown = classes(1, top=2)
    found = validate([store("a", shown, shown)], engine, plan, CPU)
    assert "validation_dice/spleen" not in found
    assert found["validation_dice"] == found["validation_dice/liver"] == 1
    empty = np.zeros((5, 5, 5))
    assert validate([store("b", empty, empty)], engine, plan, CPU).keys() == {"validation_loss"}
