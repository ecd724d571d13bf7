"""Which unlabelled cases are doubtful, with networks whose answers are known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from plans import PLAN
from semiseg.data.plan import Plan
from semiseg.data.poses import Pose
from semiseg.errors import DataError
from semiseg.io.store import OpenCase, StoredCase, open_case, write_case
from semiseg.models.build import build_network
from semiseg.prediction.engines.base import Engine
from semiseg.prediction.engines.torch_engine import TorchEngine
from semiseg.rows import Doubt, read_ranking
from semiseg.training.ranking import case_and_slices, doubts, ranked, write_ranking
from semiseg.types import FloatArray

SMALL = replace(PLAN, patch=(4, 4, 4))
SHAPE = (10, 6, 5)


def case_doubt(case: OpenCase, first: Engine, second: Engine | None, plan: Plan) -> Doubt:
    return case_and_slices(case, first, second, plan)[0]


class Thresholds:
    """Class 1 above one intensity, class 2 above another; `sharpness` is the logit of what it finds."""

    name, precision = "formula", "float32"

    def __init__(self, first: float, second: float, sharpness: float = 20.0) -> None:
        self.limits, self.sharpness = (first, second), sharpness

    def run(self, tiles: FloatArray) -> FloatArray:
        image = tiles[:, 0]
        labels = (image > self.limits[0]).astype(int) + (image > self.limits[1])
        return np.stack([self.sharpness * (labels == k) for k in range(3)], axis=1).astype(np.float32)


def network_of(seed: int) -> TorchEngine:
    network = build_network(SMALL.student, channels=1, classes=3, seed=seed).eval()
    return TorchEngine(network, torch.device("cpu"), None)


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """Intensities 0..299, a voxel each."""
    image = np.arange(300, dtype=np.float32).reshape(1, *SHAPE)
    meta = StoredCase(
        id="c", shape_zyx=SHAPE, spacing_mm=(1, 1, 1), source_shape_zyx=SHAPE, source_spacing_mm=(1, 1, 1), hash="h",
        labelled=False, channels=1, class_voxels={}, class_locations={}, body_locations=(),
    )  # fmt: skip
    write_case(tmp_path / "c", image=image, label=None, meta=meta)
    return tmp_path / "c"


def test_disagreement_is_one_minus_the_mean_dice_of_organs(case: Path) -> None:
    first, second = Thresholds(99.5, 199.5), Thresholds(149.5, 199.5)
    doubt = case_doubt(open_case(case), first, second, SMALL)
    # Class 1: 100 and 50 voxels, 50 of them common; class 2: the same 100.
    assert doubt["disagreement"] == pytest.approx(1 - (100 / 150 + 1) / 2, abs=1e-6)
    assert (doubt["id"], doubt["organs"], doubt["organ_voxels"]) == ("c", 2, 200)
    same = case_doubt(open_case(case), first, first, SMALL)
    assert same["disagreement"] == 0
    assert case_doubt(open_case(case), first, Thresholds(999, 999), SMALL)["disagreement"] == 1


def test_slices_are_as_doubtful_as_their_voxels_on_the_scans_own_grid(case: Path) -> None:
    first, second = Thresholds(99.5, 199.5), Thresholds(149.5, 199.5)  # they differ on the values 100 to 149
    doubt, slices = case_and_slices(open_case(case), first, second, PLAN)
    assert doubt == case_doubt(open_case(case), first, second, PLAN)
    differ = ((np.arange(300) > 99) & (np.arange(300) < 150)).reshape(SHAPE).astype(float)
    for axis, name in enumerate(("axial", "coronal", "sagittal")):
        expected = np.moveaxis(differ, axis, 0).mean(axis=(1, 2))
        assert slices[name] == pytest.approx(expected.tolist(), abs=2e-3)  # type: ignore[literal-required]
    meta = replace(open_case(case).meta, source_shape_zyx=(2 * SHAPE[0], SHAPE[1], SHAPE[2]))
    _, finer = case_and_slices(replace(open_case(case), meta=meta), first, second, PLAN)
    assert len(finer["axial"]) == 2 * SHAPE[0]
    assert np.argmax(finer["axial"]) // 2 == np.argmax(slices["axial"])


class Rising(Thresholds):
    """Is sure where intensities rise along Y, as they do in the case."""

    def run(self, tiles: FloatArray) -> FloatArray:
        rising = tiles[:, 0, :, -1].mean((1, 2)) > tiles[:, 0, :, 0].mean((1, 2))
        return (super().run(tiles) * np.where(rising, 1, 0.1).reshape(-1, 1, 1, 1, 1)).astype(np.float32)


def test_a_case_that_lies_otherwise_is_judged_as_it_is_predicted(case: Path) -> None:
    first, second, plan = Rising(99.5, 199.5), Rising(149.5, 199.5), replace(PLAN, mirror_axes=(2,))
    upright = open_case(case)
    for pose in (Pose((0, 1, 2), (1,)), Pose((0, 2, 1), (1, 2))):
        lying = OpenCase(
            folder=case,
            meta=replace(upright.meta, shape_zyx=pose.shape_before(SHAPE), source_shape_zyx=pose.shape_before(SHAPE)),
            image=np.ascontiguousarray(pose.back(np.asarray(upright.image[:]))),
            label=None,
        )
        expected, straight = case_and_slices(upright, first, second, plan)
        doubt, slices = case_and_slices(lying, first, second, plan, (pose,))
        assert doubt == expected
        assert case_and_slices(lying, first, second, plan)[0]["entropy"] > expected["entropy"]
        along = [slices["axial"], slices["coronal"], slices["sagittal"]]
        back = [along[axis] for axis in pose.axes]
        turned = [part[::-1] if axis in pose.flipped else part for axis, part in enumerate(back)]
        assert turned == list(straight.values())
        assert case_and_slices(upright, first, second, plan, (pose,)) == (expected, straight)


def test_one_network_alone_has_no_disagreement(case: Path) -> None:
    engine = Thresholds(50, 150)
    alone = case_doubt(open_case(case), engine, None, SMALL)
    assert math.isnan(alone["disagreement"])
    assert alone | {"disagreement": 0.0} == case_doubt(open_case(case), engine, engine, SMALL)


def test_entropy_is_of_voxels_that_may_be_an_organ(case: Path) -> None:
    sharpness = 2.0
    engine = Thresholds(99.5, 199.5, sharpness)
    p = np.exp([sharpness, 0, 0]) / np.exp([sharpness, 0, 0]).sum()
    expected = -(p * np.log(p)).sum() / math.log(3)
    # No voxel is surely background at this sharpness, so all count, and all have the same entropy. Tiles overlap.
    assert case_doubt(open_case(case), engine, engine, SMALL)["entropy"] == pytest.approx(expected, abs=1e-5)
    # Sure of everything: hardly any entropy, and the background is left out.
    assert case_doubt(open_case(case), Thresholds(99.5, 199.5), engine, SMALL)["entropy"] < 1e-4


def test_a_case_in_which_nothing_is_found_is_the_most_doubtful(case: Path) -> None:
    nothing = Thresholds(999, 999)
    doubt = case_doubt(open_case(case), nothing, nothing, SMALL)
    assert (doubt["disagreement"], doubt["entropy"], doubt["organs"]) == (1.0, 1.0, 0)


def some(name: str, disagreement: float, entropy: float, organs: int = 2) -> Doubt:
    return Doubt(id=name, disagreement=disagreement, entropy=entropy, organs=organs, organ_voxels=10)


FOUND = [some("a", 0.1, 0.9), some("b", 0.3, 0.1), some("c", 0.2, 0.5, organs=1), some("d", 0.3, 0.2)]


def test_the_most_doubtful_come_first() -> None:
    assert [doubt["id"] for doubt in ranked(FOUND, "disagreement")] == ["b", "d", "c", "a"]
    assert [doubt["id"] for doubt in ranked(FOUND, "entropy")] == ["a", "c", "d", "b"]


def test_random_takes_cases_with_all_organs_first_and_depends_on_the_seed_alone() -> None:
    orders = {tuple(doubt["id"] for doubt in ranked(FOUND, "random", seed=seed)) for seed in range(60)}
    assert len(orders) == 6  # all orders of the three with two organs
    assert all(order[3] == "c" for order in orders)
    turned = ranked(FOUND[::-1], "random", seed=3)
    assert turned == ranked(FOUND, "random", seed=3)


def test_every_case_is_judged_and_progress_is_told(case: Path, tmp_path: Path) -> None:
    engine = Thresholds(99.5, 199.5)
    told: list[tuple[int, int, str]] = []
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    found, problems = doubts([case, damaged, case], engine, engine, SMALL, progress=lambda *values: told.append(values))
    assert [doubt["id"] for doubt in found] == ["c", "c"]
    assert told == [(1, 3, "c"), (2, 3, "damaged"), (3, 3, "c")]
    assert [str(damaged) in text for text in problems] == [True]


def test_what_was_judged_is_kept_and_not_judged_again(case: Path, tmp_path: Path) -> None:
    judged: list[int] = []

    def looked(engine: TorchEngine) -> TorchEngine:
        engine.network.register_forward_hook(lambda *_: judged.append(1))
        return engine

    def ranked_by(first: TorchEngine, second: TorchEngine | None) -> Doubt:
        judged.clear()
        (found,), problems = doubts([case], first, second, SMALL, kept=tmp_path, progress=lambda *_: None)
        assert not problems
        return found

    first, second = (looked(network_of(seed)) for seed in (1, 2))
    before = ranked_by(first, second)
    assert judged
    assert ranked_by(first, second) == before
    assert not judged, "neither network looked again"
    (tmp_path / "c.json").write_text('["damaged"]')
    assert ranked_by(first, second) == before
    assert judged, "what cannot be read is made anew"
    alone = ranked_by(first, None)
    assert judged
    assert math.isnan(alone["disagreement"])
    again = ranked_by(first, None)
    assert not judged
    assert math.isnan(again["disagreement"])
    assert again["entropy"] == alone["entropy"] == before["entropy"]


def test_workers_judge_alike(case: Path) -> None:
    engine = Thresholds(99.5, 199.5)
    alone, shared = (
        doubts([case, case], engine, engine, SMALL, workers=workers, progress=lambda *_: None) for workers in (1, 2)
    )
    assert alone == shared


def test_a_ranking_is_read_as_it_was_written(tmp_path: Path) -> None:
    order = ranked(FOUND, "entropy")
    write_ranking(tmp_path, order, "entropy", exclude_worst=0.5)
    assert read_ranking(tmp_path) == order
    assert (tmp_path / "exclude.txt").read_text() == "# the worst 50% by entropy\na\nc\n"


def test_without_a_ranking_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"ranking\.csv: not there.*semiseg rank {tmp_path}"):
        read_ranking(tmp_path)
