"""From a series to SEG and RTSTRUCT by prediction itself: they hold what NIfTI holds, and no other file says who the
patient is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from engines import Constant
from matplotlib.path import Path as Polygon

import dicom_series
from made_series import errors_of, oblique, write_series
from semiseg.decisions import label_sha256
from semiseg.files import read_jsonl
from semiseg.geometry import from_canonical
from semiseg.io.dicom.places import series_of
from semiseg.io.scans import read_label
from semiseg.prediction.attempt import Outcome
from semiseg.prediction.engines.torch_engine import torch_engine
from semiseg.prediction.inputs import Scan, find_scans
from semiseg.prediction.model import Model
from semiseg.prediction.outputs import Outputs, uncoded_text
from semiseg.prediction.scans import predict_scan_to, predict_scans
from semiseg.prediction.settings import PredictSettings
from semiseg.reporting.preview import preview_png
from semiseg.types import LabelArray

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SETTINGS = PredictSettings(tile_step=1.0, device="cpu", mirror=False)
EVERYTHING = Outputs(formats=("nifti", "dicom-seg", "dicom-labelmap", "rtstruct"), statistics=True, picture=preview_png)
ORGANS = ("left_x", "right_x")


def voxels(seed: int = 0) -> np.ndarray:
    """Noise with a bright half, so that labels vary."""
    array = np.random.default_rng(seed).normal(30, 80, (9, 14, 11))
    array[:5] += 100
    return array.astype(np.int16)


def predict(model: Model, place: Path, output: Path, outputs: Outputs = EVERYTHING, **how: bool) -> list[Outcome]:
    scans = find_scans([place], **how)
    return predict_scans(scans, model, torch_engine(model, CPU), output, SETTINGS, outputs=outputs)


def of_seg(path: Path, scan: Scan) -> LabelArray:
    """The labels `(slices, rows, columns)` of a SEG, frame by frame, each at the slice that it refers to."""
    seg, series = pydicom.dcmread(path), series_of(scan.images[0])
    found = np.zeros((len(series.slices), seg.Rows, seg.Columns), np.uint8)
    values = {int(one.SegmentNumber): ORGANS.index(one.SegmentLabel) + 1 for one in seg.SegmentSequence}
    for frame, what in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        (image,) = what.DerivationImageSequence[0].SourceImageSequence
        (k,) = (k for k, one in enumerate(series.slices) if one.instance == image.ReferencedSOPInstanceUID)
        assert np.allclose(what.PlanePositionSequence[0].ImagePositionPatient, series.slices[k].position)
        found[k][frame > 0] = values[what.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
    return found


def of_rtstruct(path: Path, scan: Scan) -> LabelArray:
    """The labels of an RTSTRUCT."""
    made, series = pydicom.dcmread(path), series_of(scan.images[0])
    pixels = series.slices[0].pixels
    found = np.zeros((len(series.slices), pixels.rows, pixels.columns), np.uint8)
    rows, columns = np.indices(found.shape[1:])
    for region in made.ROIContourSequence:
        for contour in region.ContourSequence:
            image = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
            (k,) = (k for k, one in enumerate(series.slices) if one.instance == image)
            one = series.slices[k]
            points = np.array(contour.ContourData, float).reshape(-1, 3) - one.position
            line = points @ np.array(one.orientation).reshape(2, 3).T / one.spacing[::-1]
            inside = Polygon(np.vstack([line, line[:1]])).contains_points(np.c_[columns.ravel(), rows.ravel()])
            found[k][inside.reshape(rows.shape)] = region.ReferencedROINumber
    return found


def on_slices(file: Path, scan: Scan) -> LabelArray:
    """The labels of a NIfTI file on the slices of the series."""
    label, _ = read_label(file)
    series = series_of(scan.images[0])
    return series.on_source(from_canonical(label, series.grid.affine)).transpose(2, 1, 0)


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_all_formats_say_the_same(model: Model, tmp_path: Path, zipped: bool) -> None:
    write_series(tmp_path / "in", voxels(), oblique(4))
    place = tmp_path / "in"
    if zipped:
        place = tmp_path / "scan.zip"
        with zipfile.ZipFile(place, "w") as archive:
            for file in (tmp_path / "in").iterdir():
                archive.write(file, f"a/{file.name}")
        shutil.rmtree(tmp_path / "in")
    (scan,) = find_scans([place])
    (outcome,) = predict(model, place, tmp_path / "out")
    assert outcome.error is None
    assert outcome.notes == ()
    stem = tmp_path / "out" / scan.id
    expected = on_slices(outcome.output, scan)
    assert set(np.unique(expected)) == {0, 1, 2}
    for path in (f"{stem}_seg.dcm", f"{stem}_rtstruct.dcm"):
        assert not errors_of(Path(path))
    assert np.array_equal(of_seg(Path(f"{stem}_seg.dcm"), scan), expected)
    assert np.array_equal(of_rtstruct(Path(f"{stem}_rtstruct.dcm"), scan), expected)
    studies = {pydicom.dcmread(f"{stem}_{end}.dcm").StudyInstanceUID for end in ("seg", "rtstruct", "labelmap")}
    assert len(studies) == 1
    (again,) = predict(model, place, tmp_path / "out")
    assert again.reused


def test_no_other_file_says_who_the_patient_is(model: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither do outputs of the program; the DICOM files have to."""
    dicom_series.write_series(tmp_path / "in", voxels(), description="Geheim Abdomen")
    (outcome,) = predict(model, tmp_path / "in", tmp_path / "out")
    assert outcome.error is None
    series = series_of(find_scans([tmp_path / "in"])[0].images[0])
    secrets = (*dicom_series.TAGS_OF_A_PATIENT, series.uid, series.slices[0].instance, "Geheim")
    files = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert len(files) == 8
    for name, data in files.items():
        seen = [secret for secret in secrets if secret.encode() in data]
        assert bool(seen) == name.endswith(".dcm"), (name, seen)
    out, err = capfd.readouterr()
    assert not any(secret in out + err for secret in secrets)


