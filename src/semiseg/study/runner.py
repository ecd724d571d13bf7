"""Running a study: run by run, each in a process of its own."""

from __future__ import annotations

import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from semiseg.data.patients import BIDS
from semiseg.data.plan import read_plan
from semiseg.data.roles import DataSettings
from semiseg.errors import ConfigError, DataError, SemisegError
from semiseg.files import file_lock
from semiseg.io.dataset import Dataset
from semiseg.io.layouts import read_dataset
from semiseg.io.layouts.series import SeriesChoice
from semiseg.notices import notices_by_topic
from semiseg.processes import ending_with_this, processor_name, usable_cores
from semiseg.rows import read_metrics
from semiseg.run_folder import wait_for
from semiseg.scoring.evaluator import TOLERANCE
from semiseg.scoring.label_efficiency import (
    Reference,
    Study,
    StudyRun,
    case_mean,
    folder_name,
    name_of,
    read_study,
    reference_runs,
    scores_of,
    write_study,
)
from semiseg.scoring.summary import PAPER_METRICS, read_summary
from semiseg.settings import RunSettings, read_settings, write_settings
from semiseg.study.keys import run_key
from semiseg.study.settings import PlannedRun, StudySettings, load_study, planned_runs, run_settings
from semiseg.words import counted

Say = Callable[[str], None]


def made_runs(
    file: Path, output: Path, results: Path, *, data: Path | None = None, jobs: int = 1, say: Say = print
) -> Iterator[Study]:
    """Make all runs of a study file that `results/results.json` does not have yet; yields what is known, at first and
    after every run.

    output: for the run folders, which may be deleted afterwards. results: for the small file, which is written after
    each run. jobs: runs at a time, which share the cores, and so have fewer steps in their minutes.

    Raises `ConfigError` for a wrong study file, and at the end `DataError` where runs failed; the others are made.
    """
    if jobs < 1:
        raise ConfigError(f"jobs = {jobs}: give 1 or more.")
    study = load_study(file)
    known = _Known(results / "results.json", study, file)
    stopped = threading.Event()
    threads = max(1, usable_cores() // jobs)
    wanted = [(run, _with_threads(settings, threads), key) for run, settings, key in _wanted(study, file, data)]
    keys = [key for *_, key in wanted]
    missing = [job for job in wanted if not known.has(job[2])]
    say(f"{counted(len(wanted), 'run')}, {len(wanted) - len(missing)} of them finished before.")
    before = known.study(keys)
    _refuse_other_scans(before, wanted[0][1].data, results)
    if (named := before.get("reference")) and not reference_runs(before):
        say(
            f"reference: no run of {named['method']} with {named['labelled']} labels is known yet. Its table comes "
            "when one is in results.json; if the name is misspelt, mend the study file."
        )
    if len(missing) < len(wanted):
        yield before
    _refuse_unscored([settings.data for _, settings, _ in missing])
    failed: list[Exception] = []
    running: set[subprocess.Popen[bytes]] = set()
    with ThreadPoolExecutor(jobs) as pool:
        begin = partial(_result, output=output, running=running, stopped=stopped)
        waiting = {pool.submit(begin, study.asked(job[0]), *job): job[0] for job in missing}
        try:
            for made, future in enumerate(as_completed(waiting), start=1):
                run = waiting[future]
                try:
                    row = future.result()
                except (SemisegError, OSError) as error:
                    failed.append(error)
                    say(f"[{made}/{len(missing)}] {error}")
                    continue
                known.add(row, output / folder_name(run.name, row["key"]))
                dice = [case_mean(organs, "dice") for organs in row["cases"].values()]
                mean = f"{np.nanmean(dice):.4f}" if np.isfinite(dice).any() else "undefined"
                say(f"[{made}/{len(missing)}] {run}: Dice {mean}, {row['minutes']:.1f} min, {row['steps']} steps")
                yield known.study(keys)
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):  # else they would go on alone, and bar the next call from their folders
                process.terminate()
            raise
    if failed:
        raise DataError(
            f"{len(failed)} of {counted(len(missing), 'run')} failed; finished runs are kept. The first: {failed[0]}"
        )


def listed_runs(file: Path, output: Path, results: Path, *, data: Path | None = None) -> list[str]:
    """The commands that make the runs that `results/results.json` does not have yet, for a batch system to start; their
    recipes are written into `output`. Threads are those of the machine that makes a run.

    Raises `ConfigError` for a wrong study file.
    """
    study = load_study(file)
    known = _Known(results / "results.json", study, file)
    commands = []
    wanted = _wanted(study, file, data)
    _refuse_unscored([settings.data for _, settings, key in wanted if not known.has(key)])
    for run, settings, key in wanted:
        folder = (output / folder_name(run.name, key)).resolve()
        if not known.has(key) and not (folder / "summary.json").exists():
            recipe = folder.with_name(f"{folder.name}.toml")
            settings = _as_begun(folder, settings)
            write_settings(recipe, settings)
            commands.append(shlex.join(["semiseg", "run", str(folder), "--recipe", str(recipe)]))
    return commands


