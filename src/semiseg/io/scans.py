"""The door for scans and label maps: what a file holds comes in and goes out here, whatever its format.

Arrays are canonical `(Z, Y, X)`. A format is a module with the functions of `Format`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from semiseg.errors import DataError
from semiseg.files import hash_files
from semiseg.geometry import from_canonical, to_canonical
from semiseg.io import metaimage, nifti, nrrd
from semiseg.io.dicom import reading as dicom
from semiseg.io.dicom.places import place_of, stamp_of
from semiseg.io.file_kinds import FormatName, format_of, is_written, scan_files
from semiseg.io.grid import Grid
from semiseg.io.masks import files_of_masks, is_mask_folder, mask_files
from semiseg.io.voxels import StoredVoxels
from semiseg.types import AnyArray, FloatArray, LabelArray, Shape
from semiseg.words import counted, shortened

_MAX_LABEL = 65535
_ROUNDING = 1e-3
"""So far from a whole number a label value may be: what other programs leave of 1 when they compute in floats."""
_MOST_ROUNDING = 0.1
"""The same at most, where a file stores values as steps of a slope, which misses a whole number by half a step: 2 is
stored as 2.008 where 0 to 4 are spread over a byte."""
_MOST_SMOOTH = 32
"""A map of more different values, most of which change from one voxel to the next, is a scan in the wrong folder."""
_LEAST_EQUAL, _FEWEST_TO_TELL = 0.5, 1000
_NO_LABEL_MAP = (
    "a grey-scale image, no label map, which has one value for each class. Put the label map here; scans belong into "
    "the folder of images."
)


class Format(Protocol):
    """What a module of a format has. All raise `DataError` that names the file and says what to do."""

    def read_grid(self, path: Path) -> Grid:
        """Read the header only."""
        ...

    def read_voxels(self, path: Path) -> StoredVoxels:
        """Read all voxels as the file stores them."""
        ...

    def read_some(self, path: Path, channel: int, most_bytes: int) -> tuple[AnyArray, int]:
        """The values of some voxels of a channel, and the bytes that were read for them: at most so many."""
        ...

    def files(self, path: Path) -> tuple[Path, ...]:
        """All files that a scan is made of, the named one first."""
        ...

    def write(self, path: Path, stored: AnyArray, grid: Grid, like: Path | None) -> None:
        """Write an array in the order of the grid's stored axes, whole or not at all. like: a file of this format."""
        ...


_FORMATS: dict[FormatName | None, Format] = {"NIfTI": nifti, "NRRD": nrrd, "MetaImage": metaimage}


def _format(path: Path) -> Format:
    if (named := _FORMATS.get(format_of(path))) is not None:
        return named
    return nifti if place_of(path) is None else dicom  # NIfTI's names files of other formats


def _is_dicom(path: Path) -> bool:
    return not is_mask_folder(path) and _format(path) is dicom


@dataclass(frozen=True)
class Volume:
    """A scan in memory: float32 array `(C, Z, Y, X)` in canonical orientation, and the grid it came from."""

    array: FloatArray
    grid: Grid


@dataclass(frozen=True)
class RawChannel:
    """A channel as its file stores it, in canonical orientation `(Z, Y, X)`: half or a quarter of float32's memory.

    A voxel's value is `stored * slope + inter`.
    """

    stored: AnyArray
    slope: float = 1.0
    inter: float = 0.0

    def values(self, start: int = 0, stop: int | None = None) -> FloatArray:
        """The values of rows `[start, stop)`, float32, in an array of their own."""
        with np.errstate(over="ignore", invalid="ignore"):  # what exceeds float32 becomes infinite, and is named
            array: FloatArray = np.array(self.stored[start:stop], dtype=np.float32, order="C")
            if self.slope != 1.0 or self.inter != 0.0:
                array *= np.float32(self.slope)
                array += np.float32(self.inter)
        return array

    def along(self, axes: Shape) -> RawChannel:
        """The channel with its axes in another order, a view."""
        return RawChannel(self.stored.transpose(axes), self.slope, self.inter)

    def count_not_finite(self) -> int:
        """How many voxels are NaN or infinite."""
        if self.stored.dtype.kind != "f" and np.isfinite([self.slope, self.inter]).all():
            extremes = RawChannel(np.array([self.stored.min(), self.stored.max()]), self.slope, self.inter)
            if np.isfinite(extremes.values()).all():
                return 0
        rows = range(len(self.stored))
        return sum(int(np.count_nonzero(~np.isfinite(self.values(row, row + 1)))) for row in rows)


