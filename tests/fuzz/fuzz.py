"""Damaged and hostile files by the thousand: what becomes of each is counted, and what is not an answer is a failure.

    python tests/fuzz/fuzz.py --files 10000 --kills 300

Of every file: *refused* is an error that says what to do; *same* is the result of the whole file; *another* is what a
file without a checksum cannot tell. *wrong* (another result past a checksum), *traceback*, *hang* (over 30 s) and
*memory* (more than a gigabyte beyond what whole files take) are failures. Kills are of `semiseg run`, at any moment,
until it has ended: its bits are those of a whole run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from mutators import damaged
from targets import Target, targets

from semiseg.cli import main as semiseg
from semiseg.demo.dataset import write_phantom_dataset
from semiseg.errors import SemisegError
from semiseg.files import hash_files

HANG_SECONDS = 30
MOST_MORE_BYTES = 2**30
MOST_BYTES = 8 * 2**30
"""Of address space: far above what torch takes, far below what a header can claim."""
OUTCOMES = ("refused", "same", "another", "wrong", "traceback", "hang", "memory")
FAILURES = OUTCOMES[3:]
TINY = (
    "plan.patch=[16,16,16]", "plan.batch=2", "plan.base_features=4", "plan.max_levels=2", "train.steps=6",
    "train.threads=1", "train.device=cpu", "train.precision=float32", "train.log_every=1", "train.checkpoint_every=3",
    "predict.device=cpu", "predict.engine=torch", "predict.tile_step=1",
)  # fmt: skip


def made_run(folder: Path) -> tuple[Path, Path]:
    """A finished run on generated scans, and its dataset."""
    data = write_phantom_dataset(folder / "data", seed=0, labelled=2, unlabelled=2, test=1, shape_zyx=(24, 32, 32))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        semiseg(["run", str(folder / "run"), "--data", str(data), "--quiet", *_flags(TINY)])
    assert (folder / "run" / "report.html").is_file(), "the whole run failed"
    return folder / "run", data


def _flags(settings: tuple[str, ...]) -> Iterator[str]:
    for setting in settings:
        yield from ("--set", setting)


def outcome(target: Target, whole: object, generator: np.random.Generator) -> tuple[str, str]:
    """What becomes of one damaged file, and the traceback of what should not be; the file is whole again afterwards."""
    file = target.folder / str(generator.choice(target.files))
    content = file.read_bytes()
    file.write_bytes(damaged(file, content, generator))
    before, peak = signal.signal(signal.SIGALRM, _hangs), _peak_bytes()
    signal.alarm(HANG_SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = target.call(target.folder)
    except SemisegError:
        return "refused", ""
    except TimeoutError:
        return "hang", f"{file}"
    except MemoryError:
        return "memory", f"{file}"
    except BaseException:  # noqa: BLE001 (to be counted, whatever it is)
        return "traceback", f"{file}\n{traceback.format_exc()}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        bad = file.read_bytes()
        file.write_bytes(content)
        if _peak_bytes() - peak > MOST_MORE_BYTES:
            return "memory", f"{file}"  # noqa: B012 (whatever else became of it)
    if found == whole:
        return "same", ""
    if not target.proven:
        return "another", ""
    return "wrong", f"{file}: {len(bad)} bytes, of {len(content)} before"


def _peak_bytes() -> int:
    """Of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _hangs(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError


def fuzz(folder: Path, count: int, seed: int) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Outcomes by target, and what is said of the failures. seed: of all that is drawn."""
    run, data = made_run(folder / "made")
    everything = targets(run, data, folder / "whole")
    wholes = {target.name: target.call(target.folder) for target in everything}
    generator = np.random.default_rng(seed)
    outcomes: Counter[tuple[str, str]] = Counter()
    said: list[str] = []
    # Reports and predictions take a second each, the others milliseconds.
    shares = np.array([0.05 if target.name in ("report", "predictions") else 1.0 for target in everything])
    for _ in range(count):
        target = everything[int(generator.choice(len(everything), p=shares / shares.sum()))]
        what, why = outcome(target, wholes[target.name], generator)
        outcomes[target.name, what] += 1
        if what in FAILURES:
            said.append(f"{target.name}: {what}: {why}")
    return outcomes, said


def _share(seed: int, count: int) -> tuple[Counter[tuple[str, str]], list[str]]:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    with TemporaryDirectory() as folder:
        return fuzz(Path(folder), count, seed)


def killed_runs(folder: Path, kills: int, seed: int) -> int:
    """Kill `semiseg run` so often, beginning anew where it ends; how many runs came out otherwise than a whole one."""
    whole, data = made_run(folder / "made")
    wanted = hash_files([whole / "model" / "weights.safetensors"])
    command = [sys.executable, "-m", "semiseg", "run", str(folder / "run"), "--data", str(data), "--quiet"]
    generator, wrong, done, seconds = np.random.default_rng(seed), 0, 0, 20.0
    while done < kills:
        began = time.monotonic()
        process = subprocess.Popen(
            [*command, *_flags(TINY)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            code = process.wait(timeout=float(generator.uniform(0.0, seconds)))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done += 1
            continue
        seconds = time.monotonic() - began
        wrong += code != 0 or hash_files([folder / "run" / "model" / "weights.safetensors"]) != wanted
        shutil.rmtree(folder / "run")
    return wrong


def print_table(outcomes: Counter[tuple[str, str]]) -> None:
    """A line for each target."""
    names = list(dict.fromkeys(name for name, _ in outcomes))
    print(f"{'':20}" + "".join(f"{what:>11}" for what in OUTCOMES))
    for name in names:
        print(f"{name:20}" + "".join(f"{outcomes[name, what]:>11,}" for what in OUTCOMES))
    print(f"{'all':20}" + "".join(f"{sum(outcomes[name, what] for name in names):>11,}" for what in OUTCOMES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    shares = [len(range(part, given.files, given.processes)) for part in range(given.processes)]
    seeds = [given.seed * 1000 + part for part in range(given.processes)]
    outcomes: Counter[tuple[str, str]] = Counter()
    said: list[str] = []
    with ProcessPoolExecutor(given.processes, mp_context=get_context("spawn")) as pool:
        for found, why in pool.map(_share, seeds, shares):
            outcomes += found
            said += why
    print_table(outcomes)
    for text in said:
        print(f"\n{text}")
    if given.kills:
        with TemporaryDirectory() as folder:
            wrong = killed_runs(Path(folder), given.kills, given.seed)
        print(f"\n{given.kills} kills; runs that came out otherwise: {wrong}")
        said += ["kills"] * wrong
    sys.exit(1 if said else 0)


if __name__ == "__main__":
    main()
