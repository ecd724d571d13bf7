"""NIfTI: the format's own part of `semiseg.io.scans`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from semiseg.errors import DataError
from semiseg.files import atomic_file
from semiseg.io.file_kinds import ending, format_of, why_unread
from semiseg.io.grid import Grid, checked_grid
from semiseg.io.gzip_files import DAMAGED, open_gzip, write_gzip
from semiseg.io.voxels import StoredVoxels, fill, first_line, why_damaged
from semiseg.types import AnyArray

_MOST_INFLATED = 1040
"""No byte of a gzip file becomes more than 1,032 (RFC 1951: two bits for 258 bytes)."""
_BLOCK_BYTES = 1 << 22
_MOST_BESIDE = 1 << 26
"""So many decompressed bytes are read before the voxels, and after them."""
_MM_OF_UNIT = {1: 1000.0, 3: 0.001}
"""Millimetres in the metres and micrometres of `xyzt_units`. All other numbers there are taken for millimetres, as ITK
takes them."""
_UNREADABLE: tuple[type[Exception], ...] = (*DAMAGED, ImageFileError, HeaderDataError, ValueError, OverflowError)


def read_grid(path: Path) -> Grid:
    """As `Format.read_grid`."""
    return _grid(open_nifti(path), path)


def read_voxels(path: Path) -> StoredVoxels:
    """As `Format.read_voxels`."""
    image = open_nifti(path)
    grid = _grid(image, path)
    return StoredVoxels(_read_stored(image, path), grid, float(image.dataobj.slope), float(image.dataobj.inter))


def read_some(path: Path, channel: int, most_bytes: int) -> tuple[AnyArray, int]:
    """As `Format.read_some`: the first slices in the order of the file; of unsigned numbers none, since they have no
    values below 0."""
    image = open_nifti(path)
    data: Any = image.dataobj
    shape = _shape(image)
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise DataError(f"{path}: no 3D scan.")
    if data.dtype.kind == "u" and float(data.slope) >= 0 and float(data.inter) >= 0:
        return np.zeros(1), 0
    plane = shape[0] * shape[1] * data.dtype.itemsize
    slices = max(1, min(shape[2], most_bytes // plane))
    others = [min(channel, n - 1) for n in shape[3:]] + [0] * (len(image.shape) - len(shape))
    which = (slice(None), slice(None), slice(0, slices), *others)
    try:
        part = np.asanyarray(data[which])
    except (OSError, EOFError, ValueError, MemoryError, ImageFileError) as error:
        raise DataError(f"{path}: {error}") from None
    if part.dtype.kind not in "iufb":
        raise DataError(f"{path}: no numbers.")
    return part.ravel(), slices * plane


def files(path: Path) -> tuple[Path, ...]:
    """As `Format.files`."""
    return (path,)


def write(path: Path, stored: AnyArray, grid: Grid, like: Path | None) -> None:
    """As `Format.write`; NIfTI-2 beside a NIfTI-2 file. Of its header the geometry alone is kept: descriptions and
    extensions may name the patient."""
    header = _geometry_of(open_nifti(like).header) if like else _header(grid)
    header.set_data_shape(stored.shape)
    header.set_data_dtype(stored.dtype)
    header.set_slope_inter(1, 0)
    kind: Any = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(stored, None, header)  # written plane by plane, in whatever layout it is
    with atomic_file(path) as temporary:
        if not _is_gzip(path):
            nib.save(image, temporary)
            return
        with write_gzip(temporary) as stream:
            image.to_stream(stream)


_GEOMETRY = (
    *("pixdim", "xyzt_units", "dim_info", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


def _geometry_of(source: Any) -> Any:
    header = type(source)(endianness=source.endianness)
    for field in _GEOMETRY:
        header[field] = source[field]
    return header


def header_bytes(shape_xyz: Sequence[int], dtype: Any, grid: Grid, *, slope: float, inter: float) -> bytes:
    """What stands before the voxels of an uncompressed NIfTI-1 file of them: a header with nothing but the geometry."""
    header = _header(grid)
    header.set_data_shape(tuple(shape_xyz))
    header.set_data_dtype(dtype)
    header.set_slope_inter(slope, inter)
    header["vox_offset"] = 352
    return bytes(header.binaryblock) + bytes(4)


def _header(grid: Grid) -> Any:
    header: Any = nib.Nifti1Header()  # type: ignore[no-untyped-call]
    header.set_data_shape((1, 1, 1))
    header.set_sform(grid.affine, code="scanner")
    header.set_qform(grid.affine, code="scanner", strip_shears=True)
    header.set_zooms(grid.stored_mm)
    header.set_xyzt_units("mm")
    return header


def open_nifti(path: Path) -> Any:
    """nibabel's image, of which nothing but the header was read; raises `DataError` for what is no NIfTI file, holds
    fewer voxels than its header claims, or has them in its header."""
    if path.exists() and not path.is_file():  # which a pipe would be waited for, for ever
        raise DataError(f"{path}: no file, but a folder, a pipe or a device. Name a .nii.gz or .nii file.")
    try:
        image = nib.load(path) if path.name.endswith(ending(path)) else _load_as_nifti(path)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.") from None
    except _UNREADABLE as error:
        if format_of(path) is None and path.is_file() and (why := why_unread(path)):
            raise DataError(f"{path}: {why}") from None
        remedy = _remedy(path) or "Restore or remove it."
        raise DataError(f"{path}: not a readable NIfTI file ({first_line(error)}). {remedy}") from None
    if not isinstance(image, nib.Nifti1Image):  # Nifti2Image is a subclass
        raise DataError(f"{path}: {why_unread(path) or 'not NIfTI. Convert it to .nii.gz.'}")
    _check_place(image, path)
    return image


def _remedy(path: Path) -> str:
    """What to call a file that is compressed, or is not, against its ending, or what to do about one that may not be
    read; empty where neither is what is wrong."""
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
    except PermissionError:
        return "You may not read it: change its permissions."
    except OSError:
        return ""
    if not _is_gzip(path) and start[:2] == b"\x1f\x8b":
        return "It is compressed: call it .nii.gz."
    if _is_gzip(path) and {int.from_bytes(start, "little"), int.from_bytes(start, "big")} & {348, 540}:
        return "It is not compressed: call it .nii."
    return ""


def _check_place(image: Any, path: Path) -> None:
    """Raise `DataError` where voxels would begin in the header, or a file is too small for those that it claims."""
    proxy, size = image.dataobj, path.stat().st_size
    if proxy.offset < (first := image.header.single_vox_offset):  # nibabel takes a 0 as it stands
        raise DataError(
            f"{path}: vox_offset = {proxy.offset}: voxels would begin in the header. Set it to {first} in the header, "
            "or convert the scan once more."
        )
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
    unit_mm = _MM_OF_UNIT.get(int(image.header["xyzt_units"]) & 7, 1.0)
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= unit_mm
    return checked_grid(
        path,
        _shape(image),
        affine,
        stored_mm=[unit_mm * float(size) for size in image.header.get_zooms()[:3]],
        voxel_bytes=image.dataobj.dtype.itemsize,
        doubts=_doubts(image.header),
        source="the header's sform or qform",
    )


def _shape(image: Any) -> tuple[int, ...]:
    """`(X, Y, Z)` or more, without axes of length 1 after them: one frame is a volume."""
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _doubts(header: Any) -> tuple[str, ...]:
    """What of the two forms of an affine is to be looked at."""
    sform, sform_code = header.get_sform(coded=True)
    look = "Look whether left and right are right, and correct the header."
    if not sform_code and not int(header["qform_code"]):
        return ("neither sform nor qform is set, so that left and right are a guess (LAS). Write the right affine.",)
    try:
        qform, qform_code = header.get_qform(coded=True)
    except ValueError:
        return (f"the qform's quaternion is no rotation; the sform is used. {look}",) if sform_code else ()
    if sform_code and qform_code and not np.allclose(sform, qform, atol=1e-2, rtol=1e-3):
        apart = float(np.abs(sform - qform).max())
        itk = "programs that read by ITK (3D Slicer, nnU-Net) may use the qform, and labels made there then do not fit"
        remedy = "Look which is right, and write it into both."
        return (f"sform and qform disagree by up to {apart:.4g}; the sform is used, but {itk}. {remedy}",)
    return ()


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
    except _UNREADABLE as error:
        raise DataError(f"{path}: {why_damaged(error)}") from None
    if raw.dtype.kind not in "iufb":
        raise DataError(f"{path}: voxels of type {raw.dtype} are not numbers of one channel. Convert them.")
    return raw.reshape(_shape(image), order="F")


def _inflated(proxy: Any, path: Path) -> AnyArray:
    """The voxels of a gzip file that is read to its end: nibabel stops at the last voxel, before the checksum."""
    voxels: AnyArray = np.empty(math.prod(proxy.shape), dtype=proxy.dtype)
    with open_gzip(path) as stream:
        if proxy.offset > _MOST_BESIDE:
            raise ValueError(f"they begin at byte {proxy.offset:,}, after a longer header than any scan's")
        stream.seek(proxy.offset)
        fill(voxels, stream)
        after = 0
        while block := stream.read(_BLOCK_BYTES):  # a small file may become terabytes
            after += len(block)
            if after > _MOST_BESIDE:
                raise ValueError("there are many more than the header claims")
    return voxels.reshape(proxy.shape, order=proxy.order)
