"""Processes that read batches ahead, where a thread would hold the interpreter's lock: decompression does not give it
back, so that a reading thread stops the one that tells a GPU what to do.

A batch is a function of its step, so each is read by whichever process is free, into memory that is shared and has no
name: nothing of it is left when the processes are gone, however they ended.
"""

from __future__ import annotations

import mmap
import os
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from semiseg.errors import TrainingError
from semiseg.processes import ranks_here, usable_cores, worker_pool
from semiseg.types import AnyArray

T = TypeVar("T")
MOST = 4
"""Readers of a rank: more patches than four cores decompress no GPU was seen to ask for."""
_Layout = Sequence[tuple[str, tuple[int, ...], str]]
"""Name, shape and dtype of each array, in the order in which they lie in memory."""


def fitting_readers(device: str) -> int:
    """How many processes are to read beside a rank that computes on this kind of device; 0 for a thread.

    On a CPU the threads that compute have all cores that are of use, and a thread of readers is as fast (docs/lab/
    scale.md). Beside a GPU one core tells it what to do, and another is left for what else there is.
    """
    spare = usable_cores() // ranks_here() - 2
    return max(0, min(MOST, spare)) if device == "cuda" and hasattr(os, "memfd_create") else 0


class Source(Protocol):
    """What reads: made in each process from its parts, and told what was published."""

    def arrays(self, step: int, unlabelled: bool) -> dict[str, AnyArray]: ...

    def take(self, published: Any) -> None: ...


class Readers:
    """A pool of reading processes, which end with this one."""

    def __init__(self, make: Callable[[], Source], count: int, *, slots: int, slot_bytes: int) -> None:
        """make: the source, called in each process. slots: batches that may be in the making, or not yet fetched."""
        self._pool = worker_pool(count, begin=partial(_keep, pickle.dumps(make)))
        self._slots, self._slot_bytes = slots, slot_bytes
        self._files = [_shared_file("batches", slots * slot_bytes)]
        self._memory = mmap.mmap(self._files[0], slots * slot_bytes)
        self._published = (0, "")

    def publish(self, published: Any) -> None:
        """What the source is to take from now on, for batches that are submitted later."""
        content = pickle.dumps(published)
        file = _shared_file("published", len(content))
        os.pwrite(file, content, 0)
        self._files.append(file)
        self._published = (self._published[0] + 1, _path(file))

    def tidy(self) -> None:
        """Forget what was published before; no batch may be in the making."""
        for old in self._files[1:-1]:
            os.close(old)
        self._files[1:-1] = []

    def submit(self, step: int, unlabelled: bool) -> Future[_Layout]:
        slot = step % self._slots * self._slot_bytes
        return self._guarded(
            lambda: self._pool.submit(_read_into, step, unlabelled, _path(self._files[0]), slot, self._published)
        )

    def fetch(self, step: int, batch: Future[_Layout]) -> dict[str, AnyArray]:
        """The arrays of a batch, copied, so that the memory may be written to again; raises what reading raised, and
        `TrainingError` where a process was killed."""
        layout, at = self._guarded(batch.result), step % self._slots * self._slot_bytes
        found: dict[str, AnyArray] = {}
        for name, shape, dtype in layout:
            shared: AnyArray = np.ndarray(shape, dtype, self._memory, at)
            found[name] = shared.copy()
            at += shared.nbytes
        return found

    def close(self) -> None:
        """Wait for what is being read, and end the processes."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._memory.close()
        for file in self._files:
            os.close(file)

    @staticmethod
    def _guarded(work: Callable[[], T]) -> T:
        try:
            return work()
        except BrokenProcessPool:
            raise TrainingError(
                "a process that reads batches was killed, most likely for want of memory. Give the same command again, "
                "which goes on from the last checkpoint; less memory is taken with a smaller sampling.cache_gb."
            ) from None


def _shared_file(name: str, size: int) -> int:
    """A file in memory without a name in any folder."""
    file = os.memfd_create(f"semiseg-{name}")
    os.ftruncate(file, size)
    return file


def _path(file: int) -> str:
    """By which other processes of this user find it, as long as this one lives."""
    return f"/proc/{os.getpid()}/fd/{file}"


_kept: list[Any] = []


def _keep(packed: bytes) -> None:
    """In a reader, before its first batch."""
    _kept[:] = [packed, 0]  # unpacked with the first batch: what goes wrong then is raised, and kills no process


def _read_into(step: int, unlabelled: bool, path: str, at: int, published: tuple[int, str]) -> _Layout:
    if isinstance(_kept[0], bytes):
        _kept[0] = pickle.loads(_kept[0])()  # of this program's own parent
    source: Source = _kept[0]
    if _kept[1] != published[0]:
        with Path(published[1]).open("rb") as file:
            source.take(pickle.load(file))
        _kept[1] = published[0]
    memory, layout = _mapped(path), []
    for name, array in source.arrays(step, unlabelled).items():
        shared: AnyArray = np.ndarray(array.shape, array.dtype, memory, at)
        shared[...] = array
        at += array.nbytes
        layout.append((name, array.shape, array.dtype.str))
    return layout


@lru_cache(maxsize=1)
def _mapped(path: str) -> mmap.mmap:
    file = os.open(path, os.O_RDWR)
    try:
        return mmap.mmap(file, os.fstat(file).st_size)
    finally:
        os.close(file)
