"""The same work by semiseg and by the tools that people use, alternately in one run, each in a fresh process.

    python3 -m venv .peers && .peers/bin/pip install --no-deps -r benchmarks/peers.txt
    python benchmarks/against_peers.py                    # all tasks, or name some
    python benchmarks/against_peers.py export-100 --repeats 5

Prints seconds (median), CPU seconds, peak memory above the inputs, all as ratios of semiseg to the peer, and how the
results agree; writes benchmarks/results/peers/TASK.json after each task. What is generated is kept in --out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from semiseg.files import write_json
from semiseg.prediction.parity import class_dice
from semiseg.types import AnyArray

HERE = Path(__file__).parent
OURS = "semiseg"
"""Contenders whose name begins so run in this environment, the others in the peers'."""

sys.path.insert(0, str(HERE / "contenders"))
import inputs  # noqa: E402


@dataclass(frozen=True)
class Task:
    """What is done, by whom, on what. make: writes the inputs into a folder, given the folder of all and of real
    volumes."""

    module: str
    make: Callable[[Path, Path, Path], None]
    contenders: tuple[str, ...]
    real: bool = False
    """Whether it needs the real volumes."""
    gpu: bool = False
    """Whether it needs an NVIDIA GPU."""


_EXPORT = ("semiseg", "nnU-Net", "MONAI")
_PREPARATION = ("semiseg", "nnU-Net", "MONAI", "SimpleITK", "TorchIO")
_SCORES = ("semiseg", "surface-distance", "MONAI", "medpy")
_GPU = ("semiseg GPU", "semiseg GPU float32", "semiseg GPU, 4 tiles at once", "nnU-Net GPU")
_PREDICTION = ("semiseg", "semiseg int8", "semiseg, all tiles", "semiseg compact", "nnU-Net")
TASKS = {
    "tile": Task("tile", inputs.window_inputs, ("semiseg", "semiseg int8", "nnU-Net", "torch")),
    "window": Task("window", inputs.window_inputs, ("semiseg", "semiseg int8", "nnU-Net", "MONAI")),
    "export-100": Task("export", inputs.export_100, _EXPORT),
    "export-250": Task("export", inputs.export_250, _EXPORT),
    "preparation": Task("preparation", inputs.preparation_inputs, _PREPARATION),
    "preparation-ircad17": Task("preparation", inputs.preparation_ircad17, _PREPARATION, real=True),
    "scores": Task("scores", inputs.scores_inputs, _SCORES),
    "scores-ircad17": Task("scores", inputs.scores_ircad17, _SCORES, real=True),
    "prediction": Task("prediction", inputs.prediction_inputs, _PREDICTION),
    "prediction-ircad17": Task("prediction", inputs.prediction_ircad17, _PREDICTION, real=True),
    "prediction-gpu": Task("prediction", inputs.prediction_gpu_inputs, _GPU, gpu=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"any of {', '.join(TASKS)}; all by default")
    parser.add_argument("--contenders", nargs="+", help="these alone, semiseg first")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", type=Path, default=Path(".peers/bin/python"))
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.tasks if name not in TASKS]:
        parser.error(f"{', '.join(unknown)}: choose from {', '.join(TASKS)}")
    if not arguments.peers.exists():
        parser.error(f"{arguments.peers}: no such Python. Make the environment as --help says, or name it with --peers")
    for name in arguments.tasks or TASKS:
        task = TASKS[name]
        if task.real and not arguments.data.is_dir():
            print(f"{name}: left out, {arguments.data} is not there")
            continue
        if task.gpu and not torch.cuda.is_available():
            print(f"{name}: left out, no NVIDIA GPU is here")
            continue
        folder = arguments.out / name
        folder.mkdir(parents=True, exist_ok=True)
        task.make(folder, arguments.out, arguments.data)
        contenders = arguments.contenders or task.contenders
        rows = measure(task, contenders, folder.resolve(), arguments.repeats, arguments.peers)
        _print(name, rows)
        write_json(HERE / "results" / "peers" / f"{name}.json", {"repeats": arguments.repeats, "rows": rows})