@dataclass(frozen=True)
class RawVolume:
    """A scan as its files store it, and the grid it came from."""

    channels: tuple[RawChannel, ...]
    grid: Grid


def read_grid(path: Path) -> Grid:
    """Read the header only. Raises `DataError` for what is no scan, or not 3D or 4D."""
    if is_mask_folder(path):
        path = next(iter(mask_files(path).values()))
    return _format(path).read_grid(path)


def read_some(path: Path, channel: int, most_bytes: int) -> tuple[AnyArray, int]:
    """The values of some voxels of a channel, and the bytes that were read for them, at most so many: what tells
    whether they can be Hounsfield units. Raises `DataError` as `read_scan`."""
    return _format(path).read_some(path, channel, most_bytes)


def files_of(paths: Sequence[Path]) -> list[Path]:
    """All files that scans are made of: the named ones, and those in which a header says that the voxels are. Of a
    header that cannot be read the named one alone; reading tells."""
    found: list[Path] = []
    for path in paths:
        try:
            found += files_of(files_of_masks(path)) if is_mask_folder(path) else _format(path).files(path)
        except DataError:
            found += scan_files(path) if is_mask_folder(path) else [path]
    return found


def hash_of(paths: Sequence[Path], *, salt: str = "") -> str:
    """SHA-256 of the contents of all files that scans and label maps are made of, and of `salt`, hexadecimal. Of DICOM
    it also counts whether the series is made regular."""
    series = [path for path in paths if _is_dicom(path)]
    salt = " ".join([salt, *map(dicom.digest_of, series)])
    return hash_files(files_of([path for path in paths if path not in series]), salt=salt)


def stamps_of(paths: Sequence[Path]) -> dict[str, list[int]]:
    """Size and time of the files that scans and label maps are made of, by their paths; of a series of DICOM those of
    all that lies in its folder. Raises `OSError` for a missing one."""
    found: dict[str, list[int]] = {}
    for path in paths:
        if _is_dicom(path):
            found[str(path)] = list(stamp_of(path))
        else:
            found |= {str(file): [(stat := file.stat()).st_size, stat.st_mtime_ns] for file in files_of([path])}
    return found


def read_volume(paths: Sequence[Path]) -> Volume:
    """Read one case: a 3D file per channel, or one 4D file of channels. Raises as `read_scan`."""
    scan = read_scan(paths)
    return Volume(np.stack([channel.values() for channel in scan.channels]), scan.grid)


def read_scan(paths: Sequence[Path]) -> RawVolume:
    """Read one case as its files store it: a 3D file per channel, or one 4D file of channels.

    Raises `DataError` that names the file: unreadable, truncated, channels of different geometry, NaN or infinity.
    """
    channels: list[RawChannel] = []
    first: Grid | None = None
    for path in paths:
        voxels = _format(path).read_voxels(path)
        stored, grid = voxels.stored, voxels.grid
        if stored.ndim == 4 and stored.shape[3] > 1 and len(paths) > 1:
            raise DataError(f"{path}: 4D ({stored.shape}), but one 3D file per channel is expected. Split it.")
        parts = [stored[..., c] for c in range(stored.shape[3])] if stored.ndim == 4 else [stored]
        found = [RawChannel(to_canonical(part, grid.affine), voxels.slope, voxels.inter) for part in parts]
        if first is None:
            first = grid
        elif misfit := first.misfit(grid, "Resample one onto the other."):
            raise DataError(f"{path}: not on the grid of {paths[0]}: {misfit}")
        if bad := sum(channel.count_not_finite() for channel in found):
            are = counted(bad, "voxel is", "voxels are")
            raise DataError(f"{path}: {are} NaN or infinite. Replace them (CT: by -1024), or leave the scan out.")
        channels += found
    if first is None:
        raise DataError("a case without image files cannot be read.")
    return RawVolume(tuple(channels), first)


