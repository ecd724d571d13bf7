"""Labels that are handed out to be mended, and taken back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK

from semiseg.corrections import (
    AskedSlices,
    current_label,
    export_cases,
    import_correction,
    import_folder,
    parse_slices,
)
from semiseg.data.plan import ChannelNormalisation, NetworkPlan, Plan, read_plan, write_plan
from semiseg.data.reviews import CORRECTIONS, PSEUDO_LABELS, Slices, made_review, read_note
from semiseg.data.roles import RunCase, read_run_cases, write_run_cases
from semiseg.decisions import label_sha256
from semiseg.errors import ConfigError, DataError
from semiseg.io.dataset import LabelScheme
from semiseg.io.scans import read_label, read_scan, write_scan

LABELS = LabelScheme(names={0: "background", 1: "liver", 2: 'left "big" kidney'})
SHAPE = (6, 8, 10)
AFFINE = np.array([[-1.5, 0, 0, 4], [0, 0, 2.0, -7], [0, 1.0, 0, 9], [0, 0, 0, 1.0]])
"""Stored with X to the left, and Y and Z exchanged."""
TINY = NetworkPlan(features=(2, 2), kernels=((3, 3, 3),) * 2, strides=((1, 1, 1), (2, 2, 2)))


def save(path: Path, stored: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(stored, affine), path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with the pseudo-labels of two scans."""
    folder, cases = tmp_path / "run", []
    for name in "ab":
        image = save(tmp_path / "images" / f"{name}.nii", np.zeros((10, 6, 8), dtype=np.int16))
        label = np.zeros((10, 6, 8), dtype=np.uint8)
        label[:4] = 1
        save(folder / PSEUDO_LABELS / f"{name}.nii.gz", label)
        cases.append(RunCase(id=name, images=(str(image),), label=None, split="train", role="unlabelled"))
    plan = Plan(
        dataset="made up", channels=("MRI",), labels=LABELS, spacing_mm=(1.0, 2.0, 1.5), anisotropic_axis=None,
        patch=(4, 4, 4), batch=2, normalisation=(ChannelNormalisation(scheme="zscore"),), teacher=TINY, student=TINY,
    )  # fmt: skip
    write_plan(folder / "plan.toml", plan)
    write_run_cases(folder / "cases.jsonl", cases)
    return folder


def mend(file: Path, rows: slice, value: int) -> None:
    """Give the stored label map a value in some axial slices, which lie along its second axis."""
    image = nibabel.load(file)
    array = np.asarray(image.dataobj).copy()  # type: ignore[attr-defined]
    array[:, rows] = value
    save(file, array, image.affine)  # type: ignore[attr-defined]


def test_a_case_goes_out_and_comes_back_as_it_was_mended(run: Path) -> None:
    folder = export_cases(run, ["a", "b"])
    assert folder == run / "export"
    for name in "ab":
        assert label_sha256(folder / f"{name}.nii.gz") == label_sha256(run / PSEUDO_LABELS / f"{name}.nii.gz")
        assert (folder / f"{name}_scan.nii").read_bytes() == (run.parent / "images" / f"{name}.nii").read_bytes()
    assert len((folder / "README.txt").read_text().splitlines()) == 3
    mend(folder / "a.nii.gz", slice(2, 4), 2)
    export_cases(run, ["a"])  # what is half mended stays
    taken, refused = import_folder(run, folder)
    assert ([one.case for one in taken], refused) == (["a"], [])  # b is as it was handed out
    label, _ = read_label(run / CORRECTIONS / "a.nii.gz")
    changed = label != read_label(run / PSEUDO_LABELS / "a.nii.gz")[0]
    assert taken[0].changed_voxels == changed.sum() == 2 * 8 * 10
    assert changed[2:4].all()
    note = read_note(run / CORRECTIONS, "a")
    assert note.slices is None
    assert note.source_sha256 == label_sha256(run / PSEUDO_LABELS / "a.nii.gz")
    header = nibabel.load(run / CORRECTIONS / "a.nii.gz")
    assert (header.affine == AFFINE).all()  # type: ignore[attr-defined]
    assert import_folder(run, folder) == ([], [])
    assert current_label(run, RunCase(id="a", images=("x",), label=None, split="train", role="unlabelled")) == (
        run / CORRECTIONS / "a.nii.gz"
    )


def test_a_label_that_nobody_touched_is_none_of_a_person(run: Path) -> None:
    """Though the model that made it has learnt more since."""
    folder = export_cases(run, ["a", "b"])
    of_before = label_sha256(run / PSEUDO_LABELS / "a.nii.gz")
    mend(folder / "a.nii.gz", slice(2, 4), 2)
    mended = (folder / "a.nii.gz").read_bytes()
    for name in "ab":
        mend(run / PSEUDO_LABELS / f"{name}.nii.gz", slice(0, 1), 2)
    for place in (folder, folder / "b.nii.gz"):
        taken, refused = import_folder(run, place)
        assert ([one.case for one in taken], refused) == (["a"] if place == folder else [], [])
    assert not (run / CORRECTIONS / "b.nii.gz").exists()
    assert read_note(run / CORRECTIONS, "a").source_sha256 == of_before
    export_cases(run, ["a", "b"])
    assert (folder / "a.nii.gz").read_bytes() == mended
    assert label_sha256(folder / "b.nii.gz") == label_sha256(run / PSEUDO_LABELS / "b.nii.gz")
    assert import_folder(run, folder) == ([], [])


