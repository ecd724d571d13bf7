"""The whole way from DICOM: the same network as from NIfTI, bit for bit, and nothing of a patient is left anywhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from dicom_series import TAGS_OF_A_PATIENT, series_of_nifti  # noqa: E402
from semiseg.files import hash_files, read_jsonl  # noqa: E402
from semiseg.io.dicom.places import series_of  # noqa: E402
from semiseg.io.dicom.series import hashed  # noqa: E402
from semiseg.io.scans import read_label  # noqa: E402

Command = Callable[..., Any]
UIDS = {"imagesTr": "1.2.826.1", "imagesUn": "1.2.826.2", "imagesTs": "1.2.826.3"}
DESCRIPTION = "Beschreibung_eines_Patienten"


def as_dicom(source: Path, target: Path) -> Path:
    """The same data set with its scans as series: cases with labels in folders of their names, others in a heap."""
    for entry in source.iterdir():
        if entry.is_file():
            shutil.copy(entry, target)
    for images, labels in (("imagesTr", "labelsTr"), ("imagesTs", "labelsTs"), ("imagesUn", "")):
        if labels:
            shutil.copytree(source / labels, target / labels)
        for number, file in enumerate(sorted((source / images).iterdir())):
            name = file.name.removesuffix("_0000.nii.gz") if labels else f"Wolperdinger/{number}"
            uid = f"{UIDS[images]}.{number}"
            series_of_nifti(file, target / images / name, uid=uid, description=DESCRIPTION, seed=number)
    return target


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, semiseg_command: Command, phantoms: Path, tiny: list[str]
) -> tuple[Path, Path, str]:
    """Data, a run, and all that was printed; and the same run from NIfTI in `nifti` beside it."""
    folder = tmp_path_factory.mktemp("dicom")
    (folder / "data").mkdir()
    data = as_dicom(phantoms, folder / "data")
    said = ""
    for name, root in (("run", data), ("nifti", phantoms)):
        answer = semiseg_command("run", folder / name, "--data", root, "--method", "supervised", *tiny)
        assert answer.code == 0, answer
        said += answer.out + answer.err
    return data, folder / "run", said


def test_the_network_is_the_same_as_from_nifti(runs: tuple[Path, Path, str]) -> None:
    _, run, _ = runs
    of_dicom, of_nifti = (
        hash_files([folder / "model" / "weights.safetensors"]) for folder in (run, run.parent / "nifti")
    )
    assert of_dicom == of_nifti
    scores = [(folder / "summary.csv").read_text() for folder in (run, run.parent / "nifti")]
    assert scores[0] == scores[1]


def test_cases_are_named_by_their_labels_or_by_hashes(runs: tuple[Path, Path, str]) -> None:
    _, run, _ = runs
    ids = {row["id"]: row["role"] for row in read_jsonl(run / "cases.jsonl")}
    heap = {hashed(f"{UIDS['imagesUn']}.{number}") for number in range(2)}
    assert {id for id, role in ids.items() if role == "unlabelled"} == heap
    assert {id for id, role in ids.items() if role == "test"} == {"phantom_004"}


def test_a_series_is_predicted_as_the_nifti_scan_is(
    runs: tuple[Path, Path, str], semiseg_command: Command, phantoms: Path, tmp_path: Path
) -> None:
    data, run, _ = runs
    answer = semiseg_command("predict", run, data / "imagesTs", "--output", tmp_path / "out")
    assert answer.code == 0, answer
    (file,) = (tmp_path / "out").glob("*.nii.gz")
    assert file.name == "phantom_004.nii.gz"  # as the data set calls it
    expected, grid = read_label(run / "predictions" / "phantom_004.nii.gz")
    found, own_grid = read_label(file)
    assert np.array_equal(found, expected)
    assert own_grid.difference(grid) is None
    again = semiseg_command("predict", run, data / "imagesTs", "--output", tmp_path / "out")
    assert "1 of them from before" in again.out
    alone = semiseg_command("predict", run, data / "imagesTs" / "phantom_004", "--output", tmp_path / "seg.nii.gz")
    assert alone.code == 0, alone
    assert np.array_equal(read_label(tmp_path / "seg.nii.gz")[0], expected)
    both = semiseg_command("predict", run, data / "imagesUn", "--output", tmp_path / "one.nii.gz")
    assert both.code == 2
    assert "there are 2 scans to predict" in both.err


def test_check_shows_descriptions_and_nothing_else_does(
    runs: tuple[Path, Path, str], semiseg_command: Command, tmp_path: Path
) -> None:
    data, run, said = runs
    listed = semiseg_command("check", data / "imagesUn")
    assert listed.code == 0, listed
    assert DESCRIPTION in listed.out
    checked = semiseg_command("check", data)
    assert checked.code == 0, checked
    texts = [said, checked.out, checked.err, listed.out.replace(DESCRIPTION, ""), listed.err]
    (tmp_path / "out").mkdir()
    failed = semiseg_command("predict", run, data / "imagesUn", "--series", "nothing", "--output", tmp_path / "out")
    assert failed.code == 2, failed
    texts += [failed.out, failed.err, semiseg_command("report", run).out]
    assert semiseg_command("predict", run, "--unlabelled").code == 0
    secrets = (*TAGS_OF_A_PATIENT, DESCRIPTION)
    for text in texts:
        assert not any(secret in text for secret in secrets), text
    searched = 0
    for file in [*run.parent.rglob("*")]:
        if data in file.parents or not file.is_file():
            continue
        searched += 1
        content = file.read_bytes()
        assert not any(secret.encode() in content for secret in secrets), file
        assert not any(secret in str(file) for secret in secrets)
    assert searched > 20


def test_series_and_resample_are_settings_of_a_run(
    runs: tuple[Path, Path, str], semiseg_command: Command, tiny: list[str], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(runs[0], data)
    folder = data / "imagesTr" / "phantom_000"
    for file in (data / "imagesTr" / "phantom_001").iterdir():
        shutil.copy(file, folder / f"{file.name}x")
    sorted(folder.glob("*[0-9]"), key=height)[5].unlink()
    checked = semiseg_command("check", data)
    assert checked.code == 0
    assert "Set aside: 2 series, but one is wanted." in checked.out
    assert "not regular" in checked.out
    flags = ["--data", data, "--series", f"{UIDS['imagesTr']}.0", "--resample", *tiny]
    for attempt in range(2):  # the second one takes them from run.toml
        answer = semiseg_command("prepare", tmp_path / "run", *(flags if attempt == 0 else []))
        assert answer.code == 0, answer
    settings = (tmp_path / "run" / "run.toml").read_text()
    id = hashed(f"{UIDS['imagesTr']}.0")
    assert f'series = "{id}"' in settings
    (case,) = [row for row in read_jsonl(tmp_path / "run" / "cases.jsonl") if row["id"] == "phantom_000"]
    assert Path(case["images"][0]).name == f"series-{id}-resampled"


def height(file: Path) -> float:
    return float(pydicom.dcmread(file, stop_before_pixels=True).ImagePositionPatient[2])


def test_the_real_series_goes_the_whole_way(
    runs: tuple[Path, Path, str], semiseg_command: Command, real_data: Path, tmp_path: Path
) -> None:
    folder = real_data / "ct_whole" / "dicom_series"
    assert semiseg_command("check", folder).code == 0
    answer = semiseg_command("predict", runs[1], folder, "--output", tmp_path / "out", "--max-memory", "4GB")
    assert answer.code == 0, answer
    (file,) = (tmp_path / "out").glob("*.nii.gz")
    label, grid = read_label(file)
    assert label.shape == (20, 512, 512)
    assert grid.difference(series_of(folder).grid) is None
    folders = ["--predictions", tmp_path / "out", "--references", tmp_path / "out"]
    scored = semiseg_command("evaluate", *folders, "--labels", runs[1] / "plan.toml")
    assert scored.code == 0, scored
