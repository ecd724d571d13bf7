"""Processes that work on cases in parallel, and how many the machine has cores for."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import parent_process
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
from threadpoolctl import threadpool_limits

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def usable_cores() -> int:
    """The cores that this process may use: under SLURM or taskset fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def warned_of_others(say: Callable[[str], object], *, watched_seconds: float = 0.5) -> None:
    """Say so where other programs use a quarter or more of the usable cores: what is timed then takes longer than by
    itself. This process must be waiting meanwhile."""
    by_core = psutil.cpu_percent(interval=watched_seconds, percpu=True)
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(by_core))
    used = sum(by_core[core] for core in own if core < len(by_core)) / 100
    if used >= len(own) / 4:
        say(
            f"Other programs use {used:.1f} of {len(own)} cores: the minutes come to fewer steps than on a quiet "
            "machine. Stop them and begin a new run, or give train.steps."
        )


def processor_name() -> str:
    """The processor's name where the system tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """A pool of `workers` processes of one compute thread each, which end when this process does, even if killed.

    They are spawned: a fork would copy the locks of this process's threads, of which torch has many. Unlike
    multiprocessing's own they do not run the caller's script again, which therefore needs no `if __name__ ==
    "__main__"`; what they are given must be functions of a module.
    """
    return ProcessPoolExecutor(workers, mp_context=_SpawnContext(), initializer=_begin)


class _Process(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802 (multiprocessing's name)
        with _hidden_main():
            return SpawnProcess._Popen(process_obj)


class _SpawnContext(SpawnContext):
    Process = _Process


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


def _begin() -> None:
    # Libraries that are loaded later read these; those that are loaded by now are told.
    os.environ |= dict.fromkeys(THREADS, "1")
    threadpool_limits(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := parent_process():
        parent.join()
        os._exit(1)
