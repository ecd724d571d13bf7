"""The case store: prepared cases as chunked, memory-mapped arrays from which a patch is read without the volume.

A case is one folder: `image.b2nd` (float32, `(C, Z, Y, X)`), `label.b2nd` (uint8 or uint16, `(Z, Y, X)`;
absent for an unlabelled case) and `case.json` (a `StoredCase`, and size and checksum of each file).
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import blosc2
import numpy as np
from pydantic import BeforeValidator, TypeAdapter, ValidationError

from semiseg.errors import DataError
from semiseg.files import atomic_file, atomic_folder, digest_of, hash_files, read_json, write_json
from semiseg.geometry import Box, triple
from semiseg.types import AnyArray, FloatArray, LabelArray, Shape, Spacing

STORE_FORMAT = 2
CASE_FILES = ("image.b2nd", "label.b2nd", "case.json")
_CHUNK: Shape = (32, 64, 64)
_BLOCK: Shape = (8, 32, 32)
Places = Annotated[Sequence[Shape], BeforeValidator(tuple)]
"""Voxels `(z, y, x)`: tuples, or what an index of a store serves as such."""


@dataclass(frozen=True, kw_only=True)
class StoredCase:
    """What training has to know of a case without reading its voxels.

    shape_zyx, spacing_mm: of the stored arrays. source_shape_zyx, source_spacing_mm: of the scan in
    canonical orientation. hash: of the files and of all that preparation depends on. class_voxels: voxels
    of each class that occurs, background and ignore value included. class_locations: up to 512 voxels `(z,
    y, x)` of each class that occurs, without the background and the ignore value. body_locations: up to 512
    voxels of the body. channel_quantiles: intensities of each channel, rising (`semiseg.data.histograms`).
    """

    id: str
    shape_zyx: Shape
    spacing_mm: Spacing
    source_shape_zyx: Shape
    source_spacing_mm: Spacing
    hash: str
    labelled: bool
    channels: int
    class_voxels: dict[int, int]
    class_locations: dict[int, Places]
    body_locations: Places
    channel_quantiles: tuple[tuple[float, ...], ...] = ()


_ADAPTER: TypeAdapter[StoredCase] = TypeAdapter(StoredCase)


@dataclass(frozen=True)
class OpenCase:
    """A memory-mapped case. It holds file handles: open it in the process that reads it."""

    folder: Path
    meta: StoredCase
    image: Any
    label: Any

    def read_image(self, box: Box) -> FloatArray:
        """The image in `box`, `(C, d, h, w)` float32; outside of the scan its border goes on, as in prediction."""
        return self._continued(self.image, box)

    def read_label(self, box: Box) -> LabelArray:
        """The label map in `box`, `(d, h, w)`; outside of the scan its border goes on, as that of the image does.

        Raises `DataError` for an unlabelled case.
        """
        if self.label is None:
            raise DataError(
                f"{self.folder}: the case has no label. Prepare it again with one, or use it as unlabelled."
            )
        return self._continued(self.label, box)

    def _continued(self, stored: Any, box: Box) -> AnyArray:
        """`(..., Z, Y, X)` in `box`, which may reach outside."""
        inside, padding = _within(box, self.meta.shape_zyx)
        try:
            values = np.asarray(stored[(..., *inside.slices())])
        except (RuntimeError, ValueError, OSError) as error:
            raise _damaged(self.folder, str(error)) from None
        if not any(map(any, padding)):
            return values
        return np.pad(values, [(0, 0)] * (values.ndim - 3) + padding, mode="edge")


def write_case(folder: Path, *, image: FloatArray, label: LabelArray | None, meta: StoredCase) -> None:
    """Write a case as one folder, whole or not at all; a case that was there is replaced. What a killed writer moved
    aside is `remove_leftovers`'s to put back.

    image: `(C, Z, Y, X)` float32. label: `(Z, Y, X)` uint8 or uint16, or None for an unlabelled case.
    """
    if image.shape[1:] != meta.shape_zyx or (label is not None and label.shape != meta.shape_zyx):
        raise ValueError(f"{meta.id}: arrays {image.shape} do not have the shape of the case, {meta.shape_zyx}.")
    with atomic_folder(folder, made=CASE_FILES, restores=False) as temporary:
        _write_array(temporary / "image.b2nd", image, blosc2.Codec.LZ4)
        if label is not None:
            _write_array(temporary / "label.b2nd", label, blosc2.Codec.ZSTD)
        files = sorted(temporary.glob("*.b2nd"))
        sizes = {file.name: file.stat().st_size for file in files}
        digests = {file.name: hash_files([file]) for file in files}
        value = {"format": STORE_FORMAT, "bytes": sizes, "sha256": digests, "case": asdict(meta)}
        write_json(temporary / "case.json", value | {"case_sha256": digest_of(asdict(meta))}, indent=None)


def write_labels(path: Path, labels: LabelArray) -> None:
    """Write a label map `(Z, Y, X)`, uint8 or uint16, beside no image, whole or not at all. path: ends in `.b2nd`."""
    with atomic_file(path) as temporary:
        _write_array(temporary, labels, blosc2.Codec.ZSTD)


def open_labels(path: Path, shape: Shape) -> Any:
    """The memory-mapped label map that `write_labels` wrote; raises `DataError` where it is damaged or of another
    shape."""
    return _open_array(path.parent, path.name, shape, ("uint8", "uint16"))


def check_files(folder: Path) -> None:
    """Read all of a stored case; raises `DataError` where a bit is not as it was written."""
    read_case_meta(folder)
    for name, digest in read_json(folder / "case.json")["sha256"].items():
        if hash_files([folder / name]) != digest:
            raise _damaged(folder, f"{name} does not fit its checksum")


@dataclass(frozen=True)
class Written:
    """What was written as a case: its description with its checksum, and the bytes of its arrays' files."""

    meta: StoredCase
    sha256: str
    sizes: dict[str, int]


