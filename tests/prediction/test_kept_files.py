"""Predictions replace and remove what they wrote themselves, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from engines import Constant

from semiseg.errors import ConfigError
from semiseg.files import read_jsonl, write_jsonl
from semiseg.io.scans import read_label, write_label
from semiseg.prediction.attempt import Outcome
from semiseg.prediction.inputs import Scan, find_scans
from semiseg.prediction.model import Model
from semiseg.prediction.outputs import LABELS_ALONE, Outputs
from semiseg.prediction.scans import predict_scans
from semiseg.prediction.settings import OutputFormat, PredictSettings

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = PredictSettings(tile_step=1.0, device="cpu", mirror=False, skip_air=False)


def save(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        array = np.random.default_rng(len(name)).normal(30, 80, (11, 13, 9)).astype(np.int16)
        nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), folder / f"{name}.nii.gz")


def predict(model: Model, folder: Path, outputs: Outputs = LABELS_ALONE, workers: int = 1) -> list[Outcome]:
    found = find_scans([folder / "in"])
    return predict_scans(found, model, Constant(), folder / "out", SETTINGS, outputs=outputs, workers=workers)


def mend(file: Path) -> None:
    """As a person does, in another program; all of it is organ 2 before."""
    label, grid = read_label(file)
    values = label.copy()
    values[3, 4, 5] = 1
    write_label(file, values, grid)


def errors(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.id: outcome.error for outcome in outcomes if outcome.error}


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture
def other(model: Model) -> Model:
    """A model of other weights, as far as prediction knows."""
    return replace(model, hash="0" * 64)


@pytest.mark.parametrize("name", ["b.nii.gz", "b.nrrd", "b_preview.png", "b_rtstruct.dcm"])
def test_files_of_a_scan_that_was_never_predicted_are_refused(model: Model, tmp_path: Path, name: str) -> None:
    """Among predictions of others, or of a scan that failed."""
    save(tmp_path / "in", "a")
    predict(model, tmp_path)
    (tmp_path / "in" / "b.nii.gz").write_text("no image")
    assert list(errors(predict(model, tmp_path))) == ["b"]
    save(tmp_path / "in", "b")
    drawn = tmp_path / "out" / name
    drawn.write_bytes(b"drawn by hand")
    with pytest.raises(ConfigError, match=rf"{name}: was not predicted here \(.* predictions\.jsonl that lists it\)"):
        predict(model, tmp_path)
    assert drawn.read_bytes() == b"drawn by hand"


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_mended_in_place_is_kept(model: Model, other: Model, tmp_path: Path, workers: int) -> None:
    save(tmp_path / "in", "a", "b")
    predict(model, tmp_path)
    file = tmp_path / "out" / "a.nii.gz"
    mend(file)
    mended = file.read_bytes()
    assert [outcome.reused for outcome in predict(model, tmp_path)] == [True, True]
    failed = errors(predict(other, tmp_path, workers=workers))
    assert failed == {
        "a": f"{file}: was changed since it was predicted, and is neither replaced nor removed. Move it away; a "
        "correction of a run's label may be taken back from there by `semiseg correct`."
    }
    assert file.read_bytes() == mended
    assert read_jsonl(tmp_path / "out" / "predictions.jsonl")[-1]["model"] == other.hash  # that of b
    (tmp_path / "out" / "a.nii.gz").rename(tmp_path / "a_mended.nii.gz")
    assert [outcome.reused for outcome in predict(other, tmp_path)] == [False, True]
    assert file.read_bytes() != mended


def test_further_files_are_made_of_what_was_mended_in_place(model: Model, other: Model, tmp_path: Path) -> None:
    """It stays, and so does what was made before."""
    save(tmp_path / "in", "a")
    predict(model, tmp_path, Outputs(formats=("mha", "nifti")))
    file, before = tmp_path / "out" / "a.nii.gz", (tmp_path / "out" / "a.mha").read_bytes()
    mend(file)
    mended = file.read_bytes()
    asked = Outputs(formats=("mha", "nifti", "nrrd"), statistics=True)
    (outcome,) = predict(model, tmp_path, asked)
    assert (outcome.error, outcome.reused) == (None, False)
    assert (file.read_bytes(), (tmp_path / "out" / "a.mha").read_bytes()) == (mended, before)
    label, _ = read_label(file)
    assert np.array_equal(read_label(tmp_path / "out" / "a.nrrd")[0], label)
    rows = json.loads((tmp_path / "out" / "statistics.json").read_text())[0]["organs"]
    assert [row["voxels"] for row in rows] == [np.count_nonzero(label == value) for value in (1, 2)]
    assert rows[0]["voxels"] == 1
    assert predict(model, tmp_path, asked)[0].reused
    assert errors(predict(other, tmp_path, asked)).keys() == {"a"}
    assert file.read_bytes() == mended
    mend(tmp_path / "out" / "a.mha")  # which of the two counts?
    (tmp_path / "out" / "a.nrrd").unlink()
    assert "a.mha: was changed since it was predicted" in errors(predict(model, tmp_path, asked))["a"]


@pytest.mark.parametrize("formats", [(), ("nifti", "nrrd")])
def test_what_was_put_beside_a_label_is_kept(
    model: Model, other: Model, tmp_path: Path, formats: tuple[OutputFormat, ...]
) -> None:
    """Whether it is in the way of what is asked for now, or of another model's labels alone."""
    save(tmp_path / "in", "a")
    predict(model, tmp_path)
    drawn = tmp_path / "out" / "a.nrrd"
    drawn.write_bytes(b"drawn by hand")
    (outcome,) = predict(model if formats else other, tmp_path, Outputs(formats=formats))
    assert outcome.error == f"{drawn}: was not predicted here (predictions.jsonl does not list it). Move it away."
    assert drawn.read_bytes() == b"drawn by hand"
    assert names(tmp_path / "out") == ["a.nii.gz", "a.nrrd", "predictions.jsonl"]


