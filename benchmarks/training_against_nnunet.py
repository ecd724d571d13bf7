"""Training by semiseg and by nnU-Net: steps of the paper's network, and augmented patches, in turn in one run.

    make .peers/installed
    python benchmarks/training_against_nnunet.py steps      # or patches; --data FOLDER for the CT

The batch is 2 of 32 x 96 x 96 voxels, of 14 classes. Each contender lives in a process of its own (nnU-Net's in the
peers' environment) and they take turns. Seconds are those that its thread computed, which other programs hardly change;
what passed on the clock is kept beside them. Medians and ratios go to `benchmarks/results/training_WHAT.json`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from semiseg.data.plan import ChannelNormalisation, NetworkPlan, Plan, write_plan
from semiseg.data.prepare import prepare_case
from semiseg.files import write_json
from semiseg.io.dataset import Case
from semiseg.io.flare22_labels import FLARE22_LABELS
from semiseg.processes import processor_name, usable_cores

HERE = Path(__file__).parent
BEFORE = "before: "
TASKS = {
    "steps": (
        ("nnU-Net", "nnU-Net, its network", "semiseg", "semiseg float32"),
        ("semiseg dense feedback", "semiseg dense feedback, every 4th"),
    ),
    "patches": (
        ("nnU-Net patches", "semiseg patches", "semiseg patches, not deformed"),
        ("nnU-Net augmentation", "semiseg augmentation", "semiseg augmentation, not deformed"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=TASKS)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=150.0, help="after which no further turn begins")
    parser.add_argument("--patch", type=int, nargs=3, default=(32, 96, 96))
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="of each; with more, waiting for each other counts, too")
    parser.add_argument("--contenders", nargs="+", help="these alone")
    parser.add_argument("--peers", type=Path, default=HERE.parent / ".peers" / "bin" / "python")
    parser.add_argument("--before", type=Path, help="a checkout, for 'before: semiseg' as a contender")
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--out", type=Path, default=Path("runs/training"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    plan = _plan(tuple(arguments.patch), arguments.features)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_plan(arguments.out / "plan.toml", plan)
    if arguments.what == "patches":
        scan, label = (arguments.data / "ct_whole" / f"ircad17_{part}.nii.gz" for part in ("0000", "label"))
        prepare_case(Case(id="ircad17", images=(scan,), label=label), plan, arguments.out / "store")
    names = arguments.contenders or [name for group in TASKS[arguments.what] for name in group]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    clock: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(_worker(arguments, name)) for name in names}
        began, result = time.perf_counter(), dict[str, Any]()
        for turn in range(arguments.turns):
            if turn and time.perf_counter() - began > arguments.seconds:
                break
            for name, worker in workers.items():
                computed, passed = map(float, _said(worker, "go").split())
                seconds[name].append(computed)
                clock[name].append(passed)
            result = {
                "machine": {"processor": processor_name(), "cores": usable_cores(), "threads": arguments.threads},
                "patch": list(plan.patch),
                "batch": plan.batch,
                "features": list(plan.student.features),
                "turns": turn + 1,
                "contenders": _compared(TASKS[arguments.what], seconds, clock),
            }
            write_json(arguments.results / f"training_{arguments.what}.json", result)
        for worker in workers.values():
            worker.communicate()
    for name, row in result["contenders"].items():
        print(f"{name:36}", ", ".join(f"{key} {value}" for key, value in row.items() if key != "each"))


def _compared(
    groups: Sequence[Sequence[str]], seconds: dict[str, list[float]], clock: dict[str, list[float]]
) -> dict[str, dict[str, Any]]:
    """Medians by contender, and ratios to nnU-Net's of its group; of feedback, to a supervised step."""
    rows: dict[str, dict[str, Any]] = {
        name: {
            "seconds": round(median(found), 5),
            "each": [round(one, 4) for one in found],
            "clock": round(median(clock[name]), 5),
        }
        for name, found in seconds.items()
    }
    for present in ([name for name in group if name in rows] for group in groups):
        for reference in (name for name in present if name.startswith("nnU-Net")):
            for name in (name for name in present if not name.startswith("nnU-Net")):
                rows[name][f"of {reference}"] = round(median(seconds[name]) / median(seconds[reference]), 3)
    for name in (name for name in rows if BEFORE + name in rows):
        rows[name]["of before"] = round(median(seconds[name]) / median(seconds[BEFORE + name]), 3)
    for name in (name for name in rows if name.startswith("semiseg dense") and "semiseg" in rows):
        rows[name]["supervised steps"] = round(median(seconds[name]) / median(seconds["semiseg"]), 2)
    return rows


def _worker(arguments: argparse.Namespace, name: str) -> subprocess.Popen[str]:
    """A contender that is ready, and has done a turn to warm up."""
    threads = str(arguments.threads)
    python = str(arguments.peers) if name.startswith("nnU-Net") else sys.executable
    checkout = arguments.before.resolve() if name.startswith(BEFORE) else HERE.parent
    paths = os.pathsep.join([str(checkout / "src"), str(HERE / "contenders")])
    worker = subprocess.Popen(
        [python, str(HERE / "contenders" / "training.py"), name.removeprefix(BEFORE), str(arguments.out), threads],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": threads},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    _said(worker)
    return worker


def _said(worker: subprocess.Popen[str], told: str = "") -> str:
    """The next line of a contender, which is told something first."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    if told:
        worker.stdin.write(f"{told}\n")
        worker.stdin.flush()
    if line := worker.stdout.readline():
        return line
    raise SystemExit("a contender failed: its message is above.")


def _plan(patch: tuple[int, int, int], features: int) -> Plan:
    network = NetworkPlan(
        features=tuple(min(512, features * 2**level) for level in range(5)),
        kernels=((3, 3, 3),) * 5,
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
    )
    return Plan(
        dataset="made up",
        channels=("CT",),
        labels=FLARE22_LABELS,
        spacing_mm=(2.5, 1.0, 1.0),
        anisotropic_axis=None,
        patch=patch,
        batch=2,
        normalisation=(ChannelNormalisation(scheme="ct", low=-150.0, high=300.0, mean=70.0, deviation=90.0),),
        teacher=network,
        student=network,
    )


if __name__ == "__main__":
    main()
