"""DICOM structure sets (RTSTRUCT): outlines of organs in the planes of the source series' slices."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from struct import pack
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
from PIL import ImageColor

from semiseg.io.colours import organ_colours
from semiseg.io.dicom.codes import Code, coded
from semiseg.io.dicom.contours import outlines
from semiseg.io.dicom.derived import (
    MOST_LABEL,
    MadeBy,
    Source,
    copy_identity,
    equip,
    no_words_of_patients,
    planes_of,
    save,
    value_of,
    values_of,
)
from semiseg.io.dicom.headers import Slice
from semiseg.io.dicom.library import library
from semiseg.types import AnyArray, DoubleArray, LabelArray

_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
_ITEM, _REGIONS = (0xFFFE, 0xE000), (0x3006, 0x0039)
_COLOUR, _OF_REGION = (0x3006, 0x002A), (0x3006, 0x0084)
_CONTOURS, _IMAGES, _DATA = (0x3006, 0x0040), (0x3006, 0x0016), (0x3006, 0x0050)
_KIND, _COUNT, _NUMBER = (0x3006, 0x0042), (0x3006, 0x0046), (0x3006, 0x0048)
_CLASS_UID, _INSTANCE_UID, _FRAME = (0x0008, 0x1150), (0x0008, 0x1155), (0x0008, 0x1160)
"""Tags of regions, which are encoded here and lie in files until they are written: as pydicom's objects contours of
a noisy label take gigabytes."""
_SERIES_NUMBER = 9002


def write_rtstruct(
    path: Path, label_zyx: LabelArray, source: Source, organs: Mapping[int, str], made_by: MadeBy
) -> bool:
    """Write a label map of a series as an RTSTRUCT with a region for each organ that is found; false, and no file,
    where none is.

    Outlines run along the edges of voxels, in the plane of each slice; holes are kept by keyholes
    (`semiseg.io.dicom.contours`).
    """
    values = values_of(label_zyx, organs)
    if not values:
        return False
    planes = planes_of(label_zyx, source.series)
    colours = organ_colours(organs.values())
    with no_words_of_patients(), TemporaryFile(dir=path.parent) as regions:
        made = _head(source, made_by)
        made.StructureSetROISequence = [_region(value, organs[value], source) for value in values]
        for value in values:
            with TemporaryFile(dir=path.parent) as contours:
                _outline(contours, planes, value, source)
                _add_region(regions, contours, value, ImageColor.getrgb(colours[organs[value]]))
        regions.seek(0)
        made.add_new(_REGIONS, "OB", regions)  # a sequence, as it is written
        made.RTROIObservationsSequence = [_observed(value, organs[value]) for value in values]
        save(made, path, implicit=True)  # where the length of a contour has 32 bits; explicitly it would have 16
    return True


def _outline(file: IO[bytes], planes: AnyArray, value: int, source: Source) -> None:
    """Write the contours of an organ, slice by slice."""
    number = 0
    for plane, one in zip(planes, source.series.slices, strict=True):
        for contour in _contours(plane == value, one, source, number):
            file.write(contour)
            number += 1


def _add_region(file: IO[bytes], contours: IO[bytes], value: int, rgb: tuple[int, ...]) -> None:
    """Write an organ's item of the sequence of regions, with the contours of another file."""
    colour = _element(_COLOUR, _padded("\\".join(map(str, rgb[:3]))))
    of, size = _element(_OF_REGION, _padded(str(value))), contours.tell()
    file.write(_start(_ITEM, len(colour) + len(_start(_CONTOURS, size)) + size + len(of)))
    file.write(colour + _start(_CONTOURS, size))
    contours.seek(0)
    shutil.copyfileobj(contours, file)
    file.write(of)


