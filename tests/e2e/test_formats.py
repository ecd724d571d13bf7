"""A data set of NRRD and MetaImage files, some with their voxels in files of their own, goes the whole way, and comes
out as the same set of NIfTI files does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from semiseg.data.check import check_dataset
from semiseg.data.roles import read_run_cases
from semiseg.files import hash_files, read_json
from semiseg.geometry import Box
from semiseg.io.file_kinds import stem
from semiseg.io.layouts import read_dataset
from semiseg.io.scans import files_of, read_grid, read_label
from semiseg.io.store import open_case

Command = Callable[..., Any]
ENDINGS = {
    "imagesTr": ".nrrd", "labelsTr": ".mha", "imagesUn": ".mhd", "imagesTs": ".nhdr", "labelsTs": ".nrrd",
}  # fmt: skip
SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # of what NIfTI's headers have and others have not
pytestmark = pytest.mark.usefixtures("one_core")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Path:
    """The phantoms as SimpleITK converts them."""
    root = tmp_path_factory.mktemp("formats") / "data"
    for folder, ending in ENDINGS.items():
        (root / folder).mkdir(parents=True)
        for file in sorted((phantoms / folder).iterdir()):
            target = root / folder / f"{stem(file)}{ending}"
            SimpleITK.WriteImage(SimpleITK.ReadImage(str(file)), str(target), folder != "imagesUn")
    description = json.loads((phantoms / "dataset.json").read_text()) | {"file_ending": ".nrrd"}
    (root / "dataset.json").write_text(json.dumps(description))
    return root


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, one_core: None, semiseg_command: Command, phantoms: Path,
    converted: Path, tiny: list[str],
) -> tuple[Path, Path]:  # fmt: skip
    """A whole run on each of the two sets."""
    folder = tmp_path_factory.mktemp("runs")
    for name, data in (("nifti", phantoms), ("others", converted)):
        answer = semiseg_command("run", folder / name, "--data", data, "--quiet", *tiny)
        assert answer.code == 0, answer.err
    return folder / "nifti", folder / "others"


def test_the_check_finds_nothing_that_it_does_not_find_in_nifti(converted: Path, phantoms: Path) -> None:
    found, wanted = (check_dataset(read_dataset(data)) for data in (converted, phantoms))
    assert found.cases == wanted.cases
    assert [problem.text for problem in found.problems] == [problem.text for problem in wanted.problems]


def test_prepared_scans_weights_and_scores_are_the_same(runs: tuple[Path, Path]) -> None:
    prepared = [case.id for case in read_run_cases(runs[1] / "cases.jsonl") if (runs[1] / "store" / case.id).is_dir()]
    assert len(prepared) == 4
    for id in prepared:
        one, other = (open_case(run / "store" / id) for run in runs)
        whole = Box((0, 0, 0), one.meta.shape_zyx)
        assert np.array_equal(one.read_image(whole), other.read_image(whole))
    weights = [hash_files([run / "model" / "weights.safetensors"]) for run in runs]
    assert weights[0] == weights[1]
    scores = [read_json(run / "summary.json")["mean"] for run in runs]
    assert scores[0] == scores[1]


def test_scans_of_any_format_are_predicted_onto_their_own_grid(
    runs: tuple[Path, Path], semiseg_command: Command, converted: Path, phantoms: Path, tmp_path: Path
) -> None:
    wanted = next((runs[0] / "predictions").glob("*.nii.gz"))
    source = next((phantoms / "imagesTs").iterdir())
    scans = tmp_path / "scans"
    scans.mkdir()
    for ending in (".nrrd", ".nhdr", ".mha", ".mhd", ".nii"):
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(source)), str(scans / f"as{ending.replace('.', '_')}{ending}"))
    answer = semiseg_command("predict", runs[1], scans, "--output", tmp_path / "out", "--quiet", "--probabilities")
    assert (answer.code, answer.err) == (0, "")
    labels = sorted(file for file in (tmp_path / "out").glob("*.nii.gz") if "probabilities" not in file.name)
    assert [stem(file) for file in labels] == ["as_mha", "as_mhd", "as_nhdr", "as_nii", "as_nrrd"]
    for file in labels:
        assert np.array_equal(read_label(file)[0], read_label(wanted)[0])
        assert np.array_equal(nib.load(file).affine, nib.load(source).affine)
    for ending in (".nrrd", ".mha"):
        seg = tmp_path / f"seg{ending}"
        answer = semiseg_command(
            "predict", runs[1], scans / "as_mhd.mhd", "--output", seg, "--quiet", "--probabilities"
        )
        assert (answer.code, answer.err) == (0, "")
        assert np.array_equal(read_label(seg)[0], read_label(wanted)[0])
        assert read_grid(scans / "as_mhd.mhd").difference(read_grid(seg)) is None
        maps = SimpleITK.ReadImage(str(tmp_path / f"seg_probabilities{ending}"))
        assert maps.GetNumberOfComponentsPerPixel() == 14
    answer = semiseg_command("predict", runs[1], scans / "as_mhd.mhd", "--output", tmp_path / "seg.mhd", "--quiet")
    assert answer.code == 2
    assert "end the name with .nii.gz, .nii, .nrrd, .mha or .dcm" in answer.err


def test_voxels_of_a_detached_header_that_change_are_predicted_again(
    runs: tuple[Path, Path], semiseg_command: Command, converted: Path, tmp_path: Path
) -> None:
    header = next((converted / "imagesTs").glob("*.nhdr"))
    for file in files_of([header]):
        shutil.copy(file, tmp_path)
    call = ("predict", runs[1], tmp_path / header.name, "--output", tmp_path / "out")
    assert "from before" not in semiseg_command(*call).out
    assert "1 of them from before" in semiseg_command(*call).out
    image = SimpleITK.ReadImage(str(tmp_path / header.name))
    SimpleITK.WriteImage(image + 1, str(tmp_path / header.name), True)
    assert "from before" not in semiseg_command(*call).out


def test_predictions_and_references_may_have_different_formats(
    runs: tuple[Path, Path], semiseg_command: Command, converted: Path, tmp_path: Path
) -> None:
    references, predictions = converted / "labelsTs", tmp_path / "predictions"
    predictions.mkdir()
    for file in (runs[0] / "predictions").glob("*.nii.gz"):
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(file)), str(predictions / f"{stem(file)}.mha"))
    answer = semiseg_command(
        "evaluate", "--predictions", predictions, "--references", references, "--labels", converted / "dataset.json"
    )
    assert answer.code == 0, answer.err
    assert read_json(predictions / "summary.json")["mean"] == read_json(runs[0] / "summary.json")["mean"]
