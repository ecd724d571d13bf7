"""NIfTI in and out: canonical arrays in, the file's own grid and exact header out."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from semiseg.errors import DataError
from semiseg.files import atomic_file
from semiseg.geometry import (
    canonical_affine,
    canonical_grid,
    from_canonical,
    orientation_name,
    stored_axes,
    to_canonical,
)
from semiseg.io.file_kinds import NIFTI_ENDINGS, is_nifti, why_unread
from semiseg.types import AnyArray, DoubleArray, FloatArray, LabelArray, Shape, Spacing
from semiseg.words import counted

_POSITION_TOLERANCE_MM = 0.01
"""So far apart the corners of two grids may lie: what other programs leave when they round an affine."""
_DIRECTION_TOLERANCE_MM = 1e-3
_LARGEST_MM = 1e6
"""No scan lies a kilometre off: larger numbers are a damaged header."""
_LARGEST_VOXEL_MM, _SMALLEST_VOXEL_MM = 1e3, 1e-6
_MOST_INFLATED = 1040
"""No byte of a gzip file becomes more than 1,032 (RFC 1951: two bits for 258 bytes)."""
_BLOCK_BYTES = 1 << 22
_MAX_LABEL = 65535
_ROUNDING = 1e-3
"""So far from a whole number a label value may be: what other programs leave of 1 when they compute in floats."""
_MOST_SMOOTH = 32
"""A map of more different values, most of which change from one voxel to the next, is a scan in the wrong folder."""
_LEAST_EQUAL, _FEWEST_TO_TELL = 0.5, 1000
_NO_LABEL_MAP = (
    "a grey-scale image, no label map, which has one value for each class. Put the label map here; scans belong into "
    "the folder of images."
)


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a file lie: enough to check two files against each other and to write a third one.

    shape_zyx and spacing_mm are in canonical order; affine and header are the file's own.
    """

    shape_zyx: Shape
    spacing_mm: Spacing
    affine: DoubleArray
    header: Any
    channels: int = 1

    @property
    def orientation(self) -> str:
        return orientation_name(self.affine)

    @property
    def _canonical_affine(self) -> DoubleArray:
        """The affine of canonical indices; the same for every order in which a file may store one grid."""
        axes = stored_axes(self.affine) or (0, 1, 2)
        x, y, z = (self.shape_zyx[2 - axis] for axis in axes)
        return canonical_affine(self.affine, (x, y, z))

    def difference(self, other: Grid) -> str | None:
        """One sentence with the numbers where two grids differ, or None. Corners may lie 0.01 mm apart.

        Files that store the same grid in another order or direction of axes do not differ: reading undoes that.
        """
        if axes := self.mirrored_along(other):
            return (
                f"mirrored against it along {' and '.join(axes)} (same shape and voxel size, but orientations "
                f"{self.orientation} and {other.orientation})"
            )
        if self.shape_zyx != other.shape_zyx:
            return f"the shapes differ (Z, Y, X): {self.shape_zyx} and {other.shape_zyx}"
        if (apart := self._corners_apart_mm(other)) > _POSITION_TOLERANCE_MM:
            mine, theirs = self._canonical_affine, other._canonical_affine
            return (
                f"the geometries differ: spacings (Z, Y, X) {_numbers(self.spacing_mm)} and "
                f"{_numbers(other.spacing_mm)} mm, orientations {self.orientation} and {other.orientation}, "
                f"origins {_numbers(mine[:3, 3])} and {_numbers(theirs[:3, 3])} mm "
                f"(their corners lie up to {apart:.4g} mm apart)"
            )
        return None

    def _corners_apart_mm(self, other: Grid) -> float:
        """How far apart the two places of a corner voxel are at most, of grids of one shape."""
        z, y, x = self.shape_zyx
        corners = np.array([(i, j, k, 1) for i in (0, x - 1) for j in (0, y - 1) for k in (0, z - 1)], dtype=float)
        moved = corners @ (self._canonical_affine - other._canonical_affine).T
        return float(np.linalg.norm(moved[:, :3], axis=1).max())

    def misfit(self, other: Grid, remedy: str) -> str | None:
        """The same with what to do. remedy: of grids that differ otherwise than by a mirrored axis."""
        if (difference := self.difference(other)) is None:
            return None
        if self.mirrored_along(other):
            remedy = "If the stored voxels fit each other, give both files one affine; otherwise restore the file."
        return f"{difference}. {remedy}"

    def mirrored_along(self, other: Grid) -> list[str]:
        """The axes (`X`, `Y`, `Z`) along which files of one shape and voxel size store opposite directions and lie
        elsewhere: one of the two headers has a wrong sign. Empty for grids that are equal or differ otherwise."""
        mine, theirs = self.affine[:3, :3], other.affine[:3, :3]
        columns_agree = np.allclose(np.abs(mine), np.abs(theirs), atol=_DIRECTION_TOLERANCE_MM, rtol=1e-3)
        if self.shape_zyx != other.shape_zyx or not columns_agree:
            return []
        if self._corners_apart_mm(other) <= _POSITION_TOLERANCE_MM:
            return []
        axes = stored_axes(self.affine) or (0, 1, 2)
        turned = [axis for axis in range(3) if float(mine[:, axis] @ theirs[:, axis]) < 0]
        return sorted("XYZ"[axes[axis]] for axis in turned)

    def form_conflict(self) -> str | None:
        """A sentence if the header's sform and qform are both set and disagree; the sform is what we use."""
        sform, sform_code = self.header.get_sform(coded=True)
        try:
            qform, qform_code = self.header.get_qform(coded=True)
        except ValueError:
            return "the qform's quaternion is no rotation; the sform is used" if sform_code else None
        if sform_code and qform_code and not np.allclose(sform, qform, atol=1e-2, rtol=1e-3):
            return f"sform and qform disagree by up to {float(np.abs(sform - qform).max()):.4g}; the sform is used"
        return None