def _dataset(**values: Any) -> Any:
    made = library().Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def _head(source: Source, made_by: MadeBy) -> Any:
    uid = library().uid
    made = _dataset(SOPClassUID=_CLASS, SOPInstanceUID=uid.generate_uid(), SeriesInstanceUID=uid.generate_uid())
    made.file_meta = library().dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    copy_identity(source, made)
    made.Modality, made.OperatorsName = "RTSTRUCT", ""
    made.FrameOfReferenceUID = source.frame_of_reference_uid
    made.PositionReferenceIndicator = value_of(source.head, "PositionReferenceIndicator") or ""
    equip(made, made_by, description="Structures by semiseg", number=_SERIES_NUMBER)
    made.StructureSetLabel, made.StructureSetName = "semiseg", f"by semiseg, model {made_by.model[:12]}"
    made.StructureSetDate, made.StructureSetTime = made.SeriesDate, made.SeriesTime
    made.ApprovalStatus = "UNAPPROVED"
    instances = dict.fromkeys(one.instance for one in source.series.slices)
    images = [_dataset(ReferencedSOPClassUID=source.class_uid, ReferencedSOPInstanceUID=one) for one in instances]
    series = _dataset(SeriesInstanceUID=source.series_uid, ContourImageSequence=images)
    study = _dataset(
        ReferencedSOPClassUID=_STUDY_CLASS,
        ReferencedSOPInstanceUID=source.study_uid,
        RTReferencedSeriesSequence=[series],
    )
    made.ReferencedFrameOfReferenceSequence = [
        _dataset(FrameOfReferenceUID=source.frame_of_reference_uid, RTReferencedStudySequence=[study])
    ]
    return made


def _contours(mask: AnyArray, one: Slice, source: Source, before: int) -> list[bytes]:
    """The contours of a slice, each as an item of a sequence. before: how many the organ has already."""
    found = []
    image = _element(_CLASS_UID, _uid(source.class_uid)) + _element(_INSTANCE_UID, _uid(one.instance))
    if source.is_multiframe:
        image += _element(_FRAME, _padded(str(one.frame + 1)))
    start = _element(_IMAGES, _element(_ITEM, image)) + _element(_KIND, _padded("CLOSED_PLANAR"))
    for number, polygon in enumerate(outlines(mask), start=before + 1):
        points = _element(_COUNT, _padded(str(len(polygon)))) + _element(_NUMBER, _padded(str(number)))
        places = _element(_DATA, _text(_places(_begun_well(polygon, one), one)))
        found.append(_element(_ITEM, start + points + places))
    return found


def _element(tag: tuple[int, int], value: bytes) -> bytes:
    """An element as implicit VR, little endian, has it: what kind it is is not written."""
    return _start(tag, len(value)) + value


def _start(tag: tuple[int, int], length: int) -> bytes:
    return pack("<HHI", *tag, length)


def _padded(text: str) -> bytes:
    """A text of an even number of characters."""
    return (text + " " * (len(text) % 2)).encode("ascii")


def _uid(text: str) -> bytes:
    return (text + "\0" * (len(text) % 2)).encode("ascii")


def _begun_well(polygon: DoubleArray, one: Slice) -> DoubleArray:
    """The same polygon from another corner where the last one would differ from the first in z alone: plastimatch takes
    it for the first again, and leaves it out."""
    along = np.array(one.orientation).reshape(2, 3)
    flat = np.hypot(along[:, 0], along[:, 1])
    closing = polygon[0] != polygon[-1]
    return polygon if flat[closing].max() >= flat.max() else np.roll(polygon, 1, axis=0)


def _places(polygon: DoubleArray, one: Slice) -> DoubleArray:
    """Points `(columns, rows)` of a slice in millimetres (LPS)."""
    assert one.position is not None
    assert one.orientation is not None
    assert one.spacing is not None
    along = np.array(one.orientation).reshape(2, 3)
    return np.asarray(one.position + polygon * one.spacing[::-1] @ along)


def _text(places: DoubleArray) -> bytes:
    """Numbers to 0.1 µm."""
    return _padded("\\".join(map("%.4f".__mod__, (np.round(places, 4) + 0.0).ravel().tolist())))


def _region(value: int, name: str, source: Source) -> Any:
    return _dataset(
        ROINumber=value,
        ReferencedFrameOfReferenceUID=source.frame_of_reference_uid,
        ROIName=name[:MOST_LABEL],
        ROIGenerationAlgorithm="AUTOMATIC",
    )


def _observed(value: int, name: str) -> Any:
    what = coded(name)
    kind = _code(what.kind)
    if what.modifiers:
        kind.SegmentedPropertyTypeModifierCodeSequence = [_code(modifier) for modifier in what.modifiers]
    return _dataset(
        ObservationNumber=value,
        ReferencedROINumber=value,
        SegmentedPropertyCategoryCodeSequence=[_code(what.category)],
        RTROIIdentificationCodeSequence=[kind],
        RTROIInterpretedType="ORGAN" if what.known and not what.region else "",
        ROIInterpreter="",
    )


def _code(code: Code) -> Any:
    return _dataset(CodeValue=code.value, CodingSchemeDesignator="SCT", CodeMeaning=code.meaning)
