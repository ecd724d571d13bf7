"""SEG as reference labels: those of dcmqi and highdicom, on the prediction's grid, by names and by codes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import highdicom as hd
import nrrd
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from made_series import axis_orientations, canonical, oblique, reversed_series, tool, write_series
from semiseg.errors import DataError
from semiseg.io.dataset import LabelScheme
from semiseg.io.dicom.derived import MadeBy, read_source
from semiseg.io.dicom.segmentation import write_segmentation
from semiseg.io.dicom.segmentation_reading import is_segmentation, read_segmentation
from semiseg.io.dicom.series import Series
from semiseg.io.scans import write_label
from semiseg.scoring.evaluator import evaluate_folder

ORGANS = {1: "liver", 2: "right_kidney", 3: "left_kidney"}
SHAPE = (5, 7, 9)


def labels_of(seed: int = 0) -> np.ndarray:
    labels = np.random.default_rng(seed).choice([0, 1, 3], SHAPE).astype(np.uint8)
    labels[0] = 0
    return labels


def ours(folder: Path, series: Series, planes: np.ndarray, *, labelmap: bool = False) -> Path:
    path = folder / "ours.dcm"
    label = canonical(planes, series)
    assert write_segmentation(path, label, read_source(series), ORGANS, MadeBy(model="0" * 64), labelmap=labelmap)
    return path


@pytest.mark.parametrize("number", range(0, 48, 5))
@pytest.mark.parametrize("labelmap", [False, True], ids=["binary", "labelmap"])
def test_what_we_write_is_read_in_every_direction(tmp_path: Path, number: int, labelmap: bool) -> None:
    series = write_series(tmp_path / "in", np.zeros(SHAPE), axis_orientations()[number])
    series = reversed_series(series) if number % 2 else series
    path = ours(tmp_path, series, labels_of(), labelmap=labelmap)
    assert is_segmentation(path)
    assert np.array_equal(read_segmentation(path, series.grid, ORGANS), canonical(labels_of(), series))


def by_dcmqi(folder: Path, series: Series, planes: np.ndarray) -> Path:
    """A SEG as dcmqi makes it: each organ by its code, under other names."""
    affine = np.diag([-1.0, -1, 1, 1]) @ series.grid.affine
    grid = {"space": "left-posterior-superior", "space directions": affine[:3, :3].T, "space origin": affine[:3, 3]}
    nrrd.write(str(folder / "labels.nrrd"), planes.transpose(2, 1, 0).astype(np.int16), grid)

    def code(value: str, meaning: str) -> dict[str, str]:
        return {"CodeValue": value, "CodingSchemeDesignator": "SCT", "CodeMeaning": meaning}

    def segment(value: int, kind: dict[str, str], side: dict[str, str] | None) -> dict[str, object]:
        made = {
            "labelID": value,
            "SegmentDescription": f"thing {value}",
            "SegmentLabel": f"thing {value}",
            "SegmentAlgorithmType": "MANUAL",
            "SegmentedPropertyCategoryCodeSequence": code("123037004", "Anatomical Structure"),
            "SegmentedPropertyTypeCodeSequence": kind,
            "recommendedDisplayRGBValue": [1, 2, 3],
        }
        return made | ({"SegmentedPropertyTypeModifierCodeSequence": side} if side else {})

    kidney, left = code("64033007", "Kidney"), code("7771000", "Left")
    segments = [segment(1, code("10200004", "Liver"), None), segment(3, kidney, left)]
    meta = {
        "ContentCreatorName": "a",
        "ClinicalTrialSeriesID": "1",
        "ClinicalTrialTimePointID": "1",
        "SeriesDescription": "s",
        "SeriesNumber": "300",
        "InstanceNumber": "1",
        "segmentAttributes": [segments],
        "ContentLabel": "SEGMENTATION",
        "ContentDescription": "x",
        "ClinicalTrialCoordinatingCenterName": "x",
        "BodyPartExamined": "",
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    path = folder / "theirs.dcm"
    command = [tool("itkimage2segimage"), "--inputImageList", folder / "labels.nrrd", "--inputMetadata"]
    command += [folder / "meta.json", "--outputDICOM", path, "--inputDICOMDirectory", series.files[0].parent]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return path


@pytest.mark.parametrize("seed", range(3))
def test_what_dcmqi_writes_is_read_by_its_codes(tmp_path: Path, seed: int) -> None:
    series = write_series(tmp_path / "in", np.zeros(SHAPE), oblique(seed))
    path = by_dcmqi(tmp_path, series, labels_of(seed))
    assert np.array_equal(read_segmentation(path, series.grid, ORGANS), canonical(labels_of(seed), series))


def test_references_are_scored(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in", np.zeros(SHAPE), oblique(0))
    (tmp_path / "references").mkdir()
    ours(tmp_path, series, labels_of()).rename(tmp_path / "references" / "a_seg.dcm")
    write_label(tmp_path / "predictions" / "a.nii.gz", canonical(labels_of(), series), series.grid)
    scheme = LabelScheme(names={0: "background", **ORGANS})
    (case,) = evaluate_folder(tmp_path / "predictions", tmp_path / "references", scheme)["cases"]
    assert case["organs"]["liver"]["dice"] == case["organs"]["left_kidney"]["dice"] == 1
    other = labels_of()
    other[2][other[2] == 1] = 0
    write_label(tmp_path / "predictions" / "a.nii.gz", canonical(other, series), series.grid)
    (case,) = evaluate_folder(tmp_path / "predictions", tmp_path / "references", scheme)["cases"]
    kept, all_of_it = np.count_nonzero(other == 1), np.count_nonzero(labels_of() == 1)
    assert case["organs"]["liver"]["dice"] == pytest.approx(2 * kept / (kept + all_of_it))
    (tmp_path / "references" / "b.dcm").write_bytes(series.files[0].read_bytes())
    with pytest.raises(DataError, match=r"b\.dcm: no DICOM SEG, so no reference"):
        evaluate_folder(tmp_path / "predictions", tmp_path / "references", scheme)


def test_what_cannot_be_a_label_map_is_named(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in", np.zeros(SHAPE))
    path = ours(tmp_path, series, labels_of())
    with pytest.raises(DataError, match="segment 'left_kidney' is none of liver, spleen"):
        read_segmentation(path, series.grid, {1: "liver", 2: "spleen"})
    moved = write_series(tmp_path / "moved", np.zeros(SHAPE), spacing=(0.75, 0.9, 2.5))
    with pytest.raises(DataError, match=r"do not lie on the prediction's voxels"):
        read_segmentation(path, moved.grid, ORGANS)
    small = write_series(tmp_path / "small", np.zeros((5, 7, 8)))
    with pytest.raises(DataError, match="it reaches outside of the prediction"):
        read_segmentation(path, small.grid, ORGANS)
    (tmp_path / "bad.dcm").write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"bad\.dcm: "):
        read_segmentation(tmp_path / "bad.dcm", series.grid, ORGANS)
    (tmp_path / "text.dcm").write_text("no")
    assert not is_segmentation(tmp_path / "text.dcm")


def test_a_segment_without_a_code_is_named_if_its_name_says_nothing(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in", np.zeros(SHAPE), oblique(0))
    path = ours(tmp_path, series, labels_of())
    damaged = pydicom.dcmread(path)
    for segment in damaged.SegmentSequence:
        segment.SegmentLabel = "thing"
        del segment.SegmentedPropertyTypeCodeSequence
    damaged.save_as(path)
    with pytest.raises(DataError, match=r"Export it anew"):
        read_segmentation(path, series.grid, ORGANS)


def test_segments_that_overlap_are_refused(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in", np.zeros(SHAPE))
    both = np.zeros((*SHAPE, 2), np.uint8)
    both[1, 2:4, 2:4, 0], both[1, 3:5, 3:5, 1] = 1, 1
    algorithm = hd.AlgorithmIdentificationSequence("a", codes.DCM.ArtificialIntelligence, "1")
    segments = [
        hd.seg.SegmentDescription(
            n,
            ORGANS[n],
            codes.SCT.AnatomicalStructure,
            codes.SCT.Liver,
            "AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for n in (1, 2)
    ]
    images = [pydicom.dcmread(file) for file in series.files]
    for image in images:
        image.SliceThickness, image.PatientBirthDate = 2.5, ""
    seg = hd.seg.Segmentation(
        images, both, "BINARY", segments, hd.UID(), 1, hd.UID(), 1, "a", "b", "1", "2", omit_empty_frames=True
    )
    seg.save_as(tmp_path / "both.dcm")
    with pytest.raises(DataError, match="segments overlap"):
        read_segmentation(tmp_path / "both.dcm", series.grid, ORGANS)