@pytest.mark.parametrize("name", ["statistics.csv", "statistics.json"])
def test_statistics_of_the_users_are_not_overwritten(model: Model, other: Model, tmp_path: Path, name: str) -> None:
    """Those that were written here are, though the last call did not ask for them."""
    outputs = Outputs(statistics=True)
    save(tmp_path / "in", "a")
    predict(model, tmp_path)
    mine = tmp_path / "out" / name
    mine.write_text("my study")
    with pytest.raises(ConfigError, match=rf"{name}: was not written here .* Name another folder .* or move the file"):
        predict(model, tmp_path, outputs)
    assert mine.read_text() == "my study"
    mine.unlink()
    predict(model, tmp_path, outputs)
    before = mine.read_text()
    predict(other, tmp_path)
    mine.write_text("of before")
    predict(other, tmp_path, outputs)
    assert mine.read_text() == before


def test_without_any_statistics_there_is_no_table(model: Model, tmp_path: Path) -> None:
    """Which the next call would take for the user's."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.nii.gz").write_text("no image")
    assert list(errors(predict(model, tmp_path, Outputs(statistics=True)))) == ["a"]
    assert names(tmp_path / "out") == ["predictions.jsonl"]
    save(tmp_path / "in", "a")
    assert not errors(predict(model, tmp_path, Outputs(statistics=True)))
    assert names(tmp_path / "out") == ["a.nii.gz", "predictions.jsonl", "statistics.csv", "statistics.json"]


def test_labels_of_a_version_without_hashes(model: Model, other: Model, tmp_path: Path) -> None:
    """Are known again; but they may have been mended, so that they are not replaced."""
    save(tmp_path / "in", "a")
    predict(model, tmp_path)
    (row,) = read_jsonl(tmp_path / "out" / "predictions.jsonl")
    write_jsonl(tmp_path / "out" / "predictions.jsonl", [{key: row[key] for key in row if key != "files"}])
    file = tmp_path / "out" / "a.nii.gz"
    assert predict(model, tmp_path)[0].reused
    for outcomes in (predict(other, tmp_path), predict(model, tmp_path, Outputs(formats=("nrrd",)))):
        assert errors(outcomes) == {
            "a": f"{file}: may be of an older version, whose predictions.jsonl does not tell whether it was changed. "
            "Move it away."
        }


def test_formats_of_several_calls_are_known(model: Model, other: Model, tmp_path: Path) -> None:
    save(tmp_path / "in", "a")
    for formats in (("nifti",), ("nrrd",), ("mha",)):
        assert not errors(predict(model, tmp_path, Outputs(formats=formats)))
    assert names(tmp_path / "out") == ["a.mha", "a.nii.gz", "a.nrrd", "predictions.jsonl"]
    assert not errors(predict(other, tmp_path))
    assert names(tmp_path / "out") == ["a.nii.gz", "predictions.jsonl"]


def test_a_scan_may_be_called_as_the_probabilities_of_another(model: Model, other: Model, tmp_path: Path) -> None:
    save(tmp_path / "in", "a", "a_probabilities")
    for one in (model, other):
        assert not errors(predict(one, tmp_path))
    (tmp_path / "in" / "a_probabilities.nii.gz").unlink()
    before = (tmp_path / "out" / "a_probabilities.nii.gz").read_bytes()
    assert not errors(predict(model, tmp_path))
    assert (tmp_path / "out" / "a_probabilities.nii.gz").read_bytes() == before
    asked = replace(SETTINGS, probabilities=True)
    with pytest.raises(ConfigError, match="a_probabilities: the label map of this scan would be the probabilities of"):
        predict_scans(find_scans([tmp_path / "in"]), model, Constant(), tmp_path / "out", asked)


class PredictedMeanwhile(list[Scan]):
    """Scans that another process predicts when they are first looked at."""

    def __init__(self, scans: list[Scan], predict: Callable[[], object]) -> None:
        super().__init__(scans)
        self.left = [predict]

    def __iter__(self) -> Iterator[Scan]:
        if self.left:
            self.left.pop()()
        return super().__iter__()


def test_what_another_process_predicts_meanwhile_is_known(model: Model, tmp_path: Path) -> None:
    save(tmp_path / "in", "a", "b")
    scans = PredictedMeanwhile(find_scans([tmp_path / "in"]), lambda: predict(model, tmp_path))
    outcomes = predict_scans(scans, model, Constant(), tmp_path / "out", SETTINGS)
    assert [(outcome.error, outcome.reused) for outcome in outcomes] == [(None, True)] * 2


KILLED = """
import os, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from engines import Constant
from semiseg.prediction import attempt
from semiseg.prediction.inputs import find_scans
from semiseg.prediction.model import load_model
from semiseg.prediction.scans import predict_scans
from semiseg.prediction.settings import PredictSettings

model, folder = load_model(Path(sys.argv[2])), Path(sys.argv[3])
attempt.put_in_place = lambda staged: os._exit(9)
settings = PredictSettings(tile_step=1.0, device="cpu", mirror=False, skip_air=False)
predict_scans(find_scans([folder / "in"]), model, Constant(), folder / "out", settings)
"""
"""A process that ends as one does that is killed once the row of its first scan is written."""


def test_a_kill_before_labels_are_in_their_place(model: Model, tmp_path: Path) -> None:
    """The row is there, its files are not: the next call makes them, and leaves nothing of the killed one."""
    save(tmp_path / "in", "a", "b")
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(model.folder), str(tmp_path)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert killed.returncode == 9, killed.stderr
    assert len(list((tmp_path / "out").glob(".tmp-*"))) == 1
    (row,) = read_jsonl(tmp_path / "out" / "predictions.jsonl")
    assert list(row["files"]) == ["a.nii.gz"]
    assert not (tmp_path / "out" / "a.nii.gz").exists()
    assert [(outcome.error, outcome.reused) for outcome in predict(model, tmp_path)] == [(None, False)] * 2
    assert names(tmp_path / "out") == ["a.nii.gz", "b.nii.gz", "predictions.jsonl"]
