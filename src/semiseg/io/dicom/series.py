"""Series of DICOM: which slices are one volume, in which order, on which grid, and what keeps others from being one."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from semiseg.geometry import canonical_grid, triple
from semiseg.io.dicom.headers import Slice, Unread, slices_of
from semiseg.io.dicom.order import Fault, fault_of, normal_of, ordered_by_position, without_duplicates
from semiseg.io.dicom.regular import Regular, made_regular
from semiseg.io.dicom.values import voxel_bytes
from semiseg.io.grid import Grid
from semiseg.types import AnyArray, DoubleArray

MOST_PIXELS = 1 << 26
"""Of a slice: 8192 x 8192. A header that claims more is damaged."""
_DIRECTION, _SPACING = 1e-3, 1e-3
"""So far the directions and the spacings (a share) of slices of one volume may differ: scanners round them."""
_RESAMPLE = "Restore the slices, or add --resample, which makes a regular grid."
_DERIVED = "Derived images (reformats, projections), which are read where --series names them alone."
_NO_SCANS = {"SEG": "a segmentation", "RTDOSE": "a dose", "RTSTRUCT": "contours", "PR": "a presentation"}
_INTEGERS = (8, 16, 32)
_UID = re.compile(r"[0-9]+(\.[0-9]+){4,}")


@dataclass(frozen=True)
class Series:
    """A DICOM series that is one volume: what its headers say, in the order of positions along the slices' normal.

    uid: SeriesInstanceUID. description: shown by `check` alone, never logged. files: in the order of slices; the same
    one for each frame of an enhanced file. frames: of a multi-frame file the frame of each slice (from 0), else 0.
    grid: stored axes (columns, rows, slices) and the RAS affine. id: what names of files and cases have in the place of
    the UID. slices: what the headers say of each. regular: how `grid` was made of slices that lie on no regular one;
    then it may have another number of slices than `files`, and `on_source` brings a label map back. mended: what was
    wrong with the places of slices that were made regular.
    """

    uid: str
    description: str
    modality: str
    files: tuple[Path, ...]
    frames: tuple[int, ...]
    grid: Grid = field(compare=False)
    id: str = ""
    slices: tuple[Slice, ...] = ()
    regular: Regular | None = None
    mended: str = field(default="", compare=False)

    @property
    def made_regular(self) -> str:
        """What was done, as a sentence; empty where nothing was."""
        if self.regular is None:
            return ""
        count = self.regular.shape_xyz[2]
        return f"made regular by resampling ({len(self.files)} slices became {count}). {self.mended}"

    def on_source(self, label: AnyArray) -> AnyArray:
        """A label map on `grid`, in its stored order `(columns, rows, slices)`, on the slices of `files`, one plane
        each, in their order: the same where the grid is theirs."""
        return label if self.regular is None else self.regular.back(label)


@dataclass(frozen=True)
class Unusable:
    """A series, or files, that are no volume, and why, as a sentence.

    series: what it is taken for where it is asked for by name (derived images). left_out: nobody takes it for a scan,
    so there is nothing to mend. mendable: it would be a volume if it was made regular.
    """

    uid: str
    description: str
    modality: str
    files: tuple[Path, ...]
    why: str
    id: str = ""
    slices: tuple[Slice, ...] = ()
    series: Series | None = None
    left_out: bool = False
    mendable: bool = False


def find_series(
    folder: Path, *, files: Sequence[Path] | None = None, resample: bool = False
) -> list[Series | Unusable]:
    """All series of a folder at any depth, of a zip or of one file, in order of their first files; at the end what is
    no series. files: look at these of them alone. resample: those of gaps, duplicates, uneven spacing and tilt are
    made regular instead of refused.

    Raises `DataError` for a zip that is damaged or not safe, `ConfigError` where pydicom is missing.
    """
    by_uid: defaultdict[str, list[_Group]] = defaultdict(list)
    unread: defaultdict[tuple[str, str], list[Path]] = defaultdict(list)
    for found in slices_of(folder, files):
        if isinstance(found, Unread):
            unread[found.modality, found.why].append(found.file)
            continue
        groups = by_uid[found.uid or f"without a UID in {found.file.parent}"]
        if (group := next((group for group in groups if group.takes(found)), None)) is None:
            groups.append(group := _Group(found))
        group.slices.append(found)
    series: list[Series | Unusable] = []
    for groups in by_uid.values():
        series += _told_apart(groups, resample=resample)
    return series + [Unusable("", "", modality, tuple(files), why) for (modality, why), files in unread.items()]


def _told_apart(groups: Sequence[_Group], *, resample: bool) -> list[Series | Unusable]:
    """Each group of a series, with an id of its own. The one that is a scan is called by the UID alone, whatever lies
    beside it: localizers and derived images may come later, and its label keeps its name."""
    judged = [group.judged(resample=resample) for group in groups]
    scans = [group.is_scan(one) for group, one in zip(groups, judged, strict=True)]
    return [
        one if len(groups) == 1 or (is_scan and sum(scans) == 1) else _called(one, group.own_id)
        for group, one, is_scan in zip(groups, judged, scans, strict=True)
    ]


def _called(one: Series | Unusable, id: str) -> Series | Unusable:
    if isinstance(one, Series):
        return replace(one, id=id)
    return replace(one, id=id, series=one.series and replace(one.series, id=id))


def hashed(text: str, length: int = 12) -> str:
    """What stands for a UID in names of files and cases: it tells two apart, and nobody reads the UID off it."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def without_uid(asked: str) -> str:
    """What `--series` was told, a UID as its hash: nothing that is written down is to name a patient's study."""
    return hashed(asked) if _UID.fullmatch(asked) else asked


