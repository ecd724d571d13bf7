"""`semiseg prepare` of many small scans by a Dask cluster of processes, killed half-way and given again.

    OMP_NUM_THREADS=1 python benchmarks/cluster_prepare.py FOLDER [--scans 2000] [--workers 2]

Prints the seconds of each part, how many scans were stored when the command was killed, and how many of those the
second one made anew.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import psutil

from semiseg.files import read_jsonl, write_json

EDGE, LABELLED = 24, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scans", type=int, default=2_000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    data, run, file = (arguments.folder / name for name in ("data", "run", "scheduler.json"))
    make(data, arguments.scans)
    started = [dask("scheduler", "--scheduler-file", file, "--port", "0", "--no-dashboard", "--host", "127.0.0.1")]
    try:
        wait_for(file.exists)
        options = ("--nthreads", "1", "--nworkers", arguments.workers, "--no-dashboard")
        started.append(dask("worker", "--scheduler-file", file, *options, "--local-directory", arguments.folder))
        time.sleep(15)
        sizes = ("train.steps=10", "plan.patch=[16,16,16]", "plan.base_features=4", "plan.spacing_mm=[1.0,1.0,1.0]")
        command = [sys.executable, "-m", "semiseg", "prepare", run, "--data", data, "--scheduler", file]
        command += [part for size in sizes for part in ("--set", size)]
        began = time.perf_counter()
        with subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL) as first:
            wait_for(lambda: len(stored(run)) >= arguments.scans // 2 or first.poll() is not None)
            first.send_signal(signal.SIGKILL)
        print(f"killed after {time.perf_counter() - began:.0f} s", flush=True)
        time.sleep(5)  # for what the workers had in hand
        before, known = stored(run), len(read_jsonl(run / "store" / "seen.jsonl"))
        print(f"stored then: {len(before)} of {arguments.scans}; noted as seen: {known}", flush=True)
        for title in ("the same command again", "once more, with nothing to do"):
            began = time.perf_counter()
            subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
            seconds, after = time.perf_counter() - began, stored(run)
            anew = sum(after.get(case) != mark for case, mark in before.items())
            print(f"{title}: {seconds:.0f} s, {len(after) - len(before)} more stored, {anew} done anew", flush=True)
            before = after
    finally:
        for process in started:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()


def make(data: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr", "imagesUn"):
        (data / name).mkdir(parents=True)
    write_json(data / "dataset.json", {"labels": {"background": 0, "organ": 1}, "channel_names": {"0": "CT"}})
    for number in range(count):
        image = generator.normal(0, 100, (EDGE,) * 3).round().astype(np.float32)
        if number < LABELLED:
            save(data / "labelsTr" / f"scan_{number:05d}.nii.gz", (image > 0).astype(np.float32))
        save(data / ("imagesTr" if number < LABELLED else "imagesUn") / f"scan_{number:05d}_0000.nii.gz", image)


def save(path: Path, values: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)  # type: ignore[no-untyped-call]


def stored(run: Path) -> dict[str, tuple[int, int]]:
    """The stored scans, and by what a file that was written again would differ."""
    found = ((file.parent.name, file.stat()) for file in run.glob("store/*/case.json") if file.parent.name[0] != ".")
    return {case: (stat.st_ino, stat.st_mtime_ns) for case, stat in found}


def dask(*arguments: object) -> subprocess.Popen[bytes]:
    code = "import sys; from dask.__main__ import main; sys.argv[0] = 'dask'; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def wait_for(done: object) -> None:
    while not done():  # type: ignore[operator]
        time.sleep(0.2)


if __name__ == "__main__":
    main()
