"""Dataset folders as people have them: whole, renamed, half finished and hostile."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from semiseg.errors import ConfigError, DataError, UnsupportedError
from semiseg.io.dataset import Dataset, LabelScheme, Remark
from semiseg.io.flare22_labels import FLARE22_ORGANS
from semiseg.io.label_scheme import automatic_pairs
from semiseg.io.layouts import read_dataset
from semiseg.io.scans import read_volume

LABELS = {"background": 0, "left kidney": 1, "right kidney": 2}


def scan(file: Path, array: np.ndarray | None = None) -> None:
    """A tiny NIfTI file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8) if array is None else array, np.eye(4)), file)


def in_format(root: Path, *names: str) -> None:
    """Tiny scans, each in the format of its name; detached headers with their voxels beside them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((3, 4, 5), np.uint8)), str(root / name), True)


def scans(root: Path, *names: str) -> None:
    for name in names:
        scan(root / f"{name}.nii.gz")


def describe(root: Path, **entries: Any) -> None:
    """An nnU-Net v2 dataset.json; an entry of None is left out."""
    value = {"name": "Kidneys", "channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"} | entries
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps({key: entry for key, entry in value.items() if entry is not None}))


def ids(dataset: Dataset, split: str = "train", *, labelled: bool | None = None) -> list[str]:
    return [case.id for case in dataset.cases if case.split == split and labelled in (None, case.label is not None)]


def remarks_on(dataset: Dataset) -> list[Remark]:
    """Without what is said of values: the scans here are empty."""
    return [remark for remark in dataset.remarks if "below 0" not in remark[2]]


def kidneys(root: Path) -> Path:
    """A whole nnU-Net folder: two labelled, two unlabelled, two test cases, one of them with its label."""
    describe(root)
    scans(root / "imagesTr", "a_0000", "b_0000", "c_0000")
    scans(root / "labelsTr", "a", "b")
    scans(root / "imagesUn", "d_0000")
    scans(root / "imagesTs", "e_0000", "f_0000")
    scans(root / "labelsTs", "e")
    return root


@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_every_layout_reads_every_format(tmp_path: Path, ending: str) -> None:
    nnunet, msd, flare22, plain = (tmp_path / name for name in ("nnunet", "msd", "flare22", "plain"))
    describe(nnunet, file_ending=ending)
    in_format(nnunet, f"imagesTr/a_0000{ending}", f"labelsTr/a{ending}", f"imagesUn/d_0000{ending}")
    describe(
        msd, training=[{"image": f"imagesTr/a{ending}", "label": f"labelsTr/a{ending}"}], test=[f"imagesTs/t{ending}"]
    )
    in_format(msd, f"imagesTr/a{ending}", f"labelsTr/a{ending}", f"imagesUn/d{ending}", f"imagesTs/t{ending}")
    in_format(msd, f"labelsTs/t{ending}")
    in_format(flare22, f"x/FLARE22_Tr_0001_0000{ending}", f"y/FLARE22_Tr_0001{ending}", f"z/Case_00001_0000{ending}")
    in_format(plain, f"images/a{ending}", "labels/a.nii.gz", f"unlabelled/d{ending}")
    (plain / "labels.json").write_text(json.dumps(LABELS))
    for root in (nnunet, msd, flare22, plain):
        dataset = read_dataset(root)
        assert dataset.layout == root.name
        assert len(ids(dataset, labelled=True)) == len(ids(dataset, labelled=False)) == 1
        assert ids(dataset, "test", labelled=True) == (["t"] if root == msd else [])
        assert dataset.problems == ()
        assert remarks_on(dataset) == []  # the voxels beside headers are passed over


def test_one_scan_in_two_formats_is_one_case(tmp_path: Path) -> None:
    kidneys(tmp_path)
    in_format(tmp_path, "imagesTr/a_0000.mha")
    dataset = read_dataset(tmp_path)
    assert ids(dataset, labelled=True) == ["a", "b"]
    assert [text.split(str(tmp_path))[0] for _, text in dataset.problems] == ["the same id as "]


def test_nnunet(tmp_path: Path) -> None:
    dataset = read_dataset(kidneys(tmp_path))
    assert (dataset.layout, dataset.name, dataset.channels) == ("nnunet", "Kidneys", ("CT",))
    assert ids(dataset, labelled=True) == ["a", "b"]
    assert ids(dataset, labelled=False) == ["c", "d"]
    assert ids(dataset, "test") == ["e", "f"]
    assert ids(dataset, "test", labelled=True) == ["e"]
    assert dataset.labels == LabelScheme(names={v: k for k, v in LABELS.items()}, mirror_pairs=((1, 2),))
    assert dataset.cases[0].images == (tmp_path / "imagesTr" / "a_0000.nii.gz",)
    assert dataset.cases[0].label == tmp_path / "labelsTr" / "a.nii.gz"
    assert dataset.train_order == ()
    assert dataset.problems == ()


def test_several_channels_are_in_their_order_and_incomplete_cases_are_set_aside(tmp_path: Path) -> None:
    describe(tmp_path, channel_names={"1": "T2", "0": "T1"})
    scans(tmp_path / "imagesTr", "a_0001", "a_0000", "b_0001", "c_0000", "c_0001", "c_0002")
    dataset = read_dataset(tmp_path)
    assert dataset.channels == ("T1", "T2")
    assert [path.name for path in dataset.cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert ids(dataset) == ["a"]
    assert {file.name for file, _ in dataset.problems} == {"b_0001.nii.gz", "c_0000.nii.gz"}
    assert all("_0000 (T1), _0001 (T2) are expected" in text for _, text in dataset.problems)


def test_version_1_of_nnunet(tmp_path: Path) -> None:
    """It lists training files by names without the channel number, and numbers to names."""
    listed = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    labels = {"0": "background", "1": "left kidney", "2": "right kidney"}
    describe(tmp_path, channel_names=None, modality={"0": "CT"}, labels=labels, training=listed)
    scans(tmp_path / "imagesTr", "a_0000")
    scans(tmp_path / "labelsTr", "a")
    dataset = read_dataset(tmp_path)
    assert dataset.layout == "nnunet"
    assert dataset.labels.organs == {1: "left kidney", 2: "right kidney"}
    assert ids(dataset, labelled=True) == ["a"]


def test_what_does_not_fit_in_an_nnunet_folder_is_a_problem(tmp_path: Path) -> None:
    kidneys(tmp_path)
    scans(tmp_path / "imagesTr", "unnumbered", "._a_0000")
    scans(tmp_path / "labelsTr", "lost", ".hidden")
    scans(tmp_path / "imagesUn", "a_0000")  # the id of a labelled case
    scans(tmp_path / "imagesTs", "b_0000")  # and of another
    scan(tmp_path / "imagesTr" / "c_0000.nii")  # beside c_0000.nii.gz
    dataset = read_dataset(tmp_path)
    assert ids(dataset) == ["a", "b", "c", "d"]
    problems = {str(file.relative_to(tmp_path)): text for file, text in dataset.problems}
    assert set(problems) == {
        "imagesTr/unnumbered.nii.gz",
        "labelsTr/lost.nii.gz",
        "imagesUn/a_0000.nii.gz",
        "imagesTs/b_0000.nii.gz",
        "imagesTr/c_0000.nii.gz",
    }
    assert "unnumbered_0000.nii.gz" in problems["imagesTr/unnumbered.nii.gz"]
    assert "label without an image" in problems["labelsTr/lost.nii.gz"]
    assert "already that of" in problems["imagesUn/a_0000.nii.gz"]


def test_what_is_not_read_as_a_scan_is_a_problem(tmp_path: Path) -> None:
    """Whoever put it there thinks that it is used."""
    kidneys(tmp_path)
    scans(tmp_path / "imagesUn" / "batch2", "g_0000")
    scans(tmp_path / "imagests", "h_0000")
    for name in "ijklmno":
        (tmp_path / "imagesUn" / f"{name}_0000.mgz").touch()
    (tmp_path / "imagesUn" / "dicom").mkdir()
    for name in "ab":
        (tmp_path / "imagesUn" / "dicom" / name).write_bytes(bytes(128) + b"DICM")
    (tmp_path / "imagesUn" / "notes.txt").touch()
    (tmp_path / "imagesTr" / "k_0000.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    dataset = read_dataset(tmp_path)
    assert ids(dataset) == ["a", "b", "c", "d"]
    problems = {str(file.relative_to(tmp_path)): text for file, text in dataset.problems}
    assert set(problems) == {
        "imagests",
        "imagesUn/batch2",
        "imagesUn",
        "imagesUn/i_0000.mgz",
        "imagesTr/k_0000.nii.gz",
    }
    assert "spelt imagesTs" in problems["imagests"]
    assert problems["imagesUn"] == "No series that is a volume. No image."
    assert "gone.nii.gz, which is not there" in problems["imagesTr/k_0000.nii.gz"]
    assert problems["imagesUn/i_0000.mgz"] == (
        ".mgz is not read yet. Convert it to .nii.gz. The same with 6 others: j_0000.mgz, k_0000.mgz, l_0000.mgz, "
        "m_0000.mgz, n_0000.mgz and 1 more."
    )
    assert remarks_on(dataset) == []


@pytest.mark.parametrize("folder", ["imagesUn", "imagesun", "imagesUL", "imagesUnlabeled", "Unlabelled", "unlabeled"])
@pytest.mark.parametrize("layout", ["nnunet", "msd", "plain"])
def test_folders_of_unlabelled_scans_by_their_usual_names(tmp_path: Path, layout: str, folder: str) -> None:
    if layout == "nnunet":
        kidneys(tmp_path)
    elif layout == "msd":
        decathlon(tmp_path)
    else:
        scans(tmp_path, "images/a", "labels/a")
        describe(tmp_path)
    scans(tmp_path / folder, "new_0000")
    dataset = read_dataset(tmp_path)
    assert dataset.layout == layout
    assert ("new" if layout != "msd" else "new_0000") in ids(dataset, labelled=False)
    assert (dataset.problems, remarks_on(dataset)) == ((), [])


def test_endings_in_any_letter_case(tmp_path: Path) -> None:
    scan(tmp_path / "images" / "a.nii.gz")
    (tmp_path / "images" / "a.nii.gz").rename(tmp_path / "images" / "a.NII.GZ")
    scan(tmp_path / "images" / "b.nii")
    (tmp_path / "images" / "b.nii").rename(tmp_path / "images" / "b.Nii")
    scan(tmp_path / "labels" / "a.nii.gz", np.ones((3, 4, 5), np.uint8))
    (tmp_path / "labels" / "a.nii.gz").rename(tmp_path / "labels" / "a.Nii.Gz")
    dataset = read_dataset(tmp_path)
    assert (ids(dataset, labelled=True), ids(dataset, labelled=False)) == (["a"], ["b"])
    assert read_volume(dataset.cases[0].images).array.shape == (1, 5, 4, 3)
    assert read_volume(dataset.cases[1].images).array.shape == (1, 5, 4, 3)


@pytest.mark.parametrize("layout", ["nnunet", "msd", "plain"])
def test_other_folders_of_scans_are_named(tmp_path: Path, layout: str) -> None:
    if layout == "nnunet":
        kidneys(tmp_path)
    elif layout == "msd":
        decathlon(tmp_path)
    else:
        scans(tmp_path, "images/a", "labels/a")
        describe(tmp_path)
    scans(tmp_path, "more/deeper/x", "loose")
    (tmp_path / "more" / "y.mgz").touch()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "list.txt").touch()
    remarks = {file.name: (severity, text) for severity, file, text in remarks_on(read_dataset(tmp_path))}
    assert set(remarks) == {tmp_path.name, "more"}
    assert "1 scan beside the folders, not read: loose.nii.gz" in remarks[tmp_path.name][1]
    assert "not read, though it holds 1 NIfTI file, 1 .mgz file" in remarks["more"][1]
    assert {severity for severity, _ in remarks.values()} == {"warning"}


@pytest.mark.parametrize("said", [2, 3, 10, None, "3"])
def test_fewer_labels_than_training_cases_that_were_announced(tmp_path: Path, said: object) -> None:
    kidneys(tmp_path)
    describe(tmp_path, numTraining=said)
    remarks = [text for _, file, text in read_dataset(tmp_path).remarks if file.name == "dataset.json"]
    if said in (3, 10):
        assert remarks == [
            f"it says numTraining = {said}, but 2 training scans have a label; the other one is used as unlabelled: c. "
            "Add labels, or correct the number."
        ]
    else:
        assert remarks == []


def test_a_folder_of_dicom_alone_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "images" / "patient").mkdir(parents=True)
    (tmp_path / "labels").mkdir()
    (tmp_path / "images" / "patient" / "IM1").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(DataError, match=r"images: No series that is a volume\. No image\."):
        read_dataset(tmp_path)
    with pytest.raises(DataError, match=r"It holds 1 DICOM file: put each scan into images/ \(a folder of its own\)"):
        read_dataset(tmp_path / "images")


def test_images_in_the_folder_of_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grey = np.arange(60 * 20, dtype=np.int16).reshape(3, 4, 100)
    for folder, name, array in (("images", "a", grey), ("labels", "a", grey), ("images", "b", grey)):
        scan(tmp_path / folder / f"{name}.nii.gz", array)
    with pytest.raises(
        DataError, match=r"1200 different values, from 0 to 1199, that change .*: a grey-scale image, no label map"
    ):
        read_dataset(tmp_path)
    scan(tmp_path / "labels" / "a.nii.gz", rng.integers(0, 200, grey.shape).astype(np.uint8))
    with pytest.raises(DataError, match=r"\d+ different values, from 0 to 199, that change .*: a grey"):
        read_dataset(tmp_path)
    many = np.repeat(np.arange(1, 121, dtype=np.uint8), 10).reshape(3, 4, 100)  # organs, each in one piece
    scan(tmp_path / "labels" / "a.nii.gz", many.transpose(2, 1, 0))
    assert read_dataset(tmp_path).labels.count == 121
    scan(tmp_path / "labels" / "a.nii.gz", grey - 1000)
    with pytest.raises(DataError, match=r"from -1000 to 199; .* a grey-scale image, no label map"):
        read_dataset(tmp_path)


def test_splits_give_the_order_of_labels(tmp_path: Path) -> None:
    kidneys(tmp_path)
    (tmp_path / "splits.json").write_text(json.dumps({"train_order": ["b", "x", "a", "c", "e", "b"]}))
    dataset = read_dataset(tmp_path)
    assert dataset.train_order == ("b", "a")
    texts = [text for _, text in dataset.problems]
    assert len(texts) == 4
    assert "names b 2 times" in texts[0]
    assert all(f"names {name}, " in text for name, text in zip("xce", texts[1:], strict=True))
    (tmp_path / "splits.json").write_text('{"train_order": "b"}')
    with pytest.raises(DataError, match="train_order must be a list"):
        read_dataset(tmp_path)
    (tmp_path / "splits.json").write_text("[{}]")
    assert read_dataset(tmp_path).train_order == ()


@pytest.mark.parametrize(
    ("labels", "names", "ignore"),
    [
        ({"background": 0, "a": 1, "ignore": 2}, {0: "background", 1: "a"}, 2),
        ({"0": "bg", "2": "b", "1": "a"}, {0: "bg", 1: "a", 2: "b"}, None),
        ({"a": "1", "b": "2"}, {0: "background", 1: "a", 2: "b"}, None),
        ({"1": "a", "2": "Ignore"}, {0: "background", 1: "a"}, 2),
        ({"0": 0, "1": 1}, {0: "0", 1: "1"}, None),
    ],
)
def test_label_lists(tmp_path: Path, labels: dict[str, object], names: dict[int, str], ignore: int | None) -> None:
    kidneys(tmp_path)
    describe(tmp_path, labels=labels)
    scheme = read_dataset(tmp_path).labels
    assert (scheme.names, scheme.ignore) == (names, ignore)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"background": 0, "a": 1, "ignore": 1}, "given twice"),
        ({"background": 0, "ignore": 1, "a": 2}, "must be above all others, which end at 2"),
        ({"background": 0, "a": 2}, "nothing is named 1"),
        ({"background": 0, "a": 255}, "nothing is named 1, 2, 3, 4, 5, ..."),
        ({"background": 0, "a": 1, "ignore": 3}, "nothing is named 2"),
        ({"background": 0, "a": 1.5}, "whole number"),
        ({"background": 0, "a": -1}, "whole number"),
        ({"background": 0, "a": True}, "whole number"),
        ({"0": "a", "1": "a"}, "given twice"),
        ({"background": 0}, "no class beside"),
        (["background", "a"], "must be a JSON object"),
    ],
)
def test_label_lists_that_cannot_be_used_are_refused(tmp_path: Path, labels: object, words: str) -> None:
    kidneys(tmp_path)
    describe(tmp_path, labels=labels)
    with pytest.raises(DataError, match=re.escape(words)):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    "entries",
    [
        {"labels": {"background": 0, "whole tumour": [1, 2], "core": 2}},
        {"labels": {"background": 0, "a": 1}, "regions_class_order": [1]},
        {"file_ending": ".png"},
        {"file_ending": ".gipl"},
    ],
)
def test_regions_and_other_formats_are_refused(tmp_path: Path, entries: dict[str, Any]) -> None:
    kidneys(tmp_path)
    describe(tmp_path, **entries)
    with pytest.raises(UnsupportedError, match="not supported"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"channel_names": None}, "channel_names"),
        ({"channel_names": {"1": "CT"}}, "number them"),
        ({"channel_names": {}}, "number them"),
        ({"labels": None}, "labels"),
    ],
)
def test_an_incomplete_dataset_json_names_the_key(tmp_path: Path, entries: dict[str, Any], words: str) -> None:
    kidneys(tmp_path)
    describe(tmp_path, **entries)
    with pytest.raises(DataError, match=words):
        read_dataset(tmp_path)


@pytest.mark.parametrize("content", ["{broken", "[1, 2]", ""])
def test_a_damaged_dataset_json_is_named(tmp_path: Path, content: str) -> None:
    kidneys(tmp_path)
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=r"dataset\.json"):
        read_dataset(tmp_path)


def test_2d_is_refused(tmp_path: Path) -> None:
    describe(tmp_path / "flat")
    scan(tmp_path / "flat" / "imagesTr" / "a_0000.nii.gz", np.zeros((30, 40, 1), np.uint8))
    with pytest.raises(UnsupportedError, match=r"2D \(shape \(Z, Y, X\) \(1, 40, 30\)\)"):
        read_dataset(tmp_path / "flat")
    (tmp_path / "pictures" / "images").mkdir(parents=True)
    (tmp_path / "pictures" / "labels").mkdir()
    (tmp_path / "pictures" / "images" / "a.png").touch()
    with pytest.raises(UnsupportedError, match="2D images are not supported"):
        read_dataset(tmp_path / "pictures")


def test_mirror_pairs_are_found_declared_or_given(tmp_path: Path) -> None:
    kidneys(tmp_path)
    describe(tmp_path, labels={"background": 0, "a": 1, "b": 2, "left c": 3, "right c": 4})
    assert read_dataset(tmp_path).labels.mirror_pairs == ((3, 4),)
    assert read_dataset(tmp_path, mirror_pairs=[("b", "a")]).labels.mirror_pairs == ((1, 2),)
    assert read_dataset(tmp_path, mirror_pairs=[]).labels.mirror_pairs == ()
    labels = {"background": 0, "a": 1, "b": 2, "left c": 3, "right c": 4}
    describe(tmp_path, labels=labels, mirror_pairs=[["a", "b"]])
    assert read_dataset(tmp_path).labels.mirror_pairs == ((1, 2),)
    for bad in ([["a", "x"]], [["a"]], [["a", "a"]], [["a", "b"], ["b", "left c"]], [["background", "a"]], "ab", [1]):
        describe(tmp_path, labels=labels, mirror_pairs=bad)
        with pytest.raises(DataError, match="mirror_pairs"):
            read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("first", "second", "paired"),
    [
        ("right_parotid", "left_parotid", True),
        ("right kidney", "left kidney", True),
        ("Kidney-Left", "kidney_right", True),
        ("kidney_l", "kidney_r", True),
        ("lung_upper_left", "lung_upper_right", True),
        ("left_lateral_ventricle", "right_lateral_ventricle", True),
        ("left_atrium", "left_kidney", False),
        ("left_ventricle", "right_ventricle", False),
        ("left lobe of liver", "right lobe of liver", False),
        ("liver", "river", False),
        ("cleft", "cright", False),
    ],
)
def test_names_that_differ_by_side_are_paired(first: str, second: str, paired: bool) -> None:
    assert automatic_pairs({0: "background", 1: first, 2: second}) == (((1, 2),) if paired else ())


def decathlon(root: Path, **entries: Any) -> Path:
    training = [{"image": f"./imagesTr/s_{n}.nii.gz", "label": f"./labelsTr/s_{n}.nii.gz"} for n in ("001", "002")]
    value: dict[str, Any] = {
        "name": "Spleen",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "spleen"},
        "training": training,
        "test": ["./imagesTs/s_101.nii.gz"],
    }
    scans(root / "imagesTr", "s_001", "s_002", "._s_001")
    scans(root / "labelsTr", "s_001", "s_002", "._s_001")
    scans(root / "imagesTs", "s_101", "._s_101")
    (root / "dataset.json").write_text(json.dumps(value | entries))
    return root


def test_msd(tmp_path: Path) -> None:
    dataset = read_dataset(decathlon(tmp_path))
    assert (dataset.layout, dataset.name, dataset.channels) == ("msd", "Spleen", ("CT",))
    assert dataset.labels.names == {0: "background", 1: "spleen"}
    assert ids(dataset, labelled=True) == ["s_001", "s_002"]
    assert ids(dataset, "test") == ["s_101"]
    assert dataset.problems == ()


def test_labels_of_test_scans_of_msd_in_any_letter_case(tmp_path: Path) -> None:
    scans(decathlon(tmp_path) / "labelsTs", "s_101", "s_1010")
    label = (tmp_path / "labelsTs" / "s_101.nii.gz").rename(tmp_path / "labelsTs" / "s_101.NII.gz")
    (tmp_path / "labelsTs" / "s_1010.nii.gz").unlink()
    dataset = read_dataset(tmp_path)
    assert [case.label for case in dataset.cases if case.id == "s_101"] == [label]
    assert dataset.problems == ()


def test_msd_with_unlisted_unlabelled_and_missing_files(tmp_path: Path) -> None:
    decathlon(tmp_path)
    scans(tmp_path, "imagesTr/s_003", "imagesUn/u_1", "labelsTr/s_009", "labelsTs/s_101")
    (tmp_path / "imagesTr" / "s_002.nii.gz").unlink()
    (tmp_path / "labelsTr" / "s_001.nii.gz").unlink()
    dataset = read_dataset(tmp_path)
    assert ids(dataset, labelled=False) == ["s_001", "s_003", "u_1"]
    assert ids(dataset, "test", labelled=True) == ["s_101"]
    assert [file.name for file, _ in dataset.problems] == [
        "s_001.nii.gz",  # the label is missing
        "s_002.nii.gz",  # the image is missing
        "s_002.nii.gz",  # and so its label stands alone
        "s_009.nii.gz",
    ]


def test_an_msd_image_that_is_listed_twice_is_a_problem(tmp_path: Path) -> None:
    entry = {"image": "imagesTr/s_001.nii.gz", "label": "labelsTr/s_001.nii.gz"}
    dataset = read_dataset(decathlon(tmp_path, training=[entry, entry], test=[]))
    assert ids(dataset, labelled=True) == ["s_001"]
    assert any("already that of" in text for _, text in dataset.problems)


def test_files_of_one_name_in_folders_of_cases_are_listed_as_msd(tmp_path: Path) -> None:
    """As KiTS keeps them: the error of a folder without a layout shows the list, which is taken."""
    scans(tmp_path, "1/scan", "1/label", "2/scan", "3/scan")
    with pytest.raises(DataError, match=r"found 1/, 2/, 3/\. Bring .* in a dataset\.json: (\{.*\}), with") as raised:
        read_dataset(tmp_path)
    shown = re.search(r"dataset\.json: (\{.*\}), with", str(raised.value))[1]  # type: ignore[index]
    (tmp_path / "dataset.json").write_text(shown)
    dataset = read_dataset(tmp_path)
    assert (ids(dataset, labelled=True), ids(dataset, labelled=False)) == (["1_scan"], ["2_scan"])
    assert [path.name for path, _ in dataset.problems] == []
    assert [path.name for _, path, _ in remarks_on(dataset)] == ["3"]  # which the list does not name


@pytest.mark.parametrize("image", ["../outside.nii.gz", "/etc/passwd.nii.gz", "imagesTr/s_001.mgz", 7, None])
def test_msd_paths_that_lead_elsewhere_are_refused(tmp_path: Path, image: object) -> None:
    good = {"image": "imagesTr/s_001.nii.gz", "label": "labelsTr/s_001.nii.gz"}
    decathlon(tmp_path, training=[good, {"image": image}])
    with pytest.raises(DataError, match=r"dataset\.json: training"):
        read_dataset(tmp_path)


def flare(root: Path, stem: str = "Training/FLARE22_LabeledCase50") -> Path:
    scans(root / stem, "images/FLARE22_Tr_0001_0000", "images/FLARE22_Tr_0002_0000")
    scans(root / stem, "labels/FLARE22_Tr_0001", "labels/FLARE22_Tr_0002")
    scans(root / "Training", "FLARE22_UnlabeledCase1-1000/Case_00001_0000")
    scans(root / "Training", "FLARE22_UnlabeledCase1001-2000/Case_01001_0000")
    return root


@pytest.mark.parametrize("stem", ["Training/FLARE22_LabeledCase50", "FLARE22_LabeledCase50-2022/x", "."])
def test_flare22(tmp_path: Path, stem: str) -> None:
    flare(tmp_path, stem)
    scans(tmp_path, "Validation/FLARETs_0001_0000")
    dataset = read_dataset(tmp_path)
    assert (dataset.layout, dataset.channels) == ("flare22", ("CT",))
    assert ids(dataset, labelled=True) == ["FLARE22_Tr_0001", "FLARE22_Tr_0002"]
    assert ids(dataset, labelled=False) == ["Case_00001", "Case_01001"]
    assert ids(dataset, "test") == ["FLARETs_0001"]
    assert dataset.labels.organs == FLARE22_ORGANS
    assert dataset.labels.count == 14
    assert dataset.labels.names[dataset.labels.permutation()[2]] == "left_kidney"
    assert dataset.labels.permutation()[7] == 8
    assert dataset.problems == ()


def test_flare22_flat_folders(tmp_path: Path) -> None:
    scans(tmp_path, "labeled_image/FLARE22_Tr_0001_0000", "labeled_mask/FLARE22_Tr_0001")
    scans(tmp_path, "unlabeled_image/Case_00001_0000", "test_image/FLARETs_0001_0000")
    dataset = read_dataset(tmp_path)
    assert [(case.id, case.split, case.label is not None) for case in dataset.cases] == [
        ("FLARE22_Tr_0001", "train", True),
        ("FLARETs_0001", "test", False),
        ("Case_00001", "train", False),
    ]


def test_flare22_tuning_and_testing_scans_share_names(tmp_path: Path) -> None:
    flare(tmp_path)
    scans(tmp_path, "Tuning/images/FLARETs_0001_0000", "Tuning/labels/FLARETs_0001", "Testing/FLARETs_0001_0000")
    dataset = read_dataset(tmp_path)
    assert ids(dataset, "test") == ["Testing_FLARETs_0001", "Tuning_FLARETs_0001"]
    assert ids(dataset, "test", labelled=True) == ["Tuning_FLARETs_0001"]


def test_flare22_pseudo_labels_lost_labels_and_duplicates_are_problems(tmp_path: Path) -> None:
    flare(tmp_path)
    scans(tmp_path, "Training/Pseudo/Case_00001", "labels/FLARE22_Tr_0003", "copy/FLARE22_Tr_0001_0000")
    dataset = read_dataset(tmp_path)
    assert ids(dataset, labelled=False) == ["Case_00001", "Case_01001"]
    texts = {file.name: text for file, text in dataset.problems}
    assert "pseudo-label" in texts["Case_00001.nii.gz"]
    assert "there is no FLARE22_Tr_0003_0000" in texts["FLARE22_Tr_0003.nii.gz"]
    assert "the same id as" in texts["FLARE22_Tr_0001_0000.nii.gz"]


def test_plain_counts_the_classes(tmp_path: Path) -> None:
    scans(tmp_path, "images/a", "images/b", "images/c", "imagesTs/d")
    label = np.zeros((3, 4, 5), np.uint8)
    label[0, 0, :3] = (1, 2, 4)
    scan(tmp_path / "labels" / "a.nii.gz", label)
    (tmp_path / "labels" / "b.nii.gz").write_bytes(b"damaged")
    dataset = read_dataset(tmp_path)
    assert dataset.layout == "plain"
    assert dataset.labels.organs == {1: "class_1", 2: "class_2", 3: "class_3", 4: "class_4"}
    assert any(f"Name them in {tmp_path / 'labels.json'}" in text for _, _, text in dataset.remarks)
    assert ids(dataset, labelled=True) == ["a", "b"]
    assert ids(dataset, labelled=False) == ["c"]
    assert ids(dataset, "test") == ["d"]


def test_listed_files_in_the_root_are_not_called_unread(tmp_path: Path) -> None:
    scans(tmp_path, "p0", "p1", "loose")
    scan(tmp_path / "p0_label.nii.gz", np.ones((3, 4, 5), np.uint8))
    pair = {"image": "./p0.nii.gz", "label": "./p0_label.nii.gz"}
    lists = {
        "training": [pair],
        "test": ["./p1.nii.gz"],
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "a"},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(lists))
    dataset = read_dataset(tmp_path, layout="msd")
    assert (ids(dataset), ids(dataset, "test")) == (["p0"], ["p1"])
    texts = [text for _, _, text in dataset.remarks if "beside the folders" in text]
    assert texts == ["1 scan beside the folders, not read: loose.nii.gz. Move what is meant into a folder."]


def test_plain_labels_of_other_names_are_named(tmp_path: Path) -> None:
    scans(tmp_path, "images/a_ct", "labels/a_seg")
    with pytest.raises(DataError, match=r"a_seg.nii.gz: no label has the name of a scan.* called a_ct.nii.gz"):
        read_dataset(tmp_path)


def test_a_name_is_the_same_as_linux_and_as_a_mac_write_it(tmp_path: Path) -> None:
    scans(tmp_path, "images/" + unicodedata.normalize("NFC", "Müller"))
    scan(tmp_path / "labels" / (unicodedata.normalize("NFD", "Müller") + ".nii.gz"), np.ones((3, 4, 5), np.uint8))
    assert ids(read_dataset(tmp_path), labelled=True) == ["Müller"]


def test_plain_names_that_end_in_numbers_are_read_alike_in_all_folders(tmp_path: Path) -> None:
    """A label of the very same name says that the digits are no channel, and in every folder they are none."""
    scans(tmp_path, "images/scan_0100", "images/scan_0101", "imagesUn/scan_0000", "imagesUn/scan_0001")
    scan(tmp_path / "labels" / "scan_0100.nii.gz", np.ones((3, 4, 5), np.uint8))
    dataset = read_dataset(tmp_path)
    assert ids(dataset, labelled=True) == ["scan_0100"]
    assert sorted(ids(dataset, labelled=False)) == ["scan_0000", "scan_0001", "scan_0101"]
    assert len(dataset.channels) == 1


def test_plain_with_names(tmp_path: Path) -> None:
    scans(tmp_path, "images/a_0000", "images/b_0000", "labels/a")
    (tmp_path / "labels.json").write_text('{"1": "left lung", "2": "right lung", "3": "ignore"}')
    dataset = read_dataset(tmp_path)
    assert dataset.labels == LabelScheme(
        names={0: "background", 1: "left lung", 2: "right lung"}, ignore=3, mirror_pairs=((1, 2),)
    )
    assert ids(dataset) == ["a", "b"]
    describe(tmp_path, labels={"background": 0, "lung": 1})
    dataset = read_dataset(tmp_path)
    assert (dataset.layout, dataset.channels, dataset.labels.organs) == ("plain", ("CT",), {1: "lung"})


@pytest.mark.parametrize(
    ("images", "labels", "found"),
    [
        (["scan_2021", "scan_2022"], ["scan_2021"], {"scan_2021": 1, "scan_2022": 1}),
        (["scan_2021", "scan_2022"], [], {"scan_2021": 1, "scan_2022": 1}),
        (["a_0000", "a_0001"], ["a"], {"a": 2}),
        (["a_0000", "a_0001"], ["a_0000"], {"a_0000": 1, "a_0001": 1}),
        (["a_0000", "b"], ["a", "b"], {"a": 1, "b": 1}),
    ],
)
def test_four_digits_are_a_channel_only_where_they_can_be(
    tmp_path: Path, images: list[str], labels: list[str], found: dict[str, int]
) -> None:
    scans(tmp_path / "images", *images)
    (tmp_path / "labels").mkdir()
    scans(tmp_path / "labels", *labels)
    (tmp_path / "labels.json").write_text('{"a": 1}')
    dataset = read_dataset(tmp_path)
    assert {case.id: len(case.images) for case in dataset.cases} == found
    assert len(ids(dataset, labelled=True)) == len(labels)
    assert dataset.problems == ()


def test_the_folder_above_a_data_set_says_which_one_is_meant(tmp_path: Path) -> None:
    scans(tmp_path, "set/images/a", "set/labels/a", "other/a")
    with pytest.raises(DataError, match=r"found other/, set/\. If .*set is the data set, name that folder\.$"):
        read_dataset(tmp_path)


def test_one_plain_scan_of_more_channels_is_the_odd_one(tmp_path: Path) -> None:
    scans(tmp_path, "images/a", "images/b", "images/c_0000", "images/c_0001", "labels/a")
    scan(tmp_path / "labels" / "a.nii.gz", np.ones((3, 4, 5), np.uint8))
    dataset = read_dataset(tmp_path)
    assert (len(dataset.channels), ids(dataset)) == (1, ["a", "b"])
    ((file, text),) = dataset.problems
    assert file.name == "c_0000.nii.gz"
    assert text.endswith("Keep one; if they are scans of their own, number them otherwise, as c-0000.")


def test_a_label_that_is_called_otherwise_than_its_scan_is_told_the_scans_name(tmp_path: Path) -> None:
    scans(tmp_path, "images/a", "images/ab", "images/b", "labels/ab_seg", "labels/b", "labels/b_seg", "labels/c_seg")
    in_format(tmp_path, "labels/a.seg.nrrd")  # as 3D Slicer calls them
    scan(tmp_path / "labels" / "b.nii.gz", np.ones((3, 4, 5), np.uint8))
    texts = {path.name: text for path, text in read_dataset(tmp_path).problems}
    assert texts["ab_seg.nii.gz"].endswith("no scan has the id ab_seg. If it is the label of ab, call it so.")
    assert texts["a.seg.nrrd"].endswith("If it is the label of a, call it so.")
    assert texts["b_seg.nii.gz"].endswith("Add the scan, or move it away.")  # b has its label
    assert texts["c_seg.nii.gz"].endswith("Add the scan, or move it away.")


def test_plain_masks_of_0_and_255_are_refused(tmp_path: Path) -> None:
    scans(tmp_path, "images/a")
    scan(tmp_path / "labels" / "a.nii.gz", np.full((3, 4, 5), 255, np.uint8))
    with pytest.raises(DataError, match="the values 255 leave gaps"):
        read_dataset(tmp_path)


def test_plain_labels_with_255_for_what_nobody_labelled_are_told_how_to_ignore_it(tmp_path: Path) -> None:
    scans(tmp_path, "images/a")
    array = np.ones((3, 4, 5), np.uint8)
    array[0], array[1] = 255, 2
    scan(tmp_path / "labels" / "a.nii.gz", array)
    with pytest.raises(DataError, match=r"1, 2, 255 leave gaps.* make it 3, and name all in labels.json, 3 as"):
        read_dataset(tmp_path)
    array[0] = 3
    scan(tmp_path / "labels" / "a.nii.gz", array)
    (tmp_path / "labels.json").write_text(json.dumps({"liver": 1, "spleen": 2, "ignore": 3}))
    assert read_dataset(tmp_path).labels.ignore == 3


def test_an_unknown_folder_says_what_was_looked_for_and_found(tmp_path: Path) -> None:
    scans(tmp_path, "ct/a", "masks/a")
    with pytest.raises(DataError, match=r"Looked for nnunet.*msd.*flare22.*plain.*found ct/, masks/\."):
        read_dataset(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_dataset(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"layout = 'bids'.*nnunet, msd, flare22, plain"):
        read_dataset(tmp_path, layout="bids")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found nothing"):
        read_dataset(tmp_path / "empty")


def test_a_folder_without_usable_scans_is_refused(tmp_path: Path) -> None:
    describe(tmp_path)
    scans(tmp_path, "imagesTr/nonumber")
    with pytest.raises(DataError, match=r"no usable scan.*nonumber"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("folder", "train", "test", "organs", "pairs"),
    [
        ("Dataset004_Hippocampus", 160, 40, ["anterior", "posterior"], ()),
        ("Dataset101_HeadNeckCT", 164, 40, ["brainstem", "spinal_cord", "right_parotid", "left_parotid"], ((3, 4),)),
        ("Dataset102_LeftAtriumHalf", 80, 20, ["left_atrium"], ()),
    ],
)
def test_real_nnunet_folders(
    real_data: Path, folder: str, train: int, test: int, organs: list[str], pairs: tuple[tuple[int, int], ...]
) -> None:
    """The twin on generated files is `test_nnunet`."""
    dataset = read_dataset(real_data / folder)
    assert dataset.layout == "nnunet"
    assert len(ids(dataset, labelled=True)) == train
    assert ids(dataset, labelled=False) == []
    assert len(ids(dataset, "test", labelled=True)) == test
    assert list(dataset.labels.organs.values()) == organs
    assert dataset.labels.mirror_pairs == pairs
    assert sorted(dataset.train_order) == ids(dataset)
    assert dataset.problems == ()


def test_real_plain_folder(real_data: Path) -> None:
    """The twin on generated files is `test_plain_with_names`."""
    dataset = read_dataset(real_data / "ct_whole" / "flare22_ids")
    assert dataset.layout == "plain"
    assert ids(dataset, labelled=True) == ["ts_example_0001", "ts_example_sm_0002"]
    assert dataset.labels.count == 14
    assert dataset.labels.mirror_pairs == ((2, 13), (7, 8))
    assert dataset.problems == ()


def test_a_missing_dataset_json_is_shown_as_it_could_be(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    with pytest.raises(DataError, match=r"no dataset\.json, .* Write .*dataset\.json: (\{.*\}), with yours") as raised:
        read_dataset(tmp_path)
    described = json.loads(re.search(r"(\{.*\}), with", str(raised.value))[1])  # type: ignore[index]
    assert set(described) == {"channel_names", "labels", "file_ending"}