def collected_runs(file: Path, output: Path, results: Path, *, data: Path | None = None, say: Say = print) -> Study:
    """Those runs of a study file that are known, and those whose folders in `output` have scores by now, which are
    added to `results/results.json`; none is made.

    Raises `ConfigError` for a wrong study file, and `DataError` where no run has scores.
    """
    study = load_study(file)
    known = _Known(results / "results.json", study, file)
    wanted = _wanted(study, file, data)
    for run, _, key in wanted:
        folder = output / folder_name(run.name, key)
        if not known.has(key) and (folder / "summary.json").exists():
            known.add(_row(study.asked(run), run, folder, key), folder)
    keys = [key for *_, key in wanted]
    _refuse_other_scans(known.study(keys), wanted[0][1].data, results)
    there = sum(known.has(key) for key in keys)
    say(f"{counted(len(keys), 'run')}, {there} of them have scores.")
    if not there:
        raise DataError(
            f"{output}: no run of {file} has scores yet. `semiseg study {file} --list` prints what makes them."
        )
    return known.study(keys)


def _wanted(study: StudySettings, file: Path, data: Path | None) -> list[tuple[PlannedRun, RunSettings, str]]:
    """All runs with their settings and keys; raises `ConfigError` where one has no dataset."""
    runs = [(run, run_settings(study, file, data, run)) for run in planned_runs(study)]
    if without := [run for run, settings in runs if not settings.data.root]:
        raise ConfigError(f"{file}, methods.{without[0].method}: no dataset. Name its folder with --data FOLDER.")
    return [(run, settings, run_key(run.method, settings)) for run, settings in runs]


def known_runs(file: Path, results: Path, *, baseline: str | None = None, say: Say = print) -> Study:
    """Those runs of a study file that `results/results.json` has, by name, and made with the steps or minutes that the
    file gives them; none is made, and no scan is read.

    baseline: the method that the others are compared with, in the place of the study's. Raises `ConfigError` for a
    wrong study file, and `DataError` where no run is known.
    """
    study = load_study(file)
    study = replace(study, baseline=baseline or study.baseline)
    known = _Known(results / "results.json", study, file)
    planned = list(planned_runs(study))
    keys, others = known.keys({run.name: study.asked(run) for run in planned})
    if others:
        say(f"Left out, since the study file gives them other steps or minutes now: {', '.join(others)}.")
    if not keys:
        raise DataError(
            f"{results}/results.json: has no run of {file}. Leave out --known to make them, or name the folder that "
            "has them with --results."
        )
    return known.study(keys)


def _refuse_other_scans(known: Study, data: DataSettings, results: Path) -> None:
    """Raise `ConfigError` where runs are known from another dataset whose folder has the same name."""
    if not known["runs"] or not Path(data.root).is_dir():
        return
    ids = {case.id for case in _dataset(data).cases}
    for run in known["runs"]:
        if gone := [case for case in run["cases"] if case not in ids]:
            raise ConfigError(
                f"{results}/results.json: {name_of(run)} was scored on {gone[0]}, which {data.root} does not have. "
                f"These are results of other scans ({known['dataset']}): name another folder with --results."
            )


def _dataset(data: DataSettings) -> Dataset:
    choice = SeriesChoice(data.series, data.resample)
    return read_dataset(Path(data.root), layout=data.layout, modality=data.modality, choice=choice)


def _refuse_unscored(runs: Sequence[DataSettings]) -> None:
    """Raise `ConfigError` where a run would have no scores, before any is made."""
    unscored = [data for data in runs if not data.development]
    for data in {(data.root, data.layout, data.series, data.resample): data for data in unscored}.values():
        if any(case.split == "test" and case.label for case in _dataset(data).cases):
            continue
        raise ConfigError(
            f"{data.root}: no test case has a label, so no run would have scores. Put labels into labelsTs; or let "
            'labelled cases be held back, ten for example: in the study file, under [common], "data.development" = 10.'
        )


def _with_threads(settings: RunSettings, threads: int) -> RunSettings:
    return replace(settings, train=replace(settings.train, threads=threads))


def _as_begun(folder: Path, settings: RunSettings) -> RunSettings:
    """With the threads that a run was begun with, which an exact resume needs."""
    begun = folder / "run.toml"
    return _with_threads(settings, read_settings(begun).train.threads) if begun.exists() else settings


