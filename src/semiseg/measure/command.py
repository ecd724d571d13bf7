"""Runs a command and leaves its figures: samples.csv, summary.json and curves.png."""

from __future__ import annotations

import csv
import io
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from types import FrameType
from typing import Any

from semiseg.errors import ConfigError
from semiseg.files import atomic_file, write_json, write_text
from semiseg.measure.figures import FREE_GPU_MB, summarise
from semiseg.measure.sampler import Sample, Sampler


def measure_command(command: Sequence[str], output: Path, *, gpu: int = 0) -> tuple[int, dict[str, Any]]:
    """Run the command to its end and write its figures into `output`; its exit code and the summary.

    What it prints passes through. Ctrl-C reaches it, and its figures are written all the same. Raises `ConfigError`
    for a command that cannot be started.
    """
    if not command:
        raise ConfigError("nothing to measure: give the command after `--`.")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be made ({error.strerror}). Name another folder with --output.") from None
    began = time.perf_counter()
    with _handing_on() as running:
        try:
            process = subprocess.Popen(list(command))
        except OSError as error:
            raise ConfigError(
                f"{command[0]}: cannot be started ({error.strerror}). Check the name after `--`."
            ) from None
        running.append(process)
        sampler = Sampler(process.pid, gpu=gpu)
        sampler.start()
        try:
            code = process.wait()
        finally:
            seconds = time.perf_counter() - began
            sampler.stop()
    code = code if code >= 0 else 128 - code  # as a shell gives it
    summary = {"command": list(command), "exit_code": code} | summarise(sampler.samples, seconds)
    write_text(output / "samples.csv", as_csv(sampler.samples))
    write_json(output / "summary.json", summary)
    if sampler.samples:
        plot(sampler.samples, output / "curves.png")
    return code, summary


@contextmanager
def _handing_on() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Within, what would end this process is handed on to the processes in the list; Ctrl-C reaches them by itself, as
    they are of the same group, and is theirs to answer."""
    running: list[subprocess.Popen[bytes]] = []

    def hand_on(number: int, _frame: FrameType | None) -> None:
        if not running:
            raise SystemExit(128 + number)
        if number != signal.SIGINT:
            running[0].send_signal(number)

    # Before the command is started: it may be told to end at once. It inherits no handler, but what nohup ignores.
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heard = [number for number in ends if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, hand_on) for number in heard}
    try:
        yield running
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def as_csv(samples: Sequence[Sample]) -> str:
    """A table with a line a sample; what there is no GPU for is empty."""
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(Sample)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(sample) for sample in samples)
    return text.getvalue()


def plot(samples: Sequence[Sample], file: Path) -> None:
    """Memory and processor use over time, of the machine and of the command; on a GPU with the line at 2,048 MB."""
    from matplotlib.figure import Figure

    seconds = [sample.seconds for sample in samples]
    curves: list[tuple[str, list[float], list[float], float | None]] = [
        ("memory, MB", [s.ram_mb for s in samples], [s.tree_ram_mb for s in samples], None),
        ("processor, % of all cores", [s.cpu_percent for s in samples], [s.tree_cpu_percent for s in samples], None),
    ]
    if samples[0].gpu_mb is not None:
        machine, tree = [s.gpu_mb or 0.0 for s in samples], [s.tree_gpu_mb or 0.0 for s in samples]
        curves.insert(0, ("GPU memory, MB", machine, tree, FREE_GPU_MB))
    figure = Figure(figsize=(8, 2.4 * len(curves)), layout="constrained")
    for axes, (title, machine, tree, line) in zip(figure.subplots(len(curves), sharex=True), curves, strict=True):
        axes.plot(seconds, machine, color="#9aa5b1", linewidth=1, label="machine")
        axes.plot(seconds, tree, color="#0b6e99", linewidth=1.5, label="command")
        if line is not None:
            axes.axhline(line, color="#c05a1c", linewidth=1, linestyle="--", label="2,048 MB: free in the challenge")
        axes.set_ylabel(title)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8)
    axes.set_xlabel("seconds")
    with atomic_file(file) as temporary:
        figure.savefig(temporary, dpi=120)
