"""Voxels behind a text header, as NRRD and MetaImage store them: in the header's own file, or in one beside it."""

from __future__ import annotations

import bz2
import gzip
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Literal

import numpy as np

from semiseg.errors import DataError
from semiseg.io.grid import Grid
from semiseg.io.gzip_files import DAMAGED, open_gzip, open_zlib
from semiseg.types import AnyArray

Encoding = Literal["raw", "gzip", "zlib", "bzip2", "text"]
_MOST_INFLATED: dict[Encoding, int] = {"raw": 1, "gzip": 1040, "zlib": 1040, "bzip2": 1_500_000}
"""What a byte of a file can become: of deflate 1,032 (RFC 1951: two bits for 258 bytes); of bzip2 a block of 900,000
bytes, each five of which are up to 259, takes some 40."""
_BLOCK_BYTES = 1 << 22
_TEXT_BYTES, _LONGEST_NUMBER = 1 << 18, 64
_LONGEST_LINE, _LONGEST_HEADER = 1 << 20, 1 << 22
_SHOWN = 60
_UNREADABLE: tuple[type[Exception], ...] = (*DAMAGED, ValueError, OverflowError)


@dataclass(frozen=True)
class StoredVoxels:
    """What a file stores, `(X, Y, Z)` or `(X, Y, Z, C)` in its own order of axes; values: `stored * slope + inter`."""

    stored: AnyArray
    grid: Grid
    slope: float = 1.0
    inter: float = 0.0


@dataclass(frozen=True)
class Place:
    """Where the voxels of a header are, and how.

    header: the file that messages name. start: their first byte in `file`; None where they are the last bytes.
    skipped: bytes before them once they are decompressed. shape: the axis that changes fastest comes first.
    channel_axis: of `shape`, None where there are no channels.
    """

    header: Path
    file: Path
    start: int | None
    encoding: Encoding
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    channel_axis: int | None
    grid: Grid
    skipped: int = 0

    @property
    def claimed(self) -> int:
        """Bytes of all voxels in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def check_size(self) -> None:
        """Raise `DataError` where the file is too small for the voxels that the header claims."""
        size = max(0, self.file.stat().st_size - (self.start or 0))
        if self.encoding == "text":
            too_small = 2 * math.prod(self.shape) - 1 > size
        else:
            too_small = self.skipped + self.claimed > size * _MOST_INFLATED[self.encoding]
        if too_small:
            beside = "" if self.file == self.header else f" of {self.file.name}"
            how = ", compressed" if self.encoding in ("gzip", "zlib", "bzip2") else ""
            raise DataError(
                f"{self.header}: the header claims {self.shape} voxels, {self.claimed:,} bytes, but there are "
                f"{size:,}{beside}{how}. It is damaged or cut off: restore it."
            )


def read_voxels(place: Place) -> StoredVoxels:
    """As `Format.read_voxels`. Raises `DataError` for a damaged file, as far as a checksum or its length tell."""
    try:
        voxels: AnyArray = np.empty(math.prod(place.shape), dtype=place.dtype)
        with _opened(place) as stream:
            _fill(voxels, stream, place)
            if place.encoding in ("gzip", "zlib", "bzip2") and stream.read(1):  # which looks at the checksum, too
                raise ValueError("there are more than the header claims")
    except MemoryError:
        text = f"the header claims {place.shape} voxels, more than memory can hold. Restore it."
        raise DataError(f"{place.header}: {text}") from None
    except _UNREADABLE as error:
        raise DataError(f"{place.header}: {why_damaged(error)}") from None
    stored = voxels.reshape(place.shape, order="F")
    if place.channel_axis is not None:
        stored = np.moveaxis(stored, place.channel_axis, -1)
    return StoredVoxels(stored, place.grid)


def read_some(place: Place, channel: int, most_bytes: int) -> tuple[AnyArray, int]:
    """As `Format.read_some`: the first slices in the order of the file; of unsigned numbers none, since they have no
    values below 0."""
    if place.dtype.kind == "u":
        return np.zeros(1), 0
    axis, shape = place.channel_axis, place.shape
    channels_last = axis is not None and axis == len(shape) - 1
    whole = shape[:-1] if channels_last else shape
    unit = math.prod(whole[:-1]) * place.dtype.itemsize
    slices = max(1, min(whole[-1], most_bytes // unit))
    before = min(channel, shape[-1] - 1) * math.prod(whole) if channels_last else 0
    try:
        values: AnyArray = np.empty(math.prod(whole[:-1]) * slices, dtype=place.dtype)
        with _opened(place) as stream:
            if place.encoding == "text":
                _fill(np.empty(before, dtype=place.dtype), stream, place)
            else:
                _skip(stream, before * place.dtype.itemsize)
            _fill(values, stream, place)
    except MemoryError:
        raise DataError(f"{place.header}: its slices are larger than memory can hold. Restore it.") from None
    except _UNREADABLE as error:
        raise DataError(f"{place.header}: {why_damaged(error)}") from None
    if axis is not None and not channels_last:
        part = values.reshape((*whole[:-1], slices), order="F")
        values = part.take(min(channel, shape[axis] - 1), axis=axis)
    return values.ravel(order="F"), slices * unit


@contextmanager
def _opened(place: Place) -> Iterator[Any]:
    """The decompressed bytes from the first voxel on."""
    with place.file.open("rb") as file:
        start = place.file.stat().st_size - place.claimed if place.start is None else place.start
        file.seek(start)
        stream: Any = file
        if place.encoding == "gzip":
            stream = open_gzip(file)
        elif place.encoding == "zlib":
            stream = open_zlib(file)
        elif place.encoding == "bzip2":
            stream = bz2.BZ2File(file)
        _skip(stream, place.skipped)
        yield _Numbers(file) if place.encoding == "text" else stream


def _skip(stream: Any, count: int) -> None:
    while count > 0:
        block = stream.read(min(_BLOCK_BYTES, count))
        if not block:
            raise EOFError("they end before the first voxel")
        count -= len(block)


def _fill(voxels: AnyArray, stream: Any, place: Place) -> None:
    if place.encoding == "text":
        stream.fill(voxels)
    else:
        fill(voxels, stream)


def fill(voxels: AnyArray, stream: Any) -> None:
    """Read a flat array from a stream of bytes, block by block; `EOFError` where it is too short."""
    target = voxels.view(np.uint8)
    filled = 0
    while filled < target.size:
        block = stream.read(min(_BLOCK_BYTES, target.size - filled))
        if not block:
            raise EOFError(f"{filled:,} of {target.size:,} bytes of voxels are there")
        target[filled : filled + len(block)] = np.frombuffer(block, np.uint8)
        filled += len(block)


class _Numbers:
    """Numbers in text, with white space between them, block by block."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._rest, self._words = file, b"", list[bytes]()

    def fill(self, voxels: AnyArray) -> None:
        parse: Any = float if voxels.dtype.kind == "f" else int
        filled = 0
        while filled < voxels.size:
            if not self._words and not self._read():
                raise EOFError(f"{filled:,} of {voxels.size:,} voxels are there")
            words = self._words[: voxels.size - filled]
            del self._words[: len(words)]
            with np.errstate(over="ignore"):  # what exceeds float32 is infinite, and is named
                voxels[filled : filled + len(words)] = np.fromiter(map(parse, words), voxels.dtype, len(words))
            filled += len(words)

    def _read(self) -> bool:
        """More words; whether there are any."""
        while not self._words:
            block = self._file.read(_TEXT_BYTES)
            if not block and not self._rest:
                return False
            self._words = (self._rest + block).split()
            self._rest = b""
            if block and not block[-1:].isspace() and self._words:
                self._rest = self._words.pop()
            if len(self._rest) > _LONGEST_NUMBER:
                raise ValueError("what should be numbers is none")
        return True


