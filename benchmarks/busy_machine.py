"""Minutes on a busy machine, and two commands at once. The machine is to have nothing else to do.

    python benchmarks/busy_machine.py --data FOLDER --output FOLDER --minutes 5 --labelled 4

The first table: a run by minutes on a quiet machine, beside two busy processes from its start, and from its middle:
minutes that training took, steps, Dice. The second: how long commands take two at a time, by how long one takes alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

from semiseg.rows import read_metrics

BUSY = "while True: pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--labelled", type=int, required=True)
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    begun = ["run", "--data", given.data, "--labelled", given.labelled]
    print(f"{'beside':28}{'minutes':>9}{'steps':>8}{'Dice':>8}")
    for name, after in (("nothing", None), ("two processes, from the start", 0.0), ("two, from the middle", 0.5)):
        run = given.output / name.replace(" ", "_").replace(",", "")
        with busy_from(None if after is None else after * 60 * given.minutes):
            semiseg([*begun, "--minutes", given.minutes, run])
        last = read_metrics(run)[-1]
        dice = json.loads((run / "summary.json").read_text())["mean"]["dice"]["mean"]
        print(f"{name:28}{last['seconds'] / 60:>9.2f}{last['step']:>8}{dice:>8.3f}", flush=True)

    runs = [given.output / f"by_steps_{number}" for number in range(3)]
    scans = given.data / "imagesTs"
    by_steps = ["--set", f"train.steps={given.steps}"]
    commands = {
        "run": [[*begun, *by_steps, run] for run in runs],
        "predict": [["predict", run, scans, "--output", run / "again"] for run in runs],
        "rank": [["rank", run] for run in runs],
        "evaluate": [["evaluate", run] for run in runs],
    }
    print(f"\n{'command':12}{'alone, s':>10}{'two at once, s':>16}{'ratio':>8}")
    for name, (alone, *both) in commands.items():
        one, two = seconds([alone]), seconds(both)
        print(f"{name:12}{one:>10.1f}{two:>16.1f}{two / one:>8.2f}", flush=True)


def semiseg(arguments: Sequence[object]) -> None:
    subprocess.run(command(arguments), check=True, stdout=subprocess.DEVNULL)


def command(arguments: Sequence[object]) -> list[str]:
    return [sys.executable, "-m", "semiseg", *map(str, arguments)]


def seconds(together: Sequence[Sequence[object]]) -> float:
    """How long commands take that are started together, until the last has ended."""
    began = time.perf_counter()
    started = [subprocess.Popen(command(arguments), stdout=subprocess.DEVNULL) for arguments in together]
    codes = [process.wait() for process in started]
    if any(codes):
        raise SystemExit("a command failed: its message is above.")
    return time.perf_counter() - began


@contextmanager
def busy_from(after: float | None) -> Iterator[None]:
    """Within, two processes that never rest, from so many seconds on; None has none."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        started.extend(subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(2))

    timer = Timer(0.0 if after is None else after, start)
    if after is not None:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        for process in started:
            process.kill()


if __name__ == "__main__":
    main()