class _Group:
    """Slices that may be one volume: of one series, kind, matrix, spacing and direction."""

    def __init__(self, first: Slice) -> None:
        self._first = first
        self._kind = _kind(first)
        self.slices: list[Slice] = []

    def takes(self, other: Slice) -> bool:
        """Whether another slice of the series belongs to it."""
        first = self._first
        return (
            (first.pixels.rows, first.pixels.columns) == (other.pixels.rows, other.pixels.columns)
            and self._kind == _kind(other)
            and _close(first.orientation, other.orientation, _DIRECTION, 0.0)
            and _close(first.spacing, other.spacing, 0.0, _SPACING)
        )

    @cached_property
    def _id(self) -> str:
        return hashed(self._first.uid or " ".join(sorted({found.instance or found.file.name for found in self.slices})))

    @property
    def own_id(self) -> str:
        """What tells it from the other groups of its series."""
        first = self._first
        along = [round(v, 2) + 0.0 for v in (*(first.orientation or ()), *(first.spacing or ()))]
        return hashed(f"{self._id} {self._kind} {first.pixels.rows} {first.pixels.columns} {along}")

    def is_scan(self, judged: Series | Unusable) -> bool:
        """Whether it is a volume, or would be one if it was made regular, and no derived one."""
        return not self._kind and (isinstance(judged, Series) or judged.mendable)

    def judged(self, *, resample: bool) -> Series | Unusable:
        """The volume, or why there is none; called by the UID."""
        first, id = self._first, self._id
        unusable = Unusable(
            first.uid,
            first.description,
            first.modality,
            tuple(found.file for found in self.slices),
            "",
            id,
            tuple(self.slices),
        )
        if self._kind == "localizer":
            return replace(unusable, why="Localizer images.", left_out=True)
        if why := _why_no_volume(self.slices):
            return replace(unusable, why=why, left_out=first.modality in _NO_SCANS)
        found = _volume(first, self.slices, id, resample=resample)
        if isinstance(found, Fault):
            remedy = f" {_RESAMPLE}" if found.mendable else ""
            return replace(unusable, why=f"{found.text}{remedy}", mendable=found.mendable)
        if self._kind == "derived":
            return replace(unusable, why=_DERIVED, series=found, left_out=True)
        return found


def _kind(found: Slice) -> str:
    """`localizer`, `derived`, or nothing of both."""
    if "LOCALIZER" in found.marks:
        return "localizer"
    return "derived" if found.marks[:2] == ("DERIVED", "SECONDARY") or "PROJECTION IMAGE" in found.marks else ""


def _close(a: tuple[float, ...] | None, b: tuple[float, ...] | None, absolute: float, relative: float) -> bool:
    if a is None or b is None:
        return a is b
    return all(abs(x - y) <= absolute + relative * abs(x) for x, y in zip(a, b, strict=True))


