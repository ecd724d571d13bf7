"""DICOM segmentations (SEG) as label maps: what other programs drew, to score predictions against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from semiseg.errors import DataError
from semiseg.geometry import from_canonical
from semiseg.io.dicom.codes import coded
from semiseg.io.dicom.derived import no_words_of_patients
from semiseg.io.dicom.library import library
from semiseg.io.dicom.segmentation import require_highdicom
from semiseg.io.grid import Grid
from semiseg.types import AnyArray, DoubleArray, LabelArray

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_MOST_OFF = 0.02
"""So far, in voxels, a frame's pixels may lie off the grid's."""


def is_segmentation(path: Path) -> bool:
    """Whether a file is a SEG, by its header."""
    if not path.name.lower().endswith(".dcm") or not path.is_file():
        return False
    pydicom = library()
    try:
        head = pydicom.dcmread(path, specific_tags=["SOPClassUID"], stop_before_pixels=True)
    except Exception:  # noqa: BLE001 (pydicom raises anything)
        return False
    return str(head.get("SOPClassUID", "")) in SEGMENTATIONS


def read_segmentation(path: Path, grid: Grid, organs: Mapping[int, str]) -> LabelArray:
    """The label map `(Z, Y, X)` of a SEG on a grid, with the values that the organs have.

    A segment is the organ of its label's name, or of its code and side. Raises `DataError` that names the file: no
    readable SEG, probabilities, a segment that is none of the organs, segments that overlap, frames off the grid.
    """
    require_highdicom()
    import highdicom as hd

    with no_words_of_patients():
        try:
            seg = hd.seg.segread(path)
            values = {int(one.SegmentNumber): one for one in seg.SegmentSequence if int(one.SegmentNumber)}
        except Exception as error:  # noqa: BLE001 (its texts may quote values)
            raise DataError(f"{path}: not a readable DICOM SEG ({type(error).__name__}). Export it anew.") from None
        try:
            if seg.SegmentationType == "FRACTIONAL":
                raise DataError(f"{path}: a SEG of probabilities. Export it as a binary one.")
            of_segment = {number: _organ(one, organs, path) for number, one in values.items()}
            return _placed(seg, grid, of_segment, path)
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001
            raise DataError(f"{path}: its segments cannot be read ({type(error).__name__}). Export it anew.") from None


def _organ(segment: Any, organs: Mapping[int, str], path: Path) -> int:
    """The value of the organ that a segment is."""
    name = str(segment.get("SegmentLabel", ""))
    for value, organ in organs.items():
        if _plain(organ) == _plain(name):
            return value
    kind = segment.SegmentedPropertyTypeCodeSequence[0]
    modifiers = {str(one.CodeValue) for one in kind.get("SegmentedPropertyTypeModifierCodeSequence", [])}
    for value, organ in organs.items():
        what = coded(organ)
        if what.known and (what.kind.value, {one.value for one in what.modifiers}) == (str(kind.CodeValue), modifiers):
            return value
    raise DataError(
        f"{path}: the segment {name!r} is none of {', '.join(organs.values())}. Leave it out of the SEG, or add the "
        "label."
    )


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _placed(seg: Any, grid: Grid, of_segment: Mapping[int, int], path: Path) -> LabelArray:
    z, y, x = grid.shape_zyx
    canonical = np.zeros((z, y, x), np.uint8 if max(of_segment.values(), default=0) < 256 else np.uint16)
    stored = from_canonical(canonical, grid.affine)  # the same memory
    to_index = np.linalg.inv(grid.affine) @ np.diag([-1.0, -1.0, 1.0, 1.0])
    shared = seg.SharedFunctionalGroupsSequence[0]
    for number, own in enumerate(seg.PerFrameFunctionalGroupsSequence, start=1):

        def find(group: str, own: Any = own) -> Any:
            return (own.get(group) or shared.get(group))[0]

        frame = seg.get_stored_frame(number)
        rows, columns = np.nonzero(frame)
        if not rows.size:
            continue
        along = np.array(find("PlaneOrientationSequence").ImageOrientationPatient, float).reshape(2, 3)
        row_mm, column_mm = map(float, find("PixelMeasuresSequence").PixelSpacing)
        start = np.append(np.array(find("PlanePositionSequence").ImagePositionPatient, float), 1.0)
        steps = to_index[:3, :3] @ np.array([along[1] * row_mm, along[0] * column_mm]).T
        places = (to_index @ start)[:3, None] + steps @ np.array([rows, columns])
        i, j, k = _whole(places, grid, stored.shape, path)
        if seg.SegmentationType == "BINARY":
            value: Any = of_segment[int(find("SegmentIdentificationSequence").ReferencedSegmentNumber)]
        else:
            table = np.zeros(max(of_segment) + 1, canonical.dtype)
            table[list(of_segment)] = list(of_segment.values())
            value = table[frame[rows, columns]]
        if ((before := stored[i, j, k]) != 0).any() and (before != 0)[before != value].any():
            raise DataError(f"{path}: segments overlap, but a voxel can have one label. Export them apart.")
        stored[i, j, k] = value
    return canonical


def _whole(places: DoubleArray, grid: Grid, shape: tuple[int, ...], path: Path) -> AnyArray:
    """Indices of voxels at which pixels lie."""
    whole = np.rint(places)
    if np.abs(places - whole).max() > _MOST_OFF:
        raise DataError(
            f"{path}: its pixels do not lie on the prediction's voxels. Predict on the scan that it was drawn on."
        )
    if (whole.min(axis=1) < 0).any() or (whole.max(axis=1) >= shape).any():
        raise DataError(f"{path}: it reaches outside of the prediction. Predict on the scan that it was drawn on.")
    return whole.astype(np.intp)
