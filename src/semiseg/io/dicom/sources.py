"""Where DICOM files lie: in a folder at any depth, in a zip, or alone. Nothing of a zip is ever unpacked to disk."""

from __future__ import annotations

import errno
import io
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from semiseg.errors import DataError
from semiseg.io.file_kinds import visible

MOST_MEMBERS = 1_000_000
MOST_BYTES = 1 << 30
"""No slice and no multi-frame file in a zip inflates to more."""
MOST_INFLATED = 100
"""No scan is packed better, but for small files and empty slices: a zip that claims more is a bomb."""
_SMALL_BYTES = 1 << 28
_DAMAGED = (zlib.error, zipfile.BadZipFile, zipfile.LargeZipFile, OSError, EOFError, ValueError, RuntimeError, KeyError)


def is_zip(path: Path) -> bool:
    return path.name.lower().endswith(".zip") and path.is_file()


def zips_below(folder: Path) -> list[Path]:
    """The zips in a folder, at any depth; none of a zip or a file."""
    return [file for file in visible(folder, deep=True) if is_zip(file)] if folder.is_dir() else []


def files_of(place: Path) -> list[Path]:
    """All files of a folder, a zip (`scans.zip/inner/name`) or of a file alone, in order of paths; hidden ones and
    `DICOMDIR` are left out. Raises `DataError` for a zip that is damaged or not safe."""
    if is_zip(place):
        return [place / name for name in _members(place)]
    found = visible(place, deep=True) if place.is_dir() else [place]
    return [file for file in found if file.name.upper() != "DICOMDIR"]


@contextmanager
def opener(place: Path) -> Iterator[Callable[[Path], IO[bytes]]]:
    """A function that opens a file of `files_of(place)`; one in a zip is inflated in memory as far as it is read."""
    if not is_zip(place):
        yield _open
        return
    with _opened_zip(place) as zipped:
        yield partial(_member, zipped, {str(_path_in(member)): member for member in zipped.infolist()}, place)


def _opened_zip(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except _DAMAGED as error:
        raise DataError(f"{archive}: not a readable zip ({type(error).__name__}). Restore it.") from None


def _path_in(member: zipfile.ZipInfo) -> PurePosixPath:
    """Where a member lies in its zip, also where backslashes part its folders, as some programs of Windows write, or it
    begins with `./`."""
    return PurePosixPath(member.filename.replace("\\", "/"))


def _member(zipped: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], archive: Path, file: Path) -> IO[bytes]:
    """Raises `OSError` where it is damaged, or packed in a way that is not read: others may be whole."""
    try:
        found = members[file.relative_to(archive).as_posix()]
        member, length = zipped.open(found), found.file_size
    except _DAMAGED as error:
        raise OSError(errno.EIO, type(error).__name__) from None
    return io.BufferedReader(_Counted(member, f"{archive}: {file.name}", length))


def _open(file: Path) -> IO[bytes]:
    if not file.is_file():  # a pipe would be waited for, for ever
        raise OSError(errno.EINVAL, "no file, but a folder, a pipe or a device", str(file))
    return file.open("rb")


@contextmanager
def opened(file: Path) -> Iterator[IO[bytes]]:
    """One file of `files_of`, open for reading."""
    with opener(archive_of(file)) as open_file, open_file(file) as stream:
        yield stream


def archive_of(file: Path) -> Path:
    """The zip that a file lies in, or the file itself."""
    return file if file.exists() else next((above for above in file.parents if above.is_file()), file)


def is_inflated(stream: IO[bytes]) -> bool:
    """Whether a stream is of a member of a zip, in which one cannot jump."""
    return isinstance(getattr(stream, "raw", None), _Counted)


def length_of(stream: IO[bytes]) -> int:
    """The bytes in a stream, without reading them."""
    raw = getattr(stream, "raw", None)
    if isinstance(raw, _Counted):
        return raw.length
    if isinstance(stream, io.BytesIO):
        return stream.getbuffer().nbytes
    return os.fstat(stream.fileno()).st_size


class _Counted(io.RawIOBase):
    """A member of a zip that can be read forwards, and backwards as zipfile does it, but not without end."""

    name = ""  # which pydicom asks for

    def __init__(self, stream: IO[bytes], called: str, length: int) -> None:
        self._stream, self._called, self.length = stream, called, length

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readinto(self, target: object) -> int:
        view = memoryview(target)  # type: ignore[arg-type]
        data = self._stream.read(len(view))
        view[: len(data)] = data
        if self._stream.tell() > MOST_BYTES:
            raise DataError(f"{self._called}: it inflates to more than {MOST_BYTES >> 20} MiB. Unpack the zip.")
        return len(data)


def _members(archive: Path) -> list[str]:
    """The paths of the files in a zip, in order."""
    with _opened_zip(archive) as zipped:
        members = zipped.infolist()
    if len(members) > MOST_MEMBERS:
        raise DataError(f"{archive}: {len(members):,} files in one zip. Unpack it.")
    claimed = sum(member.file_size for member in members)
    if claimed > max(_SMALL_BYTES, MOST_INFLATED * archive.stat().st_size):
        raise DataError(
            f"{archive}: {archive.stat().st_size:,} bytes that claim to inflate to {claimed:,}: no scans are packed "
            "like that. Unpack it where that is safe."
        )
    kept = set()
    for member in members:
        path = _path_in(member)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{archive}: a member's path leads out of the zip. Pack it anew.")
        if member.flag_bits & 1:
            raise DataError(f"{archive}: it is encrypted. Unpack it.")
        linked = stat.S_ISLNK(member.external_attr >> 16)
        hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
        folder = not path.parts or member.filename.endswith(("/", "\\"))
        if not (folder or linked or hidden or path.name.upper() == "DICOMDIR"):
            kept.add(str(path))
    return sorted(kept)