def read_label(path: Path) -> tuple[LabelArray, Grid]:
    """Read a label map `(Z, Y, X)`: uint8 where it fits, uint16 otherwise; or a folder of masks (`semiseg.io.masks`).

    Raises `DataError` for values that are not whole numbers from 0 to 65535 (to within 0.001, or half of a step in
    which a file stores them), for the many values of a grey-scale image, and for 4D files.
    """
    label, grid, _ = read_label_rounded(path)
    return label, grid


def read_masks(folder: Path, organs: Mapping[int, str]) -> tuple[LabelArray, Grid]:
    """A folder of masks as a label map with these values by name, whatever list lies beside them. Raises `DataError` as
    `read_label`, and where an organ has no mask."""
    return _merged(mask_files(folder, organs))[:2]


def read_label_rounded(path: Path) -> tuple[LabelArray, Grid, float]:
    """The same, and how far from a whole number the worst value was."""
    if is_mask_folder(path):
        return _merged(mask_files(path))
    voxels = _format(path).read_voxels(path)
    grid, stored = voxels.grid, voxels.stored
    exact = stored.dtype.kind in "iu" and voxels.slope == 1 and voxels.inter == 0  # as most are: no floats of them
    stores_steps = stored.dtype.kind in "iu" and not exact
    if not exact:
        stored = RawChannel(stored, voxels.slope, voxels.inter).values()
    if stored.ndim == 4 and stored.shape[3] == 1:
        stored = stored[..., 0]
    if stored.ndim != 3:
        raise DataError(f"{path}: a label map must be 3D, but this is {stored.shape}. Store one value per voxel.")
    whole, worst = stored, 0.0
    if not exact:
        if not np.isfinite(stored).all():
            raise DataError(f"{path}: the label map has NaN or infinite voxels. Repair the file.")
        whole = np.rint(stored)
        worst = float(np.abs(whole - stored).max(initial=0))
    allowed = max(_ROUNDING, min(0.51 * abs(voxels.slope), _MOST_ROUNDING)) if stores_steps else _ROUNDING
    if worst > allowed:
        strange = float(stored[np.abs(whole - stored) > allowed][0])
        raise DataError(f"{path}: label values must be whole numbers, but {strange:.6g} was found. {_advice(stored)}")
    low, high = (float(whole.min()), float(whole.max())) if whole.size else (0.0, 0.0)
    if low < 0 or high > _MAX_LABEL:
        raise DataError(
            f"{path}: label values from {low:g} to {high:g}; 0 to {_MAX_LABEL} are allowed. {_advice(stored)}"
        )
    dtype = np.uint8 if high < 256 else np.uint16
    label = np.ascontiguousarray(to_canonical(whole.astype(dtype), grid.affine))
    if high > _MOST_SMOOTH and (different := len(values_in(label))) > _MOST_SMOOTH and not _is_smooth(label):
        raise DataError(
            f"{path}: {different} different values, from {low:g} to {high:g}, that change from voxel to voxel: "
            f"{_NO_LABEL_MAP}"
        )
    return label, grid, worst


