"""Which scans are meant by files and folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from semiseg.errors import ConfigError, DataError
from semiseg.prediction.inputs import find_scans


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for name in names:
        (folder / name).touch()
    return folder


def found(*inputs: Path) -> dict[str, list[str]]:
    return {scan.id: [image.name for image in scan.images] for scan in find_scans(inputs)}


def test_channels_are_grouped_and_scans_sorted(tmp_path: Path) -> None:
    names = ("b_0001.nii.gz", "b_0000.nii.gz", "a_0000.nii", "c.nii.gz", "notes.txt", ".tmp-c.nii.gz")
    assert found(touch(tmp_path, *names)) == {
        "a": ["a_0000.nii"],
        "b": ["b_0000.nii.gz", "b_0001.nii.gz"],
        "c": ["c.nii.gz"],
    }


def test_files_and_folders_together(tmp_path: Path) -> None:
    first, second = touch(tmp_path / "first", "a.nii.gz"), touch(tmp_path / "second", "b.nii.gz", "c.nii.gz")
    assert list(found(second / "b.nii.gz", first)) == ["a", "b"]


def test_numbers_that_are_names_and_no_channels(tmp_path: Path) -> None:
    """`patient_0007.nii.gz` is a scan of its own: channels would begin with 0000 and leave no gap."""
    names = [f"patient_{number:04d}.nii.gz" for number in (1, 2, 7)]
    expected = {name.removesuffix(".nii.gz"): [name] for name in names}
    assert found(touch(tmp_path, *names)) == expected
    assert found(tmp_path / names[2]) == {"patient_0007": [names[2]]}
    assert found(touch(tmp_path, "FLARETs_0001_0000.nii.gz") / "FLARETs_0001_0000.nii.gz") == {
        "FLARETs_0001": ["FLARETs_0001_0000.nii.gz"]
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a.nii", "a.nii.gz"), r"a\.nii\.gz: .*a\.nii is channel 0 of a too"),
        (("a.nii.gz", "a_0000.nii.gz"), r"is channel 0 of a too"),
        (("a_0003.nii.gz", "a_0003_0000.nii.gz"), r"has the id a_0003 too"),
        (("notes.txt",), r"no \.nii\.gz, .* or \.mhd file in this folder"),
    ],
)
def test_what_is_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_scans([touch(tmp_path / "scans", *names)])


def test_sub_folders_are_read(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.nii.gz")
    touch(tmp_path / "in" / "one" / "day2", "b.NII.GZ", "c_0000.nii.gz", "c_0001.nii.gz")
    assert found(tmp_path / "in") == {
        "a": ["a.nii.gz"],
        "b": ["b.NII.GZ"],
        "c": ["c_0000.nii.gz", "c_0001.nii.gz"],
    }


def test_names_that_sub_folders_share_get_the_folder_in_front(tmp_path: Path) -> None:
    touch(tmp_path / "in", "ct.nii.gz")
    touch(tmp_path / "in" / "ann", "ct.nii.gz", "other.nii.gz")
    touch(tmp_path / "in" / "bob" / "day2", "ct.nii")
    assert list(found(tmp_path / "in")) == ["ann_ct", "bob_day2", "ct", "other"]
    touch(tmp_path / "in", "ann_ct.nii.gz")
    with pytest.raises(DataError, match=r"ann_ct\.nii\.gz: .*ann/ct\.nii\.gz has the id ann_ct too"):
        find_scans([tmp_path / "in"])


def test_scans_of_a_set_of_masks_are_called_as_its_cases(tmp_path: Path) -> None:
    """By their folders, as the data set calls them."""
    touch(tmp_path / "s1", "ct.nii.gz")
    touch(tmp_path / "s1" / "segmentations", "liver.nii.gz")
    touch(tmp_path / "s2", "ct.nii.gz", "mri.nii.gz")
    touch(tmp_path / "s3", "mri.nii.gz")
    touch(tmp_path / "s4", "t1.nii.gz")
    assert list(found(tmp_path)) == ["s1", "s2_ct", "s2_mri", "s3", "t1"]


def test_a_label_map_beside_its_scan_is_no_scan(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        touch(tmp_path / patient, "image.nii.gz", "Label.nii.gz")
    touch(tmp_path / "p3", "mask.nii.gz")
    said: list[str] = []
    scans = find_scans([tmp_path], say=said.append)
    assert [scan.id for scan in scans] == ["mask", "p1_image", "p2_image"]
    why = "not read: a label map, by its name. If it is a scan, name this file."
    assert said == [f"{tmp_path / patient / 'Label.nii.gz'}: {why}" for patient in ("p1", "p2")]


def test_label_maps_and_predictions_in_sub_folders_are_no_scans(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTs", "a_0000.nii.gz")
    touch(tmp_path / "labelsTs", "a.nii.gz")
    touch(tmp_path / "before", "a.nii.gz", "predictions.jsonl")
    touch(tmp_path / "out", "a.nii.gz")
    said: list[str] = []
    (scan,) = find_scans([tmp_path], output=tmp_path / "out", say=said.append)
    assert scan.images == (tmp_path / "imagesTs" / "a_0000.nii.gz",)
    assert [line.split(": ")[0] for line in said] == [str(tmp_path / "before"), str(tmp_path / "labelsTs")]
    assert found(tmp_path / "labelsTs") == {"a": ["a.nii.gz"]}  # named, it is read


LABEL_FOLDERS = (
    *("labels", "label", "masks", "Segmentation", "labelsTr", "maskTs", "labelsVal", "labelsTr_v2"),
    *("labels_manual", "labels_v2", "segmentation_final", "masks1", "label-2", "LABELS by Ann"),
)


@pytest.mark.parametrize("name", LABEL_FOLDERS)
def test_folders_of_label_maps_are_known_by_how_their_names_begin(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a.nii.gz")
    touch(tmp_path / "ann" / name / "more", "b.nii.gz")
    said: list[str] = []
    assert [scan.id for scan in find_scans([tmp_path], say=said.append)] == ["a"]
    assert said == [
        f"{tmp_path / 'ann' / name}: not read: label maps, by its name. If these are scans, name this folder."
    ]


@pytest.mark.parametrize("name", ["labelled", "labeled_scans", "masked", "unlabels", "segmented"])
def test_folders_of_scans_that_are_called_alike_are_read(tmp_path: Path, name: str) -> None:
    touch(tmp_path / name, "b.nii.gz")
    assert list(found(tmp_path)) == ["b"]


def test_labels_do_not_go_where_scans_are_looked_for(tmp_path: Path) -> None:
    """Also where all scans are in folders below it: the next call would take the labels for scans."""
    touch(tmp_path / "in" / "ann", "a.nii.gz")
    for output in (tmp_path / "in", tmp_path / "in" / "ann" / ".."):
        with pytest.raises(ConfigError, match=r"in(/ann/\.\.)?: is the scans' own folder, .* with --output\."):
            find_scans([tmp_path / "in"], output=output)
    (scan,) = find_scans([tmp_path / "in" / "ann"], output=tmp_path / "in")  # where it is not looked
    assert scan.id == "a"


def test_the_outermost_folder_that_is_not_read_is_named_once(tmp_path: Path) -> None:
    touch(tmp_path / "ann" / "labels" / "masks", "a.nii.gz", "b.nii.gz")
    touch(tmp_path / "ann" / "labels", "c.nii.gz")
    touch(tmp_path / "ann" / "out" / "labels", "d.nii.gz")
    touch(tmp_path / "ann" / "scans", "e.nii.gz")
    said: list[str] = []
    (scan,) = find_scans([tmp_path], output=tmp_path / "ann" / "out", say=said.append)
    assert scan.id == "e"
    assert [line.split(": ")[0] for line in said] == [str(tmp_path / "ann" / "labels")]


def test_files_that_are_not_read_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "a.json", "b.mgz", "c.png", "d.zip", *(f"e{n}.mnc" for n in range(4)))
    touch(tmp_path / "series")
    for name in ("IM1", "IM2"):
        (tmp_path / "series" / name).write_bytes(bytes(128) + b"DICM")
    (tmp_path / "lost.nii.gz").symlink_to(tmp_path / "gone")
    said: list[str] = []
    assert [scan.id for scan in find_scans([tmp_path], say=said.append)] == ["a"]
    assert said[0] == f"{tmp_path / 'b.mgz'}: .mgz is not read yet. Convert it to .nii.gz."
    assert len(said) == 6
    assert said[5] == "4 more files or folders are not read either."


def test_a_folder_of_dicom_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "IM1").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(DataError, match=r"no series that is a volume\. No image\."):
        find_scans([tmp_path])


def test_a_missing_input(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.nii\.gz: there is no such file or folder"):
        find_scans([tmp_path / "gone.nii.gz"])