@dataclass(frozen=True)
class Volume:
    """A scan in memory: float32 array `(C, Z, Y, X)` in canonical orientation, and the grid it came from."""

    array: FloatArray
    grid: Grid

    @property
    def spacing_mm(self) -> Spacing:
        return self.grid.spacing_mm


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
    """Read the header only. Raises `DataError` for what is no NIfTI file, or not 3D or 4D."""
    return _grid(open_nifti(path), path)


def read_volume(paths: Sequence[Path]) -> Volume:
    """Read one case: a 3D file per channel, or one 4D file of channels. Raises as `read_raw`."""
    raw = read_raw(paths)
    return Volume(np.stack([channel.values() for channel in raw.channels]), raw.grid)


def read_raw(paths: Sequence[Path]) -> RawVolume:
    """Read one case as its files store it: a 3D file per channel, or one 4D file of channels.

    Raises `DataError` that names the file: unreadable, truncated, channels of different geometry, NaN or infinity.
    """
    channels: list[RawChannel] = []
    first: Grid | None = None
    for path in paths:
        image = open_nifti(path)
        grid = _grid(image, path)
        stored = _read_stored(image, path)
        if stored.ndim == 4 and len(paths) > 1:
            raise DataError(f"{path}: 4D ({stored.shape}), but one 3D file per channel is expected. Split it.")
        parts = [stored[..., c] for c in range(stored.shape[3])] if stored.ndim == 4 else [stored]
        slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
        found = [RawChannel(to_canonical(part, grid.affine), slope, inter) for part in parts]
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
    """Read a label map `(Z, Y, X)`: uint8 where it fits, uint16 otherwise.

    Raises `DataError` for values that are not whole numbers from 0 to 65535 (to within 0.001), for the many values of a
    grey-scale image, and for 4D files.
    """
    label, grid, _ = read_label_rounded(path)
    return label, grid


def read_label_rounded(path: Path) -> tuple[LabelArray, Grid, float]:
    """The same, and how far from a whole number the worst value was."""
    image = open_nifti(path)
    grid = _grid(image, path)
    stored = _read_scaled(image, path)
    if stored.ndim == 4 and stored.shape[3] == 1:
        stored = stored[..., 0]
    if stored.ndim != 3:
        raise DataError(f"{path}: a label map must be 3D, but this is {stored.shape}. Store one value per voxel.")
    if not np.isfinite(stored).all():
        raise DataError(f"{path}: the label map has NaN or infinite voxels. Repair the file.")
    whole = np.rint(stored)
    worst = float(np.abs(whole - stored).max(initial=0))
    if worst > _ROUNDING:
        strange = float(stored[np.abs(whole - stored) > _ROUNDING][0])
        raise DataError(f"{path}: label values must be whole numbers, but {strange:.6g} was found. {_advice(stored)}")
    low, high = (float(whole.min()), float(whole.max())) if whole.size else (0.0, 0.0)
    if low < 0 or high > _MAX_LABEL:
        raise DataError(
            f"{path}: label values from {low:g} to {high:g}; 0 to {_MAX_LABEL} are allowed. {_advice(stored)}"
        )
    dtype = np.uint8 if high < 256 else np.uint16
    label = np.ascontiguousarray(to_canonical(whole.astype(dtype), grid.affine))
    if high > _MOST_SMOOTH and (different := _different_values(label)) > _MOST_SMOOTH and not _is_smooth(label):
        raise DataError(
            f"{path}: {different} different values, from {low:g} to {high:g}, that change from voxel to voxel: "
            f"{_NO_LABEL_MAP}"
        )
    return label, grid, worst