@pytest.mark.parametrize("name", ["README.txt", "labels_itksnap.txt", "labels_slicer.ctbl"])
def test_no_file_of_the_users_is_overwritten(run: Path, tmp_path: Path, name: str) -> None:
    mine = tmp_path / "mine" / name
    mine.parent.mkdir()
    mine.write_text("my notes")
    with pytest.raises(ConfigError, match=rf"{name}: is there already, and not as it was handed out\. .* --output\."):
        export_cases(run, ["a"], mine.parent)
    assert [(file.name, file.read_text()) for file in mine.parent.iterdir()] == [(name, "my notes")]
    mine.rename(tmp_path / "moved")
    export_cases(run, ["a"], mine.parent)
    export_cases(run.parent / "images" / ".." / "run", ["a"], mine.parent)  # another README, in the place of ours


def test_changed_slices_are_those_of_the_label_that_was_handed_out(run: Path) -> None:
    folder = export_cases(run, ["a"])
    mend(folder / "a.nii.gz", slice(2, 4), 2)
    mend(run / PSEUDO_LABELS / "a.nii.gz", slice(0, 1), 2)
    (text,) = import_folder(run, folder, slices=parse_slices("axial:changed"))[1]
    assert "a.nii.gz: the run has another label of this scan by now" in text
    taken, _ = import_folder(run, folder, slices=parse_slices("axial:3-4"))
    assert taken[0].slices == Slices(axis=0, indices=(2, 3))


def test_a_list_of_what_was_handed_out_that_was_edited_is_named(run: Path) -> None:
    folder = export_cases(run, ["a"])
    (folder / "handed_out.json").write_text('{"a.nii.gz": 3}')
    with pytest.raises(DataError, match=r"handed_out\.json: a\.nii\.gz = 3: .* Restore the file, or delete it\."):
        import_folder(run, folder)


def test_scans_and_labels_of_other_formats_go_out_and_come_back(run: Path, tmp_path: Path) -> None:
    """A scan in one file goes out as it is, one whose voxels are elsewhere as NIfTI; labels come back in any format."""
    images, cases = run.parent / "images", read_run_cases(run / "cases.jsonl")
    for case, name in zip(cases, ("a.mha", "b.mhd"), strict=True):
        SimpleITK.WriteImage(SimpleITK.ReadImage(case.images[0]), str(images / name))
    own = images / "own.nrrd"
    write_scan(own, run / PSEUDO_LABELS / "b.nii.gz")
    (run / PSEUDO_LABELS / "b.nii.gz").unlink()
    files = (str(images / "a.mha"),), (str(images / "b.mhd"),)
    now = [replace(case, images=found) for case, found in zip(cases, files, strict=True)]
    write_run_cases(run / "cases.jsonl", [now[0], replace(now[1], label=str(own), role="labelled")])
    folder = export_cases(run, ["a", "b"])
    assert (folder / "a_scan.mha").read_bytes() == (images / "a.mha").read_bytes()
    assert np.array_equal(read_scan([folder / "b_scan.nii.gz"]).channels[0].stored, np.zeros(SHAPE))
    assert np.array_equal(read_label(folder / "b.nii.gz")[0], read_label(own)[0])
    for name, ending in (("a", ".nrrd"), ("b", ".mha")):
        mend(folder / f"{name}.nii.gz", slice(2, 4), 2)
        write_scan(folder / f"{name}{ending}", folder / f"{name}.nii.gz")
        (folder / f"{name}.nii.gz").unlink()
    taken, refused = import_folder(run, folder)
    assert (refused, [one.case for one in taken]) == ([], ["a", "b"])
    assert (read_label(run / CORRECTIONS / "b.nii.gz")[0][2:4] == 2).all()
    assert read_note(run / CORRECTIONS, "b").source_sha256 == label_sha256(own)


def test_slices_are_those_that_are_named_or_that_changed_and_add_up(run: Path) -> None:
    file = export_cases(run, ["a"]) / "a.nii.gz"
    mend(file, slice(2, 4), 2)
    assert import_correction(run, "a", file, parse_slices("axial:changed")).slices == Slices(axis=0, indices=(2, 3))  # type: ignore[union-attr]
    mend(file, slice(5, 6), 2)
    import_correction(run, "a", file, parse_slices("axial:1,5-6"))
    assert read_note(run / CORRECTIONS, "a").slices == Slices(axis=0, indices=(0, 2, 3, 4, 5))
    with pytest.raises(DataError, match="axial slices of this scan were corrected before"):
        import_correction(run, "a", file, parse_slices("coronal:2"))
    with pytest.raises(DataError, match="no axial slice 7: they are numbered from 1 to 6"):
        import_correction(run, "a", file, parse_slices("axial:7"))
    mend(file, slice(0, 1), 1)
    import_correction(run, "a", file)
    assert read_note(run / CORRECTIONS, "a").slices is None  # the whole label is right now
    import_correction(run, "a", file, parse_slices("axial:2"))
    assert read_note(run / CORRECTIONS, "a").slices is None