def _result(
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
    settings = _as_begun(folder, settings)
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
    return _row(asked, run, folder, key) | {"peak_memory_mb": round(peak_bytes / 1e6, 1)}


def _row(asked: str, run: PlannedRun, folder: Path, key: str) -> StudyRun:
    """What is kept of a run that has scores. Its memory is not known to who has not started it."""
    summary = read_summary(folder / "summary.json")
    metrics = read_metrics(folder)
    if not metrics:
        raise DataError(f"{folder}: has scores and no metrics.jsonl. Delete this folder, and give the command again.")
    seconds = [float(row["seconds"]) for row in metrics if "seconds" in row]
    made = StudyRun(
        method=run.method,
        labelled=run.labelled,
        label_seed=run.subset_name,
        seed=run.seed,
        compute=run.compute,
        asked=asked,
        key=key,
        steps=int(metrics[-1]["step"]),
        minutes=round(seconds[-1] / 60, 2) if seconds else 0.0,
        peak_memory_mb=0.0,
        # A study's runs are not scored again one by one.
        notices={topic: text for topic, text in notices_by_topic(folder).items() if topic != TOLERANCE},
        cases=scores_of(summary),
    )
    if on_gpu := [float(line["gpu_peak_mb"]) for line in metrics if "gpu_peak_mb" in line]:
        made["gpu_peak_mb"] = max(on_gpu)
    return made


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


class _Known:
    """results.json as it grows."""

    def __init__(self, path: Path, study: StudySettings, file: Path) -> None:
        self._path, self._methods, named = path, set(study.methods), study.reference
        self._study: Study = Study(
            name=file.stem,
            dataset="",
            machine={},
            minutes=study.minutes,
            baseline=study.baseline,
            ceiling=study.ceiling or None,
            reference=Reference(method=named.method, labelled=named.labelled) if named else None,
            organs=[],
            tolerance_mm={},
            test_cases=0,
            runs=[],
        )
        if path.exists():
            before = read_study(path)
            for name in ("dataset", "machine", "organs", "tolerance_mm", "test_cases", "runs"):
                self._study[name] = before[name]
            if study.recipe or before.get("patients") == BIDS:  # named by the recipe, or by nobody
                self._set_patients(before.get("patients"))
        self._set_patients(study.common.get("data.patients", self._study.get("patients")))

    def has(self, key: str) -> bool:
        """Whether a run is known."""
        return any(run["key"] == key for run in self._study["runs"])

    def keys(self, asked: dict[str, str]) -> tuple[list[str], list[str]]:
        """Of the runs that are known by one of these names, in their order; and the names of those that were made with
        other steps or minutes. asked: what each name has, as `StudyRun.asked`."""
        by_name = {name_of(run): run for run in self._study["runs"]}
        found = {name: by_name[name] for name in asked if name in by_name}
        others = [name for name, run in found.items() if run.get("asked", asked[name]) != asked[name]]
        return [run["key"] for name, run in found.items() if name not in others], others

    def add(self, row: StudyRun, folder: Path) -> None:
        """Add a run, in place of one with other settings; the file is written. What another process has added to it
        since is kept."""
        with file_lock(self._path.with_name(f".{self._path.name}.lock")):
            if self._path.exists():
                self._study["runs"] = read_study(self._path)["runs"]
            self._add(row, folder)

    def _add(self, row: StudyRun, folder: Path) -> None:
        summary = read_summary(folder / "summary.json")
        study = self._study
        study["dataset"] = read_plan(folder / "plan.toml").dataset
        study["machine"] = {"processor": processor_name(), "cores": str(usable_cores())}
        study["machine"] |= {name: version(name) for name in ("semiseg", "torch")}
        study["machine"]["python"] = platform.python_version()
        study["organs"] = list(summary["organs"].values())
        study["tolerance_mm"] = summary["tolerance_mm"]
        study["test_cases"] = len(summary["cases"])
        self._set_patients(summary.get("patients", study.get("patients")))
        study["runs"] = [run for run in study["runs"] if name_of(run) != name_of(row)]
        study["runs"].append(row)
        write_study(self._path, study)

    def _set_patients(self, pattern: str | None) -> None:
        if pattern:
            self._study["patients"] = pattern
        else:
            self._study.pop("patients", None)

    def study(self, keys: list[str]) -> Study:
        """What is known of these runs, in their order, and then another program's. Runs that are not made yet are left
        out, and those of methods that the study file had once."""
        by_key = {run["key"]: run for run in self._study["runs"]}
        study = self._study.copy()
        others = [run for run in self._study["runs"] if run["method"] not in self._methods and "asked" not in run]
        study["runs"] = [*(by_key[key] for key in keys if key in by_key), *others]
        for run in study["runs"]:
            self._check(run)
        return study

    def _check(self, run: StudyRun) -> None:
        organs = self._study["organs"]
        for case, found in run["cases"].items():
            if found.keys() != set(organs) or any(one.keys() != set(PAPER_METRICS) for one in found.values()):
                raise DataError(
                    f"{self._path}: {name_of(run)}: {case} has not {' and '.join(PAPER_METRICS)} of each organ "
                    f"({', '.join(organs)}). Mend this run's rows, or delete them to have it made anew."
                )
