"""RTSTRUCT files, rasterised again by plastimatch, by a reader of our own, and looked at by dciodvfy."""

from __future__ import annotations

import subprocess
from pathlib import Path

import nrrd
import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon

from made_series import PATIENT, axis_orientations, canonical, errors_of, oblique, reversed_series, tool, write_series
from semiseg.io.dicom.derived import MadeBy, read_source
from semiseg.io.dicom.rtstruct import write_rtstruct
from semiseg.io.dicom.series import Series

ORGANS = {1: "liver", 2: "spleen", 3: "right_kidney", 4: "nobody_knows"}
MADE_BY = MadeBy(model="ab" * 32)
SPACING = (1.4, 1.1, 3.0)
VOXEL_ML = float(np.prod(SPACING)) / 1000


def organs() -> np.ndarray:
    """Labels `(slices, rows, columns)`: a hollow ball with something in its hole, a ball that the border cuts, and a
    tube of 1 ml through single voxels; none is symmetric, so that no turned one is taken for it."""
    z, y, x = np.indices((12, 40, 44)) * np.array(SPACING[::-1])[:, None, None, None]
    labels = np.zeros(z.shape, np.uint8)
    middle = (z - 15) ** 2 + 1.3 * (y - 18) ** 2 + (x - 20) ** 2
    labels[middle < 16**2] = 1
    labels[middle < 9**2] = 0
    labels[middle < 4**2] = 2
    labels[(z - 27) ** 2 + (y - 40) ** 2 + (x - 58) ** 2 < 12**2] = 2
    labels[2:9, 36:38, 3:20] = 3
    labels[5, 36:39:2, 20:30:2] = 3
    return labels


def write(path: Path, planes: np.ndarray, series: Series) -> bool:
    """Labels `(slices, rows, columns)`."""
    label = canonical(planes, series)
    return write_rtstruct(path, label, read_source(series), ORGANS, MADE_BY)


