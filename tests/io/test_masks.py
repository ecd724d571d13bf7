"""Labels as folders of masks: a file for each organ."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from semiseg.data.labels import read_checked_label
from semiseg.data.roles import DataSettings, assign_roles
from semiseg.errors import DataError
from semiseg.io.layouts import read_dataset
from semiseg.io.scans import files_of, hash_of, read_grid, read_label, write_scan
from semiseg.view.contents import state_of

Command = Callable[..., Any]
ORGANS = {"liver": 1, "spleen": 2, "tumour": 3}


def write(file: Path, array: np.ndarray, shift: float = 0.0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[0, 3] = shift
    nib.save(nib.Nifti1Image(array.astype(np.uint8), affine), file)


def masks(folder: Path) -> np.ndarray:
    """A liver with a tumour in it, a spleen, and an organ that nobody asked for; their label map `(Z, Y, X)`."""
    liver, spleen, tumour = (np.zeros((5, 4, 3)) for _ in range(3))
    liver[:3], spleen[4], tumour[1, 1] = 1, 255, 1
    for name, mask in (("liver", liver), ("spleen", spleen), ("tumour", tumour), ("colon", np.ones((5, 4, 3)))):
        write(folder / f"{name}.nii.gz", mask)
    label = liver + 2 * (spleen > 0)
    label[tumour > 0] = 3
    return label.transpose(2, 1, 0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """As TotalSegmentator's data set: two labelled scans, one for testing, one without masks, two in a folder."""
    for name in ("s1", "s2", "s3", "s4"):
        write(tmp_path / name / "ct.nii.gz", np.arange(60).reshape(5, 4, 3))
        if name != "s4":
            masks(tmp_path / name / "segmentations")
    for name in ("u1", "u2"):
        write(tmp_path / "imagesUn" / f"{name}.nii.gz", np.zeros((5, 4, 3)))
    (tmp_path / "labels.json").write_text(json.dumps(ORGANS))
    (tmp_path / "meta.csv").write_text("image_id;age;split\ns1;40;train\ns3;50;test\n")
    return tmp_path


def test_a_scan_with_masks_is_labelled_and_one_without_is_not(root: Path) -> None:
    dataset = read_dataset(root)
    assert dataset.layout == "masks"
    assert dataset.labels.organs == {value: name for name, value in ORGANS.items()}
    found = {case.id: (case.split, case.label is not None) for case in dataset.cases}
    assert found == {
        "s1": ("train", True),
        "s2": ("train", True),
        "s3": ("test", True),
        "s4": ("train", False),
        "u1": ("train", False),
        "u2": ("train", False),
    }
    assert not dataset.problems


def test_masks_are_one_label_map_in_which_the_higher_value_counts(root: Path) -> None:
    expected = masks(root / "s1" / "segmentations")
    label, grid = read_label(root / "s1" / "segmentations")
    np.testing.assert_array_equal(label, expected)
    assert label.dtype == np.uint8
    assert set(np.unique(label)) == {0, 1, 2, 3}, "the colon is not asked for"
    for other in (read_grid(root / "s1" / "segmentations"), read_grid(root / "s1" / "ct.nii.gz")):
        assert grid.misfit(other, "") is None


def test_what_a_label_is_made_of_is_the_masks_that_count_and_the_list(root: Path) -> None:
    folder = root / "s1" / "segmentations"
    named = [file.name for file in files_of([folder])]
    assert named == ["liver.nii.gz", "spleen.nii.gz", "tumour.nii.gz", "labels.json"]
    before = hash_of([folder])
    write(folder / "colon.nii.gz", np.zeros((5, 4, 3)))
    assert hash_of([folder]) == before
    write(folder / "spleen.nii.gz", np.zeros((5, 4, 3)))
    changed = hash_of([folder])
    assert changed != before
    (root / "labels.json").write_text(json.dumps({"spleen": 1, "liver": 2, "tumour": 3}))
    assert hash_of([folder]) != changed


def test_a_copy_of_masks_is_one_label_map(root: Path) -> None:
    write_scan(root / "copy.nii.gz", root / "s1" / "segmentations")
    np.testing.assert_array_equal(read_label(root / "copy.nii.gz")[0], read_label(root / "s1" / "segmentations")[0])


def test_the_pages_notice_a_changed_mask(root: Path) -> None:
    before = state_of(root / "s1" / "segmentations")
    write(root / "s1" / "segmentations" / "spleen.nii.gz", np.zeros((5, 4, 3)))
    assert state_of(root / "s1" / "segmentations") != before


