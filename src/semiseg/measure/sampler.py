"""Samples of a machine and of a process tree, every 0.1 s."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

INTERVAL_SECONDS = 0.1
"""Between samples, as in the challenge."""
MB = 2**20
"""What nvidia-smi calls MiB: the challenge's figures are in it."""


@dataclass(frozen=True)
class Sample:
    """One moment. The first three are of the whole machine, as the challenge samples them; tree: of the command."""

    seconds: float
    """Since the command was started."""
    gpu_mb: float | None
    """Memory in use on the GPU, by whomever; None without a GPU."""
    cpu_percent: float
    """Of all cores, 0 to 100, since the sample before."""
    ram_mb: float
    """Memory in use on the machine."""
    tree_gpu_mb: float | None
    tree_cpu_percent: float
    """Of all cores, since the sample before, by the processes of the tree that are still there."""
    tree_ram_mb: float
    """Resident memory of all processes of the tree; what they share counts for each."""


class Sampler:
    """Samples in a thread of its own from `start` to `stop`."""

    def __init__(self, process: int, *, gpu: int = 0) -> None:
        """process: the root of the tree. gpu: number of the NVIDIA GPU to sample, if there is one."""
        self.samples: list[Sample] = []
        self._root = psutil.Process(process)
        self._gpu = open_gpu(gpu)
        self._seen: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin; the first sample is one interval later."""
        self._thread.start()

    def stop(self) -> None:
        """End after the sample at hand."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        psutil.cpu_percent()  # counts from its last call in the same thread
        began = last = time.perf_counter()
        due = began + INTERVAL_SECONDS
        while not self._stop.wait(max(0.0, due - time.perf_counter())):
            now = time.perf_counter()
            self.samples.append(self._sample(now - began, now - last))
            last = now
            due = max(due, now) + INTERVAL_SECONDS  # a machine that falls behind samples later, not in a burst

    def _sample(self, seconds: float, passed: float) -> Sample:
        ram, busy, members = 0, 0.0, set()
        for member in self._tree():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied), member.oneshot():
                times = member.cpu_times()
                ram += member.memory_info().rss
                busy += max(0.0, times.user + times.system - self._seen.get(member.pid, 0.0))
                self._seen[member.pid] = times.user + times.system
                members.add(member.pid)
        gpu_mb, tree_gpu_mb = (None, None) if self._gpu is None else self._gpu.used(members)
        return Sample(
            seconds=round(seconds, 3),
            gpu_mb=gpu_mb,
            cpu_percent=psutil.cpu_percent(),
            ram_mb=psutil.virtual_memory().used / MB,
            tree_gpu_mb=tree_gpu_mb,
            tree_cpu_percent=100 * busy / passed / (psutil.cpu_count() or 1),
            tree_ram_mb=ram / MB,
        )

    def _tree(self) -> Iterator[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            yield self._root
            yield from self._root.children(recursive=True)


class Gpu:
    """Memory of one NVIDIA GPU, asked from its driver (NVML)."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle

    def used(self, members: set[int]) -> tuple[float | None, float | None]:
        """MB in use by all, and by these processes; None for what the driver does not tell."""
        total = tree = None
        with suppress(self._library.NVMLError):
            total = self._library.nvmlDeviceGetMemoryInfo(self._handle).used / MB
        with suppress(self._library.NVMLError):
            running = self._library.nvmlDeviceGetComputeRunningProcesses(self._handle)
            tree = sum((process.usedGpuMemory or 0) / MB for process in running if process.pid in members)
        return total, tree


def open_gpu(number: int) -> Gpu | None:
    """The GPU, or None where there is none, or no driver, or `nvidia-ml-py` is not installed."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return Gpu(pynvml, pynvml.nvmlDeviceGetHandleByIndex(number))
    except pynvml.NVMLError:
        return None
