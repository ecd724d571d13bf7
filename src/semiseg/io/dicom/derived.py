"""What objects that are made of a series have in common: whose they are, what they refer to, and what made them.

Patient and study are copied from the source series while an object is written, and kept nowhere else.
"""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from semiseg.errors import DataError
from semiseg.files import atomic_file
from semiseg.geometry import from_canonical
from semiseg.io.dicom.headers import read_header
from semiseg.io.dicom.library import library
from semiseg.io.dicom.series import Series
from semiseg.io.dicom.sources import opened
from semiseg.types import AnyArray, LabelArray

_PATIENT = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientIdentityRemoved",
    "DeidentificationMethod", "DeidentificationMethodCodeSequence",
    "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID",
    "ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID",
)  # fmt: skip
_STUDY = (
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
    "StudyDescription", "PatientAge", "PatientSize", "PatientWeight",
)  # fmt: skip
_MUST_STAND = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""Type 2: empty where the source has none."""
_TAGS = (
    *_PATIENT, *_STUDY, "SOPClassUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PositionReferenceIndicator",
    "SliceThickness", "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
)  # fmt: skip
MOST_LABEL = 64
"""Characters of a name (VR LO)."""


@dataclass(frozen=True, kw_only=True)
class MadeBy:
    """What an object says of its origin. model: the hash of the model."""

    model: str
    manufacturer: str = "semiseg"
    version: str = field(default_factory=lambda: importlib.metadata.version("semiseg"))


@dataclass(frozen=True)
class Source:
    """The head of a series: its first file's data set (without voxels), and UIDs that are there even where the file has
    none, which are then the same for all objects that are made of it."""

    head: Any
    series: Series
    class_uid: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str

    @property
    def knows_its_study(self) -> bool:
        """Whether the files have a StudyInstanceUID; otherwise what is made of them is in a study of its own."""
        return bool(value_of(self.head, "StudyInstanceUID"))

    @property
    def is_multiframe(self) -> bool:
        return self.series.slices[0].frames > 1


def read_source(series: Series) -> Source:
    """Read what objects made of a series take from it. Raises `DataError` where its files are gone or changed."""
    file = series.files[0]
    try:
        with no_words_of_patients(), opened(file) as stream:
            found = read_header(stream, list(_TAGS))
    except Exception as error:  # noqa: BLE001 (pydicom raises anything, and its texts quote values)
        raise DataError(
            f"{file.name} of series {series.id}: cannot be read any more ({type(error).__name__}). Restore it."
        ) from None
    if found is None:
        raise DataError(f"{file.name} of series {series.id}: no longer a DICOM file. Restore it.")
    head = found.dataset
    instance = series.slices[0].instance
    meta = getattr(head, "file_meta", {})

    if lacking := next((one.name for one in series.slices if not one.instance), None):
        raise DataError(f"{lacking} of series {series.id}: has no SOPInstanceUID that a DICOM file could refer to.")

    def uid(keyword: str) -> str:
        given = str(value_of(head, keyword) or "")
        return given or library().uid.generate_uid(entropy_srcs=[keyword, series.uid, instance])

    return Source(
        head=head,
        series=series,
        class_uid=str(value_of(head, "SOPClassUID") or meta.get("MediaStorageSOPClassUID") or ""),
        study_uid=uid("StudyInstanceUID"),
        series_uid=uid("SeriesInstanceUID"),
        frame_of_reference_uid=uid("FrameOfReferenceUID"),
    )


def value_of(head: Any, keyword: str) -> Any:
    """A value, None where there is none or it cannot be one of its kind."""
    try:
        return head.get(keyword)
    except Exception:  # noqa: BLE001 (pydicom raises anything for damaged values, and its texts quote them)
        return None


def copy_identity(source: Source, target: Any) -> None:
    """Have an object be of the source's patient and study. Texts become UTF-8, whatever the source is written in; what
    is damaged is left out."""
    target.SpecificCharacterSet = "ISO_IR 192"
    for keyword in (*_PATIENT, *_STUDY):
        if value_of(source.head, keyword) is not None:
            element = source.head[keyword]
            with suppress(UnicodeError, LookupError, ValueError, AttributeError):
                library().charset.decode_element(element, source.head.get("SpecificCharacterSet", "ISO_IR 6"))
            target[keyword] = deepcopy(element)
        elif keyword in target:
            del target[keyword]
    for keyword in _MUST_STAND:
        if keyword not in target:
            setattr(target, keyword, "")
    target.StudyInstanceUID = source.study_uid


def planes_of(label_zyx: LabelArray, series: Series) -> AnyArray:
    """A label map of a series on the slices of its files, `(slices, rows, columns)`; a view where it can be."""
    planes = series.on_source(from_canonical(label_zyx, series.grid.affine)).transpose(2, 1, 0)
    first = series.slices[0].pixels
    if planes.shape != (len(series.slices), first.rows, first.columns):
        raise ValueError(f"a label map of {planes.shape} for {len(series.slices)} x {first.rows} x {first.columns}")
    return planes


def values_of(label_zyx: LabelArray, organs: Mapping[int, str]) -> list[int]:
    """Which organs a label map holds, in order of their values."""
    found = np.zeros(max(organs, default=0) + 1, dtype=bool)
    for plane in label_zyx:
        found[plane] = True
    return [value for value in sorted(organs) if found[value]]


def equip(target: Any, made_by: MadeBy, *, description: str, number: int) -> None:
    """Series and equipment of an object, with the day and the time of now."""
    now = datetime.datetime.now()
    target.SeriesDescription = description
    target.SeriesNumber = number
    target.InstanceNumber = 1
    target.Manufacturer = target.ManufacturerModelName = made_by.manufacturer
    target.SoftwareVersions = made_by.version
    target.DeviceSerialNumber = made_by.model[:16]
    target.SeriesDate = target.InstanceCreationDate = now.strftime("%Y%m%d")
    target.SeriesTime = target.InstanceCreationTime = now.strftime("%H%M%S")


@contextmanager
def no_words_of_patients() -> Iterator[None]:
    """Within: libraries write no warnings, which quote values."""
    import logging
    import warnings

    logger = logging.getLogger("highdicom")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def save(target: Any, path: Path, *, implicit: bool) -> None:
    """Write an object, whole or not at all."""
    with atomic_file(path) as temporary:
        target.save_as(temporary, implicit_vr=implicit, little_endian=True, enforce_file_format=True)
