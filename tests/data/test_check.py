"""The check names every fault that a dataset can have, with the numbers and the remedy."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from semiseg.data.check import CheckReport, check_dataset
from semiseg.data.check_case import Problem
from semiseg.data.check_table import print_check
from semiseg.io.layouts import read_dataset

SHAPE_XYZ = (6, 7, 8)
AFFINE = np.diag([1.0, 1.5, 3.0, 1.0])


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 500, SHAPE_XYZ).astype(np.int16)


def label(*values: int) -> np.ndarray:
    """Background, and a row of each value."""
    array = np.zeros(SHAPE_XYZ, np.uint8)
    for row, value in enumerate(values):
        array[:, row, 2] = value
    return array


def save(file: Path, array: np.ndarray, affine: np.ndarray = AFFINE, codes: tuple[int, int] = (1, 1)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    written = nib.Nifti1Image(array, affine)
    written.set_sform(affine, codes[0])
    written.set_qform(affine, codes[1])
    nib.save(written, file)
    return file


def dataset_folder(root: Path, channels: Sequence[str] = ("CT",)) -> Path:
    """Three labelled cases a, b, c, an unlabelled case d and a test case e, all in order."""
    names = {str(index): name for index, name in enumerate(channels)}
    labels = {"background": 0, "liver": 1, "spleen": 2}
    (root / "dataset.json").write_text(json.dumps({"name": "X", "channel_names": names, "labels": labels}))
    for seed, (folder, name) in enumerate(
        [("imagesTr", "a"), ("imagesTr", "b"), ("imagesTr", "c"), ("imagesUn", "d"), ("imagesTs", "e")]
    ):
        for channel in range(len(channels)):
            save(root / folder / f"{name}_{channel:04d}.nii.gz", image(10 * seed + channel))
    for name in "abc":
        save(root / "labelsTr" / f"{name}.nii.gz", label(1, 2))
    save(root / "labelsTs" / "e.nii.gz", label(1, 2))
    return root


def check(root: Path, **options: Any) -> CheckReport:
    return check_dataset(read_dataset(root), **options)


def only_problem(report: CheckReport) -> Problem:
    assert len(report.problems) == 1, report.problems
    return report.problems[0]


def test_a_dataset_in_order(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = check(dataset_folder(tmp_path), progress=lambda done, total: calls.append((done, total)))
    assert report.ok
    assert report.problems == ()
    assert calls == [(n, 5) for n in range(1, 6)]
    assert [case.role for case in report.cases] == ["labelled"] * 3 + ["unlabelled", "test"]
    first = report.cases[0]
    assert first.shape_zyx == (8, 7, 6)
    assert first.spacing_mm == (3.0, 1.5, 1.0)
    assert first.orientation == "RAS"
    assert (first.minimum, first.maximum) == (image(0).min(), image(0).max())
    assert first.label_voxels == {0: 336 - 12, 1: 6, 2: 6}
    assert report.cases[3].label_voxels is None


def test_the_disk_estimate(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path, channels=("T1", "T2"))
    report = check(root)
    assert report.target_spacing_mm == (3.0, 1.5, 1.0)
    # 336 voxels a case: two float32 channels in five cases, one uint8 label in four.
    assert report.disk_bytes == 336 * (5 * 2 * 4 + 4)


def test_processes_find_the_same(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    save(root / "labelsTr" / "b.nii.gz", label(1, 9))
    calls: list[int] = []
    report = check(root, workers=2, progress=lambda done, total: calls.append(done))
    assert report == check(root)
    assert calls == [1, 2, 3, 4, 5]


def test_a_killed_worker_does_not_stop_the_rest(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    killed: list[int] = []

    def kill_one(done: int, total: int) -> None:
        children = multiprocessing.active_children()
        if not killed and children:
            killed.append(children[0].pid or 0)
            os.kill(killed[0], signal.SIGKILL)

    report = check(root, workers=2, progress=kill_one)
    assert killed
    assert report == check(root)


class Deadly(type(Path())):  # type: ignore[misc]
    """A path that ends every process which receives it, as a scan too large for the memory would."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (1,)


def test_a_case_that_kills_every_worker_is_named(tmp_path: Path) -> None:
    dataset = read_dataset(dataset_folder(tmp_path))
    whole = check_dataset(dataset)
    cases = list(dataset.cases)
    cases[1] = replace(cases[1], images=(Deadly(cases[1].images[0]),))
    report = check_dataset(replace(dataset, cases=tuple(cases)), workers=2)
    problem = only_problem(report)
    assert (problem.severity, problem.file, problem.case) == ("error", "imagesTr/b_0000.nii.gz", "b")
    assert "was killed" in problem.text
    assert [case for case in report.cases if case.id != "b"] == [case for case in whole.cases if case.id != "b"]


