"""DICOM series that tests make: classic and enhanced, in any direction, with whatever is to be wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

PATIENT, PATIENT_ID, BIRTH_DATE = "Wolperdinger^Annegret", "PATIENTENNUMMER-47110815", "19420229"
TAGS_OF_A_PATIENT = ("Wolperdinger", "Annegret", PATIENT_ID, BIRTH_DATE)
CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def axis_orientations() -> list[tuple[tuple[float, ...], int]]:
    """All 48: the directions of rows and columns, and whether positions grow along the normal."""
    found = []
    for row, column, _ in permutations(range(3)):
        for sign_row, sign_column, along in product((1, -1), repeat=3):
            direction = np.zeros(6)
            direction[row], direction[3 + column] = sign_row, sign_column
            found.append((tuple(map(float, direction)), along))
    return found


def oblique_orientations(count: int) -> list[tuple[float, ...]]:
    """Directions that run along no axis, rounded as scanners write them."""
    generator = np.random.default_rng(20)
    found = []
    for _ in range(count):
        turn, _ = np.linalg.qr(generator.normal(size=(3, 3)))
        found.append(tuple(round(float(v), 9) for v in (*turn[0], *turn[1])))
    return found


def positions_along(
    orientation: Sequence[float], at_mm: Sequence[float], start: Sequence[float] = (-120.5, 33.25, -700.0)
) -> list[tuple[float, ...]]:
    """Positions of slices at such places along the normal."""
    normal = np.cross(orientation[:3], orientation[3:])
    return [tuple(round(float(v), 6) for v in np.array(start) + normal * place) for place in at_mm]


def write_series(
    folder: Path,
    stored: np.ndarray[Any, Any],
    *,
    orientation: Sequence[float] = AXIAL,
    spacing: tuple[float, float] = (0.8, 0.7),
    step_mm: float = 2.5,
    positions: Sequence[Sequence[float]] | None = None,
    slopes: Sequence[float] = (1.0,),
    intercepts: Sequence[float] = (-1024.0,),
    bits_stored: int = 16,
    high_bit: int | None = None,
    syntax: UID = ExplicitVRLittleEndian,
    uid: str | None = None,
    description: str = "Abdomen 5.0",
    marks: Sequence[str] = ("ORIGINAL", "PRIMARY", "AXIAL"),
    modality: str = "CT",
    ending: str = "",
    seed: int = 0,
    **tags: Any,
) -> list[Path]:
    """Write `(slices, rows, columns)` as a file each, under shuffled names; returns them in the order of slices."""
    folder.mkdir(parents=True, exist_ok=True)
    uid = uid or generate_uid()
    places = positions or positions_along(orientation, [k * step_mm for k in range(len(stored))])
    study, frame_of_reference = generate_uid(), generate_uid()
    files = []
    for k, number in enumerate(np.random.default_rng(seed).permutation(len(stored))):
        dataset = _dataset(CT, syntax)
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = uid, study
        dataset.FrameOfReferenceUID = frame_of_reference
        dataset.SeriesDescription, dataset.Modality, dataset.ImageType = description, modality, list(marks)
        dataset.InstanceNumber = len(stored) - k  # which the order of slices does not follow
        dataset.ImageOrientationPatient = [f"{v:.9g}"[:16] for v in orientation]
        dataset.ImagePositionPatient = [f"{v:.9g}"[:16] for v in places[k]]
        dataset.PixelSpacing = list(spacing)
        dataset.RescaleSlope, dataset.RescaleIntercept = slopes[k % len(slopes)], intercepts[k % len(intercepts)]
        _set_pixels(dataset, stored[k], bits_stored, high_bit)
        for keyword, value in tags.items():
            setattr(dataset, keyword, value[k] if isinstance(value, list) else value)
        files.append(folder / f"{_name(int(number), seed)}{ending}")
        dataset.save_as(files[-1], enforce_file_format=True)
    return files


def write_enhanced(
    file: Path,
    stored: np.ndarray[Any, Any],
    *,
    orientation: Sequence[float] = AXIAL,
    spacing: tuple[float, float] = (0.8, 0.7),
    step_mm: float = 2.5,
    slopes: Sequence[float] = (1.0,),
    intercepts: Sequence[float] = (-1024.0,),
    order: Sequence[int] | None = None,
    syntax: UID = ExplicitVRLittleEndian,
) -> None:
    """Write the same as one enhanced multi-frame file. order: the slice of each frame."""
    file.parent.mkdir(parents=True, exist_ok=True)
    order = list(order or range(len(stored)))
    places = positions_along(orientation, [k * step_mm for k in range(len(stored))])
    dataset = _dataset(ENHANCED_CT, syntax)
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = (generate_uid() for _ in "123")
    dataset.SeriesDescription, dataset.Modality = "Enhanced", "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.InstanceNumber, dataset.NumberOfFrames = 1, len(stored)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(spacing), step_mm
    plane.ImageOrientationPatient = [f"{v:.9g}"[:16] for v in orientation]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Items([measures]), Items([plane])
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    groups = []
    for k in order:
        group, place, values = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [f"{v:.9g}"[:16] for v in places[k]]
        values.RescaleSlope, values.RescaleIntercept = slopes[k % len(slopes)], intercepts[k % len(intercepts)]
        values.RescaleType = "HU"
        group.PlanePositionSequence, group.PixelValueTransformationSequence = Items([place]), Items([values])
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = Items(groups)
    _set_pixels(dataset, stored[order], 16, None)
    dataset.save_as(file, enforce_file_format=True)


def compress(files: Sequence[Path], syntax: str) -> None:
    """Have GDCM write the files anew in another transfer syntax."""
    import gdcm

    for file in files:
        reader = gdcm.ImageReader()
        reader.SetFileName(str(file))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change(), syntax
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(file))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()


def random_voxels(shape: tuple[int, int, int], kind: Any = np.int16, low: int = -1000, high: int = 3000) -> Any:
    generator = np.random.default_rng(sum(shape))
    return generator.integers(low, high, shape).astype(kind)


def _dataset(sop_class: str, syntax: UID) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop_class), generate_uid()
    meta.TransferSyntaxUID = syntax
    order = {"is_implicit_VR": syntax.is_implicit_VR, "is_little_endian": syntax.is_little_endian}
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128, **order)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = PATIENT, PATIENT_ID, BIRTH_DATE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    return dataset


def _set_pixels(dataset: Dataset, stored: np.ndarray[Any, Any], bits_stored: int, high_bit: int | None) -> None:
    allocated = 8 * stored.dtype.itemsize
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.BitsAllocated, dataset.BitsStored = allocated, min(bits_stored, allocated)
    dataset.HighBit = dataset.BitsStored - 1 if high_bit is None else high_bit
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    order = ">" if dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian else "<"
    data = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    dataset["PixelData"] = pydicom.DataElement(
        "PixelData", "OB" if allocated == 8 else "OW", data + b"\0" * (len(data) % 2)
    )


def _name(number: int, seed: int) -> str:
    return f"IM{(number * 7919 + seed) % 100_000:05d}"


def series_of_nifti(file: Path, folder: Path, **given: Any) -> list[Path]:
    """Write a NIfTI scan of whole numbers as a series."""
    image: Any = nib.load(file)
    values = np.asarray(image.dataobj)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    along = affine[:3, :3] / lengths
    if np.dot(np.cross(along[:, 0], along[:, 1]), along[:, 2]) < 0:
        values, affine[:3, 3] = values[:, :, ::-1], affine[:3, :4] @ [0, 0, values.shape[2] - 1, 1]
        affine[:3, 2] *= -1
    return write_series(
        folder,
        np.rint(values).astype(np.int16).transpose(2, 1, 0),
        orientation=[*along[:, 0], *along[:, 1]],
        spacing=(float(lengths[1]), float(lengths[0])),
        positions=[tuple(affine[:3, 3] + k * affine[:3, 2]) for k in range(values.shape[2])],
        intercepts=[0.0],
        **given,
    )
