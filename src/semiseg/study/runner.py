"""Running a study: minutes become steps once for each method, then run by run, each in a process of its own."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from semiseg.data.plan import read_plan
from semiseg.errors import ConfigError, DataError
from semiseg.evaluate.label_efficiency import (
    CalibratedSteps,
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
from semiseg.evaluate.summary import read_summary
from semiseg.files import read_json, read_jsonl, write_json, write_text
from semiseg.processes import processor_name, usable_cores
from semiseg.settings import RunSettings, read_settings, write_settings
from semiseg.study.keys import run_key, setting_names, steps_key
from semiseg.study.settings import PlannedRun, StudySettings, load_study, planned_runs, run_settings
from semiseg.words import counted

Say = Callable[[str], None]


def made_runs(
    file: Path, output: Path, results: Path, *, data: Path | None = None, jobs: int = 1, say: Say = print
) -> Iterator[Study]:
    """Make all runs of a study file that `results/results.json` does not have yet; yields what is known, at first and
    after every run.

    output: for the run folders, which may be deleted afterwards. results: for the small file, which is written after
    each run. jobs: runs at a time, which share the cores; their steps stay those of a run with all cores.

    Raises `ConfigError` for a wrong study file, and at the end `DataError` where runs failed; the others are made.
    """
    if jobs < 1:
        raise ConfigError(f"jobs = {jobs}: give 1 or more.")
    study = load_study(file)
    runs = _runs(study, file, data)
    known = _Known(results / "results.json", study, file)
    steps = _steps(study, runs, output, known, say)
    wanted = _with_keys(runs, steps, known, jobs)
    keys = [key for *_, key in wanted]
    missing = [job for job in wanted if not known.has(job[2])]
    say(f"{counted(len(wanted), 'run')}, {len(wanted) - len(missing)} of them finished before.")
    if named := known.reference_missing(keys):
        say(
            f"reference: no run of {named['method']} with {named['labelled']} labels is known yet. Its table comes "
            "when one is in results.json; if the name is misspelt, mend the study file."
        )
    if len(missing) < len(wanted):
        yield known.study(keys)
    failed: list[DataError] = []
    running: set[subprocess.Popen[bytes]] = set()
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(_result, run, settings, key, output, running): run for run, settings, key in missing}
        try:
            for made, future in enumerate(as_completed(waiting), start=1):
                run = waiting[future]
                try:
                    row = future.result()
                except DataError as error:
                    failed.append(error)
                    say(f"[{made}/{len(missing)}] {error}")
                    continue
                known.add(row, output / folder_name(run.name, row["key"]))
                dice = sum(case_mean(organs, "dice") for organs in row["cases"].values()) / len(row["cases"])
                say(f"[{made}/{len(missing)}] {run}: Dice {dice:.4f}, {row['minutes']:.1f} min, {row['steps']} steps")
                yield known.study(keys)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):  # else they would go on alone, and bar the next call from their folders
                process.terminate()
            raise
    if failed:
        raise DataError(
            f"{len(failed)} of {counted(len(missing), 'run')} failed; finished runs are kept. The first: {failed[0]}"
        )


def known_runs(file: Path, results: Path, *, data: Path | None = None, baseline: str | None = None) -> Study:
    """Those runs of a study file that `results/results.json` has; none is made, and no scan is read.

    data: as for `made_runs`, of which the name alone counts here. baseline: the method that the others are compared
    with, in the place of the study's. Raises `ConfigError` for a wrong study file, and `DataError` where no run is
    known.
    """
    study = load_study(file)
    study = replace(study, baseline=baseline or study.baseline)
    runs = _runs(study, file, data)
    known = _Known(results / "results.json", study, file)
    before = {method: _steps_before(study, method, key, known.steps) for method, _, key in _timed(study, runs, known)}
    steps = {method: found for method, found in before.items() if found}
    runs = [(run, settings) for run, settings in runs if run.method in steps]
    keys = [key for *_, key in _with_keys(runs, steps, known, jobs=1)]
    if not any(known.has(key) for key in keys):
        raise DataError(
            f"{results}/results.json: has no run of {file} as it is now, with a dataset of the name of --data. Leave "
            "out --known to make them, or name the folder that has them with --results."
        )
    return known.study(keys)


_Runs = list[tuple[PlannedRun, RunSettings]]


def _runs(study: StudySettings, file: Path, data: Path | None) -> _Runs:
    runs = [(run, run_settings(study, file, data, run)) for run in planned_runs(study)]
    if without := [run for run, settings in runs if not settings.data.root]:
        raise ConfigError(f"{file}, methods.{without[0].method}: no dataset. Name its folder with --data FOLDER.")
    return runs


def _with_keys(
    runs: _Runs, steps: dict[str, CalibratedSteps], known: _Known, jobs: int
) -> list[tuple[PlannedRun, RunSettings, str]]:
    """Runs with their steps, and the keys that they are known by."""
    found = [(run, _with_steps(settings, steps[run.method]["steps"], jobs)) for run, settings in runs]
    return [(run, settings, run_key(run.method, settings, known.settings)) for run, settings in found]


def _steps(study: StudySettings, runs: _Runs, output: Path, known: _Known, say: Say) -> dict[str, CalibratedSteps]:
    """Steps by method in `output/steps.json`: as the study sets them, or as its minutes allow. What was found before
    stays, so that a study goes on as it began, unless its minutes or the method's settings are others now. Methods that
    differ in their labels alone have the same."""
    file = output / "steps.json"
    steps: dict[str, CalibratedSteps] = read_json(file) if file.exists() else known.steps
    for method, settings, key in _timed(study, runs, known):
        found = _steps_before(study, method, key, steps)
        if found is None:
            count = _calibrated(output / "calibration" / f"{method}-{key}", settings, say)
            found = CalibratedSteps(steps=count, minutes=study.minutes, key=key)
            say(f"{method}: {count} steps in {study.minutes:g} minutes")
        steps[method] = found
        write_json(file, steps)
    known.steps = steps
    return steps


def _timed(study: StudySettings, runs: _Runs, known: _Known) -> Iterator[tuple[str, RunSettings, str]]:
    """Methods that are run, with the settings that their minutes become steps by, and the key of these."""
    for method in study.methods:
        settings = next((settings for run, settings in runs if run.method == method), None)
        if settings is not None:
            train = replace(settings.train, budget_minutes=study.minutes, calibrated=False)
            settings = replace(settings, train=train)
            yield method, settings, steps_key(settings, known.settings)


def _steps_before(
    study: StudySettings, method: str, key: str, steps: dict[str, CalibratedSteps]
) -> CalibratedSteps | None:
    """What the study sets, or else what was timed before."""
    if (told := study.steps(method)) is not None:
        return CalibratedSteps(steps=told, minutes=0.0, key=key)
    return next((one for one in steps.values() if one["key"] == key), None)


def _calibrated(folder: Path, settings: RunSettings, say: Say) -> int:
    """Steps of a method, timed in a process of its own: its memory would count as that of the runs. What it warns of is
    said."""
    shutil.rmtree(folder, ignore_errors=True)  # of a timing that was cut off, perhaps with other labels
    folder.mkdir(parents=True)
    write_settings(folder / "recipe.toml", settings)
    command = [sys.executable, "-m", "semiseg.study.calibration", str(folder / "run"), str(folder / "recipe.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    write_text(folder / "log", done.stderr)
    if done.returncode:
        raise DataError(
            f"{folder}: could not be timed: {_reason(done.stderr, done.returncode)} All of it is in {folder}/log."
        )
    for warning in done.stderr.splitlines():
        say(warning)
    return int(done.stdout.split()[-1])


def _with_steps(settings: RunSettings, steps: int, jobs: int) -> RunSettings:
    threads = max(1, usable_cores() // jobs)
    train = replace(settings.train, steps=steps, budget_minutes=0.0, calibrated=False, threads=threads)
    return replace(settings, train=train)


def _result(
    run: PlannedRun, settings: RunSettings, key: str, output: Path, running: set[subprocess.Popen[bytes]]
) -> StudyRun:
    """Make the run, or go on with it, and read its scores. running: holds the process while it runs."""
    folder = output / folder_name(run.name, key)
    if (folder / "run.toml").exists():  # an exact resume needs the threads that it was begun with
        threads = read_settings(folder / "run.toml").train.threads
        settings = replace(settings, train=replace(settings.train, threads=threads))
    recipe, log = output / f"{folder.name}.toml", output / f"{folder.name}.log"
    write_settings(recipe, settings)
    command = [sys.executable, "-m", "semiseg", "run", str(folder), "--recipe", str(recipe)]
    environment = os.environ | {"OMP_NUM_THREADS": str(settings.train.threads)}
    with log.open("a") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
        running.add(process)
        code, peak_bytes = _wait(process)
        running.discard(process)
    if code:
        reason = _reason(log.read_text(errors="replace"), code)
        raise DataError(f"{folder}: the run failed: {reason} All of it is in {log}.")
    if not (folder / "summary.json").exists():
        raise DataError(f"{folder}: has no scores, since no test case has a label. Use data with labelled test cases.")
    summary = read_summary(folder / "summary.json")
    metrics = read_jsonl(folder / "metrics.jsonl")
    seconds = [float(row["seconds"]) for row in metrics if "seconds" in row]
    made = StudyRun(
        method=run.method,
        labelled=run.labelled,
        label_seed=run.label_seed,
        seed=run.seed,
        key=key,
        steps=settings.train.steps,
        minutes=round(seconds[-1] / 60, 2) if seconds else 0.0,
        peak_memory_mb=round(peak_bytes / 1e6, 1),
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
        self._path, self._methods = path, set(study.methods)
        self._study: Study = Study(
            name=file.stem,
            dataset="",
            machine={},
            minutes=study.minutes,
            steps={},
            settings=setting_names(),
            baseline=study.baseline,
            ceiling=study.ceiling or None,
            reference=_reference(study),
            organs=[],
            tolerance_mm={},
            test_cases=0,
            runs=[],
        )
        if path.exists():
            before = read_study(path)
            for name in ("dataset", "machine", "steps", "settings", "organs", "tolerance_mm", "test_cases", "runs"):
                self._study[name] = before[name]

    @property
    def settings(self) -> list[str]:
        """Names of all settings that there were when the study began."""
        return self._study["settings"]

    @property
    def steps(self) -> dict[str, CalibratedSteps]:
        """By method, as they were calibrated last."""
        return self._study["steps"]

    @steps.setter
    def steps(self, steps: dict[str, CalibratedSteps]) -> None:
        self._study["steps"] = steps

    def has(self, key: str) -> bool:
        """Whether a run is known."""
        return any(run["key"] == key for run in self._study["runs"])

    def reference_missing(self, keys: list[str]) -> Reference | None:
        """The study's reference, if none of its runs is known."""
        study = self.study(keys)
        named = study.get("reference")
        return named if named and not reference_runs(study) else None

    def add(self, row: StudyRun, folder: Path) -> None:
        """Add a run, in place of one with other settings; the file is written."""
        summary = read_summary(folder / "summary.json")
        study = self._study
        study["dataset"] = read_plan(folder / "plan.toml").dataset
        study["machine"] = _machine()
        study["organs"] = list(summary["organs"].values())
        study["tolerance_mm"] = summary["tolerance_mm"]
        study["test_cases"] = len(summary["cases"])
        study["runs"] = [run for run in study["runs"] if name_of(run) != name_of(row)]
        study["runs"].append(row)
        write_study(self._path, study)

    def study(self, keys: list[str]) -> Study:
        """What is known of these runs, in their order, and then of methods that the study file does not have: another
        program's, say. Runs that are not made yet are left out."""
        by_key = {run["key"]: run for run in self._study["runs"]}
        study = self._study.copy()
        others = [run for run in self._study["runs"] if run["method"] not in self._methods]
        study["runs"] = [*(by_key[key] for key in keys if key in by_key), *others]
        return study


def _reference(study: StudySettings) -> Reference | None:
    named = study.reference
    return Reference(method=named.method, labelled=named.labelled) if named else None


def _machine() -> dict[str, str]:
    return (
        {"processor": processor_name(), "cores": str(usable_cores())}
        | {name: version(name) for name in ("semiseg", "torch")}
        | {"python": platform.python_version()}
    )