def test_damaged_files_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    truncated = root / "imagesTr" / "a_0000.nii.gz"
    truncated.write_bytes(truncated.read_bytes()[:200])
    (root / "labelsTr" / "b.nii.gz").write_bytes(b"no scan")
    (root / "imagesUn" / "d_0000.nii.gz").write_bytes(b"")
    report = check(root)
    assert not report.ok
    errors = {problem.file: problem for problem in report.problems}
    assert set(errors) == {"imagesTr/a_0000.nii.gz", "labelsTr/b.nii.gz", "imagesUn/d_0000.nii.gz"}
    assert all(problem.severity == "error" and "estore" in problem.text for problem in report.problems)
    assert errors["labelsTr/b.nii.gz"].case == "b"
    assert [case.content is None for case in report.cases] == [True, False, False, True, False]
    assert report.cases[0].label_voxels is not None


def test_a_wrong_checksum_is_found_although_every_voxel_can_be_read(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    for file in (root / "imagesTr" / "a_0000.nii.gz", root / "labelsTr" / "b.nii.gz"):
        content = bytearray(file.read_bytes())
        content[-8] ^= 0xFF
        file.write_bytes(content)
    report = check(root)
    assert [problem.file for problem in report.problems] == ["imagesTr/a_0000.nii.gz", "labelsTr/b.nii.gz"]
    assert all("checksum" in problem.text for problem in report.problems)


def test_values_outside_the_list_are_counted(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    wrong = label(1, 2)
    wrong[0, 0, :3] = 14
    save(root / "labelsTr" / "c.nii.gz", wrong)
    problem = only_problem(check(root))
    assert (problem.severity, problem.file, problem.case) == ("error", "labelsTr/c.nii.gz", "c")
    assert problem.text == "3 voxels have value 14, but dataset.json ends at 2. Fix the file."
    wrong[wrong == 14] = 3
    save(root / "labelsTr" / "c.nii.gz", wrong)
    assert only_problem(check(root)).text.endswith("Fix the file, or add the label.")
    wrong[wrong == 3] = 14
    wrong[1, 6, :] = np.arange(20, 28)
    save(root / "labelsTr" / "c.nii.gz", wrong)
    text = only_problem(check(root)).text
    assert text.startswith("3 voxels have value 14, 1 voxel has value 20, ")
    assert "and 5 more values" in text


def test_a_scan_whose_voxels_are_metres_is_named(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    save(root / "imagesUn" / "d_0000.nii.gz", image(30), np.diag([1e-3, 1.5e-3, 3e-3, 1]))
    problem = only_problem(check(root))
    assert (problem.severity, problem.file) == ("warning", "imagesUn/d_0000.nii.gz")
    assert "voxels of (0.003, 0.0015, 0.001) mm in its header" in problem.text


def test_the_ignore_label_is_no_wrong_value(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    description = json.loads((root / "dataset.json").read_text())
    description["labels"]["ignore"] = 3
    (root / "dataset.json").write_text(json.dumps(description))
    save(root / "labelsTr" / "c.nii.gz", label(1, 2, 3))
    assert check(root).problems == ()
    save(root / "labelsTr" / "c.nii.gz", label(3))
    assert only_problem(check(root)).text.startswith("The label is empty")


@pytest.mark.parametrize(
    ("shape_xyz", "affine", "words"),
    [
        ((6, 7, 9), AFFINE, "the shapes differ (Z, Y, X): (8, 7, 6) and (9, 7, 6)"),
        (SHAPE_XYZ, np.diag([1.0, 1.5, 2.5, 1.0]), "spacings (Z, Y, X) (3, 1.5, 1) and (2.5, 1.5, 1) mm"),
        (SHAPE_XYZ, AFFINE + np.array([[0, 0, 0, 4.0]] + [[0.0] * 4] * 3), "origins (0, 0, 0) and (4, 0, 0) mm"),
    ],
)
def test_a_label_on_another_grid(
    tmp_path: Path, shape_xyz: tuple[int, int, int], affine: np.ndarray, words: str
) -> None:
    root = dataset_folder(tmp_path)
    array = np.zeros(shape_xyz, np.uint8)
    array[1, 1, 1] = 1
    save(root / "labelsTr" / "a.nii.gz", array, affine)
    problem = only_problem(check(root))
    assert (problem.severity, problem.file) == ("error", "labelsTr/a.nii.gz")
    assert words in problem.text


def test_mixed_orientations_are_a_note_and_the_same_scan_in_another_one_is_recognised(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    flipped = AFFINE.copy()
    flipped[0, 0], flipped[0, 3] = -1.0, SHAPE_XYZ[0] - 1
    save(root / "imagesTr" / "b_0000.nii.gz", image(10)[::-1], flipped)  # its label stays RAS: the same grid
    report = check(root)
    assert report.ok
    note = only_problem(report)
    assert note.severity == "note"
    assert "RAS 4, LAS 1" in note.text
    save(root / "imagesUn" / "d_0000.nii.gz", image(10))
    assert any("same voxels as case b" in problem.text for problem in check(root).problems)


def test_the_same_scan_in_training_and_test_is_a_leak(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    save(root / "imagesTs" / "e_0000.nii.gz", image(0))
    report = check(root)
    problem = only_problem(report)
    assert report.ok
    assert (problem.severity, problem.file) == ("warning", "imagesTs/e_0000.nii.gz")
    assert "labelled case a: a test scan is trained on" in problem.text


def faulty(kind: str) -> np.ndarray:
    array = image(0).astype(np.float32)
    if kind == "nan":
        array[:2, 0, 0] = np.nan, np.inf
    elif kind == "constant":
        array[:] = 7
    elif kind == "4d":
        array = np.stack([array, array + 1], axis=-1)
    elif kind == "2d":
        array = array[:, :, :1]
    elif kind == "positive":
        array += 1000
    return array


@pytest.mark.parametrize(
    ("kind", "severity", "words"),
    [
        ("nan", "error", "2 voxels are NaN or infinite"),
        ("constant", "warning", "Every voxel is 7"),
        ("4d", "error", "4D with 2 volumes, but a 3D scan is expected"),
        ("2d", "warning", "One slice, of the shape (Z, Y, X) (1, 7, 6)"),
        ("positive", "warning", "no Hounsfield units?"),
    ],
)
def test_faults_of_one_image(tmp_path: Path, kind: str, severity: str, words: str) -> None:
    root = dataset_folder(tmp_path)
    save(root / "imagesUn" / "d_0000.nii.gz", faulty(kind))
    problem = only_problem(check(root))
    assert (problem.severity, problem.file, problem.case) == (severity, "imagesUn/d_0000.nii.gz", "d")
    assert words in problem.text


def test_one_slice_is_read_as_a_run_reads_it(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    save(root / "imagesUn" / "d_0000.nii.gz", faulty("nan")[:, :, :1])
    report = check(root)
    assert [problem.severity for problem in report.problems] == ["error", "warning"]
    assert "NaN or infinite" in report.problems[0].text


def test_labels_that_are_all_empty_are_an_error(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    for name in "abc":
        save(root / "labelsTr" / f"{name}.nii.gz", label())
    report = check(root)
    assert not report.ok
    (error,) = [problem for problem in report.problems if problem.severity == "error"]
    assert "every training label is empty" in error.text.lower()


def test_where_labels_are_looked_for_is_said_if_it_is_not_there(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    (root / "labelsTr").rename(root / "labels_of_training")
    (error,) = [problem for problem in check(root).problems if problem.severity == "error"]
    assert "Labels of imagesTr are looked for in labelsTr, which is not there." in error.text


def test_scans_that_no_network_fits_are_an_error(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    for file in (*root.glob("images*/*"), *root.glob("labels*/*")):
        save(file, np.asanyarray(nib.load(file).dataobj)[:, :4, :4])
    report = check(root)
    (error,) = [problem for problem in report.problems if problem.severity == "error"]
    assert "cannot be pooled: two axes need 7 voxels or more" in error.text


def test_a_spacing_that_would_fill_the_memory_is_an_error(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    wrong = np.diag([300.0, 450.0, 900.0, 1.0])
    save(root / "imagesUn" / "d_0000.nii.gz", image(3), wrong)
    (error,) = [problem for problem in check(root).problems if problem.severity == "error"]
    assert error.file == "imagesUn/d_0000.nii.gz"
    assert "Voxels of 900 x 450 x 300 mm, which become 2400 x 2100 x 1800 voxels" in error.text
    assert "Correct the spacing in the header" in error.text


def test_values_beside_whole_numbers_are_rounded_and_named(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    save(root / "labelsTr" / "b.nii.gz", (label(1, 2) * 0.9999).astype(np.float32))
    report = check(root)
    assert report.ok
    assert "up to 0.0002 off whole numbers: they are rounded" in only_problem(report).text
    assert report.cases[1].label_voxels == report.cases[0].label_voxels


@pytest.mark.parametrize(("axis", "name"), [(0, "X"), (1, "Y"), (2, "Z")])
def test_a_label_that_is_mirrored_against_its_image(tmp_path: Path, axis: int, name: str) -> None:
    root = dataset_folder(tmp_path)
    mirrored = AFFINE.copy()
    mirrored[axis, axis] *= -1
    save(root / "labelsTr" / "b.nii.gz", label(1, 2), mirrored)
    (error,) = [problem for problem in check(root).problems if problem.severity == "error"]
    assert f"ot on the grid of its image: mirrored against it along {name} (same shape" in error.text
    assert "give both files one affine" in error.text


def test_a_set_without_unlabelled_scans_gets_a_note(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    (root / "imagesUn" / "d_0000.nii.gz").unlink()
    note = only_problem(check(root))
    assert (note.severity, note.file) == ("note", str(root))
    assert "No unlabelled scans: training learns from the labels alone" in note.text


def test_many_problems_of_one_kind_are_counted(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    for number in range(30):
        save(root / "labelsTr" / f"lost{number}.nii.gz", label(1))
    out = io.StringIO()
    print_check(check(root), Console(file=out, width=100))
    assert out.getvalue().count("Set aside: a label without an image") == 5
    assert "and 25 more warnings of the same kind, on other files" in out.getvalue()
    assert "Ready: 5 cases, 30 warnings." in out.getvalue()


def test_channels(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path, channels=("T1", "T2"))
    save(root / "imagesTr" / "a_0001.nii.gz", np.full(SHAPE_XYZ, 3, np.int16))
    (root / "imagesTr" / "b_0001.nii.gz").unlink()  # one 3D file where two channels are named
    for channel in range(2):
        (root / "imagesTr" / f"c_{channel:04d}.nii.gz").unlink()
    save(root / "imagesTr" / "c_0000.nii.gz", np.stack([image(20), image(21)], axis=-1))  # both in one 4D file
    shifted = AFFINE.copy()
    shifted[1, 3] = 2.0
    save(root / "imagesUn" / "d_0001.nii.gz", image(31), shifted)
    problems = check(root).problems
    assert problems[0].text.endswith(
        "1 channel, but the dataset names 2 (T1, T2). Add b_0001 (T2), or remove the case."
    )
    found = [(problem.severity, problem.file) for problem in problems]
    assert found == [
        ("error", "imagesTr/b_0000.nii.gz"),
        ("error", "imagesUn/d_0001.nii.gz"),
        *[("warning", str(root))] * 2,  # their values look like Hounsfield units
        ("warning", "imagesTr/a_0000.nii.gz"),
    ]


def test_header_warnings(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    written = nib.Nifti1Image(image(0), AFFINE)
    written.set_sform(AFFINE, 1)
    written.set_qform(np.diag([1.0, 1.5, 3.5, 1.0]), 1)
    nib.save(written, root / "imagesTr" / "a_0000.nii.gz")
    conflict = only_problem(check(root))
    assert conflict.severity == "warning"
    assert conflict.text.startswith("Sform and qform disagree by up to 0.5; the sform is used")
    save(root / "imagesTr" / "a_0000.nii.gz", image(0), codes=(0, 0))
    problems = check(root).problems
    assert any(p.severity == "warning" and "neither sform nor qform" in p.text.lower() for p in problems)


def test_empty_labels_and_classes_that_nobody_labelled(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    save(root / "labelsTr" / "a.nii.gz", label())
    problem = only_problem(check(root))
    assert (problem.severity, problem.file) == ("warning", "labelsTr/a.nii.gz")
    for name in "abc":
        save(root / "labelsTr" / f"{name}.nii.gz", label(1))
    text = "No training label contains spleen (2): it cannot be learned. Label it, or take it off the list."
    assert only_problem(check(root)).text == text
    for name in "abc":
        save(root / "labelsTr" / f"{name}.nii.gz", label(2))
    text = "Label it, or take it off the list, and renumber the classes above without a gap."
    assert only_problem(check(root)).text.endswith(text)
    for name in "abc":
        (root / "labelsTr" / f"{name}.nii.gz").unlink()
    problem = only_problem(check(root))
    assert problem.severity == "error"
    assert "nothing can be learned" in problem.text


@pytest.mark.parametrize("value", [1.5, -1.0, np.nan])
def test_label_values_that_are_no_classes(tmp_path: Path, value: float) -> None:
    root = dataset_folder(tmp_path)
    array = label(1, 2).astype(np.float32)
    array[0, 0, 0] = value
    save(root / "labelsTr" / "a.nii.gz", array)
    assert only_problem(check(root)).file == "labelsTr/a.nii.gz"


def test_what_a_run_goes_on_without_is_no_error(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    save(root / "labelsTr" / "lost.nii.gz", label(1))
    save(root / "imagesUn" / "a_0000.nii.gz", image(99))
    (root / "imagesUn" / "x.mgz").touch()
    report = check(root)
    assert report.ok
    assert {problem.file: problem.severity for problem in report.problems} == dict.fromkeys(
        ("labelsTr/lost.nii.gz", "imagesUn/a_0000.nii.gz", "imagesUn/x.mgz"), "warning"
    )
    assert all(problem.text.startswith("Set aside: ") for problem in report.problems)


def test_a_dataset_in_which_nothing_is_readable(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    dataset = read_dataset(root)
    for file in root.rglob("*.nii.gz"):
        file.write_bytes(b"damaged")
    report = check_dataset(dataset)
    assert not report.ok
    assert report.target_spacing_mm is None
    assert report.disk_bytes == 0
    assert "Not ready" in printed(report)


def printed(report: CheckReport, width: int = 100) -> str:
    stream = io.StringIO()
    print_check(report, Console(file=stream, width=width))
    return stream.getvalue()


def test_the_table_is_plain_text_that_fits(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    report = check(root)
    text = printed(report)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 100
    assert "3 labelled, 1 unlabelled, 1 test" in text
    assert "liver" in text
    assert text.rstrip().endswith("Ready: 5 cases, no problems.")


def test_the_table_shows_every_problem_and_names_are_not_markup(tmp_path: Path) -> None:
    root = dataset_folder(tmp_path)
    save(root / "labelsTr" / "[red]x.nii.gz", label(1))
    save(root / "labelsTr" / "b.nii.gz", label(1, 9))
    save(root / "imagesTs" / "e_0000.nii.gz", image(0))
    text = printed(check(root))
    assert "warning  labelsTr/[red]x.nii.gz" in text
    assert "6 voxels have value 9, but dataset.json ends at 2." in text
    assert "not in the list" in text
    assert text.rstrip().endswith("Not ready: 1 error, 2 warnings. Mend the errors and check again.")


def test_the_report_survives_json(tmp_path: Path) -> None:
    report = check(dataset_folder(tmp_path))
    value = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert value["ok"] is True
    assert value["cases"][0]["label_voxels"] == {"0": 324, "1": 6, "2": 6}
    assert value["labels"]["names"]["1"] == "liver"
    assert replace(report, problems=()).to_json()["disk_bytes"] == report.disk_bytes


@pytest.mark.parametrize(
    ("folder", "cases", "voxels", "said"),
    [
        ("Dataset004_Hippocampus", 200, {1: 272_598, 2: 257_080}, []),
        # Its parotids lie apart along Y: the headers are turned.
        (
            "Dataset101_HeadNeckCT",
            204,
            {1: 89_138, 2: 94_153, 3: 96_031, 4: 96_211},
            ["right_parotid and left_parotid"],
        ),
        ("Dataset102_LeftAtriumHalf", 100, {1: 2_267_499}, []),
    ],
)
def test_real_nnunet_folders_are_ready(
    real_data: Path, folder: str, cases: int, voxels: dict[int, int], said: list[str]
) -> None:
    """The generated twin is `test_a_dataset_in_order`."""
    report = check(real_data / folder)
    assert report.ok
    said = [*said, "No unlabelled scans"]
    assert len(report.problems) == len(said)
    assert all(words in problem.text for words, problem in zip(said, report.problems, strict=True))
    assert len(report.cases) == cases
    labelled = [case.label_voxels for case in report.cases if case.role == "labelled" and case.label_voxels]
    assert {value: sum(counts.get(value, 0) for counts in labelled) for value in voxels} == voxels
    assert {case.orientation for case in report.cases} == {"RAS"}


def test_real_flare22_numbers_lack_one_organ(real_data: Path) -> None:
    """The generated twin is `test_empty_labels_and_classes_that_nobody_labelled`."""
    report = check(real_data / "ct_whole" / "flare22_ids")
    assert report.ok
    assert [case.shape_zyx for case in report.cases] == [(112, 101, 122), (30, 101, 122)]
    assert report.cases[0].label_voxels is not None
    assert set(report.cases[0].label_voxels) == set(range(14)) - {10}
    words = ["beside the folders", "esophagus (10)", "CT by its values: 2 of 2 scans", "No unlabelled scans"]
    assert all(word in problem.text for word, problem in zip(words, report.problems, strict=True))
