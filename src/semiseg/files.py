"""Files written whole or not at all: atomic writes, hashes, JSON, JSON lines and TOML."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import tomllib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from inspect import signature
from pathlib import Path
from typing import Any

import psutil
import tomli_w
from filelock import FileLock

from semiseg.errors import ConfigError, DataError
from semiseg.words import printable


def _host() -> str:
    """Of this machine since it was started, or container: its process numbers are no other's."""
    names = [platform.node()]
    with suppress(OSError):  # none of both on macOS
        names += [str(Path("/proc/self/ns/pid").stat().st_ino), Path("/proc/sys/kernel/random/boot_id").read_text()]
    return hashlib.sha256("\n".join(names).encode(errors="replace")).hexdigest()[:8]


_HOST = _host()
_TEMPORARY = re.compile(r"\.tmp-(?P<host>[0-9a-f]{8})-(?P<process>\d+)-(?P<name>.+)", re.DOTALL)
_REPLACED = ".replaced"


def _temporary_name(path: Path) -> Path:
    """A hidden sibling that keeps the suffixes, since writers choose their format by them."""
    return path.with_name(f".tmp-{_HOST}-{os.getpid()}-{path.name}")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Within: an error of the system that names no file names this one, as `write` on a full disk does not, and
    libraries that are not written in Python say in words alone."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
    except Exception as error:
        if "No space left" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write to; on success flush it and rename it onto `path`.

    If the body raises, the temporary file is removed and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    try:
        with _named(path):
            yield temporary
            _flush(temporary)
            temporary.replace(path)
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, made: Collection[str], restores: bool = True) -> Iterator[Path]:
    """Yield an empty temporary folder to fill; on success flush its files and put it in the place of `path`.

    made: the names of all that writers of such a folder make. What else lies in the folder that is replaced is not
    theirs, and stays. restores: what `restore_replaced` does is done first, which lists the folder around; needless
    after `remove_leftovers`. Raises `DataError` where `path` is a file or a link.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise DataError(f"{path}: a link or a file, where a folder is to be made. Move it away, or name another place.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if restores:
        restore_replaced(path)
    temporary = _temporary_name(path)
    replaced = temporary.with_name(temporary.name + _REPLACED)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with _named(path):
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    # By the umask, as the folder; safetensors makes files that their owner alone may read.
                    if file.stat().st_nlink == 1:  # else it is of another folder, too, whose writer did so
                        file.chmod(temporary.stat().st_mode & 0o666)
                    _flush(file)
            if path.exists():
                _copy_others(path, temporary, made)
                path.replace(replaced)
            temporary.replace(path)
            _flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if replaced.exists() and not path.exists():
            replaced.replace(path)
        shutil.rmtree(replaced, ignore_errors=True)


def staging_folder(path: Path) -> Path:
    """An empty hidden folder beside `path`, for files that `put_in_place` puts beside it, too. Where the writer is
    killed, `remove_leftovers` removes it."""
    folder = _temporary_name(path)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def put_in_place(staged: Path) -> None:
    """Move the files of a staging folder, which are on the disk, to where they belong, and remove it."""
    for file in sorted(staged.iterdir()):
        file.replace(staged.parent / file.name)
    _flush(staged.parent)
    staged.rmdir()


def _copy_others(folder: Path, target: Path, made: Collection[str]) -> None:
    """Copy what is not of `made` into the folder that takes the place of `folder`."""
    for entry in folder.iterdir():
        if entry.name in made or _TEMPORARY.fullmatch(entry.name):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, target / entry.name, symlinks=True)
        else:
            shutil.copy2(entry, target / entry.name, follow_symlinks=False)


def restore_replaced(path: Path) -> None:
    """Where a writer was killed between moving the folder `path` aside and putting the new one into its place: move it
    back."""
    if path.name and not path.exists():
        for leftover, name in _leftovers(path.parent, alone=False):
            if name == path.name + _REPLACED:
                leftover.replace(path)
                return


def remove_leftovers(folder: Path, *, alone: bool = True) -> None:
    """Remove what writers that were killed left half-done in `folder`, and move folders back that were to be replaced.

    alone: nobody else may be writing there. Otherwise only what processes of this machine left that are no more, which
    others may be removing, too.
    """
    for leftover, name in _leftovers(folder, alone=alone):
        path = folder / name.removesuffix(_REPLACED)
        if name.endswith(_REPLACED) and not path.exists():
            with suppress(FileNotFoundError):
                leftover.replace(path)
        elif leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _leftovers(folder: Path, *, alone: bool) -> Iterator[tuple[Path, str]]:
    """Temporary files and folders that nobody writes to any more, and what was to become of each."""
    for entry in sorted(folder.glob(".tmp-*")):
        match = _TEMPORARY.fullmatch(entry.name)
        if match and (alone or (match["host"] == _HOST and not psutil.pid_exists(int(match["process"])))):
            yield entry, match["name"]


def remove_made(folder: Path, made: Collection[str]) -> None:
    """Remove the files of these names from a folder, and the folder where nothing else lies in it."""
    for name in made:
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
# Else a file takes the place of the lock, and stays where its writer on another machine is killed.
_HARD: Any = {"fallback_to_soft": False} if "fallback_to_soft" in signature(FileLock.__init__).parameters else {}


class _Lock(FileLock):
    def acquire(self, *args: Any, **options: Any) -> Any:
        try:
            return super().acquire(*args, **options)
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            raise ConfigError(
                f"{self.lock_file}: the file system has no locks (flock), without which two processes may write here "
                "at once. Mount it with them (Lustre: the option flock; NFS: not nolock), or use another folder."
            ) from None


def file_lock(path: Path, *, timeout: float = -1) -> FileLock:
    """A lock that a process holds, on whichever machine, and that is gone when it ends. timeout: seconds to wait, by
    default for ever; raises `filelock.Timeout` then, and `ConfigError` where the file system has no locks."""
    return _Lock(path, timeout=timeout, **_HARD)


def is_full(error: OSError) -> bool:
    """Whether it is of a full disk, or of a user's full share of it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def why_not_written(error: OSError) -> str:
    """What the system says of a file, with what to do."""
    path = Path(error.filename or "")
    if not is_full(error):
        return f"{path}: {error.strerror}. Check the path and its permissions."
    folder = next(place for place in (path.parent, *path.parent.parents) if place.is_dir())
    free = shutil.disk_usage(folder).free / 1e6
    whose = "the disk is full" if error.errno == errno.ENOSPC else "your share of the disk is full"
    return (
        f"{folder}: {whose} ({free:,.0f} MB are free), so that {path.name} is not written. What was written before is "
        "kept: make room there, and give the same command again."
    )


