"""A CT of 512 x 512 x 800 voxels predicted by the compact network within --max-memory 3GB, under a hard limit of 3 GB.

    python benchmarks/hard_limit.py

The limit is a memory control group (Linux, as root): the system ends a process that goes beyond it. All of the memory
of the process counts, the libraries and the cache of files that it writes among it. Writes
benchmarks/results/hard_limit.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from semiseg.files import write_json
from semiseg.prediction.byte_sizes import parse_bytes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "contenders"))
import inputs  # noqa: E402

_GROUPS = Path("/sys/fs/cgroup")
_NAME = "semiseg-hard-limit"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    parser.add_argument("--model", default="model-16-coarse", choices=list(inputs.MODELS))
    parser.add_argument("--slices", type=int, default=800)
    parser.add_argument("--limit", default="3GB")
    arguments = parser.parse_args()
    folder = arguments.out / "hard-limit"
    model = inputs.trained_model(arguments.out, arguments.model)
    short = inputs.write_long_ct(folder / "short_0000.nii.gz", arguments.out, 64)
    scan = inputs.write_long_ct(folder / f"long{arguments.slices}_0000.nii.gz", arguments.out, arguments.slices)
    program = [sys.executable, "-m", "semiseg", "predict", str(model.folder)]
    options = ["--output", str(folder / arguments.model), "--engine", "openvino", "--no-mirror", "--quiet"]
    # The engine is checked against torch first, on a short scan: that takes both at once.
    subprocess.run([*program, str(short), *options], check=True)
    started = time.perf_counter()
    with limited_group(parse_bytes(arguments.limit)) as group:

        def enter() -> None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

        command = [*program, str(scan), *options, "--max-memory", arguments.limit]
        done = subprocess.run(command, preexec_fn=enter, check=False)
        peak = largest_use(group)
    labels = folder / arguments.model / scan.name.replace("_0000", "")
    result = {
        "model": arguments.model,
        "slices": arguments.slices,
        "limit": arguments.limit,
        "exit": done.returncode,
        "written": labels.is_file(),
        "minutes": round((time.perf_counter() - started) / 60, 2),
        "group_peak_gb": round(peak / 1e9, 3),
        "logits_in_double_precision_gb": round(14 * int(np.prod([arguments.slices, 512, 512])) * 8 / 1e9, 1),
    }
    write_json(HERE / "results" / "hard_limit.json", result)
    print(result)


@contextmanager
def limited_group(limit: int) -> Iterator[Path]:
    """A memory control group that holds no more than `limit` bytes, and no swap where the system can say so."""
    old = (_GROUPS / "memory").is_dir()
    group = (_GROUPS / "memory" if old else _GROUPS) / _NAME
    group.mkdir(exist_ok=True)
    try:
        (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(limit))
        swap = group / ("memory.memsw.limit_in_bytes" if old else "memory.swap.max")
        if swap.exists():
            swap.write_text(str(limit if old else 0))
        yield group
    finally:
        group.rmdir()


def largest_use(group: Path) -> int:
    """The most bytes that the group has held."""
    file = group / "memory.max_usage_in_bytes"
    return int((file if file.exists() else group / "memory.peak").read_text())


if __name__ == "__main__":
    main()