def test_a_label_whose_taking_back_was_cut_off_is_not_taken_for_another(run: Path) -> None:
    """Between its note and itself: the label before it has a note that is not its own."""
    file, corrected = export_cases(run, ["a"]) / "a.nii.gz", run / CORRECTIONS / "a.nii.gz"
    mend(file, slice(2, 4), 2)
    import_correction(run, "a", file, parse_slices("axial:3-4"))
    before = corrected.read_bytes()
    mend(file, slice(5, 6), 2)
    import_correction(run, "a", file)
    corrected.write_bytes(before)
    plan, cases = read_plan(run / "plan.toml"), read_run_cases(run / "cases.jsonl")
    second = run.parent / "second"
    second.mkdir()
    with pytest.raises(DataError, match=r"a\.nii\.gz: not the label that its note is of"):
        made_review(second, str(run), cases, plan.labels)
    import_correction(run, "a", file, parse_slices("axial:3-4"))
    assert read_note(run / CORRECTIONS, "a").slices == Slices(axis=0, indices=(2, 3))
    file.write_bytes(before)
    corrected.write_bytes(before)
    assert import_correction(run, "a", file) is not None  # though it lies there
    assert read_note(run / CORRECTIONS, "a").slices is None
    assert made_review(second, str(run), cases, plan.labels).cases["a"].role == "corrected"


def test_a_whole_label_that_is_right_as_it_was_can_be_vouched_for_by_its_slices(run: Path) -> None:
    file = export_cases(run, ["a"]) / "a.nii.gz"
    taken = import_correction(run, "a", file, parse_slices("axial:1-6"))
    assert taken is not None
    assert taken.changed_voxels == 0
    with pytest.raises(DataError, match="no slice differs"):
        import_correction(run, "b", run / PSEUDO_LABELS / "b.nii.gz", parse_slices("axial:changed"))


def test_what_cannot_be_a_label_of_the_scan_is_refused(run: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "back"
    save(wrong / "a.nii.gz", np.ones((10, 6, 8), dtype=np.uint8), np.diag((1.0, 1, 1, 1)))
    save(wrong / "b.nii.gz", np.full((10, 6, 8), 9, dtype=np.uint8))
    taken, refused = import_folder(run, wrong)
    assert not taken
    assert "a.nii.gz: not on the grid of" in refused[0]
    assert "value 9, but the dataset's labels end at 2" in refused[1]
    assert not (run / CORRECTIONS).exists()
    save(wrong / "c.nii.gz", np.ones((10, 6, 8), dtype=np.uint8))
    with pytest.raises(DataError, match="c: no case of"):
        import_folder(run, wrong)
    with pytest.raises(DataError, match="no case x"):
        export_cases(run, ["x"])


def test_a_segmentation_of_slicer_is_no_label_map(run: Path) -> None:
    folder = export_cases(run, ["a"])
    write_scan(folder / "a.seg.nrrd", folder / "a.nii.gz")
    with pytest.raises(DataError, match=r"a\.seg\.nrrd: a segmentation of 3D Slicer.* Export to files"):
        import_folder(run, folder)


def test_ignored_voxels_may_come_back(run: Path) -> None:
    file = export_cases(run, ["a"]) / "a.nii.gz"
    mend(file, slice(0, 2), LABELS.count)
    assert import_correction(run, "a", file) is not None


@pytest.mark.parametrize(
    "text", ["axial", "transverse:1", "axial:", "axial:5-3", "axial:1;2", "axial:1-", "axial:1-999999", "axial:0-2"]
)
def test_slices_that_cannot_be_meant_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="axial, coronal or sagittal"):
        parse_slices(text)


def test_slices_are_read() -> None:
    assert parse_slices("") is None
    assert parse_slices("sagittal:4, 8-10") == AskedSlices(axis=2, indices=(3, 7, 8, 9))


def test_the_command_says_what_became_of_it(run: Path, semiseg_command: Callable[..., Any]) -> None:
    answer = semiseg_command("correct", run, "--export", "a", "--output", run.parent / "out")
    assert answer.code == 0
    file = run.parent / "out" / "a.nii.gz"
    answer = semiseg_command("correct", run, run.parent / "out")
    assert (answer.code, answer.out) == (0, "Nothing was changed: all labels are as they were handed out.\n")
    mend(file, slice(2, 4), 2)
    answer = semiseg_command("correct", run, run.parent / "out", "--slices", "axial:changed")
    assert answer.code == 0
    assert "a: 2 axial slices; 160 voxels changed" in answer.out
    assert f"--set data.decisions={run}" in answer.out
    mend(file, slice(0, 1), 77)
    answer = semiseg_command("correct", run, run.parent / "out")
    assert (answer.code, "refused: " in answer.err) == (1, True)
