"""Prepared scans that runs share: each is prepared once, by content and recipe, and every run has it by a hard link.

A store is a folder beside the runs: `DIGEST/ID/`, a stored case. What a run has by a link is its own: it stays when the
store is pruned or deleted, and an entry that no run has any more is one whose files have no second link.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from semiseg.errors import DataError
from semiseg.files import atomic_folder, file_lock, remove_leftovers, remove_made, write_json
from semiseg.io.store import CASE_FILES
from semiseg.words import in_minutes

NAME = "prepared-scans"
_MARK = "store.json"
_DIGEST_LENGTH = 20
_PATIENCE_SECONDS = 1800.0
"""Longer than the largest scan takes to be prepared by another process."""


def store_beside(run: Path, asked: str) -> Path:
    """The store of a run: the one that was asked for (`data.store`), or that beside it."""
    return Path(asked) if asked else run.resolve().parent / NAME


def open_store(folder: Path) -> None:
    """Make a folder a store; raises `DataError` where it holds something else."""
    if (folder / _MARK).is_file():
        return
    strange = folder.exists() and (not folder.is_dir() or any(one.name[0] != "." for one in folder.iterdir()))
    if strange and not (folder / _MARK).is_file():  # which another process may have made meanwhile
        raise DataError(
            f"{folder}: prepared scans are to be kept here, but something else is. Name another folder with --set "
            "data.store=FOLDER."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _MARK, {"format": 1, "what": "scans that semiseg prepared; `semiseg store` lists them"})


@contextmanager
def entry(store: Path, case: str, digest: str) -> Iterator[Path]:
    """Within: the folder of a case in the store, which no other process writes or removes."""
    place = store / digest[:_DIGEST_LENGTH]
    place.mkdir(exist_ok=True)
    lock = file_lock(place / f".{case}.lock", timeout=_PATIENCE_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise DataError(
            f"{lock.lock_file}: another process has had this scan in hand for {in_minutes(_PATIENCE_SECONDS / 60)}. "
            "End it, or delete this file where there is none; then give the same command again."
        ) from None
    try:
        remove_leftovers(place, alone=False)
        yield place / case
    finally:
        lock.release()


def link_case(stored: Path, folder: Path) -> None:
    """Give a run a stored case: by hard links, or as a copy where the file system has none."""
    with atomic_folder(folder, made=CASE_FILES, restores=False) as temporary:  # stores of 100,000 cases are not listed
        for file in stored.iterdir():
            if file.name in CASE_FILES:
                _link(file, temporary / file.name)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
            raise
        shutil.copy2(file, target)


@dataclass(frozen=True)
class Entry:
    """A prepared scan of a store. bytes: of its files. runs: those beside the store that have it by a link. is_used:
    whether any run has, wherever it lies."""

    folder: Path
    bytes: int
    runs: tuple[Path, ...]
    is_used: bool


def entries(store: Path) -> list[Entry]:
    """What a store holds, by case and digest; raises `DataError` where the folder is no store."""
    if not (store / _MARK).is_file():
        raise DataError(f"{store}: no store of prepared scans (no {_MARK}). It lies beside the runs: {NAME}.")
    owners: dict[tuple[int, int], list[Path]] = {}
    for run in sorted(file.parent for pattern in ("*/run.toml", "*/*/run.toml") for file in store.parent.glob(pattern)):
        for file in run.glob("store/*/image.b2nd"):
            owners.setdefault(_identity(file), []).append(run)
    found = []
    for folder in sorted(store.glob("*/*/"), key=lambda path: (path.name, path.parent.name)):
        if folder.name.startswith(".") or not (folder / "image.b2nd").is_file():
            continue
        files = [file for file in folder.iterdir() if file.is_file()]
        used = any(file.stat().st_nlink > 1 for file in files)
        size = sum(file.stat().st_size for file in files)
        found.append(Entry(folder, size, tuple(owners.get(_identity(folder / "image.b2nd"), ())), used))
    return found


def prune(store: Path, progress: Callable[[int, int, str], None]) -> int:
    """Remove what no run has by a link; returns the bytes. What another process has in hand is passed over."""
    freed = 0
    unused = [one for one in entries(store) if not one.is_used]
    for done, one in enumerate(unused, start=1):
        try:
            with file_lock(one.folder.parent / f".{one.folder.name}.lock", timeout=0):
                if not any(file.stat().st_nlink > 1 for file in one.folder.iterdir()):  # else taken into use meanwhile
                    remove_made(one.folder, CASE_FILES)
                    freed += one.bytes
        except Timeout:
            continue
        progress(done, len(unused), one.folder.name)
    return freed


def _identity(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_dev, stat.st_ino
