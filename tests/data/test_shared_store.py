"""Prepared scans that runs share: done once, linked, kept as long as a run has them, and pruned afterwards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from semiseg.data import prepare as preparing
from semiseg.data import shared_store
from semiseg.data.plan import ChannelNormalisation, NetworkPlan, Plan
from semiseg.data.prepare import prepare_cases
from semiseg.data.shared_store import entries, open_store, prune, store_beside
from semiseg.errors import DataError
from semiseg.io.dataset import Case, LabelScheme
from semiseg.io.store import open_case

Prepared = tuple[Plan, list[Case]]


NETWORK = NetworkPlan(features=(4, 8), kernels=((3, 3, 3),) * 2, strides=((1, 1, 1), (2, 2, 2)))


@pytest.fixture
def scans(tmp_path: Path) -> Prepared:
    """A plan and two small scans, of which the first has a label."""
    plan = Plan(
        dataset="made up",
        channels=("MRI",),
        labels=LabelScheme(names={0: "background", 1: "a"}),
        spacing_mm=(1.0, 1.0, 1.0),
        anisotropic_axis=None,
        patch=(8, 8, 8),
        batch=2,
        normalisation=(ChannelNormalisation(scheme="zscore"),),
        teacher=NETWORK,
        student=NETWORK,
    )
    cases = []
    for number in range(2):
        image = np.random.default_rng(number).normal(size=(10, 11, 12)).astype(np.float32)
        files = {"image": tmp_path / f"case{number}_0000.nii.gz", "label": tmp_path / f"case{number}.nii.gz"}
        nib.save(nib.Nifti1Image(image, np.eye(4)), files["image"])
        nib.save(nib.Nifti1Image((image > 1).astype(np.uint8), np.eye(4)), files["label"])
        cases.append(Case(id=f"case{number}", images=(files["image"],), label=None if number else files["label"]))
    return plan, cases


def quietly(done: int, total: int, name: str) -> None:
    """No progress."""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    open_store(tmp_path / "prepared-scans")
    return tmp_path / "prepared-scans"


def prepared(run: Path, store: Path, scans: Prepared) -> list[bool]:
    """Prepare for a run; whether each case was there."""
    plan, cases = scans
    run.mkdir(exist_ok=True)
    (run / "run.toml").touch()
    results = prepare_cases(cases, plan, run / "store", shared=store)
    assert not [result.error for result in results if result.error]
    return [result.reused for result in results]


def identity(file: Path) -> tuple[int, int]:
    return file.stat().st_dev, file.stat().st_ino


def test_each_scan_is_prepared_once_and_every_run_has_it(
    tmp_path: Path, store: Path, scans: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    before = preparing._prepare

    def counted(case: Case, plan: Plan, digest: str, folder: Path) -> None:
        made.append(case.id)
        before(case, plan, digest, folder)

    monkeypatch.setattr(preparing, "_prepare", counted)
    runs = [tmp_path / f"run{n}" for n in range(12)]
    for number, run in enumerate(runs):
        assert prepared(run, store, scans) == [number > 0] * 2
    assert sorted(made) == ["case0", "case1"]
    for case in ("case0", "case1"):
        assert len({identity(run / "store" / case / "image.b2nd") for run in runs}) == 1
    listed = entries(store)
    assert [one.folder.name for one in listed] == ["case0", "case1"]
    assert all(one.is_used and one.runs == tuple(sorted(runs)) for one in listed)


def test_pruning_removes_what_no_run_has_and_nothing_else(tmp_path: Path, store: Path, scans: Prepared) -> None:
    prepared(tmp_path / "first", store, scans)
    plan, cases = scans
    prepared(tmp_path / "second", store, (plan, cases[:1]))
    elsewhere = tmp_path / "elsewhere" / "deep" / "third"
    elsewhere.parent.mkdir(parents=True)
    prepared(elsewhere, store, (plan, cases[:1]))
    shutil.rmtree(tmp_path / "first")
    assert [(one.folder.name, one.is_used) for one in entries(store)] == [("case0", True), ("case1", False)]
    (store / "notes.txt").write_text("mine")
    size = next(one.bytes for one in entries(store) if not one.is_used)
    assert prune(store, quietly) == size > 0
    assert [one.folder.name for one in entries(store)] == ["case0"]
    shutil.rmtree(tmp_path / "second")
    assert prune(store, quietly) == 0, "a run that lies elsewhere has it still"
    assert open_case(elsewhere / "store" / "case0").meta.id == "case0"
    shutil.rmtree(elsewhere)
    assert prune(store, quietly) > 0
    assert entries(store) == []
    assert (store / "notes.txt").read_text() == "mine"


def test_a_run_keeps_its_scans_where_the_store_is_deleted(tmp_path: Path, store: Path, scans: Prepared) -> None:
    run = tmp_path / "run"
    prepared(run, store, scans)
    shutil.rmtree(store)
    assert open_case(run / "store" / "case1").meta.id == "case1"
    open_store(store)
    assert prepared(run, store, scans) == [True, True]


def test_a_damaged_scan_is_made_anew_for_all(tmp_path: Path, store: Path, scans: Prepared) -> None:
    prepared(tmp_path / "first", store, scans)
    image = tmp_path / "first" / "store" / "case0" / "image.b2nd"
    data = bytearray(image.read_bytes())
    data[len(data) // 2] ^= 1
    image.write_bytes(data)  # in place: it is the store's file, too
    assert prepared(tmp_path / "second", store, scans) == [False, True]
    assert prepared(tmp_path / "first", store, scans) == [True, True], "linked anew"
    first, second = (tmp_path / name / "store" / "case0" / "image.b2nd" for name in ("first", "second"))
    assert identity(first) == identity(second)


def test_a_file_system_without_links_gets_copies(
    tmp_path: Path, store: Path, scans: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    prepared(tmp_path / "run", store, scans)
    kept = tmp_path / "run" / "store" / "case0"
    assert identity(kept / "image.b2nd") != identity(next(store.glob("*/case0")) / "image.b2nd")
    assert open_case(kept).meta.id == "case0"
    assert prune(store, quietly) > 0, "no run needs what the store has"
    assert open_case(kept).meta.id == "case0"


def _prepared_apart(run: Path, store: Path, scans: Prepared) -> None:
    prepared(run, store, scans)


def test_two_runs_at_once_share_it(tmp_path: Path, store: Path, scans: Prepared) -> None:
    context = get_context("spawn")
    processes = [context.Process(target=_prepared_apart, args=(tmp_path / f"run{n}", store, scans)) for n in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(entries(store)) == 2
    for case in ("case0", "case1"):
        first, second = (tmp_path / f"run{n}" / "store" / case / "image.b2nd" for n in range(2))
        assert identity(first) == identity(second)


def test_what_another_process_has_in_hand_is_not_pruned_and_not_waited_for_without_end(
    tmp_path: Path, store: Path, scans: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(tmp_path / "run", store, scans)
    shutil.rmtree(tmp_path / "run")
    first, second = entries(store)
    monkeypatch.setattr(shared_store, "_PATIENCE_SECONDS", 0.0)
    in_hand = (store, first.folder.name, first.folder.parent.name)
    with shared_store.entry(*in_hand):
        assert prune(store, quietly) == second.bytes
        with pytest.raises(DataError, match="another process has had this scan in hand"), shared_store.entry(*in_hand):
            pass
    assert [one.folder.name for one in entries(store)] == [first.folder.name]


def test_jobs_that_begin_together_may_make_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = Path.iterdir

    def after_another_has_made_it(folder: Path) -> Iterator[Path]:
        (folder / "store.json").write_text("{}")
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", after_another_has_made_it)
    open_store(tmp_path)


def test_a_folder_of_something_else_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(
        DataError, match=r"mine: prepared scans are to be kept here, but something else is.*data\.store"
    ):
        open_store(tmp_path / "mine")
    with pytest.raises(DataError, match=r"mine: no store of prepared scans"):
        entries(tmp_path / "mine")


def test_it_lies_beside_the_run_unless_it_is_named(tmp_path: Path) -> None:
    assert store_beside(tmp_path / "runs" / "first", "") == tmp_path / "runs" / "prepared-scans"
    assert store_beside(tmp_path / "runs" / "first", "/fast/disk") == Path("/fast/disk")
