"""MetaImage (`.mha`, `.mhd`): the format's own part of `semiseg.io.scans`. Fields mean what ITK takes them for."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from semiseg.errors import DataError
from semiseg.files import atomic_file
from semiseg.geometry import orientation_name
from semiseg.io.grid import Grid, checked_grid
from semiseg.io.gzip_files import zlib_compressor
from semiseg.io.voxels import (
    Encoding,
    Place,
    StoredVoxels,
    counts,
    data_file,
    header_lines,
    numbers,
    opened_header,
    shown,
)
from semiseg.io.voxels import read_some as some_of
from semiseg.io.voxels import read_voxels as voxels_of
from semiseg.types import AnyArray, DoubleArray

_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
_NAMES = {code: name for name, code in reversed(_TYPES.items())}
_LAST = "elementdatafile"
_GEOMETRY = {
    "TransformMatrix": ("transformmatrix", "rotation", "orientation"),
    "Offset": ("offset", "position", "origin"),
    "CenterOfRotation": ("centerofrotation",),
    "AnatomicalOrientation": ("anatomicalorientation",),
    "ElementSpacing": ("elementspacing", "elementsize"),
}
"""Fields by the names that are written, with those under which they are found."""
_FIELDS = {
    "objecttype", "ndims", "dimsize", "elementtype", "elementnumberofchannels", "binarydata", "compresseddata",
    "binarydatabyteordermsb", "elementbyteordermsb", "headersize", _LAST,
    *(name for names in _GEOMETRY.values() for name in names),
}  # fmt: skip
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_UPRIGHT = 0.9
_OPPOSITE = str.maketrans("RLAPIS", "LRPASI")
_SIZE_DIGITS = 20


def read_grid(path: Path) -> Grid:
    """As `Format.read_grid`."""
    return _place(path).grid


def read_voxels(path: Path) -> StoredVoxels:
    """As `Format.read_voxels`."""
    return voxels_of(_place(path))


def read_some(path: Path, channel: int, most_bytes: int) -> tuple[AnyArray, int]:
    """As `Format.read_some`."""
    return some_of(_place(path), channel, most_bytes)


def files(path: Path) -> tuple[Path, ...]:
    """As `Format.files`."""
    place = _place(path)
    return (path,) if place.file == path else (path, place.file)


def write(path: Path, stored: AnyArray, grid: Grid, like: Path | None) -> None:
    """As `Format.write`: one file, compressed. Beside a MetaImage its own words for the geometry are kept."""
    before, after = _header_text(stored, grid, like)
    place = len(before) + len("CompressedDataSize = ")
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        file.write(f"{before}CompressedDataSize = {0:{_SIZE_DIGITS}}\n{after}".encode())
        start, compressor = file.tell(), zlib_compressor()
        for k in range(stored.shape[2]):
            plane = np.ascontiguousarray(stored[:, :, k].swapaxes(0, 1))  # of channels the first axis in the file
            file.write(compressor.compress(plane.data))
        file.write(compressor.flush())
        size = file.tell() - start
        file.seek(place)
        file.write(f"{size:{_SIZE_DIGITS}}".encode())


def _header_text(stored: AnyArray, grid: Grid, like: Path | None) -> tuple[str, str]:
    """What stands before the size of the compressed voxels, and what stands after it."""
    lps = _TO_RAS @ grid.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    geometry = {
        "TransformMatrix": _text((lps[:3, :3] / spacing).T.ravel()),
        "Offset": _text(lps[:3, 3]),
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": _anatomical(grid.affine),
        "ElementSpacing": _text(spacing),
    }
    if like is not None:
        own = _read(like)[0]
        for name, known in _GEOMETRY.items():  # numbers alone: words may say more than the geometry
            if (found := _first(own, known)) is not None and numbers(found, len(geometry[name].split())):
                geometry[name] = found
    little = stored.dtype.newbyteorder("<") == stored.dtype
    head = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": str(not little),
        "CompressedData": "True",
    }
    rest = {
        **geometry,
        "DimSize": " ".join(map(str, stored.shape[:3])),
        **({"ElementNumberOfChannels": str(stored.shape[3])} if stored.ndim == 4 else {}),
        "ElementType": _NAMES[f"{stored.dtype.kind}{stored.dtype.itemsize}"],
        "ElementDataFile": "LOCAL",
    }
    before, after = ("".join(f"{name} = {value}\n" for name, value in part.items()) for part in (head, rest))
    return before, after


def _text(values: DoubleArray) -> str:
    """All digits, so that the same numbers come back."""
    return " ".join(repr(float(value) + 0.0) for value in values)  # without a -0


def _anatomical(affine: DoubleArray) -> str:
    """Where each axis begins, as MetaIO says it: `RAI` for axes that grow to the left, the back and the head."""
    return orientation_name(affine).translate(_OPPOSITE)


def _place(path: Path) -> Place:
    """Where the voxels are; raises `DataError` for what is no MetaImage, or holds fewer than its header claims."""
    fields, after = _read(path)
    if fields.get("objecttype", "Image").lower() != "image":
        raise DataError(f"{path}: a MetaIO file of {shown(fields['objecttype'])}, no image. Remove it.")
    sizes = counts(fields.get("dimsize", ""))
    if not sizes or counts(fields.get("ndims", "")) != [len(sizes)]:
        raise DataError(f"{path}: the header's NDims and DimSize do not fit each other. Restore the file.")
    if len(sizes) != 3:
        many = " Write one 3D file for each." if len(sizes) > 3 else ""
        raise DataError(f"{path}: {len(sizes)}D {tuple(sizes)}, but a 3D scan is expected.{many}")
    dtype = _dtype(fields, path)
    channels = _channels(fields, path, dtype)
    affine = _affine(fields, path)
    grid = checked_grid(
        path,
        sizes if channels == 1 else [*sizes, channels],
        affine,
        stored_mm=np.linalg.norm(affine[:3, :3], axis=0),
        voxel_bytes=dtype.itemsize,
        source="the header's TransformMatrix and ElementSpacing",
    )
    grid = replace(grid, doubts=_doubts(fields, affine))
    encoding: Encoding = "raw" if _is_true(fields.get("binarydata", "True")) else "text"
    if encoding == "raw" and _is_true(fields.get("compresseddata", "False")):
        encoding = "zlib"
    file, start = _data(fields, path, after, encoding)
    shape = tuple(sizes) if channels == 1 else (channels, *sizes)
    place = Place(path, file, start, encoding, dtype, shape, None if channels == 1 else 0, grid)
    place.check_size()
    return place


def _read(path: Path) -> tuple[dict[str, str], int]:
    """The fields that say something of the voxels, by names in small letters, and where they end; others pass."""
    fields: dict[str, str] = {}
    with opened_header(path) as file:
        if not re.match(rb"\s*\w+\s*[=:]", file.read(200)):
            raise DataError(f"{path}: not a MetaImage file. Restore or remove it.")
        file.seek(0)
        for line in header_lines(file, path):
            name, *value = re.split("[=:]", line, maxsplit=1)
            name = name.strip().lower()
            if name not in _FIELDS:
                continue
            if name in fields:
                raise DataError(f"{path}: the header has {shown(name)} twice. Restore the file.")
            fields[name] = value[0].strip() if value else ""
            if name == _LAST:
                return fields, file.tell()
    raise DataError(f"{path}: not a MetaImage file, which names an ElementDataFile. Restore or remove it.")


def _first(fields: dict[str, str], names: tuple[str, ...]) -> str | None:
    return next((fields[name] for name in names if name in fields), None)


def _is_true(text: str) -> bool:
    return text[:1].lower() in ("t", "1")


def _dtype(fields: dict[str, str], path: Path) -> np.dtype[Any]:
    name = fields.get("elementtype", "")
    code = _TYPES.get(name.upper().removesuffix("_ARRAY"))
    if code is None:
        raise DataError(f"{path}: voxels of type {shown(name)} are not numbers of one channel. Convert them.")
    big = _is_true(_first(fields, ("binarydatabyteordermsb", "elementbyteordermsb")) or "False")
    return np.dtype(code).newbyteorder(">" if big else "<")


def _channels(fields: dict[str, str], path: Path, dtype: np.dtype[Any]) -> int:
    found = counts(fields.get("elementnumberofchannels", "1"))
    if found is None or len(found) != 1 or found[0] < 1:
        raise DataError(f"{path}: ElementNumberOfChannels is no number from 1 on. Restore the file.")
    if found[0] in (3, 4) and dtype == np.uint8:
        raise DataError(f"{path}: a picture in colours, no scan. Convert it to one value a voxel.")
    return found[0]


def _affine(fields: dict[str, str], path: Path) -> DoubleArray:
    """From stored indices to millimetres (RAS+); a missing field is that of voxels of 1 mm along the axes of LPS."""
    matrix = _numbers(fields, path, "TransformMatrix", [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    spacing = _numbers(fields, path, "ElementSpacing", [1.0] * 3)
    affine = np.eye(4)
    affine[:3, :3] = np.array(matrix).reshape(3, 3).T * spacing  # a row of the file is the direction of an axis
    affine[:3, 3] = _numbers(fields, path, "Offset", [0.0] * 3)
    return _TO_RAS @ affine + 0.0


def _numbers(fields: dict[str, str], path: Path, name: str, default: list[float]) -> list[float]:
    text = _first(fields, _GEOMETRY[name])
    found = default if text is None else numbers(text, len(default))
    if found is None:
        raise DataError(f"{path}: {name} is not {len(default)} numbers. Restore the header.")
    return found


def _doubts(fields: dict[str, str], affine: DoubleArray) -> tuple[str, ...]:
    """Where the header's word for the orientation is another than its matrix's, of a scan that is not oblique."""
    said = fields.get("anatomicalorientation", "").upper()
    directions = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    if not re.fullmatch("[RLAPIS]{3}", said) or directions.max(axis=0).min() < _UPRIGHT or said == _anatomical(affine):
        return ()
    text = f"AnatomicalOrientation is {said}, but the TransformMatrix says {_anatomical(affine)}, which is used"
    return (f"{text}. Look whether left and right are right, and correct the header.",)


def _data(fields: dict[str, str], path: Path, after: int, encoding: Encoding) -> tuple[Path, int | None]:
    """The file of the voxels, and where they begin in it; None: they are its last bytes."""
    name = fields[_LAST]
    if name.upper().split()[:1] == ["LIST"] or re.search(r"%\d*d", name):
        raise DataError(f"{path}: its voxels are in several files, which are not read. Write it as one file.")
    is_local = name.upper() == "LOCAL"
    file, start = (path, after) if is_local else (data_file(path, name), 0)
    skip = fields.get("headersize", "0")
    if skip == "-1" and encoding == "raw":
        return file, None
    if (found := counts(skip)) is None or len(found) != 1:
        raise DataError(f"{path}: HeaderSize {shown(skip)} is no number from 0 on. Restore the header.")
    return file, found[0] or start
