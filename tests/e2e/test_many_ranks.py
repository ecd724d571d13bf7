"""`torchrun -m semiseg`: a rank that dies stops all, the same command goes on, and numbers of ranks are checked."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from semiseg.files import hash_files, read_jsonl

Command = Callable[..., Any]
PATIENCE_SECONDS = 240.0
"""Longer than any command of these tests takes on a busy machine."""
STEPS = 16


def torchrun(ranks: int, *arguments: object) -> subprocess.Popen[str]:
    """`torchrun -m semiseg ARGUMENTS`. Ranks wait for each other for 60 s at most."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.Popen(
        [*launcher, "-m", "semiseg", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"SEMISEG_PATIENCE_SECONDS": "60", "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, out


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(run / "model" / "weights.safetensors"))


def steps_logged(run: Path) -> int:
    rows = read_jsonl(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    return int(rows[-1]["step"]) if rows else 0


@pytest.fixture
def prepared(semiseg_command: Command, phantoms: Path, tiny: list[str], tmp_path: Path) -> Path:
    run = tmp_path / "whole"
    settings = {"train.steps": STEPS, "train.checkpoint_every": 4, "train.log_every": 1, "plan.batch": 4}
    flags = [flag for key, value in settings.items() for flag in ("--set", f"{key}={value}")]
    made = semiseg_command("prepare", run, "--data", phantoms, *tiny, "--method", "mpl", *flags, "--quiet")
    assert made.code == 0, made.err
    return run


def test_a_killed_rank_and_another_number_of_them(semiseg_command: Command, prepared: Path, tmp_path: Path) -> None:
    killed, alone = tmp_path / "killed", tmp_path / "alone"
    shutil.copytree(prepared, killed)
    code, out = ended(torchrun(2, "train", prepared))
    assert code == 0, out
    assert out.count("Trains 16 steps on 2 ranks") == 1  # the first alone speaks
    rows = read_jsonl(prepared / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))

    process = torchrun(2, "train", killed)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while steps_logged(killed) < 7:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ranks = [one for one in psutil.Process(process.pid).children() if "semiseg" in " ".join(one.cmdline())]
    assert len(ranks) == 2
    ranks[1].send_signal(signal.SIGKILL)
    code, _ = ended(process)
    assert code != 0
    assert not (killed / "model").exists()
    shutil.copytree(killed, alone)
    code, out = ended(torchrun(2, "train", killed, "--quiet"))
    assert code == 0, out
    for file in ("model/weights.safetensors", f"checkpoints/step-{STEPS:06d}/state.safetensors"):
        assert hash_files([killed / file]) == hash_files([prepared / file]), file

    assert semiseg_command("train", alone, "--quiet").code == 0  # one rank goes on where two were
    apart = max(float((value - weights(alone)[name]).abs().max()) for name, value in weights(prepared).items())
    # Rounding of float32 (1e-7) through up to nine steps of a rate of 0.1; other networks differ by 1 and more.
    assert 0 < apart < 0.05


def test_the_whole_way_by_two_ranks(semiseg_command: Command, phantoms: Path, tiny: list[str], tmp_path: Path) -> None:
    """Rounds: scans are labelled and validated by both ranks; the first predicts, scores and reports."""
    run = tmp_path / "run"
    settings = {"train.steps": 8, "plan.batch": 2, "method.rounds": 2, "train.validation_every": 1}
    settings |= {"predict.engine": "torch"}
    flags = [flag for key, value in settings.items() for flag in ("--set", f"{key}={value}")]
    code, out = ended(torchrun(2, "run", run, "--data", phantoms, *tiny, *flags))
    assert code == 0, out
    assert (run / "report.html").is_file()
    assert (run / "summary.json").is_file()
    assert out.count("Scores:") == 1
    assert read_jsonl(run / "rounds.jsonl")
