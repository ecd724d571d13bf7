"""SEG files, read back by highdicom, dcmqi and dciodvfy."""

from __future__ import annotations

import subprocess
import warnings
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import nrrd
import numpy as np
import pydicom
import pytest

from made_series import PATIENT, axis_orientations, canonical, errors_of, oblique, reversed_series, tool, write_series
from semiseg.errors import DataError
from semiseg.io.dicom.derived import MadeBy, read_source
from semiseg.io.dicom.segmentation import write_segmentation
from semiseg.io.dicom.series import Series, find_series

ORGANS = {1: "liver", 2: "right_kidney", 3: "spleen", 4: "nobody_knows", 5: "left_kidney"}
MADE_BY = MadeBy(model="ab" * 32)
SHAPE = (5, 7, 9)


def some_labels(seed: int = 0) -> np.ndarray:
    """Noise of labels 0 to 3 and 5 in the middle slices, `(slices, rows, columns)`: no voxel is like its neighbour."""
    labels = np.random.default_rng(seed).choice([0, 1, 2, 3, 5], SHAPE).astype(np.uint8)
    labels[0] = 0
    labels[3, labels[3] == 2] = 0
    return labels


def write(path: Path, planes: np.ndarray, series: Series, *, labelmap: bool = False) -> bool:
    """Labels `(slices, rows, columns)`."""
    label = canonical(planes, series)
    return write_segmentation(path, label, read_source(series), ORGANS, MADE_BY, labelmap=labelmap)


def written(
    folder: Path, directions: np.ndarray, *, turned: bool = False, labelmap: bool = False, enhanced: bool = False
) -> tuple[Path, Series, np.ndarray]:
    """A SEG, its series, and the labels in the order of its slices. turned: the slices in the other order."""
    series = write_series(folder / "in", np.zeros(SHAPE), directions, enhanced=enhanced)
    series = reversed_series(series) if turned else series
    planes, path = some_labels(), folder / "seg.dcm"
    assert write(path, planes, series, labelmap=labelmap)
    return path, series, planes


def by_highdicom(path: Path, series: Series) -> np.ndarray:
    """The label map that highdicom reads at the places of the written planes."""
    seg = hd.seg.segread(path)
    volume = seg.get_volume(combine_segments=True, relabel=False, allow_missing_positions=True)
    names = {number: seg.get_segment_description(number).SegmentLabel for number in seg.segment_numbers}
    by_name = {name: value for value, name in ORGANS.items()}
    values = {number: by_name[name] for number, name in names.items()}
    return placed(volume.array, np.diag([-1.0, -1, 1, 1]) @ volume.affine, values, series)


def by_dcmqi(path: Path, series: Series, folder: Path) -> np.ndarray:
    """The same by dcmqi, which makes an NRRD of the slices that hold something."""
    folder.mkdir()
    command = [
        tool("segimage2itkimage"),
        "--inputDICOM",
        path,
        "--outputDirectory",
        folder,
        "-t",
        "nrrd",
        "--mergeSegments",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    seg = pydicom.dcmread(path, stop_before_pixels=True)
    by_name = {name: value for value, name in ORGANS.items()}
    values = {int(one.SegmentNumber): by_name[one.SegmentLabel] for one in seg.SegmentSequence}
    (file,) = folder.glob("*.nrrd")
    array, header = nrrd.read(str(file))
    assert header["space"] == "left-posterior-superior"
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = header["space directions"].T, header["space origin"]
    return placed(array, np.diag([-1.0, -1, 1, 1]) @ affine, values, series)


def placed(array: np.ndarray, affine: np.ndarray, values: dict[int, int], series: Series) -> np.ndarray:
    """Labels of another grid, RAS, at the voxels of the series in whose middles they lie."""
    found = np.zeros(SHAPE, np.uint8)
    voxels = np.argwhere(array > 0)
    places = np.c_[voxels, np.ones(len(voxels))] @ (np.linalg.inv(series.grid.affine) @ affine).T
    i, j, k = np.rint(places[:, :3]).astype(int).T
    assert np.abs(places[:, :3] - np.c_[i, j, k]).max() < 1e-3
    found[k, j, i] = [values[int(array[tuple(voxel)])] for voxel in voxels]
    return found


@pytest.mark.parametrize("number", range(48))
def test_every_voxel_is_read_back_in_all_orientations(tmp_path: Path, number: int) -> None:
    path, series, expected = written(tmp_path, axis_orientations()[number], turned=number % 2 == 1)
    assert np.array_equal(by_highdicom(path, series), expected)
    assert np.array_equal(by_dcmqi(path, series, tmp_path / "nrrd"), expected)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("enhanced", [False, True], ids=["classic", "enhanced"])
def test_and_in_oblique_ones(tmp_path: Path, seed: int, enhanced: bool) -> None:
    path, series, expected = written(tmp_path, oblique(seed), enhanced=enhanced)
    assert np.array_equal(by_highdicom(path, series), expected)
    assert np.array_equal(by_dcmqi(path, series, tmp_path / "nrrd"), expected)
    assert not errors_of(path)


def test_a_labelmap_is_read_back(tmp_path: Path) -> None:
    """By highdicom; dcmqi reads it as well, and keeps the values of the labels. dciodvfy does not know its class."""
    path, series, expected = written(tmp_path, oblique(7), labelmap=True)
    assert pydicom.dcmread(path).SegmentationType == "LABELMAP"
    assert [int(one.SegmentNumber) for one in pydicom.dcmread(path).SegmentSequence][1:] == [1, 2, 3, 5]
    assert np.array_equal(by_highdicom(path, series), expected)


def test_what_it_says(tmp_path: Path) -> None:
    path, series, _ = written(tmp_path, np.eye(3))
    assert not errors_of(path)
    seg, source = pydicom.dcmread(path), pydicom.dcmread(series.files[0])
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
                    "StudyID", "AccessionNumber", "StudyDescription", "FrameOfReferenceUID"):  # fmt: skip
        assert seg[keyword].value == source[keyword].value, keyword
    assert str(seg.PatientName) == PATIENT
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    assert seg.SOPInstanceUID == seg.file_meta.MediaStorageSOPInstanceUID
    assert (seg.Manufacturer, seg.DeviceSerialNumber, seg.SegmentationType) == ("semiseg", "ab" * 8, "BINARY")
    assert seg.SoftwareVersions
    assert seg.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"  # not compressed
    referred = {one.ReferencedSOPInstanceUID for one in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referred == {found.instance for found in series.slices}
    # organ 4 is not there, and nothing of it is said
    assert [one.SegmentLabel for one in seg.SegmentSequence] == ["liver", "right_kidney", "spleen", "left_kidney"]
    kidney = seg.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0]
    assert (kidney.CodeValue, kidney.CodingSchemeDesignator, kidney.CodeMeaning) == ("64033007", "SCT", "Kidney")
    assert kidney.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Right"
    again, _, _ = written(tmp_path / "again", np.eye(3))
    other = pydicom.dcmread(again)
    assert len({seg.SOPInstanceUID, other.SOPInstanceUID, seg.SeriesInstanceUID, other.SeriesInstanceUID}) == 4


