"""Labels of whole scans: what the engine sees, kept whole, found again by the teacher that made them alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch

from semiseg.data.plan import Plan
from semiseg.data.poses import Pose, possible_poses
from semiseg.errors import DataError
from semiseg.geometry import Box
from semiseg.io.store import open_case, open_labels
from semiseg.prediction.engines.base import Engine
from semiseg.training.scan_labels import (
    TILE_VOXELS,
    KeptPlaces,
    clear_poses,
    kept_poses,
    label_file,
    label_scans,
    labels_folder,
    remove_other_labels,
    scan_agreement,
    scan_tile,
    scan_window,
)
from semiseg.types import FloatArray

Store = Callable[..., Path]


@pytest.fixture
def shown() -> np.ndarray:
    values = np.zeros((6, 9, 7))
    values[1:5, 2:8, 1:6] = 1
    values[0, 0, :3] = 2
    return values


def test_scans_are_labelled_whole(shown: np.ndarray, store: Store, engine: Engine, plan: Plan, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    cases = [store("a", shown), store("b", np.zeros((5, 4, 4)))]
    progress = lambda done, count: told.append((done, count))  # noqa: E731
    found = label_scans(cases, tmp_path / "kept", engine, plan, seed=0, progress=progress)
    assert np.array_equal(open_labels(label_file(tmp_path / "kept", "a"), (6, 9, 7))[:], shown)
    assert found == {1: 1, 2: 1}
    places = KeptPlaces(tmp_path / "kept", ["a", "b"])
    assert set(places) == {"a", "b"}
    assert places["a"].keys() == {1, 2}
    assert places["a"][2] == [(0, 0, 0), (0, 0, 1), (0, 0, 2)]
    assert places["b"] == {}
    assert places.get("c") is None
    assert told == [(1, 2), (2, 2)]


def test_a_ct_is_labelled_around_its_body(shown: np.ndarray, store: Store, plan: Plan) -> None:
    """As far as an eighth of the patch from what is known of the body, and no farther than the scan goes."""
    case = open_case(store("a", shown))
    case = replace(case, meta=replace(case.meta, body_locations=((0, 2, 2), (1, 5, 4))))
    ct = replace(plan, patch=(8, 8, 16), normalisation=(replace(plan.normalisation[0], scheme="ct"),))
    assert scan_window(case, plan).region is None
    assert scan_window(case, ct).region == Box((0, 1, 0), (3, 7, 7))
    unknown = replace(case, meta=replace(case.meta, body_locations=()))
    assert scan_window(unknown, ct).region is None


@pytest.mark.parametrize("shape", [(3, 4, 4), (6, 9, 7), (40, 300, 200), (400, 400, 400)])
def test_tiles_are_large_and_can_be_pooled(shape: tuple[int, int, int], plan: Plan) -> None:
    """Never smaller than the patch, no larger than holds the scan or than the memory has room for."""
    tile = scan_tile(shape, plan)
    assert all(edge % 2 == 0 and edge >= own for edge, own in zip(tile, plan.patch, strict=True))  # two levels
    assert prod(tile) <= TILE_VOXELS
    if all(n <= 100 for n in shape):
        assert tile == tuple(max(own, n + n % 2) for n, own in zip(shape, plan.patch, strict=True))
    else:
        # What is left is shared out: so many tiles along each axis, where it needs more than one.
        counts = [n / edge for n, edge in zip(shape, tile, strict=True) if n > edge]
        assert max(counts) / min(counts) < 1.1
    large = replace(plan, patch=(128, 128, 128))
    assert scan_tile((500, 500, 500), large) == (128, 128, 128)  # more than the memory is meant for already


def test_what_is_there_is_not_labelled_again(
    shown: np.ndarray, store: Store, engine: Engine, plan: Plan, tmp_path: Path
) -> None:
    """Nor read, but for its checksum; it is made where a kill came before what lies beside it was written."""
    cases, kept = [store(name, shown) for name in "abc"], tmp_path / "kept"
    first = label_scans(cases, kept, engine, plan, seed=0)
    places = {id: dict(found) for id, found in KeptPlaces(kept, ["a", "b", "c"]).items()}
    label_file(kept, "b").unlink()
    (kept / "c.json").unlink()
    written = {name: (kept / name).stat().st_mtime_ns for name in ("a.b2nd", "a.json")}
    told: list[tuple[int, int]] = []
    progress = lambda done, count: told.append((done, count))  # noqa: E731
    assert label_scans(cases, kept, engine, plan, seed=0, progress=progress) == first == {1: 3, 2: 3}
    assert told == [(2, 3), (3, 3)]
    assert {name: (kept / name).stat().st_mtime_ns for name in written} == written
    assert label_file(kept, "b").is_file()
    assert dict(KeptPlaces(kept, ["a", "b", "c"])) == places


def test_places_are_drawn_by_seed_and_number(
    shown: np.ndarray, store: Store, engine: Engine, plan: Plan, tmp_path: Path
) -> None:
    """Also where the labels were made for another one, as a first look at a few scans may."""
    shown = np.ones((6, 9, 7))
    cases = [store(name, shown) for name in "ab"]

    def places(kept: Path) -> dict[str, object]:
        return {id: dict(found) for id, found in KeptPlaces(kept, ["a", "b"]).items()}

    label_scans(cases, tmp_path / "straight", engine, plan, seed=0)
    label_scans(cases[1:], tmp_path / "kept", engine, plan, seed=0)
    written = label_file(tmp_path / "kept", "b").stat().st_mtime_ns
    label_scans(cases, tmp_path / "kept", engine, plan, seed=0)
    assert label_file(tmp_path / "kept", "b").stat().st_mtime_ns == written
    assert places(tmp_path / "kept") == places(tmp_path / "straight")
    label_scans(cases, tmp_path / "kept", engine, plan, seed=1)
    assert places(tmp_path / "kept") != places(tmp_path / "straight")


@pytest.mark.parametrize("name", ["a.b2nd", "a.json"])
def test_a_damaged_label_map_is_made_anew(
    name: str, shown: np.ndarray, store: Store, engine: Engine, plan: Plan, tmp_path: Path
) -> None:
    case, kept = store("a", shown), tmp_path / "kept"
    first = label_scans([case], kept, engine, plan, seed=0)
    places = dict(KeptPlaces(kept, ["a"])["a"])
    (kept / name).write_bytes(b"no labels")
    assert label_scans([case], kept, engine, plan, seed=0) == first
    assert np.array_equal(open_labels(label_file(kept, "a"), (6, 9, 7))[:], shown)
    assert KeptPlaces(kept, ["a"])["a"] == places
    (kept / "a.json").write_text('{"places": {"x": [[1]]}}')
    with pytest.raises(DataError, match=r"a.json: damaged. Delete it"):
        KeptPlaces(kept, ["a"])["a"]


def test_labels_belong_to_the_network_that_made_them(tmp_path: Path) -> None:
    network, kept = torch.nn.Conv3d(1, 2, 1), tmp_path / "kept"
    folder = labels_folder(kept, network)
    assert labels_folder(kept, network) == folder
    with torch.no_grad():
        network.bias += 1  # type: ignore[operator]
    other = labels_folder(kept, network)
    assert other != folder
    assert {folder.parent, other.parent} == {kept}


def test_labels_of_networks_that_are_no_more_are_removed_and_nothing_else(tmp_path: Path) -> None:
    networks = [torch.nn.Conv3d(1, 2, 1) for _ in range(3)]
    folders = [labels_folder(tmp_path, network) for network in networks]
    for folder in folders:
        folder.mkdir()
        (folder / "a.b2nd").touch()
        (folder / "a.json").touch()
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "mine").mkdir()
    remove_other_labels(tmp_path, folders[1:])
    assert set(tmp_path.iterdir()) == {*folders[1:], tmp_path / ".DS_Store", tmp_path / "mine"}
    remove_other_labels(tmp_path / "none", [])


def test_agreement_is_the_mean_dice_of_organs_that_either_finds() -> None:
    empty, one, two = (np.zeros((4, 4, 4), dtype=np.uint8) for _ in range(3))
    one[0, 0, :2] = 1
    two[0, 0, :2] = two[1, 0, :2] = 1
    other = one.copy()
    other[3, 3, 3] = 2
    found = [scan_agreement(a, b) for a, b in ((one, one), (one, two), (one, other), (empty, empty))]
    assert found == pytest.approx([1, 2 / 3, 1 / 2, 0], abs=1e-12)


class Upright:
    """Sees class k where the intensity is about k, and is sure of it where it is k and the upper rows are the brighter
    ones."""

    name, precision = "upright", "float32"

    def run(self, tiles: FloatArray) -> FloatArray:
        half = tiles.shape[3] // 2
        upright = tiles[:, :, :, :half].mean((1, 2, 3, 4)) > tiles[:, :, :, half:].mean((1, 2, 3, 4))
        classes = np.arange(3).reshape(1, 3, 1, 1, 1)
        sure = np.where(upright, 4, 1).reshape(-1, 1, 1, 1, 1)
        sure = sure * np.where(tiles == np.rint(tiles), 1, 0.5)
        return (sure * (np.rint(tiles) == classes)).astype(np.float32)


def test_a_scan_is_labelled_as_it_lies_best(store: Store, plan: Plan, tmp_path: Path) -> None:
    """Its labels and their places are as it lies; what was made for other poses is made anew."""
    values = np.zeros((4, 8, 8))
    values[1:3, 1:3, 2:6] = 1  # in the upper half, and as far from either side
    lying = {"upright": values, "upside_down": values[:, ::-1], "exchanged": values.transpose(0, 2, 1)[..., ::-1]}
    cases = [store(name, shown) for name, shown in lying.items()]
    plan, kept = replace(plan, patch=(4, 8, 8), anisotropic_axis=0, mirror_axes=(2,)), tmp_path / "kept"
    label_scans(cases, kept, Upright(), plan, seed=0)
    assert kept_poses(kept, lying) == {}
    poses = possible_poses(plan)
    assert label_scans(cases, kept, Upright(), plan, seed=0, poses=poses) == {1: 3}
    found = kept_poses(kept, lying)
    assert {id: pose.name.partition(",")[0] for id, pose in found.items()} == {
        "upside_down": "Y flipped",
        "exchanged": "Y and X exchanged",
    }
    for name, shown in lying.items():
        assert np.array_equal(open_labels(label_file(kept, name), (4, 8, 8))[:], shown)
        assert all(shown[place] == 1 for place in KeptPlaces(kept, [name])[name][1])
    (kept / "upright.json").write_text('{"pose": {"axes": [0]}}')
    with pytest.raises(DataError, match=r"upright.json: damaged. Delete it"):
        kept_poses(kept, lying)


def test_a_pose_counts_where_some_scans_clearly_lie_so(store: Store, engine: Engine, plan: Plan) -> None:
    values = np.zeros((4, 8, 8))
    values[1:3, 1:3, 2:7] = 1
    plan = replace(plan, patch=(4, 8, 8), mirror_axes=(1, 2))
    upside = Pose((0, 1, 2), (1,))
    down = [store(f"down{n}", values[:, ::-1]) for n in range(3)]
    up = [store(f"up{n}", values) for n in range(20)]
    assert clear_poses([*down[:2], *up[:4]], Upright(), plan, (upside,)) == (upside,)
    assert clear_poses([*down[:1], *up[:4]], Upright(), plan, (upside,)) == (), "one may be a mistake"
    assert clear_poses([*down[:2], *up], Upright(), plan, (upside,)) == (), "two of 22 are too few"
    assert clear_poses(up, Upright(), plan, (upside,)) == ()
    assert clear_poses(down, Upright(), plan, (upside,)) == (upside,), "though all lie so"
    strange = [store(f"strange{n}", 1.2 * values[:, ::-1]) for n in range(2)]
    assert clear_poses(strange, Upright(), plan, (upside,)) == (upside,)
    assert clear_poses([*strange, *up[:4]], Upright(), plan, (upside,)) == (), "it is no surer of them than of others"
    assert clear_poses(down, engine, plan, (upside,)) == (), "it is as sure in either"
