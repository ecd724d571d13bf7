"""Measuring real processes, and the challenge's figures from samples that are known."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from semiseg.errors import ConfigError
from semiseg.measure.command import measure_command
from semiseg.measure.figures import challenge_maximum, summarise
from semiseg.measure.sampler import MB, Gpu, Sample

HOLDING = """
import subprocess, sys, time
held = bytearray(200 << 20)
held[::4096] = b"x" * len(held[::4096])
child = subprocess.Popen([sys.executable, "-c", "held = bytearray(b'x') * (100 << 20); import time; time.sleep(1)"])
child.wait()
sys.exit(3)
"""


def sample(gpu: float | None = None, cpu: float = 50.0, ram: float = 1000.0) -> Sample:
    return Sample(0.1, gpu, cpu, ram, None if gpu is None else gpu / 2, cpu / 2, ram / 2)


def test_a_tree_of_processes_is_measured(tmp_path: Path) -> None:
    code, summary = measure_command([sys.executable, "-c", HOLDING], tmp_path / "out")
    assert code == summary["exit_code"] == 3
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    # Parent and child hold 300 MB at once; two interpreters take some tens more.
    assert 300 <= summary["tree_ram_mb_max"] < 400
    assert summary["ram_mb_max"] > summary["tree_ram_mb_max"]
    assert summary["seconds"] >= 1
    rows = list(csv.DictReader((tmp_path / "out" / "samples.csv").read_text().splitlines()))
    assert len(rows) == summary["samples"] > 3
    assert float(rows[-1]["seconds"]) <= summary["seconds"]
    assert all(0 <= float(row["cpu_percent"]) <= 100 for row in rows)
    assert float(rows[0]["cpu_percent"]) > 0  # an interpreter starts meanwhile
    assert (tmp_path / "out" / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_a_command_that_is_over_before_the_first_sample(tmp_path: Path) -> None:
    code, summary = measure_command(["true"], tmp_path)
    assert (code, summary["exit_code"]) == (0, 0)
    assert (tmp_path / "summary.json").is_file()


def test_a_killed_command_has_the_code_of_a_shell(tmp_path: Path) -> None:
    code, _ = measure_command(["sh", "-c", "kill -9 $$"], tmp_path)
    assert code == 137


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_ends_measuring_ends_the_command_and_its_figures_are_written(
    number: signal.Signals, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    waiting = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)"
    measure = [sys.executable, "-m", "semiseg", "measure", "--output", str(tmp_path / "out"), "--"]
    before = signal.signal(number, signal.SIG_DFL)  # inherited by the command, even where nohup ignores it
    request.addfinalizer(lambda: signal.signal(number, before))
    with subprocess.Popen([*measure, sys.executable, "-c", waiting], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        command = psutil.Process(int(process.stdout.readline()))
        process.send_signal(number)
        assert process.wait(timeout=120) == 128 + number
    assert not command.is_running()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["exit_code"] == 128 + number


def test_a_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no-such-program: cannot be started"):
        measure_command(["no-such-program"], tmp_path)


def test_the_figures_are_the_challenges() -> None:
    """100 samples: 3 at 3,000 MB count for the maximum, 2 at 5,000 MB (not more than 2 %) are a spike."""
    samples = [sample(1000.4)] * 95 + [sample(3000.9, cpu=100)] * 3 + [sample(5000.0, ram=4000)] * 2
    found = summarise(samples, seconds=10.03)
    assert found["gpu_mb_max_challenge"] == 3000
    assert found["gpu_mb_max"] == 5000
    assert found["tree_gpu_mb_max"] == 2500
    assert found["gpu_mb_seconds"] == pytest.approx(0.1 * (95 * 1000.4 + 3 * 3000.9 + 2 * 5000), abs=1e-3)
    assert found["gpu_mb_seconds_over_2048"] == pytest.approx(0.1 * (3 * 952.9 + 2 * 2952), abs=1e-3)
    assert found["cpu_percent_seconds"] == pytest.approx(0.1 * (97 * 50 + 3 * 100))
    assert found["cpu_percent_mean"] == pytest.approx(51.5)
    assert (found["ram_mb_max"], found["tree_ram_mb_max"], found["seconds"]) == (4000, 2000, 10.03)


def test_without_a_gpu_its_figures_are_none() -> None:
    found = summarise([sample()] * 3, seconds=0.3)
    assert {name for name, value in found.items() if value is None} == {
        "gpu_mb_seconds",
        "gpu_mb_seconds_over_2048",
        "gpu_mb_max_challenge",
        "gpu_mb_max",
        "tree_gpu_mb_max",
    }


def test_a_maximum_needs_a_value_that_is_frequent() -> None:
    assert challenge_maximum([]) is None
    assert challenge_maximum(list(range(100))) is None  # each value is 1 % of the samples
    assert challenge_maximum([7.2, 7.9, 3.0]) == 7


def test_gpu_memory_is_the_devices_and_the_trees() -> None:
    """The driver's answers, as NVML gives them; a process whose memory it does not tell has None."""
    refused = type("NVMLError", (Exception,), {})
    library = SimpleNamespace(
        NVMLError=refused,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=3000 * MB),
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [
            SimpleNamespace(pid=1, usedGpuMemory=500 * MB),
            SimpleNamespace(pid=2, usedGpuMemory=700 * MB),
            SimpleNamespace(pid=3, usedGpuMemory=None),
        ],
    )
    assert Gpu(library, None).used({2, 3}) == (3000, 700)

    def not_supported(handle: object) -> None:
        raise refused

    library.nvmlDeviceGetComputeRunningProcesses = not_supported
    assert Gpu(library, None).used({2, 3}) == (3000, None)  # and the other figures go on


def test_the_command_line(semiseg_command: Callable[..., Any], tmp_path: Path) -> None:
    answer = semiseg_command("measure", "--output", tmp_path / "out", "--", sys.executable, "-c", "exit(5)")
    assert answer.code == 5
    assert "exit_code                  5" in answer.out
    assert (tmp_path / "out" / "summary.json").is_file()


def test_what_cannot_be_measured_is_said_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to measure"):
        measure_command([], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file: cannot be made"):
        measure_command(["touch", str(tmp_path / "run")], tmp_path / "file")
    assert not (tmp_path / "run").exists()
