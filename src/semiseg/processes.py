"""Worker processes, and how many the machine has cores for."""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from itertools import cycle
from multiprocessing import parent_process
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from threading import Thread, current_thread, main_thread
from typing import Any

import psutil
from threadpoolctl import threadpool_limits

_VISIBLE = "CUDA_VISIBLE_DEVICES"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


_most_threads: list[int] = []
_workers_asked: list[int] = []


def limit_threads(count: int) -> None:
    """From now on compute with so many threads and processes at most, in whatever is asked of `usable_cores`, and in
    libraries that are loaded later."""
    _most_threads[:] = [count]
    os.environ |= dict.fromkeys(THREADS, str(count))


def ask_for_workers(count: int) -> None:
    """From now on `workers` is so many."""
    _workers_asked[:] = [count]


def workers(usual: int | None = None) -> int:
    """How many processes are to work on cases: what `ask_for_workers` was told, or else the usual number, by default
    one a core."""
    return _workers_asked[0] if _workers_asked else usual or usable_cores()


def usable_cores() -> int:
    """The cores that this process may use: under SLURM or taskset fewer than the machine has, or as many as
    `limit_threads` was told."""
    return min(len(_own_cores()), *_most_threads) if _most_threads else len(_own_cores())


def _own_cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


_ENDS_WITH = "SEMISEG_ENDS_WITH"
_LOOKS_EVERY_SECONDS = 0.5


def ending_with_this() -> dict[str, str]:
    """For the environment of a semiseg command that is to stop where this process ends, even if killed."""
    return {_ENDS_WITH: str(os.getpid())}


def stop_with_starter() -> None:
    """In a command that was started so: from now on stop, as by SIGTERM, once the process that started it is no
    more."""
    starter = os.environ.pop(_ENDS_WITH, "")

    def watch() -> None:
        while os.getppid() == int(starter):
            time.sleep(_LOOKS_EVERY_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    if starter.isdigit():
        Thread(target=watch, daemon=True).start()


def warn_of_other_programs(say: Callable[[str], object], *, threads: int, watched_seconds: float = 0.5) -> None:
    """Say so where other programs leave less than three quarters of `threads` cores free: fewer steps fit into
    the minutes. This process must be waiting meanwhile. What a container's share of cores is is not seen."""
    shares = psutil.cpu_percent(interval=watched_seconds, percpu=True)
    own = _own_cores()
    if max(own) < len(shares):  # else a container lists cores by other numbers: all of them are its own
        shares = [shares[core] for core in own]
    busy = sum(shares) / 100
    if len(shares) - busy < 0.75 * min(threads, len(shares)):
        say(f"Other programs use {busy:.1f} of {len(shares)} cores: meanwhile fewer steps fit into the minutes.")


def asked_ranks() -> int:
    """How many processes `torchrun` started that are to train together; 1 without it, whatever WORLD_SIZE is."""
    joins = os.environ.get("RANK") and os.environ.get("MASTER_ADDR")
    return int(os.environ.get("WORLD_SIZE") or "1") if joins else 1


def is_first_rank() -> bool:
    """Whether this is the one of them that writes and speaks; true without `torchrun`."""
    return asked_ranks() == 1 or os.environ.get("RANK", "0") == "0"


def ranks_here() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or "1")


def processor_name() -> str:
    """The processor's name where the system tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def worker_pool(
    count: int, *, threads: int = 1, begin: Callable[[], object] | None = None, gpus: Sequence[str] = ()
) -> ProcessPoolExecutor:
    """A pool of `count` processes of so many compute threads each, which end when this process does, even if killed.

    They are spawned: a fork would copy the locks of this process's threads, of which torch has many. Unlike
    multiprocessing's own they do not run the caller's script again, which therefore needs no `if __name__ ==
    "__main__"`; what they are given must be functions of a module. begin: called in each, before anything else. gpus:
    as `CUDA_VISIBLE_DEVICES` names them; each process sees one, in turn. Without them it sees all.
    """
    return _Pool(count, mp_context=_SpawnContext(gpus), initializer=_begin, initargs=(threads, begin))


class _Pool(ProcessPoolExecutor):
    """Ctrl-C and SIGTERM wait while processes are started, and these never hear of Ctrl-C: it reaches all processes of
    a terminal, and who started them says so."""

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        with _signals_later():
            return super().submit(*args, **kwargs)


@contextmanager
def _signals_later() -> Iterator[None]:
    """Within, signals that would end this process are only remembered, and processes that are started begin with Ctrl-C
    blocked. Both are needed: what one thread blocks another one gets, and Python answers it in the main thread."""
    caught: list[int] = []
    handlers: dict[int, Any] = {}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    if current_thread() is main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.signal(number, lambda sent, _frame: caught.append(sent))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for ending, handler in handlers.items():
            signal.signal(ending, handler)
        for sent in caught:
            signal.raise_signal(sent)


class _Process(SpawnProcess):
    gpu = ""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802 (multiprocessing's name)
        with _hidden_main(), _one_gpu(process_obj.gpu):
            return SpawnProcess._Popen(process_obj)


class _SpawnContext(SpawnContext):
    def __init__(self, gpus: Sequence[str] = ()) -> None:
        super().__init__()
        self._gpus = cycle(gpus or [""])

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        process = _Process(*args, **kwargs)
        process.gpu = next(self._gpus)
        return process


@contextmanager
def _one_gpu(gpu: str) -> Iterator[None]:
    """Within, processes that are started see this GPU alone; an empty name changes nothing."""
    before = os.environ.get(_VISIBLE)
    if gpu:
        os.environ[_VISIBLE] = gpu
    try:
        yield
    finally:
        if before is not None:
            os.environ[_VISIBLE] = before
        elif gpu:
            del os.environ[_VISIBLE]


def gpu_names(count: int) -> list[str]:
    """The names of the `count` GPUs that this process sees, as `CUDA_VISIBLE_DEVICES` has them."""
    visible = [one.strip() for one in os.environ.get(_VISIBLE, "").split(",") if one.strip()]
    return visible[:count] if len(visible) >= count else [str(number) for number in range(count)]


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Within, nothing tells where the main module came from: a spawned process is told to load it again otherwise."""
    main = sys.modules["__main__"]
    kept: dict[str, Any] = {name: main.__dict__.pop(name) for name in ("__file__", "__spec__") if name in main.__dict__}
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(kept)


def _begin(threads: int, begin: Callable[[], object] | None) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    limit_threads(threads)  # of libraries that are loaded later; those that are loaded by now are told
    threadpool_limits(threads)
    if begin:
        begin()


def _end_with_parent() -> None:
    if parent := parent_process():
        parent.join()
        os._exit(1)