def read_case_meta(folder: Path) -> StoredCase:
    """The description of a stored case; raises `DataError` if any of its files is damaged or missing."""
    return read_written(folder).meta


def read_written(folder: Path) -> Written:
    """What `case.json` says; raises `DataError` if any file of the case is damaged or missing."""
    value = read_json(folder / "case.json")
    try:
        if value["format"] != STORE_FORMAT:
            raise _damaged(folder, f"store format {value['format']}, but this version writes {STORE_FORMAT}")
        if digest_of(value["case"]) != value["case_sha256"]:
            raise _damaged(folder, "case.json does not fit its checksum")
        meta = _ADAPTER.validate_python(value["case"])
        sizes = {str(name): int(size) for name, size in value["bytes"].items()}
        digests = {str(name): str(digest) for name, digest in value["sha256"].items()}
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(folder, f"case.json, {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _damaged(folder, f"case.json lacks or garbles {error}") from None
    expected = {"image.b2nd", "label.b2nd"} if meta.labelled else {"image.b2nd"}
    if meta.id != folder.name:
        raise _damaged(folder, f"case.json is of the case {meta.id!r}")
    if set(sizes) != expected or set(digests) != expected:
        raise _damaged(folder, f"case.json lists {sorted(sizes)} instead of {sorted(expected)}")
    check_sizes(folder, sizes)
    return Written(meta, value["case_sha256"], sizes)


def check_sizes(folder: Path, sizes: Mapping[str, int]) -> None:
    """Raise `DataError` where a file of a case is missing or has not as many bytes as were written."""
    for name, size in sizes.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if found != size:
            raise _damaged(folder, f"{name} has {found} bytes instead of {size}")


def open_case(folder: Path) -> OpenCase:
    """Open a stored case for reading patches; raises `DataError` naming the folder if it is damaged."""
    return open_described(folder, read_case_meta(folder))


def open_described(folder: Path, meta: StoredCase) -> OpenCase:
    """Open a stored case whose description is known."""
    image = _open_array(folder, "image.b2nd", (meta.channels, *meta.shape_zyx), ("float32",))
    label = _open_array(folder, "label.b2nd", meta.shape_zyx, ("uint8", "uint16")) if meta.labelled else None
    return OpenCase(folder, meta, image, label)


def _write_array(path: Path, array: AnyArray, codec: Any) -> None:
    lead, shape = (1,) * (array.ndim - 3), array.shape[-3:]
    try:
        blosc2.asarray(
            np.ascontiguousarray(array),
            urlpath=str(path),
            mode="w",
            chunks=(*lead, *map(min, _CHUNK, shape)),
            blocks=(*lead, *map(min, _BLOCK, shape)),
            cparams={"codec": codec, "clevel": 5, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1},
            dparams={"nthreads": 1},  # it is in the file, which is not to depend on the machine
        )
    except RuntimeError as error:  # what blosc2 says of whatever the system says
        if shutil.disk_usage(path.parent).free < array.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        raise DataError(f"{path}: cannot be written ({error}). Check the path and its permissions.") from None


def _open_array(folder: Path, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> Any:
    try:
        # A file may hold source text that blosc2 runs when it is opened, unless it is told not to.
        stored = blosc2.open(str(folder / name), mode="r", mmap_mode="r", dparams={"nthreads": 1}, deserialize="safe")
    except (RuntimeError, ValueError, OSError, KeyError, TypeError) as error:
        raise _damaged(folder, f"{name}: {error}") from None
    if not isinstance(stored, blosc2.NDArray) or stored.shape != shape or str(stored.dtype) not in dtypes:
        found = f"{getattr(stored, 'shape', '?')} {getattr(stored, 'dtype', '?')}"
        raise _damaged(folder, f"{name} holds {found}, but {shape} {' or '.join(dtypes)} is expected")
    return stored


def _within(box: Box, shape: Shape) -> tuple[Box, list[tuple[int, int]]]:
    """The part of `box` inside of an array, a voxel along each axis at least, and how far the box reaches beyond that
    part on either side of each axis."""
    start = [min(max(a, 0), n - 1) for a, n in zip(box.start, shape, strict=True)]
    stop = [max(min(b, n), a + 1) for a, b, n in zip(start, box.stop, shape, strict=True)]
    if any(a >= n or b <= 0 for a, b, n in zip(box.start, box.stop, shape, strict=True)):
        raise ValueError(f"{box} lies outside of an array of shape {shape}.")
    beyond = zip(box.start, start, stop, box.stop, strict=True)
    return Box(triple(start), triple(stop)), [(a - first, last - b) for first, a, b, last in beyond]


def _damaged(folder: Path, reason: str) -> DataError:
    return DataError(f"{folder}: the stored case is damaged ({reason}). Delete the folder and prepare again.")
