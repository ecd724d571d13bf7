"""Predicted locations: where the teacher sees a class, the same for the same key, and every case in its turn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from semiseg.data.plan import Plan
from semiseg.prediction.engines.base import Engine
from semiseg.training.refresh import predicted_locations
from semiseg.training.scan_labels import KEPT_PER_CLASS

Store = Callable[..., Path]


@pytest.fixture
def cases(store: Store) -> list[Path]:
    """Three cases: much of class 1 in all, and three voxels of class 2 in the first."""
    folders = []
    for index in range(3):
        shown = np.zeros((6, 8, 7))
        shown[1:5, 2:7, 1:6] = 1
        if index == 0:
            shown[0, 0, :3] = 2
        folders.append(store(f"case{index}", shown))
    return folders


def test_voxels_of_each_class_that_is_seen(cases: list[Path], engine: Engine, plan: Plan) -> None:
    found = predicted_locations(cases, 0, 3, engine, plan, seed=0)
    assert list(found) == ["case0", "case1", "case2"]
    assert found["case0"].keys() == {1, 2}
    assert found["case1"].keys() == {1}
    assert found["case0"][2] == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]
    many = found["case1"][1]
    assert len({tuple(voxel) for voxel in many}) == len(many) == KEPT_PER_CLASS
    assert all(1 <= z < 5 and 2 <= y < 7 and 1 <= x < 6 for z, y, x in many)


def test_they_depend_on_seed_turn_and_case_only(cases: list[Path], engine: Engine, plan: Plan) -> None:
    first = predicted_locations(cases, 0, 3, engine, plan, seed=0)
    assert predicted_locations(cases, 0, 3, engine, plan, seed=0) == first
    assert predicted_locations(cases, 0, 2, engine, plan, seed=0) == {k: first[k] for k in ("case0", "case1")}
    assert predicted_locations(cases, 0, 3, engine, plan, seed=1)["case1"] != first["case1"]
    assert predicted_locations(cases, 1, 3, engine, plan, seed=0)["case1"] != first["case1"]
    assert first["case1"] != first["case2"]


def test_cases_come_round_in_order(cases: list[Path], engine: Engine, plan: Plan) -> None:
    turns = [list(predicted_locations(cases, turn, 2, engine, plan, seed=0)) for turn in range(3)]
    assert turns == [["case0", "case1"], ["case2", "case0"], ["case1", "case2"]]
    assert len(predicted_locations(cases, 1, 9, engine, plan, seed=0)) == 3