def _why_no_volume(slices: Sequence[Slice]) -> str:
    """Why slices are no volume whatever their positions; empty where they may be one."""
    first = slices[0]
    if first.modality in _NO_SCANS:
        return f"{_NO_SCANS[first.modality][:1].upper()}{_NO_SCANS[first.modality][1:]}, no scan."
    if not 0 < first.pixels.rows * first.pixels.columns <= MOST_PIXELS:
        return f"{first.name}: {first.pixels.columns} x {first.pixels.rows} pixels are no slice's. Restore the file."
    for found in slices:
        pixels = found.pixels
        if pixels.samples != 1 or not pixels.photometric.startswith("MONOCHROME"):
            return "Colour images are not read. Leave them out."
        if pixels.allocated == 1:
            return "One bit a voxel: a mask, no scan."
        if pixels.allocated not in _INTEGERS or not 0 < pixels.stored <= pixels.high + 1 <= pixels.allocated:
            return (
                f"{found.name}: {pixels.allocated} bits a voxel, of which {pixels.stored} up to bit {pixels.high}, "
                "are not read. Export it anew."
            )
        if found.table:
            return f"{found.name}: its values come from a table (Modality LUT), which is not read. Export it anew."
        if found.cut:
            return f"{found.name} is cut off: voxels are missing. Restore the file."
        if not np.isfinite([found.slope, found.inter]).all() or found.slope == 0:
            return f"{found.name}: the rescale slope is {found.slope:g}. Restore the file."
    if first.frames > 1 and any(found.position is None for found in slices):
        return (
            f"{first.file.name}: frames without positions of their own are no volume. Export it as enhanced or classic."
        )
    lacking = [found for found in slices if None in (found.position, found.orientation, found.spacing)]
    if lacking:
        return f"{lacking[0].name}: no position, orientation or pixel spacing, so it is no slice of a volume."
    return _why_odd_direction(first)


def _why_odd_direction(first: Slice) -> str:
    along = np.array(first.orientation, dtype=np.float64)
    lengths = np.linalg.norm(along[:3]), np.linalg.norm(along[3:])
    if max(abs(length - 1) for length in lengths) > 1e-2 or abs(float(along[:3] @ along[3:])) > 1e-2:
        return f"{first.name}: ImageOrientationPatient is no pair of perpendicular directions. Restore the file."
    if first.spacing is None or min(first.spacing) <= 1e-6 or max(first.spacing) > 1e3:
        return f"{first.name}: the pixel spacing is no scan's. Restore the file."
    return ""


def _volume(first: Slice, slices: Sequence[Slice], id: str, *, resample: bool) -> Series | Fault:
    """The volume, or why the places of its slices are none's."""
    ordered = ordered_by_position(slices)
    fault = fault_of(ordered)
    if fault and not (resample and fault.mendable):
        return fault
    regular, mended = None, ""
    if fault:
        ordered = without_duplicates(ordered)
        others = fault_of(ordered)  # beside duplicates
        mended = " ".join(dict.fromkeys(one.text for one in (fault, others) if one))
        regular, start, step_mm = made_regular(ordered)
        affine, shape_xyz = _in_ras(first, start, normal_of(first) * step_mm), regular.shape_xyz
    else:
        affine = _affine(ordered)
        shape_xyz = triple((first.pixels.columns, first.pixels.rows, len(ordered)))
    shape_zyx, spacing_mm = canonical_grid(affine, shape_xyz)
    columns_mm = triple(float(v) for v in np.linalg.norm(affine[:3, :3], axis=0))
    return Series(
        uid=first.uid,
        description=first.description,
        modality=first.modality,
        files=tuple(found.file for found in ordered),
        frames=tuple(found.frame for found in ordered),
        grid=Grid(shape_zyx, spacing_mm, affine, columns_mm, voxel_bytes=voxel_bytes(ordered)),
        id=id,
        slices=tuple(ordered),
        regular=regular,
        mended=mended,
    )


def _affine(ordered: Sequence[Slice]) -> DoubleArray:
    """From (column, row, slice) to RAS millimetres."""
    start, stop = (np.array(found.position, dtype=np.float64) for found in (ordered[0], ordered[-1]))
    return _in_ras(ordered[0], start, (stop - start) / (len(ordered) - 1))


def _in_ras(found: Slice, start: DoubleArray, step: DoubleArray) -> DoubleArray:
    along, spacing = np.array(found.orientation, dtype=np.float64), found.spacing or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along[:3] * spacing[1], along[3:] * spacing[0]
    affine[:3, 2], affine[:3, 3] = step, start
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine + 0.0  # no -0
