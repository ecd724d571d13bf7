"""The losses of a few steps of every method, bit for bit: a change of the house that changes no numbers leaves them.

    python benchmarks/loss_traces.py [METHOD ...]

Trains each method for 30 steps on the demo's phantoms, on one thread of a CPU in float32, and prints a line for it: a
hash of all its logged numbers but times, and the last loss. Lines of two commits are compared on one machine.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from semiseg.demo.dataset import write_phantom_dataset
from semiseg.rows import read_metrics

METHODS = ("supervised", "pseudo_rounds", "pseudo_label", "mpl", "mean_teacher", "cross_pseudo", "copy_paste")
SETTINGS = {
    "train.steps": 30,
    "train.log_every": 1,
    "train.threads": 1,
    "train.precision": "float32",
    "train.device": "cpu",
    "train.validation_every": 0,
    "plan.patch": [16, 24, 24],
    "plan.base_features": 8,
    "plan.batch": 2,
}
TIMES = ("seconds", "input_share")


def main() -> None:
    wanted = sys.argv[1:] or METHODS
    with TemporaryDirectory() as scratch:
        data = write_phantom_dataset(Path(scratch) / "data", seed=0, labelled=3, unlabelled=4, test=0)
        for name in wanted:
            run = Path(scratch) / name
            flags = [f"--set={key}={json.dumps(value)}" for key, value in SETTINGS.items()]
            semiseg("prepare", run, "--data", data, "--method", name, *flags)
            semiseg("train", run)
            rows = [{key: value for key, value in row.items() if key not in TIMES} for row in read_metrics(run)]
            digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]
            losses = {key: value for key, value in rows[-1].items() if key.endswith("loss")}
            print(f"{name:16} {len(rows):3} steps  {digest}  {losses}", flush=True)


def semiseg(*arguments: object) -> None:
    done = subprocess.run([sys.executable, "-m", "semiseg", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"semiseg {arguments[0]}: {done.stderr}")


if __name__ == "__main__":
    main()
