"""NRRD: the format's own part of `semiseg.io.scans`. Fields are those of teem's format page, and mean what ITK takes
them for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semiseg.errors import DataError
from semiseg.files import atomic_file
from semiseg.io.grid import Grid, checked_grid
from semiseg.io.gzip_files import write_gzip
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

_ENCODINGS: dict[str, Encoding] = {
    "raw": "raw", "txt": "text", "text": "text", "ascii": "text", "gz": "gzip", "gzip": "gzip", "bz2": "bzip2",
    "bzip2": "bzip2",
}  # fmt: skip
_WORDS = {"char": "i1", "short": "i2", "int": "i4", "longlong": "i8", "float": "f4", "double": "f8"}
_TO_RAS: dict[str, tuple[float, float, float]] = {
    "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1), "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1),
}  # fmt: skip
_NO_PATIENT = ("scanner-xyz", "3d-right-handed", "3d-left-handed")
_SPATIAL = ("domain", "space")
_CHANNELS = ("list", "vector", "scalar", "stub", "point", "none", "???")
_MOST_SKIPPED = 1 << 26
_VECTOR = re.compile(r"\s*(?:none|\(([^()]*)\))")
_GEOMETRY = ("space", "space directions", "space origin")


@dataclass(frozen=True)
class _Header:
    """fields: by names in small letters. start: of what follows the header."""

    fields: dict[str, str]
    start: int

    def get(self, name: str) -> str | None:
        """A field, which may be written as one word."""
        return self.fields.get(name, self.fields.get(name.replace(" ", "")))


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


def write(path: Path, stored: AnyArray, grid: Grid, like: Path | None, *, compressed: bool = True) -> None:
    """As `Format.write`: one file, by gzip unless `compressed` is false. Beside a NRRD file its own words for the
    geometry are kept."""
    text = _header_text(stored, grid, like, "gzip" if compressed else "raw").encode()
    with atomic_file(path) as temporary:
        if compressed:
            with write_gzip(temporary, before=text) as stream:
                _write_planes(stream, stored)
        else:
            with temporary.open("wb") as file:
                file.write(text)
                _write_planes(file, stored)


def _write_planes(stream: Any, stored: AnyArray) -> None:
    parts = [stored] if stored.ndim == 3 else [stored[..., channel] for channel in range(stored.shape[3])]
    for part in parts:
        for k in range(part.shape[2]):
            stream.write(np.ascontiguousarray(part[:, :, k].T).data)


def _header_text(stored: AnyArray, grid: Grid, like: Path | None, encoding: str) -> str:
    dtype = stored.dtype
    floats = {4: "float", 8: "double"}
    kind = floats[dtype.itemsize] if dtype.kind == "f" else f"{'u' * (dtype.kind == 'u')}int{8 * dtype.itemsize}"
    channels = stored.ndim - 3
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine
    geometry = {
        "space": "left-posterior-superior",
        "space directions": " ".join(_vector_text(lps[:3, axis]) for axis in range(3)) + " none" * channels,
        "space origin": _vector_text(lps[:3, 3]),
    }
    if like is not None and not channels:
        own, known = _read(like).fields, _place(like)
        if known.channel_axis is None and "space" in own and "space directions" in own:
            geometry = {name: own[name] for name in _GEOMETRY if name in own}
    fields = {
        "type": kind,
        "dimension": str(stored.ndim),
        "space": geometry.pop("space"),
        "sizes": " ".join(map(str, stored.shape)),
        **geometry,
        "kinds": "domain domain domain" + " list" * channels,
        **({"endian": "little" if _is_little(dtype) else "big"} if dtype.itemsize > 1 else {}),
        "encoding": encoding,
    }
    return "NRRD0004\n" + "".join(f"{name}: {value}\n" for name, value in fields.items()) + "\n"


def _is_little(dtype: np.dtype[Any]) -> bool:
    return dtype.newbyteorder("<") == dtype


def _vector_text(vector: DoubleArray) -> str:
    """All digits, so that the same numbers come back."""
    return "(" + ",".join(repr(float(v) + 0.0) for v in vector) + ")"  # without a -0


def _place(path: Path) -> Place:
    """Where the voxels are; raises `DataError` for what is no NRRD file, or holds fewer than its header claims."""
    header = _read(path)
    sizes, dtype, encoding = _sizes(header, path), _dtype(header, path), _encoding(header, path)
    _refuse_kinds(header, path, len(sizes))
    axes = _spatial_axes(header, path, len(sizes))
    others = [axis for axis in range(len(sizes)) if axis not in axes]
    if len(axes) != 3 or len(others) > 1:
        many = " Write one 3D file for each." if len(sizes) > 3 else ""
        raise DataError(f"{path}: {len(sizes)}D {tuple(sizes)}, but a 3D scan is expected.{many}")
    affine, doubts = _affine(header, path, axes)
    grid = checked_grid(
        path,
        [sizes[axis] for axis in (*axes, *others)],
        affine,
        stored_mm=np.linalg.norm(affine[:3, :3], axis=0),
        voxel_bytes=dtype.itemsize,
        doubts=doubts,
        source="the header's space directions",
    )
    file, start, skipped = _data(header, path, encoding)
    place = Place(
        path, file, start, encoding, dtype, tuple(sizes), others[0] if others else None, grid, skipped=skipped
    )
    place.check_size()
    return place


def _read(path: Path) -> _Header:
    """The fields of a header; keys with `:=` mean nothing for the voxels."""
    fields: dict[str, str] = {}
    with opened_header(path) as file:
        if not re.match(rb"NRRD000[1-5]\r?\n", file.read(10)):
            raise DataError(f"{path}: not a NRRD file. Restore or remove it.")
        file.seek(0)
        lines = header_lines(file, path)
        next(lines)
        for number, line in enumerate(lines, start=2):
            if not line:
                break
            if line.startswith("#"):
                continue
            name, colon, value = line.partition(":")
            if not colon:
                raise DataError(f"{path}: line {number} of the header is no field. Restore the file.")
            if value.startswith("="):
                continue
            name = name.strip().lower()
            if name in fields:
                raise DataError(f"{path}: the header has {shown(name)} twice. Restore the file.")
            fields[name] = value.strip()
        return _Header(fields, file.tell())


def _sizes(header: _Header, path: Path) -> list[int]:
    sizes = counts(header.get("sizes") or "")
    if not sizes or counts(header.get("dimension") or "") != [len(sizes)]:
        raise DataError(f"{path}: the header's dimension and sizes do not fit each other. Restore the file.")
    if min(sizes) < 1:
        raise DataError(f"{path}: the header gives the sizes {tuple(sizes)}, which hold no voxels. Restore the file.")
    return sizes


def _dtype(header: _Header, path: Path) -> np.dtype[Any]:
    """The type of a voxel, by any of its names: `signed short int`, `int16_t`, `ushort`."""
    name = header.get("type") or ""
    words = name.lower().removesuffix("_t").split()
    unsigned = words[:1] == ["unsigned"]
    word = "".join(words[1:] if words[:1] in (["signed"], ["unsigned"]) else words)
    if word in ("shortint", "longlongint"):
        word = word.removesuffix("int")
    if not unsigned and word.startswith("u"):
        unsigned, word = True, word[1:]
    bits = re.fullmatch(r"int(8|16|32|64)", word)
    code = f"i{int(bits[1]) // 8}" if bits else _WORDS.get(word)
    if code is None or (unsigned and code.startswith("f")):
        raise DataError(f"{path}: voxels of type {shown(name)} are not numbers of one channel. Convert them.")
    dtype = np.dtype(code.replace("i", "u") if unsigned else code)
    order = (header.get("endian") or "").lower()
    if order == "big":
        return dtype.newbyteorder(">")
    if order == "little" or dtype.itemsize == 1 or _encoding(header, path) == "text":
        return dtype.newbyteorder("<")
    raise DataError(f"{path}: the header does not say endian: little, or big. Restore the file.")


def _encoding(header: _Header, path: Path) -> Encoding:
    name = header.get("encoding") or ""
    if name.lower() not in _ENCODINGS:
        raise DataError(f"{path}: the encoding {shown(name)} is not read. Write it with gzip or raw.")
    return _ENCODINGS[name.lower()]


def _refuse_kinds(header: _Header, path: Path, dimension: int) -> None:
    """Raise `DataError` for colours, series in time, and vectors and matrices that are no channels."""
    kinds = (header.get("kinds") or "").lower().split()
    if kinds and len(kinds) != dimension:
        raise DataError(f"{path}: the header has {len(kinds)} kinds for {dimension} axes. Restore the file.")
    for kind in kinds:
        if kind.endswith("color"):
            raise DataError(f"{path}: a picture in colours ({shown(kind)}), no scan. Convert it to one value a voxel.")
        if kind == "time":
            raise DataError(f"{path}: a series in time. Write one 3D file for each.")
        if kind not in (*_SPATIAL, *_CHANNELS) and not re.fullmatch(r"\d-vector", kind):
            raise DataError(f"{path}: an axis of the kind {shown(kind)} is no channel. Write one 3D file for each.")


def _spatial_axes(header: _Header, path: Path, dimension: int) -> list[int]:
    """The axes with a direction in space; without directions those that no kind says to be others."""
    directions = header.get("space directions")
    if directions is not None:
        found = _vectors(directions)
        if len(found) != dimension:
            raise DataError(f"{path}: the header has {len(found)} space directions for {dimension} axes. Restore it.")
        return [axis for axis, vector in enumerate(found) if vector is not None]
    kinds = (header.get("kinds") or "").lower().split() or ["domain"] * dimension
    others = [kind for kind in _CHANNELS if kind not in ("none", "???")]
    return [axis for axis, kind in enumerate(kinds) if kind not in others and not kind.endswith("-vector")]


def _vectors(text: str) -> list[str | None]:
    """The inside of each pair of brackets, None for `none`; nothing where anything else stands there."""
    found, place, text = list[str | None](), 0, text.lower().strip()
    while place < len(text):
        if (match := _VECTOR.match(text, place)) is None:
            return []
        found.append(match[1])
        place = match.end()
    return found


def _affine(header: _Header, path: Path, axes: Sequence[int]) -> tuple[DoubleArray, tuple[str, ...]]:
    """From stored indices to millimetres (RAS+), and what of it is to be looked at."""
    space = (header.get("space") or "").lower()
    if space.endswith("-time") or (len(space) == 4 and space.endswith("t")):
        raise DataError(f"{path}: a series in time (space {shown(space)}). Write one 3D file for each.")
    if space and space not in _TO_RAS and space not in _NO_PATIENT:
        raise DataError(f"{path}: the space {shown(space)} is not known. Give left-posterior-superior, for example.")
    if header.get("space dimension") not in (None, "3"):
        raise DataError(f"{path}: the header's space dimension is not 3. Write one 3D file for each scan.")
    doubts: tuple[str, ...] = ()
    if space not in _TO_RAS:
        text = "names no space of the patient, so that left and right are a guess (LPS, as ITK takes it)"
        doubts = (f"the header {text}. Write space: left-posterior-superior, or what is right.",)
    units = set(re.findall(r'"([^"]*)"', header.get("space units") or "")) - {"", "mm", "millimeter", "millimeters"}
    if units:
        doubts += (f"the header's space units are {shown(', '.join(sorted(units)))}; they are taken for mm.",)
    affine = np.eye(4)
    directions = header.get("space directions")
    if directions is not None:
        columns = [numbers(_vectors(directions)[axis] or "", 3) for axis in axes]
        if any(column is None for column in columns):
            raise DataError(f"{path}: the space directions are not three vectors of three numbers. Restore the header.")
        affine[:3, :3] = np.array(columns).T
    elif header.get("spacings") is not None:
        words = (header.get("spacings") or "").split()
        spacings = numbers(" ".join(words[axis] for axis in axes if axis < len(words)), 3)
        if spacings is None:
            raise DataError(f"{path}: the spacings are not one number an axis. Restore the header.")
        affine[:3, :3] = np.diag(spacings)
    if (origin := header.get("space origin")) is not None:
        vectors = _vectors(origin)
        found = numbers(vectors[0] or "", 3) if len(vectors) == 1 else None
        if found is None:
            raise DataError(f"{path}: the space origin is not three numbers. Restore the header.")
        affine[:3, 3] = found
    signs = _TO_RAS.get(space, _TO_RAS["lps"])
    return np.diag([*signs, 1.0]) @ affine + 0.0, doubts


def _data(header: _Header, path: Path, encoding: Encoding) -> tuple[Path, int | None, int]:
    """The file of the voxels, where they begin in it, and what to skip once they are decompressed."""
    name = header.get("data file")
    if name is not None and (name.upper().split()[:1] == ["LIST"] or re.search(r"%\d*d", name)):
        raise DataError(f"{path}: its voxels are in several files, which are not read. Write it as one file.")
    file, start = (path, header.start) if name is None else (data_file(path, name), 0)
    if header.get("line skip") not in (None, "0"):
        raise DataError(f"{path}: lines before the voxels (line skip) are not read. Write it as one file.")
    skip = header.get("byte skip") or "0"
    if skip == "-1" and encoding == "raw":
        return file, None, 0
    if (found := counts(skip)) is None or len(found) != 1:
        raise DataError(f"{path}: the byte skip {shown(skip)} is no number from 0 on. Restore the header.")
    if encoding not in ("gzip", "bzip2"):
        return file, start + found[0], 0
    if found[0] > _MOST_SKIPPED:  # a small file may become terabytes
        raise DataError(f"{path}: the byte skip {shown(skip)} is longer than any header. Restore the file.")
    return file, start, found[0]
