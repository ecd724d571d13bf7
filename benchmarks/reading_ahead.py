"""Who reads batches best: a thread or processes, beside a Python program (as what tells a GPU what to do is), and
beside one that computes in C (as training on a CPU is).

    OMP_NUM_THREADS=1 python benchmarks/reading_ahead.py [--rounds 3] [--steps 20]

Reads 2 + 2 patches of 64 x 128 x 128 a step from cases that are not kept in memory. Both kinds of work take about
0.1 s alone. Prints, as medians over rounds that alternate: milliseconds that the work took, the share of the time that
it waited for a batch, and steps a second.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from semiseg.data.batches import BatchSource
from semiseg.data.sampling import SamplingSettings
from semiseg.io.store import StoredCase, write_case
from semiseg.processes import usable_cores

SHAPE, PATCH, CASES = (96, 256, 256), (64, 128, 128), 6
READERS = {"no reading": None, "thread": 0, "1 process": 1, "2 processes": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{usable_cores()} cores")
    with TemporaryDirectory() as scratch:
        folders = [stored(Path(scratch), number) for number in range(2 * CASES)]
        sources = {name: source(folders, count) for name, count in READERS.items()}
        for one in sources.values():
            next(one.iterate(0, 1))  # the processes are there
        alone = sources["thread"]
        began = time.perf_counter()
        for step in range(arguments.steps):
            alone.arrays(step, unlabelled=True)
        print(f"reading alone: {1e3 * (time.perf_counter() - began) / arguments.steps:.0f} ms a step")
        for kind, work in (("Python", python_work()), ("C", c_work())):
            rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in READERS}
            for number in range(arguments.rounds):
                for name, count in READERS.items():
                    begin = 1000 * (number + 1)
                    rows[name].append(measured(work, sources[name], begin, arguments.steps, reads=count is not None))
            for name, found in rows.items():
                took, waited, rate = (statistics.median(column) for column in zip(*found, strict=True))
                print(f"{kind:6} beside {name:12} {took:6.1f} ms of work  waiting {waited:5.1%}  {rate:5.2f} steps/s")
        for one in sources.values():
            one.close()


def measured(
    work: Callable[[], object], source: BatchSource, begin: int, steps: int, *, reads: bool
) -> tuple[float, float, float]:
    took = waited = 0.0
    began = time.perf_counter()
    with closing(source.iterate(begin, begin + steps)) as batches:
        for _ in range(steps):
            if reads:
                asked = time.perf_counter()
                next(batches)
                waited += time.perf_counter() - asked
            started = time.perf_counter()
            work()
            took += time.perf_counter() - started
        seconds = time.perf_counter() - began
    return 1e3 * took / steps, waited / seconds, steps / seconds


def python_work() -> Callable[[], object]:
    """About 0.1 s of the interpreter alone."""

    def work(turns: int) -> int:
        found = 0
        for number in range(turns):
            found = (found + number * 3) % 1_000_003
        return found

    began = time.perf_counter()
    work(1_000_000)
    turns = round(1_000_000 * 0.1 / (time.perf_counter() - began))
    return lambda: work(turns)


def c_work() -> Callable[[], object]:
    """About 0.1 s of convolutions, which give the interpreter back."""
    layer = torch.nn.Conv3d(8, 8, 3, padding=1)
    image = torch.randn(1, 8, 24, 24, 24)

    def work(turns: int) -> None:
        for _ in range(turns):
            layer(image).square().mean().backward()

    work(1)
    began = time.perf_counter()
    work(5)
    turns = max(1, round(5 * 0.1 / (time.perf_counter() - began)))
    return lambda: work(turns)


def source(folders: list[Path], readers: int | None) -> BatchSource:
    return BatchSource(
        folders[:CASES],
        folders[CASES:],
        patch=PATCH,
        batch=2,
        seed=0,
        settings=SamplingSettings(cache_gb=0.0),
        readers=readers or 0,
    )


def stored(folder: Path, number: int) -> Path:
    """A case with noise of a CT, which compresses as one does, and a third of it air."""
    generator = np.random.default_rng(number)
    image = (generator.normal(0, 20, (1, *SHAPE)).round() / 75).astype(np.float32)
    image[..., : SHAPE[2] // 3] = -2.0
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[30:60, 80:160, 100:200] = 1
    meta = StoredCase(
        id=f"case{number}",
        shape_zyx=SHAPE,
        spacing_mm=(1.0, 1.0, 1.0),
        source_shape_zyx=SHAPE,
        source_spacing_mm=(1.0, 1.0, 1.0),
        hash="0",
        labelled=number < CASES,
        channels=1,
        class_voxels={},
        class_locations={1: ((40, 100, 150),)},
        body_locations=((50, 128, 128),),
    )
    write_case(folder / meta.id, image=image, label=label if meta.labelled else None, meta=meta)
    return folder / meta.id


if __name__ == "__main__":
    main()