def measure(task: Task, contenders: Sequence[str], folder: Path, repeats: int, peers: Path) -> list[dict[str, Any]]:
    """One row for each contender, the first of which the others are held against."""
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        for name in contenders:
            print(f"{folder.name}: {name}, {repeat + 1} of {repeats}", file=sys.stderr)
            python = Path(sys.executable) if name.startswith(OURS) else peers
            if any("refused" in one for one in taken[name]):
                continue
            taken[name].append(_run(python, task.module, name, folder))
            print(f"    {taken[name][-1].get('refused') or taken[name][-1]['seconds']}", file=sys.stderr)
    if "refused" in (first_taken := taken[contenders[0]][0]):
        raise SystemExit(first_taken["refused"])
    rows: list[dict[str, Any]] = []
    first = _Results(folder, contenders[0])
    for name, measured in taken.items():
        row: dict[str, Any] = {"contender": name}
        if "refused" in measured[0]:
            rows.append(row | {"refused": measured[0]["refused"], "versions": {}})
            continue
        results = _Results(folder, name)
        if results.engine:
            row["engine"] = results.engine
        for figure in ("seconds", "cpu_seconds"):
            row[figure] = round(median(one[figure] for one in measured), 3)
        row["peak_mb"] = round(median(one["peak_bytes"] for one in measured) / 1e6)
        if gpu_peak := median(one["gpu_peak_bytes"] for one in measured):
            row["gpu_peak_mb"] = round(gpu_peak / 1e6)
        row["peak_mb_above_start"] = round(median(one["peak_bytes"] - one["start_bytes"] for one in measured) / 1e6)
        row["all_seconds"] = [round(one["seconds"], 3) for one in measured]
        if name != contenders[0]:
            for figure in ("seconds", "peak_mb", "peak_mb_above_start"):
                row[f"semiseg / it, {figure}"] = round(rows[0][figure] / max(row[figure], 1e-3), 4)
            row["agreement"] = first.agreement(results)
        row["versions"] = measured[-1]["versions"]
        rows.append(row)
    return rows


def _run(python: Path, module: str, name: str, folder: Path) -> dict[str, Any]:
    command: list[str | Path] = [
        python,
        HERE / "contenders" / "measured.py",
        module,
        name,
        folder,
        _Results.file(folder, name),
    ]
    paths = [str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{module} by {name} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class _Results:
    """The arrays that a contender left."""

    def __init__(self, folder: Path, name: str) -> None:
        with np.load(self.file(folder, name)) as arrays:
            self.arrays: dict[str, AnyArray] = dict(arrays)
        self.engine = str(self.arrays.pop("engine", ""))
        """By what semiseg computed, and in which precision."""

    @staticmethod
    def file(folder: Path, name: str) -> Path:
        return folder / f"result-{name.replace(' ', '-').replace(',', '')}.npz"

    def agreement(self, other: _Results) -> dict[str, float | str]:
        """Largest differences of numbers; of label maps the share of equal voxels and the smallest Dice of a class."""
        found: dict[str, float | str] = {}
        for name in self.arrays.keys() & other.arrays.keys():
            ours, theirs = self.arrays[name], other.arrays[name]
            if ours.shape != theirs.shape:
                found[name] = f"{ours.shape} and {theirs.shape}"
            elif ours.dtype.kind == "f":
                found[f"{name}, largest difference"] = float(f"{np.nanmax(np.abs(ours - theirs)):.3g}")
                if name == "logits":
                    found |= _label_agreement("labels", ours.argmax(0), theirs.argmax(0))
            else:
                found |= _label_agreement(name, ours, theirs)
        return found


def _label_agreement(name: str, ours: AnyArray, theirs: AnyArray) -> dict[str, float | str]:
    smallest = min(class_dice(theirs, ours).values(), default=1.0)
    return {f"{name}, equal": round(float((ours == theirs).mean()), 7), f"{name}, smallest Dice": round(smallest, 5)}


def _print(name: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{name}\n{'':42} seconds    CPU s  peak MB  above start   seconds / it  above start / it  agreement")
    for row in rows:
        if "refused" in row:
            print(f"{row['contender']:42} refused: {row['refused']}")
            continue
        ratios = ""
        if "agreement" in row:
            agreement = ", ".join(f"{key} {value}" for key, value in row["agreement"].items())
            time, memory = row["semiseg / it, seconds"], row["semiseg / it, peak_mb_above_start"]
            ratios = f"{time:14.3f} {memory:17.3f}  {agreement}"
        print(
            f"{_named(row):42} {row['seconds']:7.2f} {row['cpu_seconds']:8.2f} {row['peak_mb']:8d} "
            f"{row['peak_mb_above_start']:12d} {ratios}"
            + (f"  GPU peak {row['gpu_peak_mb']} MB" if "gpu_peak_mb" in row else "")
        )
    versions = {library: number for row in rows for library, number in row["versions"].items()}
    print(", ".join(f"{library} {number}" for library, number in sorted(versions.items())))


def _named(row: dict[str, Any]) -> str:
    return f"{row['contender']} ({row['engine']})" if "engine" in row else str(row["contender"])


if __name__ == "__main__":
    main()
