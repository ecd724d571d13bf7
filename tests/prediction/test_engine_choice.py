"""Which engine predicts: the fastest that gives torch's labels, remembered, and kept by the folder that it began."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from semiseg.errors import ConfigError
from semiseg.files import append_jsonl
from semiseg.prediction import engine_choice
from semiseg.prediction.engine_choice import REFERENCE, Choice, choose_engine
from semiseg.prediction.engines.base import Engine
from semiseg.prediction.inputs import Scan, find_scans
from semiseg.prediction.model import Model
from semiseg.prediction.parity import References, class_dice
from semiseg.prediction.scans import predict_scans
from semiseg.prediction.settings import PredictSettings

pytestmark = pytest.mark.usefixtures("one_thread")
NO_TRIAL = {"openvino": 1.0, "onnx": 2.0, "torch": 3.0}


@pytest.fixture
def scans(tmp_path: Path) -> list[Scan]:
    """Four scans, the third the smallest, and one that cannot be read."""
    (tmp_path / "in").mkdir()
    for index, size in enumerate((12, 11, 9, 13)):
        array = np.random.default_rng(index).normal(30, 80, (size, size, size))
        array[: size // 2] += 100
        nib.save(nib.Nifti1Image(array.astype(np.int16), np.eye(4)), tmp_path / "in" / f"{'abcd'[index]}.nii.gz")
    (tmp_path / "in" / "e.nii.gz").write_text("no scan")
    return find_scans([tmp_path / "in"])


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine that remembers nothing yet and has no bfloat16, where OpenVINO is the fastest; notes what it times."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    timed: list[str] = []

    def trial(engine: Engine, model: Model) -> float:
        timed.append(engine.name)
        return NO_TRIAL[engine.name]

    monkeypatch.setattr(engine_choice, "_trial", trial)
    monkeypatch.setattr(engine_choice, "precisions", lambda name: ["float32"])
    return timed


class Chosen:
    """A call of `choose_engine` and what it said."""

    def __init__(self, model: Model, scans: list[Scan], output: Path, **settings: object) -> None:
        self.said: list[str] = []
        given = PredictSettings(**{"device": "cpu", "tile_step": 1.0, "mirror": False} | settings)  # type: ignore[arg-type]
        self.engine = choose_engine(model, scans, output, given, say=self.said.append)
        self.choice = Choice(self.engine.name, self.engine.precision)


def remembered(tmp_path: Path) -> dict[str, dict[str, object]]:
    (file,) = (tmp_path / "cache" / "semiseg" / "engines").iterdir()
    found: dict[str, dict[str, object]] = json.loads(file.read_text())["engines"]
    return found


def spoil(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make engines compute something else, as a wrong kernel would."""
    real = engine_choice.open_engine

    def opened(model: Model, name: str, **options: Any) -> Engine:
        engine = real(model, name, **options)
        if name in names:
            run = engine.run
            engine.run = lambda tiles: run(tiles)[:, ::-1]  # type: ignore[method-assign]
        return engine

    monkeypatch.setattr(engine_choice, "open_engine", opened)


def test_the_fastest_is_checked_once_and_remembered(
    model: Model, scans: list[Scan], machine: list[str], tmp_path: Path
) -> None:
    first = Chosen(model, scans, tmp_path / "out")
    assert first.choice == ("openvino", "float32")
    assert sorted(machine) == ["onnx", "openvino", "torch"]
    assert first.said == ["checking openvino in float32 against torch in float32, once for this model on this machine"]
    row = remembered(tmp_path)["openvino in float32"]
    assert row["passed"] is True
    assert set(row) == {"seconds_per_tile", "worst_dice", "passed"}  # and no name of a scan
    machine.clear()
    again = Chosen(model, scans, tmp_path / "out")
    assert (again.choice, again.said, machine) == (first.choice, [], [])


def test_one_that_fails_is_refused_and_the_next_is_used(
    model: Model, scans: list[Scan], machine: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, "openvino")
    assert Chosen(model, scans, tmp_path / "out").choice == ("onnx", "float32")
    assert remembered(tmp_path)["openvino in float32"]["passed"] is False
    assert Chosen(model, scans, tmp_path / "out").said == []
    with pytest.raises(
        ConfigError, match=r"openvino in float32 cannot .* smallest Dice of a class was 0\.\d+.*engine torch"
    ):
        Chosen(model, scans, tmp_path / "out", engine="openvino")


def test_where_all_fail_it_is_torch(
    model: Model, scans: list[Scan], machine: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, "openvino", "onnx")
    assert Chosen(model, scans, tmp_path / "out").choice == REFERENCE


def test_what_cannot_be_checked_is_not_used(
    model: Model, scans: list[Scan], machine: list[str], tmp_path: Path
) -> None:
    assert Chosen(model, scans[4:], tmp_path / "out").choice == REFERENCE
    assert "passed" not in remembered(tmp_path)["openvino in float32"]
    with pytest.raises(ConfigError, match="could not be checked"):
        Chosen(model, scans[4:], tmp_path / "out", engine="onnx")


def test_an_engine_that_is_asked_for_is_checked_too(
    model: Model, scans: list[Scan], machine: list[str], tmp_path: Path
) -> None:
    asked = Chosen(model, scans, tmp_path / "out", engine="onnx")
    assert asked.choice == ("onnx", "float32")
    assert len(asked.said) == 1
    assert machine == []
    assert Chosen(model, scans, tmp_path / "out", engine="torch").choice == REFERENCE


