"""One run of a study, made in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

from semiseg.errors import DataError
from semiseg.processes import ending_with_this
from semiseg.run_folder import wait_for
from semiseg.scoring.study_results import StudyRun, folder_name
from semiseg.settings import RunSettings, read_settings, write_settings
from semiseg.study.known_results import row_of_run
from semiseg.study.settings import PlannedRun


def with_threads(settings: RunSettings, threads: int) -> RunSettings:
    return replace(settings, train=replace(settings.train, threads=threads))


def as_begun(folder: Path, settings: RunSettings) -> RunSettings:
    """With the threads that a run was begun with, which an exact resume needs."""
    begun = folder / "run.toml"
    return with_threads(settings, read_settings(begun).train.threads) if begun.exists() else settings


def make_run(
    asked: str,
    run: PlannedRun,
    settings: RunSettings,
    key: str,
    *,
    output: Path,
    running: set[subprocess.Popen[bytes]],
    stopped: threading.Event,
) -> StudyRun:
    """Make the run, or go on with it, and read its scores. asked: its steps or minutes, as text. running: holds the
    process while it runs. stopped: nothing is begun any more."""
    folder = output / folder_name(run.name, key)
    settings = as_begun(folder, settings)
    recipe, log = output / f"{folder.name}.toml", output / f"{folder.name}.log"
    write_settings(recipe, settings)
    command = [sys.executable, "-m", "semiseg", "run", str(folder), "--recipe", str(recipe)]
    threads = {"OMP_NUM_THREADS": str(settings.train.threads)} if settings.train.threads else {}
    environment = os.environ | threads | ending_with_this()
    wait_for(folder)  # whose process may still be stopping, after a study that was killed
    with log.open("a") as stream:
        before = stream.tell()
        if stopped.is_set():
            raise DataError(f"{folder}: not begun, since the study was stopped.")
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
        running.add(process)
        if stopped.is_set():  # in between
            process.terminate()
        code, peak_bytes = _wait(process)
        running.discard(process)
    if code:
        reason = _reason(log.read_bytes()[before:].decode(errors="replace"), code)
        raise DataError(f"{folder}: the run failed: {reason} All of it is in {log}.")
    if not (folder / "summary.json").exists():
        raise DataError(f"{folder}: has no scores, since no test case has a label. Use data with labelled test cases.")
    return row_of_run(asked, run, folder, key) | {"peak_memory_mb": round(peak_bytes / 1e6, 1)}


def _reason(log: str, code: int) -> str:
    """Why a process failed: its whole message, or the signal that ended it, or its last line."""
    if code < 0:
        memory = ", as the system does where memory runs out" if code == -signal.SIGKILL else ""
        return f"it was ended by {signal.Signals(-code).name}{memory}."
    *_, said = re.split(r"^semiseg: (?:settings|error): ", log.strip(), flags=re.MULTILINE)
    return said if said != log.strip() else (said.splitlines() or ["no output"])[-1]


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Exit code and peak memory in bytes of a process (0 where the system does not tell)."""
    if not hasattr(os, "wait4"):
        return process.wait(), 0
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
