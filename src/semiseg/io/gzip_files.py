"""gzip files in and out: by python-isal where it is installed, otherwise by zlib. What they hold is the same."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

DAMAGED: tuple[type[Exception], ...] = (zlib.error, EOFError, OSError)
"""What reading a damaged file raises; `gzip.BadGzipFile`, an `OSError`, where a checksum does not fit."""
_kind: type[gzip.GzipFile] = gzip.GzipFile
with suppress(ImportError):
    from isal import igzip, isal_zlib

    DAMAGED = (*DAMAGED, cast(type[Exception], isal_zlib.error))
    _kind = igzip.IGzipFile
_LEVEL = 1
"""Label maps are no smaller with more."""


def open_gzip(path: Path) -> Any:
    """The file's content as a stream of bytes."""
    return _kind(path, "rb")


@contextmanager
def write_gzip(path: Path) -> Iterator[Any]:
    """A stream that is compressed into the file, which neither holds its own name nor the time."""
    with path.open("wb") as file, _kind("", "wb", _LEVEL, file, 0) as stream:
        yield stream