def test_a_link_does_not_change_which_list_counts(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A set of links to some scans of another, with a list of its own."""
    mine = tmp_path_factory.mktemp("mine")
    (mine / "labels.json").write_text(json.dumps({"spleen": 1, "liver": 2}))
    for name in ("s1", "s2"):
        (mine / name).symlink_to(root / name)
    (case, _) = assign_roles(read_dataset(mine), DataSettings(), validation_fraction=0, seed=0)
    assert case.label == str(mine / "s1" / "segmentations")
    label = read_label(Path(case.label))[0]
    theirs = read_label(root / "s1" / "segmentations")[0]
    np.testing.assert_array_equal(label == 2, (theirs == 1) | (theirs == 3))


def test_a_list_that_changed_after_the_run_was_prepared_is_refused(root: Path) -> None:
    scan, folder = root / "s1" / "ct.nii.gz", root / "s1" / "segmentations"
    of_the_run = read_dataset(root).labels
    read_checked_label(folder, scan, read_grid(scan), of_the_run)
    for changed in ({"spleen": 1, "liver": 2, "tumour": 3}, {"liver": 1}):
        (root / "labels.json").write_text(json.dumps(changed))
        with pytest.raises(DataError, match=r"labels.json names other organs, or numbers them otherwise"):
            read_checked_label(folder, scan, read_grid(scan), of_the_run)


def test_one_list_counts_where_there_are_two(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    plain = tmp_path_factory.mktemp("plain")
    write(plain / "images" / "a.nii.gz", np.arange(60).reshape(5, 4, 3))
    masks(plain / "labels" / "a")
    (plain / "labels.json").write_text(json.dumps({"liver": 1, "spleen": 2}))
    (plain / "dataset.json").write_text(json.dumps({"labels": {"spleen": 1, "liver": 2}}))
    label = read_label(plain / "labels" / "a")[0]
    dataset = read_dataset(plain)
    assert dataset.labels.names[int(label[0, 0, 4])] == "spleen"


def test_a_map_of_several_organs_is_no_mask(root: Path) -> None:
    write(root / "s1" / "segmentations" / "liver.nii.gz", np.arange(60).reshape(5, 4, 3) % 3)
    with pytest.raises(DataError, match=r"liver.nii.gz: a mask of one organ has one value above 0, but this has 1, 2"):
        read_label(root / "s1" / "segmentations")


def test_masks_know_no_ignore_value(root: Path) -> None:
    (root / "labels.json").write_text(json.dumps({"liver": 1, "ignore": 2}))
    with pytest.raises(DataError, match=r"labels.json: names an ignore value"):
        read_dataset(root)


def test_endings_may_be_of_any_letter_case(root: Path) -> None:
    folder = root / "s1" / "segmentations"
    expected = read_label(folder)[0]
    (folder / "liver.nii.gz").rename(folder / "liver.NII.GZ")
    np.testing.assert_array_equal(read_label(folder)[0], expected)


def test_test_scans_may_lie_in_folders_of_their_own(root: Path) -> None:
    for name in ("t1", "t2", "t3"):
        write(root / "imagesTs" / f"{name}.nii.gz", np.zeros((5, 4, 3)))
    masks(root / "labelsTs" / "t1")
    write(root / "labelsTs" / "t2.nii.gz", np.zeros((5, 4, 3)))
    found = {case.id: case.label for case in read_dataset(root).cases if case.split == "test"}
    assert found == {
        "s3": root / "s3" / "segmentations",
        "t1": root / "labelsTs" / "t1",
        "t2": root / "labelsTs" / "t2.nii.gz",
        "t3": None,
    }


def test_what_is_not_read_is_said(root: Path) -> None:
    shutil.rmtree(root / "s2" / "segmentations")
    (root / "s2" / "segmentations").mkdir()
    (root / "s2" / "segmentations" / "liver.mgz").write_bytes(b"x")
    write(root / "loose.nii.gz", np.zeros((5, 4, 3)))
    (root / "meta.csv").write_text("image_id;split\ns3;test\ns9;test\n")
    dataset = read_dataset(root)
    said = " ".join(text for _, text in dataset.problems) + " ".join(text for _, _, text in dataset.remarks)
    for part in (".mgz", "1 scan beside the folders", "calls s9 test, which have no folder"):
        assert part in said
    (root / "meta.csv").write_bytes("image_id;split\nMüller;test\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"meta.csv: no table that can be read .* Save it as CSV in UTF-8"):
        read_dataset(root)


def test_a_damaged_folder_of_masks_is_named_where_it_is_read(root: Path) -> None:
    folder = root / "s1" / "segmentations"
    (folder / "liver.nii.gz").unlink()
    assert len(hash_of([folder])) == 64, "a hash that is asked for before it is read"
    with pytest.raises(DataError, match="has no mask of liver"):
        read_grid(folder)


def test_a_plain_folder_of_labels_may_hold_masks(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    plain = tmp_path_factory.mktemp("plain")
    for name in ("a", "b"):
        write(plain / "images" / f"{name}.nii.gz", np.arange(60).reshape(5, 4, 3))
    expected = masks(plain / "labels" / "a")
    with pytest.raises(DataError, match=r"labels\.json with those that are, numbered from 1: .*\"colon\": 1"):
        read_dataset(plain)
    shutil.copy(root / "labels.json", plain)
    dataset = read_dataset(plain)
    assert [(case.id, case.label) for case in dataset.cases] == [("a", plain / "labels" / "a"), ("b", None)]
    assert not dataset.problems
    np.testing.assert_array_equal(read_label(plain / "labels" / "a")[0], expected)


def test_nobody_guesses_which_organs_are_to_be_learnt(root: Path) -> None:
    (root / "labels.json").unlink()
    text = f'Write {root / "labels.json"} with those that are, numbered from 1: {{"colon": 1, "liver": 2, '
    with pytest.raises(DataError, match=re.escape(text)):
        read_dataset(root)


def test_a_missing_mask_is_not_taken_for_a_missing_organ(root: Path) -> None:
    (root / "s1" / "segmentations" / "spleen.nii.gz").unlink()
    with pytest.raises(DataError, match=r"has no mask of spleen, which .*labels.json names.*an empty mask"):
        read_label(root / "s1" / "segmentations")


def test_masks_on_two_grids_are_refused(root: Path) -> None:
    write(root / "s1" / "segmentations" / "spleen.nii.gz", np.zeros((5, 4, 3)), shift=7)
    with pytest.raises(DataError, match=r"spleen.nii.gz: not on the grid of .*liver.nii.gz"):
        read_label(root / "s1" / "segmentations")


def test_what_is_not_clear_is_named(root: Path) -> None:
    write(root / "s2" / "pet.nii.gz", np.zeros((5, 4, 3)))
    shutil.copy(root / "s3" / "ct.nii.gz", root / "s3" / "a.nii.gz")
    (root / "s3" / "ct.nii.gz").rename(root / "s3" / "b.nii.gz")
    (root / "s1" / "ct.nii.gz").unlink()
    dataset = read_dataset(root)
    assert [case.id for case in dataset.cases] == ["s2", "s4", "u1", "u2"], "ct.nii.gz is the scan beside another one"
    texts = {str(path.relative_to(root)): text for path, text in dataset.problems}
    assert texts["s1/segmentations"].startswith("masks without a scan")
    assert "which of a, b is the scan? Call it ct.nii.gz" in texts["s3"]


def test_the_layout_can_be_asked_for_and_says_what_it_needs(tmp_path: Path) -> None:
    write(tmp_path / "s1" / "ct.nii.gz", np.zeros((5, 4, 3)))
    with pytest.raises(DataError, match=r"no sub-folder has masks. Put them into ID/segmentations"):
        read_dataset(tmp_path, layout="masks")


def test_label_maps_are_scored_against_masks(root: Path, semiseg_command: Command) -> None:
    """By the organs' names: the values are those that the predictions have, whatever list lies beside the masks."""
    values = {"spleen": 1, "liver": 2, "tumour": 3}
    (root / "model").mkdir()
    (root / "model" / "dataset.json").write_text(json.dumps({"labels": {"background": 0} | values}))
    predicted = root / "predicted"
    for name in ("s1", "s2", "s3"):
        label = read_label(root / name / "segmentations")[0].transpose(2, 1, 0)
        write(predicted / f"{name}.nii.gz", np.array([0, 2, 1, 3])[label])
    flags = ("--predictions", predicted, "--references", root)
    assert "Add --labels MODEL/plan.toml" in semiseg_command("evaluate", *flags).err
    flags = (*flags, "--labels", root / "model" / "dataset.json")
    assert semiseg_command("evaluate", *flags).code == 0
    summary = json.loads((predicted / "summary.json").read_text())
    assert [case["id"] for case in summary["cases"]] == ["s1", "s2", "s3"]
    assert set(summary["per_organ"]) == set(values)
    assert summary["mean"]["dice"]["mean"] == 1
    (predicted / "s3.nii.gz").unlink()
    assert "s3" in semiseg_command("evaluate", *flags).err


def test_folders_beside_reference_label_maps_are_none_of_them(
    root: Path, tmp_path_factory: pytest.TempPathFactory, semiseg_command: Command
) -> None:
    plain = tmp_path_factory.mktemp("plain")
    for folder in ("labelsTs", "labelsTs/old", "predicted"):
        write(plain / folder / "a.nii.gz", np.eye(5)[..., None].repeat(3, 2))
    flags = ("--predictions", plain / "predicted", "--references", plain / "labelsTs")
    assert semiseg_command("evaluate", *flags).code == 0
