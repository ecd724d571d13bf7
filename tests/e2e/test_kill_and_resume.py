"""A promise: killed at any moment, the same command goes on to the same weights, bit for bit.

The first and the last process of the first killed run are `python -m semiseg`. The others are forked from a server that
has imported semiseg and torch: processes of their own all the same, without the seconds that this takes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semiseg.cli import main
from semiseg.files import hash_files, read_jsonl
from semiseg.io.store import read_case_meta
from semiseg.training.pace import FIRST_STEPS
from semiseg.training.settled import read_settled

Command = Callable[..., Any]
Running = subprocess.Popen[str] | BaseProcess
PATIENCE_SECONDS = 120.0
"""Longer than any step of these tests takes on a busy machine."""
STEPS, KILLS = 40, 6
LONG = [f"train.steps={STEPS}", "train.checkpoint_every=5", "train.log_every=1"]
VARIANTS = {
    # Everything that has a memory: averages, both networks, feedback, the plateau, teacher's predictions.
    "mpl-dense-plateau-refresh": (
        KILLS,
        [
            *["method.name=mpl", "method.feedback=dense", "method.teacher_every=2", "method.phases.finetune=0.2"],
            *["train.schedule=plateau", "train.refresh_steps=7"],
        ],
    ),
    # A still teacher labels whole scans, which are kept in files of their own.
    "pseudo-label-scan": (
        3,
        ["method.name=pseudo_label"],
    ),
    # Scans are labelled and judged in each round, one of two drawn for each; the teachers are states of the student.
    # Lines and checkpoints fall on different steps here.
    "pseudo-rounds-scan": (
        3,
        ["method.name=pseudo_rounds", "method.label_scans=1", "method.rounds=3", "train.log_every=3"],
    ),
}


def start(*arguments: object) -> subprocess.Popen[str]:
    """`semiseg ARGUMENTS` as a process and group of its own, which hears Ctrl-C even where this process, started in the
    background of a shell, does not."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # inherited by the new process, as a handler would not be
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "semiseg", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


def fork(*arguments: object) -> BaseProcess:
    """The same from the server of forks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["semiseg.cli", "semiseg.planning", "semiseg.train_run", "semiseg.training.session"])
    process = context.Process(target=main, args=([str(argument) for argument in arguments],))
    process.start()
    return process


def has_ended(process: Running) -> bool:
    return (process.exitcode if isinstance(process, BaseProcess) else process.poll()) is not None


def kill(process: Running) -> None:
    if isinstance(process, BaseProcess):
        process.kill()
        process.join()
    else:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_until(done: Callable[[], bool], process: Running) -> None:
    """Poll until `done` or the process has ended."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done() and not has_ended(process):
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.002)


def steps_logged(run: Path) -> int:
    """By the last whole line alone: this is asked every few milliseconds, on the core that the run has."""
    log = run / "metrics.jsonl"
    lines = log.read_bytes().split(b"\n")[:-1] if log.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def writes_a_checkpoint(run: Path) -> bool:
    return any((run / "checkpoints").glob(".tmp-*"))


def without_seconds(run: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "input_share")}
        for row in read_jsonl(run / "metrics.jsonl")
    ]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_killed_run_ends_with_the_same_bits(
    name: str, semiseg_command: Command, phantoms: Path, tiny: list[str], tmp_path: Path
) -> None:
    first = name == next(iter(VARIANTS))
    kills, settings = VARIANTS[name]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = [flag for setting in [*LONG, *settings] for flag in ("--set", setting)]
    assert semiseg_command("prepare", whole, "--data", phantoms, *tiny, *flags, "--quiet").code == 0
    shutil.copytree(whole, killed)
    assert semiseg_command("train", whole, "--quiet").code == 0

    generator = np.random.default_rng(0)
    targets = np.sort(generator.integers(1, STEPS - 2, kills))
    in_the_middle = 0
    for number, target in enumerate(targets):
        process = (start if first and not number else fork)("train", killed, "--quiet")
        wait_until(lambda at=target: steps_logged(killed) >= at, process)
        if number % 2:  # every second one while a checkpoint is being written, the others anywhere
            wait_until(lambda: writes_a_checkpoint(killed), process)
        else:
            time.sleep(generator.uniform(0, 0.05))
        assert not has_ended(process), "the run ended before it was killed: give it more steps"
        kill(process)
        in_the_middle += writes_a_checkpoint(killed)
        assert not (killed / "model").exists()
        with (killed / "metrics.jsonl").open("a") as log:
            log.write('{"step": 9')  # as if the last line had been cut in half
    if first:
        ended = start("train", killed, "--quiet")
        _, errors = ended.communicate(timeout=PATIENCE_SECONDS)
        assert (ended.returncode, errors) == (0, "")
    else:
        process = fork("train", killed, "--quiet")
        process.join(PATIENCE_SECONDS)
        assert process.exitcode == 0

    for path in (
        "model/weights.safetensors",
        *(f"checkpoints/step-{n:06d}/state.safetensors" for n in (STEPS - 5, STEPS)),
    ):
        assert hash_files([killed / path]) == hash_files([whole / path]), path
    assert without_seconds(killed) == without_seconds(whole)
    for feedback in whole.glob("feedback/*.npz"):
        assert hash_files([killed / "feedback" / feedback.name]) == hash_files([feedback])
    assert not list(killed.rglob(".tmp-*")), "what a killed writer left is cleared away"
    assert in_the_middle or kills < KILLS, "no kill met a checkpoint half-written: the test has lost its point"


