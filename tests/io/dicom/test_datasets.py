"""DICOM in folders of scans: which cases a data set then has, and which scans are to be predicted."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("pydicom")

from pydicom.uid import generate_uid

from dicom_series import random_voxels, write_enhanced, write_series
from semiseg.errors import DataError
from semiseg.io.dicom.places import series_of
from semiseg.io.dicom.series import hashed
from semiseg.io.layouts import read_dataset
from semiseg.io.layouts.series import ONLY, Problems, SeriesChoice, series_by_id
from semiseg.io.scans import hash_of, read_grid, read_scan, stamps_of, write_label
from semiseg.prediction.inputs import Scan, find_scans
from semiseg.prediction.parity import smallest_first
from semiseg.workflows import check, list_series

SHAPE = (6, 10, 14)


def label_like(path: Path, image: Path) -> None:
    label = np.zeros(read_grid(image).shape_zyx, np.uint8)
    label[2:4, 3:6, 3:6] = 1
    path.parent.mkdir(parents=True, exist_ok=True)
    write_label(path, label, read_grid(image), image)


def zip_of(folder: Path, target: Path) -> None:
    with zipfile.ZipFile(target, "w") as zipped:
        for file in sorted(folder.rglob("*")):
            zipped.write(file, file.relative_to(folder))


def plain_set(root: Path) -> Path:
    """A folder, a zip, an enhanced file and a NIfTI file with labels; a heap without."""
    (root / "images").mkdir(parents=True)
    write_series(root / "images" / "liver_01", random_voxels(SHAPE))
    write_series(root / "packed", random_voxels(SHAPE))
    zip_of(root / "packed", root / "images" / "liver_02.zip")
    shutil.rmtree(root / "packed")
    write_enhanced(root / "images" / "liver_03.dcm", random_voxels(SHAPE))
    image = nib.Nifti1Image(random_voxels((14, 10, 6)), np.diag([0.7, 0.8, 2.5, 1]))
    nib.save(image, root / "images" / "liver_04.nii.gz")
    for name, file in (("01", "01"), ("02", "02.zip"), ("03", "03.dcm"), ("04", "04.nii.gz")):
        label_like(root / "labels" / f"liver_{name}.nii.gz", root / "images" / f"liver_{file}")
    (root / "labels.json").write_text('{"liver": 1}')
    for patient in "ab":
        write_series(
            root / "unlabelled" / f"Wolperdinger_{patient}" / "1", random_voxels(SHAPE), uid=f"1.2.3.{ord(patient)}"
        )
    return root


def test_a_plain_pair_of_folders(tmp_path: Path) -> None:
    data = read_dataset(plain_set(tmp_path))
    assert not data.problems
    labelled = {case.id for case in data.cases if case.label}
    assert labelled == {"liver_01", "liver_02", "liver_03", "liver_04"}
    unlabelled = [case for case in data.cases if not case.label]
    assert {case.id for case in unlabelled} == {hashed("1.2.3.97"), hashed("1.2.3.98")}
    assert all("Wolperdinger" not in str(case.images[0]) for case in unlabelled)
    assert all(read_scan(case.images).grid.shape_zyx[1:] == (10, 14) for case in data.cases)


def test_a_label_may_be_named_by_the_hash_of_the_uid(tmp_path: Path) -> None:
    root = plain_set(tmp_path)
    name = hashed("1.2.3.4.5")
    write_series(root / "images" / "somebody", random_voxels(SHAPE), uid="1.2.3.4.5")
    label_like(root / "labels" / f"{name}.nii.gz", root / "images" / "somebody")
    (case,) = [case for case in read_dataset(root).cases if case.id == name]
    assert case.label == root / "labels" / f"{name}.nii.gz"


def test_nnunet_and_msd_take_unlabelled_series_too(tmp_path: Path) -> None:
    root = plain_set(tmp_path)
    for old, new in (("images", "imagesTr"), ("labels", "labelsTr"), ("unlabelled", "imagesUn")):
        (root / old).rename(root / new)
    (root / "imagesTr" / "liver_04.nii.gz").rename(root / "imagesTr" / "liver_04_0000.nii.gz")
    described: dict[str, Any] = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}}
    (root / "dataset.json").write_text(json.dumps(described | {"numTraining": 4, "file_ending": ".nii.gz"}))
    data = read_dataset(root)
    assert data.layout == "nnunet"
    assert not data.problems
    assert sum(case.label is not None for case in data.cases) == 4
    assert len(data.cases) == 6
    listed = [{"image": "imagesTr/liver_04_0000.nii.gz", "label": "labelsTr/liver_04.nii.gz"}]
    (root / "dataset.json").write_text(
        json.dumps({"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"}, "training": listed})
    )
    data = read_dataset(root, layout="msd")
    assert sum(case.label is None for case in data.cases) == 2


def test_a_scan_has_one_id_in_its_data_set_and_where_its_place_is_predicted(tmp_path: Path) -> None:
    root = plain_set(tmp_path)
    write_series(root / "images" / "without_label", random_voxels(SHAPE), uid="1.2.3.4.5")
    data = read_dataset(root)
    ids = {case.id: case.images for case in data.cases}
    assert {scan.id: scan.images for scan in find_scans([root / "images"])} == {
        case.id: case.images for case in data.cases if case.images[0].is_relative_to(root / "images")
    }
    assert {scan.id for scan in find_scans([root])} == set(ids)
    for place, id in (("liver_01", "liver_01"), ("liver_02.zip", "liver_02"), ("liver_03.dcm", "liver_03")):
        assert [scan.id for scan in find_scans([root / "images" / place])] == [id]
    label = (root / "labels" / "liver_03.nii.gz").rename(root / "labels" / "liver_03.NII.GZ")
    assert label in [case.label for case in read_dataset(root).cases]
    assert [scan.id for scan in find_scans([root / "images" / "liver_03.dcm"])] == ["liver_03"]
    assert [scan.id for scan in find_scans(list(ids["liver_01"]))] == ["liver_01"]
    assert [scan.id for scan in find_scans([root / "images" / "without_label"])] == [hashed("1.2.3.4.5")]


def test_zips_are_hashed_as_folders_are(tmp_path: Path) -> None:
    root = plain_set(tmp_path)
    uids = [generate_uid() for _ in range(3)]
    for uid, place in zip(uids, ("unlabelled/Doe_1", "unlabelled/Doe_2/1", "images/Doe_3"), strict=True):
        write_series(tmp_path / "packed", random_voxels(SHAPE), uid=uid)
        (root / place).parent.mkdir(exist_ok=True)
        zip_of(tmp_path / "packed", root / f"{place}.zip")
        shutil.rmtree(tmp_path / "packed")
    data = read_dataset(root)
    assert not data.problems
    of_zips = [case.images[0] for case in data.cases if case.id in map(hashed, uids)]
    assert len(of_zips) == 3
    assert not any("Doe" in str(image) for image in of_zips)
    assert {image.parent.name for image in of_zips} == {"images", "unlabelled"}
    assert {series_of(image).uid for image in of_zips} == set(uids)
    assert all(read_scan([image]).grid.shape_zyx == SHAPE for image in of_zips)
    assert all("Doe" not in str(scan.images[0]) for scan in find_scans([root / "unlabelled"]))
    packed = root / "unlabelled" / "Doe_1.zip"
    before = stamps_of(of_zips)
    packed.write_bytes(packed.read_bytes() + b"\0")
    assert sum(before[key] != value for key, value in stamps_of(of_zips).items()) == 1


def test_check_says_where_series_lie(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = plain_set(tmp_path / "data")
    shutil.make_archive(str(root / "unlabelled" / "Doe"), "zip", root / "unlabelled" / "Wolperdinger_b")
    shutil.rmtree(root / "unlabelled" / "Wolperdinger_b")
    write_series(root / "unlabelled" / "c", random_voxels((8, 9, 9)), uid="1.2.3.4")[3].unlink()
    check(root)
    said = capsys.readouterr().out
    assert not re.search("Wolperdinger|Doe", said)
    assert f"Where they lie: semiseg check {root} --paths" in said
    check(root, paths=True)
    said = capsys.readouterr().out
    labelled = series_of(root / "images" / "liver_01").id
    for id, place in (("1.2.3.97", "Wolperdinger_a/1"), ("1.2.3.98", "Doe.zip/1"), ("1.2.3.4", "c")):
        assert re.search(rf"{hashed(id)}.*  unlabelled/{place}\n", said)
    assert f"{labelled}  case liver_01  images/liver_01\n" in said
    assert list_series(root / "unlabelled")
    said = capsys.readouterr().out
    assert "--paths" in said
    assert not re.search("Wolperdinger|Doe", said)
    (root / "unlabelled" / "c").rename(root / "unlabelled" / "both")
    write_series(root / "unlabelled" / "both", random_voxels(SHAPE), uid="1.2.5", seed=1)
    list_series(root / "unlabelled", paths=True)
    said = capsys.readouterr().out
    assert f"series-{hashed('1.2.3.97')}.{hashed('Wolperdinger_a/1', 8)}  Wolperdinger_a/1\n" in said
    assert re.search(
        rf"{hashed('1.2.5')}\.\w{{8}}  both: \w+, \w+, \w+ and 3 more\n", said
    )  # its files are not the only ones


def test_both_places_of_a_duplicate_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = plain_set(tmp_path / "data")
    archive = root / "unlabelled"
    for name in ("Doe_1.zip", "Doe_2.zip"):
        zip_of(archive / "Wolperdinger_b", archive / name)
    shutil.rmtree(archive / "Wolperdinger_b")
    check(root)
    said = " ".join(capsys.readouterr().out.split())
    assert "the same series as" in said
    assert "Doe" not in said
    names = {name: f"series-{hashed('1.2.3.98')}.{hashed(name, 8)}" for name in ("Doe_1.zip", "Doe_2.zip")}
    assert all(name in said for name in names.values())
    check(root, paths=True)
    said = capsys.readouterr().out
    for place, name in names.items():
        assert re.search(rf"^{name}.*  unlabelled/{place}/1$", said, re.MULTILINE)
    with pytest.raises(DataError, match=rf"{names['Doe_2.zip']}: the same series lies twice, also as .*") as refused:
        find_scans([archive])
    assert f"`semiseg check {archive} --paths`. Remove one of the two." in str(refused.value)
    assert "Doe" not in str(refused.value)
    list_series(archive, paths=True)
    said = capsys.readouterr().out
    assert all(f"{name}  {place}/1\n" in said for place, name in names.items())


def test_two_series_of_a_labelled_place_keep_their_ids(tmp_path: Path) -> None:
    root = plain_set(tmp_path)
    place = root / "images" / "liver_01"
    write_series(place, random_voxels(SHAPE), seed=1, uid="1.2.3.4.1")
    both = find_scans([place], series="all")
    paths = [scan.images[0] for scan in both]
    assert len(both) == 2
    assert find_scans(paths) == both
    with pytest.raises(DataError, match=r"this series is named twice\. Name it once\."):
        find_scans([*paths, paths[0]])


def test_names_of_zips_in_an_archive_are_not_said(tmp_path: Path) -> None:
    root = plain_set(tmp_path / "data")
    archive = root / "unlabelled"
    write_series(tmp_path / "one", random_voxels((1, 9, 9)), uid="1.2.3.1")
    for seed in range(2):
        write_series(tmp_path / "two", random_voxels(SHAPE), uid=f"1.2.4.{seed}", seed=seed)
    write_series(tmp_path / "scout" / "1", random_voxels(SHAPE), uid="1.2.5.1")
    write_series(tmp_path / "scout" / "2", random_voxels((2, 9, 9)), marks=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    for name in ("one", "scout"):
        zip_of(tmp_path / name, archive / f"Roe_{name}.zip")
    said: list[str] = []
    find_scans([archive], say=said.append)
    one = archive / f"series-{hashed('1.2.3.1')}.{hashed('Roe_one.zip', 8)}"
    assert any(text.startswith(f"{one}: no series that is a volume. ") for text in said)
    assert any("Localizer images." in text for text in said)
    assert len(find_scans([archive], series=hashed("1.2.3.97"), say=said.append)) == 1
    assert any(text.startswith(f"{one}: no series fits --series") for text in said)
    zip_of(tmp_path / "two", archive / "Roe_two.zip")
    find_scans([archive], say=said.append)
    assert any("2 series in one folder." in text for text in said)
    problems = [f"{file}: {text}" for file, text in read_dataset(root).problems]
    assert any(text.startswith(f"{one}: No series that is a volume.") for text in problems)
    assert any("2 series in one folder." in text for text in problems)
    assert "Roe" not in " ".join([*said, *problems])


@pytest.mark.parametrize("packed", [False, True])
def test_a_slice_that_is_cut_off_is_known_by_the_headers(packed: bool, tmp_path: Path) -> None:
    files = write_series(tmp_path / "heap" / "1", random_voxels(SHAPE))
    write_series(tmp_path / "heap" / "2", random_voxels(SHAPE))
    files[3].write_bytes(files[3].read_bytes()[:-1])
    if packed:
        zip_of(tmp_path / "heap", tmp_path / "heap.zip")
    place = tmp_path / ("heap.zip" if packed else "heap")
    said: list[str] = []
    assert len(find_scans([place], say=said.append)) == 1
    assert re.search(r"left out: InstanceNumber \d+ \(\w+\) is cut off: voxels are missing", said[0])
    shutil.rmtree(tmp_path / "heap" / "2", ignore_errors=True)
    assert not list_series(tmp_path / "heap")


def test_several_series_in_a_folder_are_a_problem_of_that_folder_alone(tmp_path: Path) -> None:
    root = plain_set(tmp_path)
    write_series(root / "images" / "liver_01", random_voxels(SHAPE), seed=1, description="thin 1.0", uid="1.2.3.4.1")
    data = read_dataset(root)
    (problem,) = [text for file, text in data.problems if "liver_01" in file.name and "series" in text]
    assert "2 series in one folder." in problem
    assert "semiseg check" in problem
    assert "thin" not in problem
    assert "liver_02" in {case.id for case in data.cases}
    chosen = read_dataset(root, choice=SeriesChoice("thin"))
    (case,) = [case for case in chosen.cases if case.id == "liver_01"]
    assert hashed("1.2.3.4.1") in case.images[0].name


def test_an_unclear_zip_does_not_stop_an_archive(tmp_path: Path) -> None:
    for seed, name in enumerate(["a/one", "b/one", "b/two"]):
        write_series(tmp_path / name, random_voxels(SHAPE), seed=seed, uid=f"1.2.3.{seed}")
    archive = tmp_path / "archive"
    archive.mkdir()
    for name in "ab":
        zip_of(tmp_path / name, archive / f"{name}.zip")
    moved = tmp_path / "b" / "one"
    for file in (tmp_path / "b" / "two").iterdir():
        file.rename(moved / f"{file.name}_2")
    zip_of(moved, archive / "b.zip")
    said: list[str] = []
    assert len(find_scans([archive], say=said.append)) == 1
    (unclear,) = said
    assert "2 series in one folder." in unclear
    assert f"semiseg check {archive}" in unclear
    assert "b.zip" not in unclear
    (archive / "a.zip").unlink()
    with pytest.raises(DataError, match=r"2 series in one folder\."):
        find_scans([archive])
    assert len(find_scans([archive], series="all")) == 2


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = plain_set(tmp_path)
    write_series(root / "unlabelled" / "c" / "1", random_voxels((2, 9, 9)), marks=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    write_series(root / "unlabelled" / "c" / "2", random_voxels((8, 9, 9)))[3].unlink()
    data = read_dataset(root)
    assert "DICOM: 1 series left out: Localizer images." in [text for _, _, text in data.remarks]
    (problem,) = data.problems
    assert problem[0].parent == root / "unlabelled"
    assert "1 slice is missing" in problem[1]
    resampled = read_dataset(root, choice=SeriesChoice(resample=True))
    assert not resampled.problems
    assert len(resampled.cases) == len(data.cases) + 1
    said = [text for severity, file, text in resampled.remarks if severity == "note" and "-resampled" in file.name]
    (missing,) = (
        re.search(r"between (InstanceNumber .*?): 1 slice is missing", text) for text in (*said, problem[1])[1:]
    )
    assert missing
    gap = missing.group()
    assert said == [f"made regular by resampling (7 slices became 8). A gap of 5 mm {gap}. Look at its labels there."]
    told: list[str] = []
    find_scans([root / "unlabelled" / "c"], resample=True, say=told.append)
    assert [text for text in told if gap in text and "7 slices became 8" in text]
    assert list_series(root / "unlabelled" / "c", resample=True)
    assert "Made regular by resampling" in " ".join(capsys.readouterr().out.split())


def test_contents_are_hashed_and_stamped(tmp_path: Path) -> None:
    write_series(tmp_path / "a", random_voxels(SHAPE), uid="1.2")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    zip_of(tmp_path / "a", tmp_path / "c.zip")
    assert hash_of([tmp_path / "a"]) == hash_of([tmp_path / "b"]) == hash_of([tmp_path / "c.zip"])
    (file, *_) = sorted((tmp_path / "b").iterdir())
    before = stamps_of([tmp_path / "b"])
    assert list(before) == [str(tmp_path / "b")]
    file.write_bytes(file.read_bytes()[:-2] + b"\1\1")
    assert hash_of([tmp_path / "a"]) != hash_of([tmp_path / "b"])
    assert stamps_of([tmp_path / "b"]) != before
    (scan,) = find_scans([tmp_path / "a"])
    assert list(stamps_of(scan.images)) == [str(scan.images[0])]


def test_a_damaged_file_in_a_zip_leaves_other_series_whole(tmp_path: Path) -> None:
    write_series(tmp_path / "both" / "1", random_voxels(SHAPE), uid="1.2.1")
    (first, *_) = write_series(tmp_path / "both" / "2", random_voxels(SHAPE), uid="1.2.2")
    zip_of(tmp_path / "both", tmp_path / "both.zip")
    content = (tmp_path / "both.zip").read_bytes()
    place = content.index(f"2/{first.name}".encode()) - 30  # of the member's own header
    assert content[place : place + 4] == b"PK\3\4"
    (tmp_path / "both.zip").write_bytes(content[:place] + b"XXXX" + content[place + 4 :])
    said: list[str] = []
    scans = find_scans([tmp_path / "both.zip"], say=said.append)
    assert {scan.id for scan in scans} == {hashed("1.2.1"), hashed("1.2.2")}  # of the second the outermost slice lacks
    assert read_scan(scans[0].images).grid.shape_zyx in (SHAPE, (SHAPE[0] - 1, *SHAPE[1:]))
    assert said == [f"{tmp_path / 'both.zip'}: 1 other DICOM file ({first.name}): Cannot be read (BadZipFile)."]


def test_linked_folders_and_folders_that_come_later_are_found(tmp_path: Path) -> None:
    write_series(tmp_path / "elsewhere" / "1", random_voxels(SHAPE), uid="1.2.1")
    (tmp_path / "heap").mkdir()
    (tmp_path / "heap" / "link").symlink_to(tmp_path / "elsewhere")
    (first,) = find_scans([tmp_path / "heap"])
    assert read_grid(first.images[0]).shape_zyx == SHAPE
    write_series(tmp_path / "heap" / "new", random_voxels(SHAPE), uid="1.2.2")
    _, second = sorted(find_scans([tmp_path / "heap"]), key=lambda scan: scan.id == hashed("1.2.2"))
    assert read_grid(second.images[0]).shape_zyx == SHAPE
    shutil.rmtree(tmp_path / "heap" / "new")
    with pytest.raises(DataError, match=f"series-{hashed('1.2.2')}: the series is no longer there"):
        read_grid(second.images[0])


def test_zips_in_sub_folders_of_an_archive_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uids = [generate_uid() for _ in range(3)]
    write_series(tmp_path / "archive" / "1", random_voxels(SHAPE), uid=uids[0])
    for number, folder in ((1, "archive/2/exports"), (2, "archive")):
        write_series(tmp_path / str(number), random_voxels(SHAPE), uid=uids[number])
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        zip_of(tmp_path / str(number), tmp_path / folder / "packed.zip")
    ids = {hashed(uid) for uid in uids}
    assert {scan.id for scan in find_scans([tmp_path / "archive"])} == ids
    assert list_series(tmp_path / "archive")
    assert "3 scans to be read." in capsys.readouterr().out
    problems: Problems = []
    assert set(series_by_id(tmp_path / "archive", (), ONLY, problems, [])) == ids
    assert problems == []
    only = tmp_path / "only"
    only.mkdir()
    (tmp_path / "archive" / "packed.zip").rename(only / "packed.zip")
    assert list_series(only)


def test_scans_to_predict(tmp_path: Path) -> None:
    first, second = generate_uid(), generate_uid()
    write_series(tmp_path / "heap" / "Wolperdinger" / "1", random_voxels(SHAPE), uid=first)
    write_series(tmp_path / "heap" / "Wolperdinger" / "2", random_voxels(SHAPE), uid=second)
    zip_of(tmp_path / "heap" / "Wolperdinger" / "1", tmp_path / "packed.zip")
    said: list[str] = []
    scans = find_scans([tmp_path / "heap"], say=said.append)
    assert {scan.id for scan in scans} == {hashed(first), hashed(second)}
    assert not said
    gone = Scan("gone", (tmp_path / "series-0123456789ab",))
    assert {scan.id for scan in smallest_first([gone, *scans])} == {scan.id for scan in scans}
    assert [scan.id for scan in find_scans([tmp_path / "packed.zip"])] == [hashed(first)]
    assert [scan.id for scan in find_scans([scans[0].images[0]])] == [scans[0].id]
    assert [scan.id for scan in find_scans([tmp_path / "heap"], series=second)] == [hashed(second)]
    write_series(
        tmp_path / "heap" / "Wolperdinger" / "2", random_voxels((1, 5, 5)), marks=("A", "B", "LOCALIZER"), seed=3
    )
    find_scans([tmp_path / "heap"], say=said.append)
    assert said == [f"{tmp_path / 'heap'}: 1 series left out: Localizer images."]
    write_series(tmp_path / "heap" / "Wolperdinger" / "2", random_voxels(SHAPE), seed=1)
    said.clear()
    assert [scan.id for scan in find_scans([tmp_path / "heap"], say=said.append)] == [hashed(first)]  # of the others
    assert re.search(r"2 series in one folder\. There are: .*--series all", said[0])
    with pytest.raises(DataError, match=r"2 series in one folder\. There are: .*--series all"):
        find_scans([tmp_path / "heap" / "Wolperdinger" / "2"])
    zip_of(tmp_path / "heap" / "Wolperdinger" / "1", tmp_path / "heap" / "packed.zip")
    with pytest.raises(DataError, match=r"no scan is left to be read\. .*no series fits --series nothing"):
        find_scans([tmp_path / "heap"], series="nothing")
    (tmp_path / "heap" / "packed.zip").unlink()
    assert len(find_scans([tmp_path / "heap"], series="all")) == 3
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as zipped:
        zipped.writestr("a.txt", "nothing")
    with pytest.raises(DataError, match=r"no series that is a volume\. No DICOM image is in it"):
        find_scans([tmp_path / "empty.zip"])