def _merged(masks: Mapping[int, Path]) -> tuple[LabelArray, Grid, float]:
    """Masks by value as one label map. Where two overlap, the higher value counts: a tumour in its organ, say."""
    label, first, worst = None, None, 0.0
    for value, file in masks.items():
        mask, grid, off = read_label_rounded(file)
        if len(found := np.unique(mask[mask > 0])) > 1:
            values = shortened([str(one) for one in found])
            raise DataError(
                f"{file}: a mask of one organ has one value above 0, but this has {values}. "
                "A label map of several organs is a file of its own: labels/ID.nii.gz."
            )
        if label is None or first is None:
            label, first = np.zeros(mask.shape, dtype=np.uint8 if max(masks) < 256 else np.uint16), grid
        elif misfit := grid.misfit(first, "Make all masks of a scan on one grid."):
            raise DataError(f"{file}: not on the grid of {next(iter(masks.values()))}: {misfit}")
        label[mask > 0] = value
        worst = max(worst, off)
    assert label is not None  # a scheme has an organ
    assert first is not None
    return label, first, worst


def values_in(label: LabelArray) -> list[int]:
    """The values that occur in a label map `(Z, Y, X)`, ascending."""
    found = np.zeros(_MAX_LABEL + 1, dtype=bool)
    for plane in label:  # not all at once, which takes a 64-bit copy of the voxels; sorting them takes far longer
        found[plane] = True
    return [int(value) for value in np.flatnonzero(found)]


def _is_smooth(label: LabelArray) -> bool:
    """Whether at least half of the voxels above 0 have the value of the next one along X; true for maps too small to
    tell."""
    if label.size < _FEWEST_TO_TELL:
        return True
    here, following = label[..., :-1], label[..., 1:]
    above = here > 0
    return int(np.count_nonzero((here == following) & above)) >= _LEAST_EQUAL * int(np.count_nonzero(above))


def _advice(stored: AnyArray) -> str:
    """What to do about a label map of strange values: many of them are a scan's."""
    some = np.unique(stored.ravel()[:: max(1, stored.size // 100_000)])
    if some.size > _MOST_SMOOTH:
        return f"It holds {some.size} or more different values: {_NO_LABEL_MAP}"
    return "Correct the file; where it was resampled, do that again with nearest neighbours."


def write_label(path: Path, label_zyx: LabelArray, grid: Grid, like: Path | None = None) -> None:
    """Write a canonical label map onto a grid, whole or not at all.

    path: its ending says the format: that of a file which `is_written`. like: a file on this grid. Where its format is
    the same, all that its header says of the geometry is kept, bit for bit (NIfTI: sform, qform and their codes, units
    and pixel sizes).
    """
    kind = np.uint8 if int(label_zyx.max(initial=0)) < 256 else np.uint16
    _write(path, label_zyx.astype(kind, copy=False), grid, like)


def write_map(path: Path, array_zyx: FloatArray, grid: Grid, like: Path | None = None) -> None:
    """Write a canonical float32 map `(Z, Y, X)` or maps `(C, Z, Y, X)` (stored as 4D), as `write_label`."""
    _write(path, array_zyx.astype(np.float32, copy=False), grid, like)


def write_scan(path: Path, image: Path) -> None:
    """Write what one file (or a folder of masks) holds into another, in the format of its name: as it is stored, or as
    float32 where voxels have a slope."""
    if is_mask_folder(image):
        write_label(path, *read_label(image))
        return
    voxels = _format(image).read_voxels(image)
    stored = voxels.stored
    if voxels.slope != 1 or voxels.inter != 0:
        stored = RawChannel(stored, voxels.slope, voxels.inter).values()
    _write_stored(path, stored, voxels.grid, image)


def _write(path: Path, array: AnyArray, grid: Grid, like: Path | None) -> None:
    _write_stored(path, from_canonical(array, grid.affine), grid, like)


def _write_stored(path: Path, stored: AnyArray, grid: Grid, like: Path | None) -> None:
    if not is_written(path):
        raise DataError(f"{path}: no file of this name is written. Name it .nii.gz, .nrrd or .mha.")
    same = like is not None and format_of(like) == format_of(path)
    _format(path).write(path, stored, grid, like if same else None)
