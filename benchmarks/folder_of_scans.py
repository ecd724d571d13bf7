"""A folder of CTs: one call of `semiseg predict` on all of them against a call for each, with the same engine.

    python benchmarks/folder_of_scans.py --model model-16-coarse --scans 8

Both ways alternately; labels must be equal. Then one call with a budget that has room for two scans at a time, and one
with the smallest that is accepted, which has not. Writes benchmarks/results/folder_of_scans.json: seconds, CPU seconds,
and the peak of a process's memory.
"""

from __future__ import annotations

import argparse
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from semiseg.files import read_jsonl, write_json
from semiseg.io.scans import read_label, read_scan
from semiseg.prediction.byte_sizes import parse_bytes, show_bytes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "contenders"))
import inputs  # noqa: E402

SHAPE = (100, 512, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", default="model-16-coarse", choices=list(inputs.MODELS))
    parser.add_argument("--scans", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--max-memory", default="4GB")
    arguments = parser.parse_args()
    folder = arguments.out / "folder-of-scans"
    scans = [real_ct(folder / "scans", arguments.data, number) for number in range(arguments.scans)]
    model = inputs.trained_model(arguments.out, arguments.model).folder
    options = ["--engine", "openvino", "--precision", arguments.precision, "--no-mirror", "--quiet"]
    ways: dict[str, list[list[Path]]] = {"a call for each": [[scan] for scan in scans], "one call": [scans]}
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    predict(model, scans[:1], folder / "checked", options)  # the engine is checked against torch once
    for _ in range(arguments.repeats):
        for way, calls in ways.items():
            shutil.rmtree(folder / way, ignore_errors=True)
            all_calls = [predict(model, call, folder / way, options) for call in calls]
            sums = {key: sum(one[key] for one in all_calls) for key in ("seconds", "cpu_seconds")}
            taken[way].append(sums | {"peak_mb": max(one["peak_mb"] for one in all_calls)})
            print(way, taken[way][-1], flush=True)
    for scan in scans:
        each, one = (read_label(folder / way / scan.name.replace("_0000", ""))[0] for way in ways)
        assert np.array_equal(each, one), scan
    budgets = {}
    for name, budget in (
        ("two at a time", arguments.max_memory),
        ("one at a time", smallest_budget(model, scans, options)),
    ):
        shutil.rmtree(folder / name, ignore_errors=True)
        found = predict(model, scans, folder / name, [*options, "--max-memory", budget])
        budgets[name] = {"max_memory": budget} | found
        print(name, budgets[name], flush=True)
        assert found["peak_mb"] * 1e6 <= parse_bytes(budget)
    rows = {way: {key: median(one[key] for one in found) for key in found[0]} for way, found in taken.items()}
    each_row, one_row = rows.values()
    result: dict[str, Any] = {
        "model": arguments.model,
        "precision": arguments.precision,
        "scans": arguments.scans,
        "shape": SHAPE,
        "ways": rows,
        "one call / a call for each": {key: round(one_row[key] / each_row[key], 3) for key in one_row},
        "seconds of scans in one call": [row["seconds"] for row in read_jsonl(folder / "one call/predictions.jsonl")],
        "with a budget": budgets,
        "all": taken,
    }
    write_json(HERE / "results" / "folder_of_scans.json", result)
    print(result)


def smallest_budget(model: Path, scans: list[Path], options: list[str]) -> str:
    """What semiseg says that it needs at least, and a little more: what an engine takes differs from call to call."""
    command = [sys.executable, "-m", "semiseg", "predict", str(model), *map(str, scans), "--output", "unused", *options]
    refused = subprocess.run([*command, "--max-memory", "1MB"], check=False, capture_output=True, text=True)
    found = re.search(r"give --max-memory (\S+),", refused.stderr)
    assert found, refused.stderr
    return show_bytes(parse_bytes(found[1]) + 20 * 10**6)


def real_ct(folder: Path, data: Path, number: int) -> Path:
    """Slices of a real CT as a scan of its own: from another slice on, and turned around for every other number."""
    file = folder / f"ct{number}_0000.nii.gz"
    if not file.is_file():
        volume = read_scan([data / "ct_whole" / "ircad17_0000.nii.gz"])
        rows = volume.channels[0].stored[2 * number : 2 * number + SHAPE[0]]
        inputs._write(file, np.ascontiguousarray(rows[::-1] if number % 2 else rows), volume.grid.spacing_mm)
    return file


def predict(model: Path, scans: list[Path], output: Path, options: list[str]) -> dict[str, float]:
    """What a call took."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-c", CALL, "predict", str(model), *map(str, scans), "--output", str(output), *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": cpu,
        "peak_mb": int(done.stdout.splitlines()[-1]) / 1e6,
    }


CALL = """
import atexit, sys
from semiseg.cli import main
from semiseg.prediction.memory import peak_bytes
atexit.register(lambda: print(peak_bytes()))
main()
"""


if __name__ == "__main__":
    main()
