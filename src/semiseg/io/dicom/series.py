"""Series of DICOM: which slices are one volume, in which order, on which grid, and what keeps others from being one."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semiseg.geometry import canonical_grid, triple
from semiseg.io.dicom.headers import Slice, Unread, slices_of
from semiseg.io.grid import Grid
from semiseg.types import DoubleArray

_PLACE_MM, _PLACE_SHARE = 0.06, 0.01
"""So far off its place a slice may lie: scanners that round positions to 0.1 mm leave 0.05, or 1 % of the spacing."""
_TILT_PIXELS = 0.25
"""So far the last slice may have moved in its plane against the first."""
_DECIMALS = 4


@dataclass(frozen=True)
class Series:
    """A DICOM series that is one volume: what its headers say, in the order of positions along the slices' normal.

    uid: SeriesInstanceUID. description: shown by `check` alone, never logged. files: in the order of slices; the same
    one for each frame of an enhanced file. frames: of a multi-frame file the frame of each slice (from 0), else 0.
    grid: stored axes (columns, rows, slices) and the RAS affine. slices: what the headers say of each.
    """

    uid: str
    description: str
    modality: str
    files: tuple[Path, ...]
    frames: tuple[int, ...]
    grid: Grid
    slices: tuple[Slice, ...] = ()
    id: str = ""


@dataclass(frozen=True)
class Unusable:
    """A series, or files, that are no volume, and why, as the rest of a sentence. series: what it would be if asked
    for by name, of derived images."""

    uid: str
    description: str
    modality: str
    files: tuple[Path, ...]
    why: str
    series: Series | None = None
    id: str = ""


def find_series(folder: Path) -> list[Series | Unusable]:
    """All series of a folder at any depth, of a zip or of one file, in order of their first files."""
    groups: defaultdict[tuple[object, ...], list[Slice]] = defaultdict(list)
    unread: dict[str, list[Path]] = defaultdict(list)
    for found in slices_of(folder):
        if isinstance(found, Unread):
            unread[found.why].append(found.file)
        else:
            groups[_key(found)].append(found)
    several = Counter(key[0] for key in groups)
    series: list[Series | Unusable] = [_series(slices, several[key[0]] > 1) for key, slices in groups.items()]
    return series + [Unusable("", "", "", tuple(files), why) for why, files in unread.items()]


def _key(found: Slice) -> tuple[object, ...]:
    """What slices of one volume share."""
    rounded = None if found.orientation is None else tuple(np.round(found.orientation, _DECIMALS) + 0.0)
    spacing = None if found.spacing is None else tuple(np.round(found.spacing, _DECIMALS))
    own = found.uid or str(found.file.parent)
    return own, rounded, found.pixels.rows, found.pixels.columns, spacing, _kind(found)


def _kind(found: Slice) -> str:
    """`localizer`, `derived` or nothing of both."""
    marks = found.marks
    if "LOCALIZER" in marks:
        return "localizer"
    return "derived" if marks[:2] == ("DERIVED", "SECONDARY") or "PROJECTION IMAGE" in marks else ""


def hashed(text: str) -> str:
    """What stands for a UID in names of files and cases: it tells two apart and cannot be turned back."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _series(slices: Sequence[Slice], several: bool) -> Series | Unusable:
    first = slices[0]
    files = tuple(found.file for found in slices)
    id = hashed(first.uid or " ".join(sorted(found.instance or found.file.name for found in slices)))
    if several:
        id = hashed(f"{id} {_key(first)[1:]}")

    def unusable(why: str) -> Unusable:
        return Unusable(first.uid, first.description, first.modality, files, why, id=id)

    if first.orientation is None or first.spacing is None or any(found.position is None for found in slices):
        return unusable("no position, orientation or pixel spacing")
    normal = _normal(first)
    ordered = sorted(slices, key=lambda found: float(np.dot(found.position or (), normal)))
    affine = _affine(ordered)
    shape_xyz = triple((first.pixels.columns, first.pixels.rows, len(ordered)))
    shape_zyx, spacing_mm = canonical_grid(affine, shape_xyz)
    stored_mm = triple(float(v) for v in np.linalg.norm(affine[:3, :3], axis=0))
    grid = Grid(shape_zyx, spacing_mm, affine, stored_mm, voxel_bytes=max(1, first.pixels.allocated // 8))
    return Series(
        uid=first.uid,
        description=first.description,
        modality=first.modality,
        files=tuple(found.file for found in ordered),
        frames=tuple(found.frame for found in ordered),
        grid=grid,
        slices=tuple(ordered),
        id=id,
    )


def _normal(found: Slice) -> DoubleArray:
    along = np.array(found.orientation, dtype=np.float64)
    return np.cross(along[:3], along[3:])


def _affine(ordered: Sequence[Slice]) -> DoubleArray:
    """From (column, row, slice) to RAS millimetres."""
    first, last = ordered[0], ordered[-1]
    assert first.orientation is not None
    assert first.spacing is not None
    along = np.array(first.orientation)
    affine = np.eye(4)
    affine[:3, 0] = along[:3] * first.spacing[1]
    affine[:3, 1] = along[3:] * first.spacing[0]
    start, stop = np.array(first.position), np.array(last.position)
    affine[:3, 2] = (stop - start) / (len(ordered) - 1) if len(ordered) > 1 else _normal(first)
    affine[:3, 3] = start
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