def why_damaged(error: BaseException) -> str:
    """What to say of voxels that cannot be read."""
    is_checksum = isinstance(error, gzip.BadGzipFile) and any(word in str(error) for word in ("CRC", "length"))
    told = f"they do not fit the checksum at the end of the file: {error}" if is_checksum else first_line(error)
    return f"the voxels cannot be read ({told}); the file is damaged or truncated. Restore it or remove it."


def first_line(error: BaseException) -> str:
    """The beginning of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# Headers


@contextmanager
def opened_header(path: Path) -> Iterator[BinaryIO]:
    """The file of a header; raises `DataError` where there is none."""
    if path.exists() and not path.is_file():  # which a pipe would be waited for, for ever
        raise DataError(f"{path}: no file, but a folder, a pipe or a device. Restore the file.")
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)}). Restore or remove it.") from None


def header_lines(file: BinaryIO, path: Path) -> Iterator[str]:
    """The lines of a text header, without white space at their ends; where to stop is for who asks. Raises `DataError`
    where it becomes longer than any header."""
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE or file.tell() > _LONGEST_HEADER:
            raise DataError(f"{path}: the header does not end. It is damaged: restore it.")
        yield line.decode("utf-8", "replace").strip()


def shown(value: str) -> str:
    """What a header says, as messages show it: without what a terminal would obey, and not all of a long one."""
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def numbers(text: str, count: int) -> list[float] | None:
    """So many finite numbers, None for anything else."""
    words = text.replace(",", " ").split()
    if len(words) != count:
        return None
    try:
        found = [float(word) for word in words]
    except ValueError:
        return None
    return found if all(map(math.isfinite, found)) else None


def counts(text: str) -> list[int] | None:
    """Whole numbers from 0 on, None for anything else."""
    words = text.split()
    return [int(word) for word in words] if all(w.isascii() and w.isdigit() and len(w) < 16 for w in words) else None


def data_file(header: Path, name: str) -> Path:
    """The file beside a header that has its voxels. Raises `DataError` where it is elsewhere, or not there."""
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise DataError(
            f"{header}: it says that its voxels are in {shown(name)}, outside of its own folder, which is not looked "
            "into. Put that file beside it, and correct the header."
        )
    try:
        there = (file := header.parent / name).is_file()
    except OSError:  # of a name that is too long
        there = False
    if not there:
        raise DataError(f"{header}: its voxels are in {shown(name)}, which is not there. Put that file beside it.")
    return file
