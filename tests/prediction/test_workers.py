"""Scans predicted by worker processes: the labels that one process gives; a scan that kills one is lost alone."""

from __future__ import annotations

import os
import pickle
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from semiseg import predict_run
from semiseg.errors import ConfigError
from semiseg.files import read_jsonl
from semiseg.prediction import device
from semiseg.prediction.engines.opening import is_installed, open_engine
from semiseg.prediction.ensemble import EnsembleEngine
from semiseg.prediction.inputs import find_scans
from semiseg.prediction.memory import check_budget
from semiseg.prediction.model import Model
from semiseg.prediction.scans import predict_scans
from semiseg.prediction.settings import PredictSettings

SETTINGS = PredictSettings(device="cpu")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(4):
        array = np.random.default_rng(number).normal(30, 80, (11, 13, 9)).astype(np.int16)
        nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), folder / f"{number}.nii.gz")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("torch", marks=pytest.mark.thorough),
        "openvino",
        pytest.param("onnx", marks=pytest.mark.thorough),
        "ensemble",
    ],
)
def test_labels_do_not_depend_on_the_workers(name: str, model: Model, scans: Path, tmp_path: Path) -> None:
    if name != "ensemble" and not is_installed(name):
        pytest.skip(f"{name} is not installed")
    kinds = ["torch", "torch"] if name == "ensemble" else [name]
    opened = [open_engine(model, kind, device="cpu", say=print) for kind in kinds]
    engine = EnsembleEngine(opened) if name == "ensemble" else opened[0]
    told: list[tuple[int, int, str]] = []
    found = find_scans([scans])
    alone = predict_scans(found, model, engine, tmp_path / "alone", SETTINGS)
    shared = predict_scans(
        found, model, engine, tmp_path / "shared", SETTINGS, workers=2, progress=lambda *values: told.append(values)
    )
    assert [one.error for one in (*alone, *shared)] == [None] * 8
    assert [one.id for one in shared] == [one.id for one in alone]
    for one, other in zip(alone, shared, strict=True):
        # Rounding may differ with the number of threads: a voxel in a thousand may lie on an edge.
        labels = [np.asarray(nib.load(outcome.output).dataobj) for outcome in (one, other)]
        assert np.mean(labels[0] != labels[1]) < 1e-3
        assert len(np.unique(labels[0])) > 1
    assert sorted(name for _, _, name in told) == ["0", "1", "2", "3"]
    assert [done for done, _, _ in told] == [1, 2, 3, 4]
    again = predict_scans(found, model, engine, tmp_path / "shared", SETTINGS, workers=2)
    assert all(one.reused for one in again)
    assert len(read_jsonl(tmp_path / "shared" / "predictions.jsonl")) == 4


def test_ctrl_c_keeps_what_the_workers_have_done(model: Model, scans: Path, tmp_path: Path) -> None:
    """As each one that works is waited for."""
    done: list[str] = []

    def stop(count: int, of: int, id: str) -> None:
        done.append(id)
        if count == 1:
            raise KeyboardInterrupt

    engine, found = open_engine(model, "torch", device="cpu"), find_scans([scans])
    with pytest.raises(KeyboardInterrupt):
        predict_scans(found, model, engine, tmp_path / "out", SETTINGS, workers=2, progress=stop)
    assert sorted(done) == ["0", "1"]
    there = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert there == ["0.nii.gz", "1.nii.gz", "predictions.jsonl"]
    again = predict_scans(found, model, engine, tmp_path / "out", SETTINGS)
    assert [one.reused for one in again] == [True, True, False, False]


class TellsGpu(type(Path())):  # type: ignore[misc]
    """A path that writes down which GPUs the process sees that receives it, once two processes have."""

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return _told_gpu, (str(self), str(self.parent.parent / f"gpus of {self.name}"))


def _told_gpu(path: str, file: str) -> Path:
    Path(file).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    for _ in range(300):
        if len(list(Path(file).parent.glob("gpus of *"))) > 1:
            break
        time.sleep(0.1)
    return Path(path)


def test_several_gpus_predict_side_by_side(
    model: Model, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process for each, which sees its own alone."""
    monkeypatch.setattr(device, "gpus_to_share", lambda name: ["4", "6"])
    monkeypatch.setattr(predict_run, "workers", lambda usual: 2)
    for number, scan in enumerate(found := find_scans([scans])):
        object.__setattr__(scan, "images", (TellsGpu(scan.images[0]),))
        assert scan.id == str(number)
    settings = replace(SETTINGS, engine="torch")
    outcomes = predict_run.predict_into(model.folder, found, tmp_path / "out", settings, quiet=True)
    assert [outcome.error for outcome in outcomes] == [None] * 4
    seen = {file.read_text() for file in tmp_path.glob("gpus of *")}
    assert seen == {"4", "6"}


def test_engines_of_the_processor_share_no_gpus(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "gpus_to_share", lambda name: ["4", "6"])
    engine = open_engine(model, "torch", device="cpu")
    assert predict_run._gpus(engine, SETTINGS) == ["4", "6"]
    engine.name = "openvino"
    assert predict_run._gpus(engine, SETTINGS) == []


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's compiler imports it
def test_a_process_compiles_what_was_compiled(model: Model) -> None:
    for compiled in (False, True):
        engine = open_engine(model, "torch", device="cpu", compiled=compiled)
        assert (pickle.loads(pickle.dumps(engine)).network._compiled_call_impl is not None) is compiled


class Deadly(type(Path())):  # type: ignore[misc]
    """A path that ends every process which receives it, as a scan too large for the memory would."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (1,)


def test_a_scan_that_kills_its_process_is_lost_alone(model: Model, scans: Path, tmp_path: Path) -> None:
    found = find_scans([scans])
    object.__setattr__(found[1], "images", (Deadly(found[1].images[0]),))
    engine = open_engine(model, "torch", device="cpu")
    outcomes = predict_scans(found, model, engine, tmp_path / "out", SETTINGS, workers=2)
    assert [outcome.error is None for outcome in outcomes] == [True, False, True, True]
    assert "1.nii.gz: the process that worked on it was killed" in str(outcomes[1].error)
    rows = {row["id"]: row for row in read_jsonl(tmp_path / "out" / "predictions.jsonl")}
    assert rows["1"]["error"] == outcomes[1].error
    assert [outcome.output.is_file() for outcome in outcomes] == [True, False, True, True]


def test_a_budget_is_that_of_all_workers_together(model: Model, scans: Path) -> None:
    found, engine = find_scans([scans]), open_engine(model, "torch", device="cpu")
    with pytest.raises(ConfigError) as alone:
        check_budget(found, model, engine, PredictSettings(max_memory="1MB"))
    with pytest.raises(ConfigError, match="use fewer workers") as shared:
        check_budget(found, model, engine, PredictSettings(max_memory="1MB"), workers=3)
    needed = [float(str(error.value).split("--max-memory ")[1].split("GB")[0]) for error in (alone, shared)]
    assert needed[1] > 3 * needed[0]