def test_labels_of_tilted_slices_return_to_them(model: Model, tmp_path: Path) -> None:
    angle = np.radians(15)
    orientation = (1.0, 0.0, 0.0, 0.0, float(np.cos(angle)), float(np.sin(angle)))
    positions = [(-100.0, -80.0, k * 2.5) for k in range(9)]
    dicom_series.write_series(tmp_path / "in", voxels(), orientation=orientation, positions=positions)
    (scan,) = find_scans([tmp_path / "in"], resample=True)
    (outcome,) = predict(model, tmp_path / "in", tmp_path / "out", resample=True)
    assert outcome.error is None
    expected = on_slices(outcome.output, scan)
    assert expected.shape == voxels().shape != read_label(outcome.output)[0].shape
    assert np.array_equal(of_seg(tmp_path / "out" / f"{scan.id}_seg.dcm", scan), expected)
    assert np.array_equal(of_rtstruct(tmp_path / "out" / f"{scan.id}_rtstruct.dcm", scan), expected)


def test_a_format_that_is_asked_for_later_needs_no_prediction(model: Model, tmp_path: Path) -> None:
    write_series(tmp_path / "in", voxels())
    (scan,) = find_scans([tmp_path / "in"])
    predict(model, tmp_path / "in", tmp_path / "out", Outputs())
    silent = Constant()
    (again,) = predict_scans(
        [scan], model, torch_engine(model, CPU), tmp_path / "out", SETTINGS, outputs=Outputs(formats=("dicom-seg",))
    )
    assert again.error is None
    assert not silent.batches
    expected = on_slices(tmp_path / "out" / f"{scan.id}.nii.gz", scan)
    assert np.array_equal(of_seg(again.output, scan), expected)


def test_a_file_that_is_there_stays_as_it_is(model: Model, tmp_path: Path) -> None:
    """A second SEG of the same labels would be another instance; and where a process is killed between the row and its
    files, the one that is there would be none of the row."""
    write_series(tmp_path / "in", voxels())
    (first,) = predict(model, tmp_path / "in", tmp_path / "out", Outputs(formats=("dicom-seg",)))
    before = first.output.read_bytes()
    for _ in range(2):
        outputs = Outputs(formats=("dicom-seg", "nrrd"), statistics=True)
        (outcome,) = predict(model, tmp_path / "in", tmp_path / "out", outputs)
        assert (outcome.error, outcome.output, outcome.reused) == (None, first.output, False)
        assert first.output.read_bytes() == before
        row = read_jsonl(tmp_path / "out" / "predictions.jsonl")[-1]
        assert row["files"] == {file.name: label_sha256(file) for file in (tmp_path / "out").glob(f"{outcome.id}*")}
        (tmp_path / "out" / f"{outcome.id}.nrrd").unlink()


def test_where_nothing_is_found_there_is_no_dicom_file(model: Model, tmp_path: Path) -> None:
    write_series(tmp_path / "in", voxels())
    (scan,) = find_scans([tmp_path / "in"])
    nothing = Constant()
    nothing.values = nothing.values[::-1]  # the background is the likeliest everywhere
    settings = replace(SETTINGS, skip_air=False)

    def once() -> Outcome:
        (outcome,) = predict_scans([scan], model, nothing, tmp_path / "out", settings, outputs=EVERYTHING)
        return outcome

    first = once()
    assert first.error is None
    assert first.notes == (f"{scan.id}: no organ was found, so there is no DICOM file of it.",)
    assert not list((tmp_path / "out").glob("*.dcm"))
    assert read_jsonl(tmp_path / "out" / "predictions.jsonl")[-1]["nothing_found"] is True
    assert once().reused


def test_one_series_goes_into_the_file_that_is_named(model: Model, tmp_path: Path) -> None:
    write_series(tmp_path / "in", voxels())
    (scan,) = find_scans([tmp_path / "in"])
    engine = torch_engine(model, CPU)
    predict_scan_to(scan, model, engine, tmp_path / "new" / "a.dcm", SETTINGS)
    assert pydicom.dcmread(tmp_path / "new" / "a.dcm").Modality == "SEG"
    predict_scan_to(scan, model, engine, tmp_path / "new" / "b.dcm", SETTINGS, Outputs(formats=("rtstruct",)))
    assert pydicom.dcmread(tmp_path / "new" / "b.dcm").Modality == "RTSTRUCT"
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["a.dcm", "b.dcm"]