def _different_values(label: LabelArray) -> int:
    found = np.zeros(_MAX_LABEL + 1, dtype=bool)
    found[label] = True
    return int(np.count_nonzero(found))


def _is_smooth(label: LabelArray) -> bool:
    """Whether at least half of the voxels above 0 have the value of the next one along X; true for maps too small to
    tell."""
    if label.size < _FEWEST_TO_TELL:
        return True
    here, following = label[..., :-1], label[..., 1:]
    above = here > 0
    return int(np.count_nonzero((here == following) & above)) >= _LEAST_EQUAL * int(np.count_nonzero(above))


def _advice(stored: FloatArray) -> str:
    """What to do about a label map of strange values: many of them are a scan's."""
    some = np.unique(stored.ravel()[:: max(1, stored.size // 100_000)])
    if some.size > _MOST_SMOOTH:
        return f"It holds {some.size} or more different values: {_NO_LABEL_MAP}"
    return "Correct the file; where it was resampled, do that again with nearest neighbours."


def write_label(path: Path, label_zyx: LabelArray, grid: Grid) -> None:
    """Write a canonical label map into the grid of `grid`, atomically.

    Affine, sform, qform and their codes, units and pixel sizes are the source file's, bit for bit.
    """
    _write(path, label_zyx.astype(np.uint8 if int(label_zyx.max(initial=0)) < 256 else np.uint16), grid)


def write_map(path: Path, array_zyx: FloatArray, grid: Grid) -> None:
    """Write a canonical float32 map `(Z, Y, X)` or maps `(C, Z, Y, X)` (stored as 4D) into the grid of `grid`."""
    _write(path, array_zyx.astype(np.float32, copy=False), grid)


def _write(path: Path, array: AnyArray, grid: Grid) -> None:
    stored = from_canonical(array, grid.affine)
    header = grid.header.copy()
    header.set_data_shape(stored.shape)
    header.set_data_dtype(stored.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    image = type_of(header)(stored, None, header)  # written plane by plane, in whatever layout it is
    with atomic_file(path) as temporary:
        nib.save(image, temporary)


def type_of(header: Any) -> Any:
    """The single-file image class for a header: NIfTI-2 stays NIfTI-2."""
    return nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image


def open_nifti(path: Path) -> Any:
    """nibabel's image, of which nothing but the header was read; raises `DataError` for what is no NIfTI file, or holds
    fewer voxels than its header claims."""
    if path.exists() and not path.is_file():  # which a pipe would be waited for, for ever
        raise DataError(f"{path}: no file, but a folder, a pipe or a device. Name a .nii.gz or .nii file.")
    try:
        image = nib.load(path) if path.name.endswith(NIFTI_ENDINGS) or not is_nifti(path) else _load_as_nifti(path)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.") from None
    except (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError, OverflowError) as error:
        if not is_nifti(path) and path.is_file() and (why := why_unread(path)):
            raise DataError(f"{path}: {why}") from None
        raise DataError(f"{path}: not a readable NIfTI file ({_first_line(error)}). Restore or remove it.") from None
    if not isinstance(image, nib.Nifti1Image):  # Nifti2Image is a subclass
        raise DataError(f"{path}: {why_unread(path) or 'not NIfTI. Convert it to .nii.gz.'}")
    _check_size(image, path)
    return image


def _check_size(image: Any, path: Path) -> None:
    """Raise `DataError` where a file is too small for the voxels that its header claims."""
    proxy, size = image.dataobj, path.stat().st_size
    claimed = proxy.offset + math.prod(max(0, int(n)) for n in proxy.shape) * proxy.dtype.itemsize
    if claimed > size * (_MOST_INFLATED if _is_gzip(path) else 1):
        raise DataError(
            f"{path}: the header claims {tuple(map(int, proxy.shape))} voxels, {claimed:,} bytes, but the file has "
            f"{size:,}{', compressed' if _is_gzip(path) else ''}. It is damaged or cut off: restore it."
        )


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _load_as_nifti(path: Path) -> Any:
    """The image of a file with capitals in its ending, which nibabel takes for another format or another file."""
    path.stat()
    kinds: tuple[Any, Any] = (nib.Nifti1Image, nib.Nifti2Image)  # which have no annotations
    files = {"image": nib.FileHolder(filename=str(path))}
    try:
        return kinds[0].from_file_map(files)
    except (ImageFileError, HeaderDataError):
        return kinds[1].from_file_map(files)


def _grid(image: Any, path: Path) -> Grid:
    shape = tuple(int(n) for n in image.shape)
    if len(shape) not in (3, 4):
        raise DataError(f"{path}: {len(shape)}D ({shape}), but a 3D scan is expected.")
    if min(shape) < 1:
        raise DataError(f"{path}: the header gives the shape {shape}, which holds no voxels. Restore the file.")
    affine = np.asarray(image.affine, dtype=np.float64)
    if not _invertible(affine):
        raise DataError(f"{path}: the affine is singular or not finite. Repair the header's sform or qform.")
    shape_zyx, spacing_mm = canonical_grid(affine, (shape[0], shape[1], shape[2]))
    if not _SMALLEST_VOXEL_MM <= min(spacing_mm) <= max(spacing_mm) <= _LARGEST_VOXEL_MM:
        raise DataError(
            f"{path}: voxels of {_numbers(spacing_mm)} mm (Z, Y, X) are no scan's. Repair the header's sform or qform."
        )
    return Grid(shape_zyx, spacing_mm, affine, image.header.copy(), shape[3] if len(shape) == 4 else 1)


def _invertible(affine: DoubleArray) -> bool:
    """Whether every stored axis has a direction of its own; also false for what overflows when squared."""
    if not np.isfinite(affine).all() or np.abs(affine).max() > _LARGEST_MM:
        return False
    return abs(float(np.linalg.det(affine[:3, :3]))) >= 1e-12 and stored_axes(affine) is not None


def _read_stored(image: Any, path: Path) -> AnyArray:
    """The voxels as the file stores them, without the header's slope.

    Raises `DataError` where a file is damaged, as the checksum at the end of a gzip file tells.
    """
    try:
        raw: AnyArray = (
            _inflated(image.dataobj, path) if _is_gzip(path) else np.asanyarray(image.dataobj.get_unscaled())
        )
    except (MemoryError, OverflowError):
        shape = tuple(int(n) for n in image.shape)
        raise DataError(f"{path}: the header claims {shape} voxels, more than memory can hold. Restore it.") from None
    except (OSError, EOFError, zlib.error, ValueError, ImageFileError) as error:
        raise DataError(
            f"{path}: the voxels cannot be read ({_first_line(error)}); the file is damaged or truncated."
        ) from None
    if raw.dtype.kind not in "iufb":
        raise DataError(f"{path}: voxels of type {raw.dtype} are not numbers of one channel. Convert them.")
    return raw


def _inflated(proxy: Any, path: Path) -> AnyArray:
    """The voxels of a gzip file that is read to its end: nibabel stops at the last voxel, before the checksum."""
    voxels: AnyArray = np.empty(math.prod(proxy.shape), dtype=proxy.dtype)
    target = voxels.view(np.uint8)
    with gzip.open(path) as stream:
        stream.seek(proxy.offset)
        filled = 0
        while filled < target.size:
            block = stream.read(min(_BLOCK_BYTES, target.size - filled))
            if not block:
                raise EOFError(f"{filled:,} of {target.size:,} bytes of voxels are there")
            target[filled : filled + len(block)] = np.frombuffer(block, np.uint8)
            filled += len(block)
        try:
            while stream.read(_BLOCK_BYTES):
                pass
        except gzip.BadGzipFile as error:
            raise ValueError(f"they do not fit the checksum at the end of the file: {error}") from None
    return voxels.reshape(proxy.shape, order=proxy.order)


def _read_scaled(image: Any, path: Path) -> FloatArray:
    """The voxels as float32 with the header's slope applied, without the float64 copy of `get_fdata`."""
    return RawChannel(_read_stored(image, path), float(image.dataobj.slope), float(image.dataobj.inter)).values()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _numbers(values: Sequence[float] | AnyArray) -> str:
    return "(" + ", ".join(f"{float(v):.4g}" for v in values) + ")"