def written(
    folder: Path, directions: np.ndarray, *, turned: bool = False, enhanced: bool = False
) -> tuple[Path, Series, np.ndarray]:
    series = write_series(folder / "in", np.zeros(organs().shape), directions, SPACING, enhanced=enhanced)
    series = reversed_series(series) if turned else series
    path = folder / "structures.dcm"
    assert write(path, organs(), series)
    return path, series, organs()


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def by_plastimatch(path: Path, series: Series, folder: Path) -> dict[str, np.ndarray]:
    """Masks `(slices, rows, columns)` by name."""
    folder.mkdir()
    affine = np.diag([-1.0, -1, 1, 1]) @ series.grid.affine
    grid = {"space": "left-posterior-superior", "space directions": affine[:3, :3].T, "space origin": affine[:3, 3]}
    nrrd.write(str(folder / "grid.nrrd"), np.zeros(organs().shape[::-1], np.int16), grid)
    command = [tool("plastimatch"), "convert", "--input", path, "--fixed", folder / "grid.nrrd"]
    command += ["--output-prefix", folder / "out", "--prefix-format", "nrrd"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {file.stem: nrrd.read(str(file))[0].transpose(2, 1, 0) > 0 for file in (folder / "out").iterdir()}


def strictly(path: Path, series: Series) -> dict[str, np.ndarray]:
    """The same by a reader that forgives nothing: every contour lies in the plane of the slice that it refers to, and
    the union of what matplotlib finds inside of them is an organ."""
    made = pydicom.dcmread(path)
    names = {one.ROINumber: one.ROIName for one in made.StructureSetROISequence}
    found = {}
    for region in made.ROIContourSequence:
        mask = found[names[region.ReferencedROINumber]] = np.zeros(organs().shape, bool)
        assert [one.ContourNumber for one in region.ContourSequence] == list(range(1, len(region.ContourSequence) + 1))
        for contour in region.ContourSequence:
            assert contour.ContourGeometricType == "CLOSED_PLANAR"
            (image,) = contour.ContourImageSequence
            frame = image.get("ReferencedFrameNumber", 1) - 1
            (k,) = (
                k
                for k, one in enumerate(series.slices)
                if (one.instance, one.frame) == (image.ReferencedSOPInstanceUID, frame)
            )
            one = series.slices[k]
            points = np.array(contour.ContourData, float).reshape(-1, 3) - one.position
            assert len(points) == contour.NumberOfContourPoints
            row, column = np.array(one.orientation).reshape(2, 3)
            assert np.abs(points @ np.cross(row, column)).max() < 1e-3
            columns_rows = np.c_[points @ row / one.spacing[1], points @ column / one.spacing[0]]
            assert np.abs(columns_rows % 1 - 0.5).max() < 1e-3  # on the edges of voxels
            rows, columns = np.indices(mask.shape[1:])
            inside = Polygon(np.vstack([columns_rows, columns_rows[:1]])).contains_points(
                np.c_[columns.ravel(), rows.ravel()]
            )
            mask[k] |= inside.reshape(rows.shape)
    return found


@pytest.mark.parametrize("number", range(48))
def test_all_orientations_are_rasterised_again(tmp_path: Path, number: int) -> None:
    path, series, expected = written(tmp_path, axis_orientations()[number], turned=number % 2 == 1)
    found = strictly(path, series)
    assert sorted(found) == ["liver", "right_kidney", "spleen"]
    for value, name in ORGANS.items():
        if name in found:
            assert np.array_equal(found[name], expected == value), name


@pytest.mark.parametrize("number", range(12))
def test_plastimatch_gives_organs_and_holes_back(tmp_path: Path, number: int) -> None:
    """Along axes and obliquely; each other oblique one is of an enhanced file."""
    directions = axis_orientations()[number * 9] if number < 6 else oblique(number)
    enhanced = number in (7, 9, 11)
    path, series, expected = written(tmp_path, directions, enhanced=enhanced)
    found = by_plastimatch(path, series, tmp_path / "out")
    hollow = expected == 1
    assert not hollow[5, 16, 14]  # the hole
    for value, name in ORGANS.items():
        mask = expected == value
        if mask.any():
            assert mask.sum() * VOXEL_ML > 1
            assert dice(found[name], mask) >= 0.99, name
            assert np.array_equal(strictly(path, series)[name], mask)


def test_what_it_says(tmp_path: Path) -> None:
    path, series, _ = written(tmp_path, oblique(3))
    assert not errors_of(path)
    made, source = pydicom.dcmread(path), pydicom.dcmread(series.files[0])
    assert made.SOPClassUID == "1.2.840.10008.5.1.4.1.1.481.3"
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
                    "StudyID", "AccessionNumber", "StudyDescription", "FrameOfReferenceUID"):  # fmt: skip
        assert made[keyword].value == source[keyword].value, keyword
    assert str(made.PatientName) == PATIENT
    assert made.SeriesInstanceUID != source.SeriesInstanceUID
    assert (made.Manufacturer, made.DeviceSerialNumber, made.Modality) == ("semiseg", "ab" * 8, "RTSTRUCT")
    frame = made.ReferencedFrameOfReferenceSequence[0]
    referred = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert referred.SeriesInstanceUID == source.SeriesInstanceUID
    assert {one.ReferencedSOPInstanceUID for one in referred.ContourImageSequence} == {
        one.instance for one in series.slices
    }
    assert [(one.ROINumber, one.ROIName) for one in made.StructureSetROISequence] == list(ORGANS.items())[:3]
    observed = made.RTROIObservationsSequence[2]
    code = observed.RTROIIdentificationCodeSequence[0]
    assert (code.CodeValue, code.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning) == ("64033007", "Right")
    assert observed.RTROIInterpretedType == "ORGAN"
    again, _, _ = written(tmp_path / "again", oblique(3))
    other = pydicom.dcmread(again)
    assert len({made.SOPInstanceUID, other.SOPInstanceUID, made.SeriesInstanceUID, other.SeriesInstanceUID}) == 4


def test_no_organ_makes_no_file(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in", np.zeros((2, 3, 4)))
    path = tmp_path / "a.dcm"
    assert not write(path, np.zeros((2, 3, 4), np.uint8), series)
    assert not path.exists()


def test_an_outline_may_be_longer_than_64_kilobytes(tmp_path: Path) -> None:
    """Which is all that a text of numbers may have where its kind is written beside it."""
    noise = np.random.default_rng(0).random((2, 130, 130)) < 0.8
    series = write_series(tmp_path / "in", noise.astype(int))
    assert write(tmp_path / "a.dcm", noise.astype(np.uint8), series)
    (region,) = pydicom.dcmread(tmp_path / "a.dcm").ROIContourSequence
    longest = max(region.ContourSequence, key=lambda one: int(one.NumberOfContourPoints))
    assert longest.NumberOfContourPoints * 3 * 7 > 65536
    assert len(longest.ContourData) == 3 * longest.NumberOfContourPoints
