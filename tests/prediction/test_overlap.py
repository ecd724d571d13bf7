"""While a scan is predicted the one before is written and the next one is read: with the results of one at a time."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from engines import Constant, Sides

from semiseg.decisions import label_sha256
from semiseg.errors import ConfigError
from semiseg.files import append_jsonl, read_jsonl
from semiseg.prediction import outputs as outputs_module
from semiseg.prediction.engines.torch_engine import torch_engine
from semiseg.prediction.inputs import find_scans
from semiseg.prediction.memory import check_budget, measure_engine, scan_needs
from semiseg.prediction.model import Model
from semiseg.prediction.scans import predict_scans
from semiseg.prediction.settings import PredictSettings
from semiseg.types import FloatArray

pytestmark = pytest.mark.usefixtures("one_thread")
SIDES = ("True", "False")
SETTINGS = PredictSettings(tile_step=1.0, device="cpu", mirror=False, skip_air=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Scans a, b, c, d."""
    (tmp_path / "in").mkdir()
    for number, name in enumerate("abcd"):
        array = np.random.default_rng(number).normal(30, 80, (11, 13, 9)).astype(np.int16)
        nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / "in" / f"{name}.nii.gz")
    return tmp_path / "in"


def without_seconds(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "seconds"}


def test_the_same_labels_and_rows(model: Model, folder: Path, tmp_path: Path) -> None:
    (folder / "b.nii.gz").write_bytes((folder / "b.nii.gz").read_bytes()[:200])
    (folder / "bb.nii.gz").write_text("no image")
    scans, engine = find_scans([folder]), torch_engine(model, torch.device("cpu"))
    told: dict[bool, list[tuple[int, int, str]]] = {True: [], False: []}
    for overlapping, calls in told.items():
        output = tmp_path / str(overlapping)
        outcomes = predict_scans(
            scans,
            model,
            engine,
            output,
            SETTINGS,
            overlapping=overlapping,
            progress=lambda *call, calls=calls: calls.append(call),  # type: ignore[misc]
        )
        assert [outcome.error is None for outcome in outcomes] == [True, False, False, True, True]
    rows = {side: [without_seconds(row) for row in read_jsonl(tmp_path / side / "predictions.jsonl")] for side in SIDES}
    assert rows["True"] == rows["False"]
    assert len(rows["True"]) == 5
    assert told[True] == told[False]
    for name in "acd":
        same = [(tmp_path / side / f"{name}.nii.gz").read_bytes() for side in SIDES]
        assert same[0] == same[1]


class Watching(Sides):
    """Calls a function with the number of each scan's first tile."""

    def __init__(self, act: Callable[[int], None], tiles: int) -> None:
        super().__init__(axis=2)
        self.act, self.tiles, self.runs = act, tiles, 0

    def run(self, tiles: FloatArray) -> FloatArray:
        self.runs += 1
        if (self.runs - 1) % self.tiles == 0:
            self.act((self.runs - 1) // self.tiles)
        return super().run(tiles)


def tiles_of_a_scan(model: Model, folder: Path, tmp_path: Path) -> int:
    counted = Constant()
    predict_scans(find_scans([folder / "a.nii.gz"]), model, counted, tmp_path / "counted", SETTINGS)
    return len(counted.batches)


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_next_is_read_and_the_last_is_written_meanwhile(model: Model, folder: Path, tmp_path: Path) -> None:
    """Each scan is predicted only once the one before is on the disk, and an old result of the next is gone."""
    output, log = tmp_path / "out", tmp_path / "out" / "predictions.jsonl"
    output.mkdir()
    for name in "bcd":  # of another model: reading a scan removes what there is of it
        file = output / f"{name}.nii.gz"
        file.write_bytes(b"old")
        append_jsonl(log, {"id": name, "key": "another", "files": {file.name: label_sha256(file)}})
    seen: list[int] = []

    def act(number: int) -> None:
        wait_until(lambda: len(read_jsonl(log)) == 3 + number)
        if number < 3:
            wait_until(lambda: not (output / f"{'abcd'[number + 1]}.nii.gz").exists())
        if number < 2:  # two at a time
            assert (output / f"{'abcd'[number + 2]}.nii.gz").read_bytes() == b"old"
        seen.append(number)

    engine = Watching(act, tiles_of_a_scan(model, folder, tmp_path))
    outcomes = predict_scans(find_scans([folder]), model, engine, output, SETTINGS)
    assert [outcome.error for outcome in outcomes] == [None] * 4
    assert seen == [0, 1, 2, 3]


def test_ctrl_c_keeps_what_is_finished(model: Model, folder: Path, tmp_path: Path) -> None:
    def act(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    engine = Watching(act, tiles_of_a_scan(model, folder, tmp_path))
    with pytest.raises(KeyboardInterrupt):
        predict_scans(find_scans([folder]), model, engine, tmp_path / "out", SETTINGS)
    assert [row["id"] for row in read_jsonl(tmp_path / "out" / "predictions.jsonl")] == ["a", "b"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.nii.gz", "b.nii.gz", "predictions.jsonl"]
    outcomes = predict_scans(find_scans([folder]), model, Sides(axis=2), tmp_path / "out", SETTINGS)
    assert [outcome.reused for outcome in outcomes] == [True, True, False, False]


def test_a_full_disk_ends_the_work(model: Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = outputs_module.write_label

    def full_after_a(path: Path, *args: Any) -> None:
        if path.name != "a.nii.gz":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, *args)

    monkeypatch.setattr(outputs_module, "write_label", full_after_a)
    with pytest.raises(OSError, match="No space left"):
        predict_scans(find_scans([folder]), model, Constant(), tmp_path / "out", SETTINGS)
    assert [row["id"] for row in read_jsonl(tmp_path / "out" / "predictions.jsonl")] == ["a"]


def test_what_lacks_memory_beside_another_scan_is_tried_alone(model: Model, folder: Path, tmp_path: Path) -> None:
    tries: list[int] = []

    def act(run: int) -> None:
        tries.append(run)
        if run == tiles:  # the first of b
            raise MemoryError

    tiles = tiles_of_a_scan(model, folder, tmp_path)
    engine = Watching(act, 1)
    outcomes = predict_scans(find_scans([folder]), model, engine, tmp_path / "out", SETTINGS)
    assert len(tries) == 4 * tiles + 1
    assert [outcome.error for outcome in outcomes] == [None] * 4
    assert [row["id"] for row in read_jsonl(tmp_path / "out" / "predictions.jsonl")] == list("abcd")


def test_a_budget_tells_whether_there_is_room_for_two(model: Model, folder: Path) -> None:
    scans, engine = find_scans([folder]), Constant()
    needs = scan_needs(scans, model, SETTINGS, engine_bytes=measure_engine([engine], model, SETTINGS))
    peak, beside = (max(getattr(need, field) for need in needs.values()) for field in ("at_peak", "beside"))

    def room(budget: float) -> bool:
        return check_budget(scans, model, engine, PredictSettings(max_memory=f"{budget / 1e6:.0f}MB", mirror=False))

    assert room(peak + beside + 50e6)
    assert not room(peak + beside / 2)
    with pytest.raises(ConfigError, match="max_memory"):
        room(peak / 2)
