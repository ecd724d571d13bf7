"""gzip and zlib in and out: by python-isal where it is installed, otherwise by zlib. What they hold is the same."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

DAMAGED: tuple[type[Exception], ...] = (zlib.error, EOFError, OSError)
"""What reading a damaged file raises; `gzip.BadGzipFile`, an `OSError`, where a checksum does not fit."""
_kind: type[gzip.GzipFile] = gzip.GzipFile
_zlib: Any = zlib
with suppress(ImportError):
    from isal import igzip, isal_zlib

    DAMAGED = (*DAMAGED, cast(type[Exception], isal_zlib.error))
    _kind = igzip.IGzipFile
    _zlib = isal_zlib
_LEVEL = 1
"""Label maps are no smaller with more."""


_READ_BYTES = 1 << 18


def open_gzip(file: Path | BinaryIO) -> Any:
    """A file's content as a stream of bytes; of an open file from where it is."""
    return _kind(file, "rb") if isinstance(file, Path) else _kind(None, "rb", fileobj=file)


def open_zlib(file: BinaryIO) -> Inflating:
    """The same of what zlib compressed, from where the open file is."""
    return Inflating(file)


class Inflating:
    """A stream of what zlib compressed, of which no more than what is asked for is in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflater: Any = _zlib.decompressobj()

    def read(self, size: int) -> bytes:
        """Some bytes, none at the end. Raises one of `DAMAGED` where they do not fit the checksum, or end early."""
        while not self._inflater.eof:
            packed = self._inflater.unconsumed_tail or self._file.read(_READ_BYTES)
            if found := self._inflater.decompress(packed, size):
                return bytes(found)
            if not packed:
                raise EOFError("the compressed data end early")
        return b""


@contextmanager
def write_gzip(path: Path, before: bytes = b"") -> Iterator[Any]:
    """A stream that is compressed into the file, which neither holds its own name nor the time. before: what stands in
    front of it, as it is."""
    with path.open("wb") as file:
        file.write(before)
        with _kind("", "wb", _LEVEL, file, 0) as stream:
            yield stream


def zlib_compressor() -> Any:
    """What compresses as zlib does."""
    return _zlib.compressobj(_LEVEL)