def test_a_frame_without_a_voxel_is_not_there(tmp_path: Path) -> None:
    path, _, expected = written(tmp_path, np.eye(3))
    frames = sum(bool((plane == value).any()) for plane in expected for value in ORGANS)
    assert pydicom.dcmread(path).NumberOfFrames == frames < 4 * len(expected)


def test_no_organ_makes_no_file(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in", np.zeros(SHAPE))
    path = tmp_path / "seg.dcm"
    assert not write(path, np.zeros(SHAPE, np.uint8), series)
    assert not path.exists()


def test_a_source_without_identity_has_a_study_all_the_same(tmp_path: Path) -> None:
    """As files are that were made anonymous by emptying their UIDs. Two objects of one series share the study."""
    for file in write_series(tmp_path / "in", np.zeros(SHAPE)).files:
        one = pydicom.dcmread(file)
        one.StudyInstanceUID = one.SOPClassUID = one.SOPInstanceUID = ""
        for keyword in ("PatientName", "PatientSex", "AccessionNumber", "FrameOfReferenceUID"):
            del one[keyword]
        one.StudyDate = "no date"
        pydicom.dcmwrite(file, one, enforce_file_format=False)
    (series,) = find_series(tmp_path / "in")
    assert isinstance(series, Series)
    studies = set()
    for name in ("a.dcm", "b.dcm"):
        assert write(tmp_path / name, some_labels(), series)
        seg = pydicom.dcmread(tmp_path / name)
        studies.add(seg.StudyInstanceUID)
        assert seg.PatientName == ""
        assert seg.SourceImageSequence[0].ReferencedSOPInstanceUID == series.slices[0].instance
    assert len(studies) == 1
    assert pydicom.uid.UID(studies.pop()).is_valid


def test_a_patients_name_is_in_no_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Names that libraries find fault with: of one part, of a wrong sex and date, in another alphabet."""
    for file in write_series(tmp_path / "in", np.zeros(SHAPE)).files:
        one = pydicom.dcmread(file)
        one.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
        one.PatientName, one.PatientID = "Yamada^Tarou=山田^太郎", "x" * 90
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one.PatientBirthDate, one.PatientSex = "1950-01", "unknown"
            one.save_as(file)
    (series,) = find_series(tmp_path / "in")
    assert isinstance(series, Series)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert write(tmp_path / "a.dcm", some_labels(), series)
    out, err = capfd.readouterr()
    assert not out + err
    assert not caught
    assert str(pydicom.dcmread(tmp_path / "a.dcm").PatientName) == "Yamada^Tarou=山田^太郎"


def test_damaged_values_of_a_header_are_left_out(tmp_path: Path) -> None:
    """Numbers that are none, a charset that nobody knows, texts without end: each of them, and all together."""
    damage = {
        "PatientWeight": b"heavy ", "PatientSize": b"1.8.8", "PatientAge": b"old age", "SliceThickness": b"thick!",
        "SpecificCharacterSet": b"ISO_IR 4711 ", "PatientName": b"\xff\xfe\x80^\x00\x01", "StudyTime": b"25:61 ",
        "LossyImageCompressionRatio": b"much", "PositionReferenceIndicator": b"x" * 300, "PatientBirthDate": b"4711",
    }  # fmt: skip
    for chosen in [*[[keyword] for keyword in damage], list(damage)]:
        folder = tmp_path / "_".join(chosen)[:40]
        write_series(folder, np.zeros(SHAPE))
        for file in folder.iterdir():
            one = pydicom.dcmread(file)
            for keyword in chosen:
                tag = pydicom.tag.Tag(keyword)
                kind = pydicom.datadict.dictionary_VR(tag)
                one[tag] = pydicom.dataelem.RawDataElement(
                    tag, kind, len(damage[keyword]), damage[keyword], 0, False, True
                )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                one.save_as(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the charset
            (series,) = find_series(folder)
        assert isinstance(series, Series)
        assert write(tmp_path / "a.dcm", some_labels(), series)
        assert np.array_equal(by_highdicom(tmp_path / "a.dcm", series), some_labels())


def test_slices_to_which_nothing_can_refer_are_named(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in", np.zeros(SHAPE))
    slices = tuple(replace(one, instance="") for one in series.slices)
    with pytest.raises(DataError, match="has no SOPInstanceUID that a DICOM file could refer to"):
        read_source(replace(series, slices=slices))
