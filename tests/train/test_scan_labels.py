"""Labels of whole scans: what the engine sees, kept whole, found again by the teacher that made them alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from semiseg.data.plan import Plan
from semiseg.geometry import Box
from semiseg.io.store import open_case, open_labels, write_labels
from semiseg.methods.base import HIDDEN
from semiseg.predict.engines.base import Engine
from semiseg.predict.window import Window
from semiseg.train.scan_labels import AgreedLabels, agreed_most, around_body, folders_of, label_file, label_scans

Store = Callable[..., Path]
WINDOW = Window(patch=(4, 4, 4))


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
    found = label_scans(cases, tmp_path / "kept", engine, WINDOW, plan, seed=0, progress=progress)
    assert np.array_equal(open_labels(label_file(tmp_path / "kept", "a"), (6, 9, 7))[:], shown)
    assert found["a"].keys() == {1, 2}
    assert found["a"][2] == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]
    assert found["b"] == {}
    assert told == [(1, 2), (2, 2)]


def test_a_ct_is_labelled_around_its_body(shown: np.ndarray, store: Store, plan: Plan) -> None:
    """As far as an eighth of the patch from what is known of the body, and no farther than the scan goes."""
    case = open_case(store("a", shown))
    case = replace(case, meta=replace(case.meta, body_locations=((0, 2, 2), (1, 5, 4))))
    ct = replace(plan, patch=(8, 8, 16), normalisation=(replace(plan.normalisation[0], scheme="ct"),))
    assert around_body(WINDOW, case, plan) == WINDOW
    assert around_body(WINDOW, case, ct).region == Box((0, 1, 0), (3, 7, 7))


def test_what_is_there_is_not_labelled_again(
    shown: np.ndarray, store: Store, engine: Engine, plan: Plan, tmp_path: Path
) -> None:
    cases, kept = [store("a", shown), store("b", shown)], tmp_path / "kept"
    first = label_scans(cases, kept, engine, WINDOW, plan, seed=0)
    label_file(kept, "b").unlink()
    written = label_file(kept, "a").stat().st_mtime_ns
    told: list[tuple[int, int]] = []
    progress = lambda done, count: told.append((done, count))  # noqa: E731
    assert label_scans(cases, kept, engine, WINDOW, plan, seed=0, progress=progress) == first
    assert told == [(2, 2)]
    assert label_file(kept, "a").stat().st_mtime_ns == written
    assert label_file(kept, "b").is_file()


def test_a_damaged_label_map_is_made_anew(
    shown: np.ndarray, store: Store, engine: Engine, plan: Plan, tmp_path: Path
) -> None:
    case, kept = store("a", shown), tmp_path / "kept"
    first = label_scans([case], kept, engine, WINDOW, plan, seed=0)
    label_file(kept, "a").write_bytes(b"no labels")
    assert label_scans([case], kept, engine, WINDOW, plan, seed=0) == first
    assert np.array_equal(open_labels(label_file(kept, "a"), (6, 9, 7))[:], shown)


def test_labels_belong_to_what_made_them(shown: np.ndarray, store: Store, tmp_path: Path) -> None:
    """Weights, window and scans; folders of others go, and nothing else."""
    network, cases, kept = torch.nn.Conv3d(1, 2, 1), [store("a", shown)], tmp_path / "kept"
    folder = folders_of(kept, [(network, WINDOW)], cases)[0]
    folder.mkdir(parents=True)
    (kept / ".DS_Store").touch()
    assert folders_of(kept, [(network, WINDOW)], cases)[0] == folder
    assert folder.is_dir()
    others = {
        folders_of(kept, [(network, replace(WINDOW, mirror_axes=(2,)))], cases)[0],
        folders_of(kept, [(network, WINDOW)], [])[0],
    }
    with torch.no_grad():
        network.bias += 1  # type: ignore[operator]
    others.add(folders_of(kept, [(network, WINDOW)], cases)[0])
    assert len(others - {folder}) == 3
    assert [file.name for file in kept.iterdir()] == [".DS_Store"], "labels of a teacher that is no more"


def test_two_maps_are_one_that_hides_where_they_differ() -> None:
    labels, others = (np.random.default_rng(seed).integers(0, 3, (4, 5, 6)).astype(np.uint8) for seed in (0, 1))
    agreed = AgreedLabels(labels, others)
    where = (slice(1, 3), slice(0, 5), slice(2, 4))
    expected = np.where(labels == others, labels.astype(int), HIDDEN)
    assert np.array_equal(agreed[where], expected[where])
    assert np.array_equal(np.asarray(agreed[:]), expected)
    assert agreed[where].dtype == agreed.dtype


def test_the_scans_that_two_rounds_agree_on_most(store: Store, tmp_path: Path) -> None:
    """By the mean Dice of the organs that either finds; a scan in which nothing is found is agreed on the least."""
    empty, one, two = (np.zeros((4, 4, 4), dtype=np.uint8) for _ in range(3))
    one[0, 0, :2] = 1
    two[0, 0, :2] = two[1, 0, :2] = 1
    other = one.copy()
    other[3, 3, 3] = 2
    maps = {"same": (one, one), "half": (one, two), "missed": (one, other), "nothing": (empty, empty)}  # 1, 2/3, 1/2, 0
    cases = [store(name, first) for name, (first, _) in maps.items()]
    folders = [tmp_path / "now", tmp_path / "before"]
    for name, labels in maps.items():
        for folder, values in zip(folders, labels, strict=True):
            write_labels(label_file(folder, name), values)
    assert agreed_most(cases, folders, 1.0) == ["same", "half", "missed", "nothing"]
    assert agreed_most(cases[::-1], folders, 0.5) == ["same", "half"]
    assert agreed_most(cases, folders, 0.0) == ["same"]
