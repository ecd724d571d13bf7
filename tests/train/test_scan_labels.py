"""Labels of whole scans: what the engine sees, kept whole, found again by the teacher that made them alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from semiseg.data.plan import Plan
from semiseg.errors import DataError
from semiseg.geometry import Box
from semiseg.io.store import open_case, open_labels
from semiseg.predict.engines.base import Engine
from semiseg.predict.window import Window
from semiseg.train.scan_labels import around_body, folder_of, label_file, label_scans

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
    assert label_scans(cases, kept, engine, WINDOW, plan, seed=0) == first
    assert label_file(kept, "a").stat().st_mtime_ns == written
    assert label_file(kept, "b").is_file()


def test_a_damaged_label_map_is_named(
    shown: np.ndarray, store: Store, engine: Engine, plan: Plan, tmp_path: Path
) -> None:
    case = store("a", shown)
    label_scans([case], tmp_path / "kept", engine, WINDOW, plan, seed=0)
    label_file(tmp_path / "kept", "a").write_bytes(b"no labels")
    with pytest.raises(DataError, match=r"kept: the stored case is damaged \(a.b2nd"):
        label_scans([case], tmp_path / "kept", engine, WINDOW, plan, seed=0)


def test_labels_belong_to_the_weights_that_made_them(tmp_path: Path) -> None:
    network = torch.nn.Conv3d(1, 2, 1)
    folder = folder_of(tmp_path, network)
    folder.mkdir()
    assert folder_of(tmp_path, network) == folder
    assert folder.is_dir()
    with torch.no_grad():
        network.bias += 1  # type: ignore[operator]
    assert folder_of(tmp_path, network) != folder
    assert not folder.exists(), "labels of a teacher that is no more"
