"""DICOM segmentations (SEG): a label map that PACS and viewers know, on the slices of its source series."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageColor

from semiseg.errors import ConfigError, DataError
from semiseg.io.colours import organ_colours
from semiseg.io.dicom.codes import Code, coded
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
from semiseg.io.dicom.library import library
from semiseg.types import LabelArray

_SERIES_NUMBER = 9001
_BLANK = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime",
)  # fmt: skip


def require_highdicom() -> None:
    """Import highdicom and have it read its tables of the standard, so that their 140 MB are there before what a scan
    takes is planned. Raises `ConfigError` where it is not installed."""
    if importlib.util.find_spec("highdicom") is None:
        raise ConfigError("DICOM SEG needs highdicom: pip install '.[dicom]'.")
    import highdicom as hd

    with no_words_of_patients():
        hd.SOPClass(
            study_instance_uid=hd.UID(),
            series_instance_uid=hd.UID(),
            sop_instance_uid=hd.UID(),
            sop_class_uid=library().uid.SegmentationStorage,
            series_number=1,
            instance_number=1,
            modality="SEG",
        )


def write_segmentation(
    path: Path,
    label_zyx: LabelArray,
    source: Source,
    organs: Mapping[int, str],
    made_by: MadeBy,
    *,
    labelmap: bool = False,
) -> bool:
    """Write a label map of a series as a SEG with a segment for each organ that is found; false, and no file, where
    none is (a SEG without a segment is none).

    Binary, a frame for each organ and slice that holds it; labelmap: one frame for each slice with the label's values,
    which fewer programs read (DICOM 2024d). Not compressed.
    """
    require_highdicom()
    values = values_of(label_zyx, organs)
    if not values:
        return False
    series = source.series
    planes = planes_of(label_zyx, series)
    numbers = values if labelmap else list(range(1, len(values) + 1))
    if numbers != values:
        new_values = np.zeros(max(organs) + 1, dtype=label_zyx.dtype)
        new_values[values] = numbers
        planes = new_values[planes]
    if source.is_multiframe:
        order = np.argsort(series.frames)
        if list(np.asarray(series.frames)[order]) != list(range(series.slices[0].frames)):
            raise DataError(f"{series.files[0]}: some of its frames are not in the volume; no SEG can refer to it.")
        planes = planes[order]
    with no_words_of_patients():
        _write(path, planes, source, {n: organs[v] for n, v in zip(numbers, values, strict=True)}, made_by, labelmap)
    return True


def _write(
    path: Path, planes: Any, source: Source, segments: Mapping[int, str], made_by: MadeBy, labelmap: bool
) -> None:
    import highdicom as hd

    colours = organ_colours(segments.values())
    seg = hd.seg.Segmentation(
        source_images=_images(source),
        pixel_array=planes,
        segmentation_type="LABELMAP" if labelmap else "BINARY",
        segment_descriptions=[_described(n, name, colours[name], made_by) for n, name in segments.items()],
        series_instance_uid=hd.UID(),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=made_by.manufacturer,
        manufacturer_model_name=made_by.manufacturer,
        software_versions=made_by.version,
        device_serial_number=made_by.model[:16],
        content_label="SEGMENTATION",
        content_description=f"by semiseg, model {made_by.model[:12]}",
    )
    seg.ContentCreatorName = ""
    copy_identity(source, seg)
    equip(seg, made_by, description="Segmentation by semiseg", number=_SERIES_NUMBER)
    save(seg, path, implicit=False)


def _images(source: Source) -> list[Any]:
    """What highdicom is to know of the source: without the patient, whom it would check and warn of."""
    dataset_of = library().Dataset
    slices = source.series.slices
    first = slices[0]
    assert first.orientation is not None
    assert first.spacing is not None
    thickness = float(np.linalg.norm(source.series.grid.affine[:3, 2]))
    with suppress(TypeError, ValueError):
        thickness = float(value_of(source.head, "SliceThickness")) or thickness

    def image() -> Any:
        made = dataset_of()
        for keyword in _BLANK:
            setattr(made, keyword, "")
        made.SOPClassUID, made.Modality = source.class_uid, first.modality
        made.StudyInstanceUID, made.SeriesInstanceUID = source.study_uid, source.series_uid
        made.FrameOfReferenceUID = source.frame_of_reference_uid
        made.PositionReferenceIndicator = value_of(source.head, "PositionReferenceIndicator")
        made.Rows, made.Columns = first.pixels.rows, first.pixels.columns
        for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if value_of(source.head, keyword):
                made[keyword] = source.head[keyword]
        return made

    orientation = _decimals(first.orientation)
    spacing = _decimals(first.spacing)
    if not source.is_multiframe:
        images = []
        for one in slices:
            made = image()
            made.SOPInstanceUID = one.instance
            made.ImagePositionPatient = _decimals(one.position or ())
            made.ImageOrientationPatient = orientation
            made.PixelSpacing, made.SliceThickness = spacing, _decimals([thickness])[0]
            images.append(made)
        return images
    made, shared, orientations, measures = image(), dataset_of(), dataset_of(), dataset_of()
    orientations.ImageOrientationPatient = orientation
    measures.PixelSpacing, measures.SliceThickness = spacing, _decimals([thickness])[0]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientations], [measures]
    made.SOPInstanceUID, made.NumberOfFrames = first.instance, first.frames
    made.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for one in sorted(slices, key=lambda found: found.frame):
        group, place = dataset_of(), dataset_of()
        place.ImagePositionPatient = _decimals(one.position or ())
        group.PlanePositionSequence = [place]
        groups.append(group)
    made.PerFrameFunctionalGroupsSequence = groups
    return [made]


def _decimals(values: Sequence[float]) -> list[Any]:
    """Numbers as DICOM writes them: in 16 characters at most."""
    decimal = library().valuerep.DSfloat
    return [decimal(float(value), auto_format=True) for value in values]


def _described(number: int, name: str, colour: str, made_by: MadeBy) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    what = coded(name)
    algorithm = hd.AlgorithmIdentificationSequence(
        name="semiseg",
        family=codes.DCM.ArtificialIntelligence,
        version=made_by.version,
        source="semiseg",
        parameters={"model": made_by.model[:12]},
    )
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:MOST_LABEL],
        segmented_property_category=_concept(what.category),
        segmented_property_type=_concept(what.kind),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        anatomic_regions=[_concept(what.region)] if what.region else None,
        display_color=hd.color.CIELabColor.from_rgb(*ImageColor.getrgb(colour)[:3]),
    )
    if what.modifiers:
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [_concept(code) for code in what.modifiers]
    return description


def _concept(code: Code) -> Any:
    import highdicom as hd

    return hd.sr.CodedConcept(code.value, "SCT", code.meaning)
