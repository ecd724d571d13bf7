"""Steps a second of one process and of ranks on the same cores.

    python benchmarks/ranks.py [--plans small]

Runs on phantoms, trained in turn by the commands that a user gives; a step's time is from the rows of metrics, so that
starting does not count, and the median of the rounds is printed, with the ratio to the first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from semiseg.demo.dataset import write_phantom_dataset
from semiseg.files import write_json
from semiseg.processes import processor_name, usable_cores
from semiseg.rows import read_metrics

HERE = Path(__file__).parent
PLANS: dict[str, tuple[dict[str, object], int]] = {
    "small": ({"plan.patch": [16, 24, 24], "plan.base_features": 8, "plan.batch": 2}, 60),
    "larger": ({"plan.patch": [32, 64, 64], "plan.base_features": 16, "plan.batch": 2}, 12),
}
"""Settings of a plan, and the steps of a run."""
NOT_TIMED = 4
"""Steps, after which the first checkpoint is written."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--method", default="supervised")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    given = parser.parse_args()
    cores = usable_cores()
    contenders = {
        "one rank, one thread": (1, 1),
        f"one rank, {cores} threads": (1, cores),
        f"{cores} ranks, one thread each": (cores, 1),
    }
    rates: dict[str, dict[str, list[float]]] = {plan: {name: [] for name in contenders} for plan in given.plans}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = write_phantom_dataset(folder / "data", seed=0, labelled=3, unlabelled=4, test=0)
        for plan in given.plans:
            settings, steps = PLANS[plan]
            prepared = {
                name: _prepare(folder / f"{plan} {name}", data, threads, settings | {"train.steps": steps}, given)
                for name, (_, threads) in contenders.items()
            }
            for _ in range(given.rounds):
                for name, (ranks, _) in contenders.items():
                    run = folder / "run"
                    shutil.copytree(prepared[name], run)
                    _semiseg(ranks, "train", run, "--quiet")
                    rates[plan][name].append(_rate(run))
                    print(f"{plan}, {name}: {rates[plan][name][-1]:.3f} steps/s", flush=True)
                    shutil.rmtree(run)
    result = {
        "machine": {"processor": processor_name(), "cores": cores},
        "method": given.method,
        "precision": given.precision,
        "steps a second": {
            plan: {
                name: {"median": round(median(one), 3), "each": [round(r, 3) for r in one]} for name, one in of.items()
            }
            for plan, of in rates.items()
        },
    }
    write_json(given.results / f"ranks{'_bfloat16' * (given.precision == 'bfloat16')}.json", result)
    print(json.dumps(result, indent=1))
    for plan, of in rates.items():
        first = median(next(iter(of.values())))
        for contender, found in of.items():
            print(f"{plan:8} {contender:28} {median(found):8.3f} steps/s  {median(found) / first:.2f}")


def _prepare(run: Path, data: Path, threads: int, settings: dict[str, object], given: argparse.Namespace) -> Path:
    fixed = {
        "train.device": "cpu",
        "train.threads": threads,
        "train.precision": given.precision,
        "train.validation_every": 0,
        "train.log_every": 1,
    }
    flags = [f"--set={key}={json.dumps(value)}" for key, value in (fixed | settings).items()]
    _semiseg(1, "prepare", run, "--data", data, "--method", given.method, *flags, "--quiet")
    return run


def _semiseg(ranks: int, *arguments: object) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "semiseg", *map(str, arguments)],
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        | {"PYTHONPATH": str(HERE.parent / "src")}
        | ({"OMP_NUM_THREADS": "1"} if ranks > 1 else {}),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"semiseg {arguments[0]}: {done.stdout}{done.stderr}")


def _rate(run: Path) -> float:
    """Steps a second, without the first."""
    rows = [row for row in read_metrics(run) if row["step"] >= NOT_TIMED + 1]
    return float((rows[-1]["step"] - rows[0]["step"]) / (rows[-1]["seconds"] - rows[0]["seconds"]))


if __name__ == "__main__":
    main()
