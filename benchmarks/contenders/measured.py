"""One contender does one task once, in a process and an environment of its own; prints what it took as JSON.

    python benchmarks/contenders/measured.py TASK CONTENDER FOLDER RESULT.npz

What comes before the task itself, imports and inputs, is not counted: not in the time, and memory counts from there on.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from semiseg.errors import ConfigError

Work = Callable[[], dict[str, Any]]
"""The task, ready to be done; gives its results as arrays by name."""
Contender = Callable[[Path], Work]
"""Makes the work ready from the folder of inputs."""


def main() -> None:
    task, name, folder, result = sys.argv[1:]
    with redirect_stdout(sys.stderr):
        make: Contender = import_module(task).CONTENDERS[name]
        try:
            taken, arrays = measured(make, Path(folder))
        except ConfigError as error:  # an engine that did not pass its check: a row that says so
            taken, arrays = {"refused": str(error)}, {}
    np.savez(result, **arrays)
    print(json.dumps(taken))


def measured(make: Contender, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a contender took, and its results."""
    work = make(folder)
    Path("/proc/self/clear_refs").write_text("5")
    before, cpu_before, start = _kilobytes("VmRSS"), _cpu_seconds(), time.perf_counter()
    arrays = work()
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "cpu_seconds": _cpu_seconds() - cpu_before,
        "start_bytes": before * 1024,
        "peak_bytes": _kilobytes("VmHWM") * 1024,
        "gpu_peak_bytes": _gpu_peak_bytes(),
        "versions": {library: _version(library) for library in _LIBRARIES if library in sys.modules},
    }, arrays


_LIBRARIES = (
    "semiseg", "torch", "openvino", "nnunetv2", "monai", "SimpleITK", "torchio", "surface_distance", "medpy", "scipy",
)  # fmt: skip


def _version(library: str) -> str:
    try:
        return version(library.replace("_", "-"))
    except PackageNotFoundError:
        return "source"


def _kilobytes(field: str) -> int:
    """A line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}: Linux is needed")


def _gpu_peak_bytes() -> int:
    """What torch's allocator took of the GPU at most; 0 where none was used. CUDA's own context is not in it."""
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_reserved() if torch and torch.cuda.is_initialized() else 0


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main()