BY_MINUTES = {
    # A still teacher labels whole scans, within the minutes.
    "pseudo-label-scan": (
        0,
        3,
        ["method.name=pseudo_label"],
    ),
    # The network is remembered at a share of the run, and the rate falls by it.
    "pseudo-rounds": (
        2,
        0,
        ["method.name=pseudo_rounds"],
    ),
}
"""How often a run is killed while its steps are found out, and how often where it is made once more."""
ASKED_MINUTES = 0.08
DONE = (0.02, 0.5)
"""Shares of the run by minutes after which it is killed: there is time left for that on a busy machine, too."""


def killed_while_training(run: Path, is_there: Callable[[], bool], *, writing: bool) -> None:
    """Train until so far, or from there until a checkpoint is being written, and kill."""
    process = fork("train", run, "--quiet")
    wait_until(is_there, process)
    if writing:
        wait_until(lambda: writes_a_checkpoint(run), process)
    assert not has_ended(process), "the run ended before it was killed: give it more minutes"
    kill(process)
    assert not (run / "model").exists()


def done(run: Path) -> float:
    """The share of a run by minutes that was done when it was last looked at."""
    timeline = read_settled(run).timeline
    return timeline[-1][1] if timeline else 0.0


@pytest.mark.parametrize(
    "name",
    ["pseudo-rounds", *(pytest.param(n, marks=pytest.mark.thorough) for n in BY_MINUTES if n != "pseudo-rounds")],
)
def test_a_run_by_minutes_is_made_once_more_with_the_same_bits(
    name: str, semiseg_command: Command, phantoms: Path, tiny: list[str], tmp_path: Path
) -> None:
    """Once it has ended its two files are the run: made anew from them it has the same weights, killed or not, and
    whether it was killed itself or not."""
    kills, kills_again, settings = BY_MINUTES[name]
    pairs = zip(tiny[::2], tiny[1::2], strict=True)
    flags = [flag for pair in pairs if not pair[1].startswith("train.steps") for flag in pair]
    flags += [flag for setting in settings for flag in ("--set", setting)]
    flags += ["--minutes", str(ASKED_MINUTES), "--data", str(phantoms), "--quiet"]
    first, again = tmp_path / "first", tmp_path / "again"
    assert semiseg_command("prepare", first, *flags).code == 0
    asked = (first / "run.toml").read_bytes()
    for number, share in enumerate(DONE[:kills]):
        killed_while_training(first, lambda at=share: done(first) >= at, writing=bool(number % 2))
        assert not read_settled(first).finished
    assert semiseg_command("train", first, "--quiet").code == 0
    settled = read_settled(first)
    timeline = settled.laid_down()
    assert settled.finished
    assert timeline is not None
    assert timeline.total == steps_logged(first) > FIRST_STEPS
    assert (first / "run.toml").read_bytes() == asked

    again.mkdir()
    for file in ("run.toml", "settled.toml"):
        shutil.copy(first / file, again / file)
    assert semiseg_command("prepare", again, "--quiet").code == 0
    for number, target in enumerate(np.linspace(2, 0.8 * timeline.total, kills_again).astype(int)):
        killed_while_training(again, lambda at=target: steps_logged(again) >= at, writing=bool(number % 2))
    assert semiseg_command("train", again, "--quiet").code == 0

    assert read_settled(again) == settled
    checkpoints = sorted(folder.name for folder in (first / "checkpoints").iterdir())
    assert sorted(folder.name for folder in (again / "checkpoints").iterdir()) == checkpoints
    for path in ("model/weights.safetensors", *(f"checkpoints/{one}/state.safetensors" for one in checkpoints)):
        assert hash_files([again / path]) == hash_files([first / path]), path
    assert without_seconds(again) == without_seconds(first)


def test_a_killed_preparation_leaves_whole_cases_only(phantoms: Path, tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["prepare", run, "--data", phantoms, *tiny, "--quiet"]
    process = start(*arguments)
    wait_until(lambda: any(run.glob("store/*")), process)
    kill(process)
    stored = [folder for folder in run.glob("store/*") if folder.is_dir() and not folder.name.startswith(".")]
    before = {folder: read_case_meta(folder) for folder in stored}
    assert len(before) < 4, "all was done before the kill"
    half = run / "store" / ".tmp-00000000-1-phantom_001"
    half.mkdir(exist_ok=True)  # for sure a case that was being written
    (half / "image.b2nd").write_bytes(b"half")

    process = start(*arguments)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, errors) == (0, "")
    assert sorted(f.name for f in run.glob("store/*")) == [
        "cases.index",
        *(f"phantom_00{n}" for n in range(4)),
        "recipe.json",
        "seen.jsonl",
    ]
    assert {folder: read_case_meta(folder) for folder in before} == before


def test_an_interrupt_is_answered_with_130_and_a_sentence(
    semiseg_command: Command, phantoms: Path, tiny: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    more = ["--set", "train.steps=100000"]
    assert semiseg_command("prepare", run, "--data", phantoms, *tiny, *more, "--quiet").code == 0
    process = start("train", run)
    wait_until(lambda: steps_logged(run) > 3, process)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to all processes of the group
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert errors == "semiseg: stopped. The same command goes on from the last checkpoint.\n"
    assert sorted(f.name for f in (run / "checkpoints").iterdir())[-1].startswith("step-")
