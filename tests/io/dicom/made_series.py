"""Series of DICOM files for tests of what is made of them: in every orientation, classic or enhanced."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from semiseg.geometry import canonical_grid, to_canonical
from semiseg.io.dicom.series import Series, find_series
from semiseg.io.grid import Grid

CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
PATIENT = "Geheim^Päule"


def axis_orientations() -> list[np.ndarray]:
    """All 48: columns are the directions along a row, along a column and from slice to slice."""
    return [
        np.eye(3)[:, list(order)] * np.array(signs)
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1.0, -1.0), repeat=3)
    ]


def oblique(seed: int) -> np.ndarray:
    """A rotation by chance."""
    turned, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return np.asarray(turned * np.sign(np.linalg.det(turned)))


def write_series(
    folder: Path,
    voxels: np.ndarray,
    directions: np.ndarray | None = None,
    spacing: tuple[float, float, float] = (0.7, 0.9, 2.5),
    start: tuple[float, float, float] = (-31.5, 12.25, 104.0),
    *,
    enhanced: bool = False,
) -> Series:
    """Write voxels `(slices, rows, columns)` and read back the series. spacing: of columns, rows and slices."""
    folder.mkdir(parents=True, exist_ok=True)
    directions = np.eye(3) if directions is None else directions
    columns, rows, slices = directions.T
    uids = {name: generate_uid() for name in ("study", "series", "frame")}
    places = [np.array(start) + k * spacing[2] * slices for k in range(len(voxels))]
    orientation = [f"{v:.10f}"[:16] for v in (*columns, *rows)]

    def head(instance: UID, kind: str) -> Dataset:
        made = Dataset()
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.SpecificCharacterSet = "ISO_IR 100"
        made.PatientName, made.PatientID, made.PatientBirthDate, made.PatientSex = PATIENT, "4711", "19500102", "O"
        made.StudyInstanceUID, made.SeriesInstanceUID = uids["study"], uids["series"]
        made.StudyDate, made.StudyTime, made.StudyID, made.AccessionNumber = "20200102", "101112", "7", "A-1"
        made.ReferringPhysicianName, made.StudyDescription = "", "Abdomen für alle"
        made.FrameOfReferenceUID, made.PositionReferenceIndicator = uids["frame"], ""
        made.SOPClassUID, made.SOPInstanceUID = UID(kind), instance
        made.Modality, made.SeriesNumber, made.ImageType = "CT", 3, ["ORIGINAL", "PRIMARY", "AXIAL"]
        made.Manufacturer, made.SeriesDate, made.SeriesTime = "nobody", "20200102", "101112"
        made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
        made.Rows, made.Columns = voxels.shape[1:]
        made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 1
        return made

    def placed(position: np.ndarray) -> list[str]:
        return [f"{v:.9f}"[:16] for v in position]

    if not enhanced:
        for k, plane in enumerate(voxels):
            one = head(generate_uid(), CT)
            one.InstanceNumber, one.SliceThickness = len(voxels) - k, spacing[2]
            one.ImageOrientationPatient, one.ImagePositionPatient = orientation, placed(places[k])
            one.PixelSpacing = [spacing[1], spacing[0]]
            one.RescaleSlope, one.RescaleIntercept = 1, 0
            one.PixelData = plane.astype("<i2").tobytes()
            one.save_as(folder / f"{(k * 7) % 997:03d}-{k}.dcm", enforce_file_format=True)
    else:
        one = head(generate_uid(), ENHANCED_CT)
        one.InstanceNumber, one.NumberOfFrames = 1, len(voxels)
        shared, orientations, measures, rescale = Dataset(), Dataset(), Dataset(), Dataset()
        orientations.ImageOrientationPatient = orientation
        measures.PixelSpacing, measures.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, 0, "HU"
        shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientations], [measures]
        shared.PixelValueTransformationSequence = [rescale]
        one.SharedFunctionalGroupsSequence = [shared]
        groups = []
        order = list(reversed(range(len(voxels))))  # the last slice first
        for k in order:
            group, place = Dataset(), Dataset()
            place.ImagePositionPatient = placed(places[k])
            group.PlanePositionSequence = [place]
            groups.append(group)
        one.PerFrameFunctionalGroupsSequence = groups
        one.PixelData = voxels[order].astype("<i2").tobytes()
        one.save_as(folder / "enhanced.dcm", enforce_file_format=True)
    (series,) = find_series(folder)
    assert isinstance(series, Series)
    return series


def reversed_series(series: Series) -> Series:
    """The same volume with its slices in the other order, as no reader of ours gives it: a left-handed grid."""
    affine, count = series.grid.affine.copy(), len(series.files)
    affine[:3, 3] += (count - 1) * affine[:3, 2]
    affine[:3, 2] *= -1
    first = series.slices[0].pixels
    shape, spacing = canonical_grid(affine, (first.columns, first.rows, count))
    grid = Grid(shape, spacing, affine, series.grid.stored_mm)
    return replace(series, files=series.files[::-1], frames=series.frames[::-1], slices=series.slices[::-1], grid=grid)


def tool(name: str) -> str:
    """A program of a wheel beside this Python, or of the system; skips the test where there is none."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def canonical(planes: np.ndarray, series: Series) -> np.ndarray:
    return to_canonical(planes.transpose(2, 1, 0), series.grid.affine)


def errors_of(path: Path) -> list[str]:
    """What dciodvfy has against a file."""
    done = subprocess.run([tool("dciodvfy"), str(path)], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert any("Segmentation" in line or "RTStructureSet" in line for line in lines)
    return [line for line in lines if line.startswith("Error")]