def test_what_was_written_is_no_scan(model: Model, tmp_path: Path) -> None:
    """SEG and RTSTRUCT beside the series that they were made of."""
    write_series(tmp_path / "in", voxels())
    predict(model, tmp_path / "in", tmp_path / "in" / "out")
    before = find_scans([tmp_path / "in"])
    shutil.copytree(tmp_path / "in" / "out", tmp_path / "in" / "elsewhere")
    (tmp_path / "in" / "elsewhere" / "predictions.jsonl").unlink()
    for file in (tmp_path / "in" / "elsewhere").glob("*.nii.gz"):
        file.unlink()
    assert [scan.id for scan in find_scans([tmp_path / "in"])] == [scan.id for scan in before]


def test_the_command_says_what_a_person_must_know(
    model_folder: Path, tmp_path: Path, semiseg_command: Callable[..., Any]
) -> None:
    series = write_series(tmp_path / "in", voxels())
    for file in set(series.files):
        one = pydicom.dcmread(file)
        one.StudyInstanceUID = ""
        one.save_as(file)
    wanted = ("--format", "nifti", "dicom-seg", "rtstruct", "--statistics", "--preview", "--engine", "torch")
    answer = semiseg_command("predict", model_folder, tmp_path / "in", "--output", tmp_path / "out", *wanted)
    assert answer.code == 0, answer.err
    assert "1 scan in" in answer.out
    assert "no SNOMED code is known for left_x, right_x" in answer.err
    assert f"{series.id}: its files have no StudyInstanceUID, so what was made of them is in a study of" in answer.err
    names = {file.name.removeprefix(series.id) for file in (tmp_path / "out").iterdir()}
    tables = {"predictions.jsonl", "statistics.csv", "statistics.json"}
    assert names == {".nii.gz", "_seg.dcm", "_rtstruct.dcm", "_preview.png"} | tables
    assert [case["id"] for case in json.loads((tmp_path / "out" / "statistics.json").read_text())] == [series.id]
    one_file = tmp_path / "structures.dcm"
    answer = semiseg_command("predict", model_folder, tmp_path / "in", "--output", one_file, "--format", "rtstruct")
    assert answer.code == 0, answer.err
    assert pydicom.dcmread(one_file).Modality == "RTSTRUCT"
    answer = semiseg_command("predict", model_folder, tmp_path / "in", "--output", one_file)
    assert answer.code == 2
    assert "structures.dcm: is there already" in answer.err


def test_names_without_a_code_are_told_of() -> None:
    assert uncoded_text(["liver", "right_kidney"]) == ""
    assert "known for left_x, right_x: DICOM files call it 'tissue'" in uncoded_text(["liver", *ORGANS])


MEASURE = """
import json, sys
from pathlib import Path
from semiseg.prediction.engines.opening import open_engine
from semiseg.prediction.inputs import find_scans
from semiseg.prediction.memory import measure_engine, peak_bytes, reset_peak, scan_needs
from semiseg.prediction.model import load_model
from semiseg.prediction.outputs import Outputs, check_formats
from semiseg.prediction.scans import predict_scans
from semiseg.prediction.settings import PredictSettings
from semiseg.reporting.preview import preview_png

folder, scan, output, formats = sys.argv[1:]
model, scans = load_model(Path(folder)), find_scans([Path(scan)])
outputs = Outputs(formats=tuple(formats.split()), statistics=True, picture=preview_png)
check_formats(scans, outputs.of_dicom)
engine = open_engine(model, "torch", device="cpu")
settings = PredictSettings(tile_step=1.0, device="cpu", mirror=False)
engine_bytes = measure_engine([engine], model, settings)
((_, need),) = scan_needs(scans, model, settings, engine_bytes=engine_bytes, outputs=outputs).items()
reset_peak()
(outcome,) = predict_scans(scans, model, engine, Path(output), settings, outputs=outputs)
assert not outcome.error, outcome.error
print(need.at_peak - engine_bytes, peak_bytes() - engine_bytes)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks can be reset on Linux only")
def test_what_is_planned_is_enough(model_folder: Path, tmp_path: Path) -> None:
    """For a scan of which each frame holds organs."""
    smooth = np.add.outer(np.add.outer(np.arange(24) * 9, np.arange(64)), np.arange(64)) % 300
    write_series(tmp_path / "in", smooth - 100, spacing=(1.0, 1.0, 2.0))
    places = map(str, (model_folder, tmp_path / "in", tmp_path / "out"))
    command = [sys.executable, "-c", MEASURE, *places, "dicom-seg dicom-labelmap rtstruct"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread)
    assert done.returncode == 0, done.stderr
    planned, taken = map(int, done.stdout.split())
    assert 0.2 * planned < taken <= planned