def test_a_folder_keeps_the_engine_that_it_was_begun_with(
    model: Model, scans: list[Scan], machine: list[str], tmp_path: Path
) -> None:
    settings = PredictSettings(device="cpu", tile_step=1.0, mirror=False)
    begun = Chosen(model, scans, tmp_path / "out", engine="onnx")
    predict_scans(scans[:1], model, begun.engine, tmp_path / "out", settings)
    assert Chosen(model, scans, tmp_path / "out").choice == ("onnx", "float32")
    outcomes = predict_scans(scans[:2], model, begun.engine, tmp_path / "out", settings)
    assert [outcome.reused for outcome in outcomes] == [True, False]
    append_jsonl(tmp_path / "out" / "predictions.jsonl", {"id": "z", "key": "k", "model": "another"})
    assert Chosen(model, scans, tmp_path / "out").choice == ("onnx", "float32")


def test_a_damaged_memory_is_made_anew(model: Model, scans: list[Scan], machine: list[str], tmp_path: Path) -> None:
    Chosen(model, scans, tmp_path / "out")
    (file,) = (tmp_path / "cache" / "semiseg" / "engines").iterdir()
    for damage in ("{", "[]", '{"engines": 3}'):
        file.write_text(damage)
        assert Chosen(model, scans, tmp_path / "out").choice == ("openvino", "float32")


def test_dice_is_of_each_class_that_the_reference_has() -> None:
    reference = np.array([0, 1, 1, 3, 3, 3], np.uint8)
    labels = np.array([2, 1, 0, 3, 3, 3], np.uint8)
    assert class_dice(reference, labels) == {"1": pytest.approx(2 / 3), "3": 1.0}
    assert class_dice(reference, np.zeros(6, np.uint8)) == {"1": 0.0, "3": 0.0}
    assert class_dice(np.zeros(6, np.uint8), labels) == {}


def test_holding_labels_against_others_takes_less_than_a_label_map() -> None:
    """Prediction may have a limit, and a count of all voxels at once takes eight bytes of each."""
    labels = np.random.default_rng(0).integers(0, 5, (32, 128, 128)).astype(np.uint8)
    tracemalloc.start()
    try:
        assert class_dice(labels, labels) == dict.fromkeys("1234", 1.0)
        assert tracemalloc.get_traced_memory()[1] < labels.nbytes
    finally:
        tracemalloc.stop()


def test_a_precision_that_is_asked_for_is_kept_to(
    model: Model, scans: list[Scan], machine: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="'bfloat16': engine onnx does not compute in it"):
        Chosen(model, scans, tmp_path / "out", engine="onnx", precision="bfloat16")
    assert Chosen(model, scans, tmp_path / "out", precision="float32").choice == ("openvino", "float32")


def test_torch_in_bfloat16_is_checked_like_the_others(
    model: Model, scans: list[Scan], machine: list[str], tmp_path: Path
) -> None:
    """These weights were never trained, and rounding changes too many of their labels."""
    with pytest.raises(ConfigError, match="torch in bfloat16 cannot take the place of torch in float32: the smallest"):
        Chosen(model, scans, tmp_path / "out", engine="torch", precision="bfloat16")
    assert 0.9 < float(str(remembered(tmp_path)["torch in bfloat16 on cpu"]["worst_dice"])) < 0.995


def test_on_a_gpu_with_bfloat16_it_is_tried_and_what_is_found_is_the_gpus(
    model: Model, scans: list[Scan], machine: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is made up; what it computes is computed here."""
    monkeypatch.setattr(engine_choice, "_on_cpu", lambda device: False)
    monkeypatch.setattr(engine_choice, "_gpu_has_bfloat16", lambda device: True)
    monkeypatch.setattr(engine_choice, "_device_name", lambda device: "Made Up 8")
    assert Chosen(model, scans, tmp_path / "out").choice == REFERENCE  # weights that were never trained
    found = remembered(tmp_path)
    assert found.keys() == {"torch in bfloat16 on Made Up 8", "torch in float32 on Made Up 8"}
    assert found["torch in bfloat16 on Made Up 8"]["passed"] is False
    machine.clear()
    monkeypatch.setattr(engine_choice, "_device_name", lambda device: "Made Up 9")
    Chosen(model, scans, tmp_path / "other")
    assert machine == ["torch", "torch"]


def test_an_engine_that_cannot_be_loaded_is_passed_over(
    model: Model, scans: list[Scan], machine: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engine_choice.open_engine

    def opened(model: Model, name: str, **options: Any) -> Engine:
        if name == "openvino":
            raise ImportError("libtbb.so.12: cannot open shared object file")
        return real(model, name, **options)

    monkeypatch.setattr(engine_choice, "open_engine", opened)
    found = Chosen(model, scans, tmp_path / "out")
    assert found.choice == ("onnx", "float32")
    assert found.said[0] == "openvino in float32 is not used: libtbb.so.12: cannot open shared object file"


def test_a_memory_that_cannot_be_written_stops_nothing(
    model: Model, scans: list[Scan], machine: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = Chosen(model, scans, tmp_path / "out")
    assert found.choice == ("openvino", "float32")
    assert any("cannot be written" in line for line in found.said)


def test_the_check_keeps_to_the_budget(model: Model, scans: list[Scan], machine: list[str], tmp_path: Path) -> None:
    """No scan fits into 1 MB: none is predicted to find out, and torch needs no check."""
    found = Chosen(model, scans, tmp_path / "out", max_memory="1MB")
    assert found.choice == REFERENCE


def test_scans_without_an_organ_are_tried_three_at_most(
    model: Model, scans: list[Scan], machine: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted: list[str] = []

    def empty(self: References, scan: Scan, engine: Engine) -> np.ndarray:
        predicted.append(f"{scan.id} {engine.name}")
        return np.zeros((2, 2, 2), np.uint8)

    monkeypatch.setattr(References, "_predict", empty)
    assert Chosen(model, scans, tmp_path / "out").choice == REFERENCE
    assert len(predicted) == 3
    assert all(line.endswith("torch") for line in predicted)