def refuse_foreign(path: Path, sign: str) -> None:
    """Raise `ConfigError` where a file is there whose text has not what all of ours have."""
    if path.is_file() and sign not in path.read_text(encoding="utf-8", errors="replace"):
        raise ConfigError(f"{path}: is not ours, and would be written over. Move it away, or name another place.")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically. Raises `DataError` for what is none, as the name of a file in another coding."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(_utf8(path, text))


def _utf8(path: Path, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        begin, end = (text.rfind('"', 0, error.start) + 1, text.find('"', error.end))
        name = printable(text[begin : end if end > 0 else error.end])
        raise DataError(
            f"{name}: no UTF-8, which {printable(path.name)} is written in. Rename that file or folder."
        ) from None


def write_json(path: Path, value: object, *, indent: int | None = 1) -> None:
    """Write JSON atomically, indented, or with None in one line; NaN and infinity are refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def _text(path: Path) -> str:
    """The contents of a file in UTF-8; raises `DataError` where there is no file, `UnicodeDecodeError` for other
    bytes."""
    if not path.exists():
        raise DataError(f"{path}: there is no such file.")
    if not path.is_file():  # which a pipe would be waited for, for ever
        raise DataError(f"{path}: no file, but a folder, a pipe or a device. Restore the file.")
    return path.read_text(encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON; raises `DataError` naming the file and the line."""
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:  # of wrong JSON, wrong UTF-8, numbers of 5,000 digits, deep nesting
        raise DataError(f"{path}: not valid JSON ({error}). Mend or restore the file.") from None


def write_toml(path: Path, value: dict[str, Any]) -> None:
    """Write TOML atomically; `None` has no TOML form and must be left out by the caller."""
    write_text(path, tomli_w.dumps(value))


def read_toml(path: Path) -> dict[str, Any]:
    """Read TOML; raises `DataError` naming the file and the line."""
    try:
        return tomllib.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid TOML ({error}). Mend the file.") from None


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def append_jsonl(path: Path, row: dict[str, Any], *, flush: bool = False) -> None:
    """Append one line. What a killed writer left behind the last whole line is dropped first. flush: it is on the disk
    when this returns. Raises as `write_text`."""
    line = _utf8(path, json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    with _named(path), path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        is_new = file.tell() == 0
        file.write(line)
        if flush:
            file.flush()
            os.fsync(file.fileno())
            if is_new:
                _flush(path.parent)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; a last line without its newline (a writer was killed) is dropped.

    Raises `DataError` with the line number for any other damage. A missing file is an empty list.
    """
    if not path.exists():
        return []
    try:
        text = _text(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not valid UTF-8 ({error}). Mend or delete the file.") from None
    *whole, _ = text.split("\n")  # not `splitlines`, for which other characters end a line, too
    rows = []
    for number, line in enumerate(whole, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not valid JSON ({error}). Mend or delete the line.") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: a JSON object was expected. Mend or delete the line.")
        rows.append(row)
    return rows


def hash_files(paths: Sequence[Path], *, salt: str = "") -> str:
    """SHA-256 of the files' contents in order (and `salt`), hexadecimal; names and times do not count."""
    digest = hashlib.sha256(salt.encode())
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def digest_of(value: object) -> str:
    """SHA-256 of what JSON can hold, hexadecimal; the order of keys does not count, nor whether numbers are keys."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode()).hexdigest()


def cache_folder() -> Path:
    """Where semiseg keeps what it found out or made on this machine: `$XDG_CACHE_HOME/semiseg`, or
    `~/.cache/semiseg`; a temporary folder for who has no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "semiseg"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"semiseg-{os.getuid()}"
