"""Running a study: which runs are missing, in which order they are made, and what is known of them."""

from __future__ import annotations

import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from semiseg.data.roles import DataSettings
from semiseg.errors import ConfigError, DataError, SemisegError
from semiseg.io.dataset import Dataset
from semiseg.io.layouts import read_dataset
from semiseg.io.layouts.series import SeriesChoice
from semiseg.processes import usable_cores
from semiseg.scoring.label_efficiency import reference_runs
from semiseg.scoring.study_results import Study, case_mean, folder_name, name_of
from semiseg.settings import RunSettings, write_settings
from semiseg.study.keys import run_key
from semiseg.study.known_results import KnownResults, row_of_run
from semiseg.study.run_process import as_begun, make_run, with_threads
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
    known = KnownResults(results / "results.json", study, file)
    stopped = threading.Event()
    threads = max(1, usable_cores() // jobs)
    wanted = [(run, with_threads(settings, threads), key) for run, settings, key in _wanted(study, file, data)]
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
        begin = partial(make_run, output=output, running=running, stopped=stopped)
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
    known = KnownResults(results / "results.json", study, file)
    commands = []
    wanted = _wanted(study, file, data)
    _refuse_unscored([settings.data for _, settings, key in wanted if not known.has(key)])
    for run, settings, key in wanted:
        folder = (output / folder_name(run.name, key)).resolve()
        if not known.has(key) and not (folder / "summary.json").exists():
            recipe = folder.with_name(f"{folder.name}.toml")
            settings = as_begun(folder, settings)
            write_settings(recipe, settings)
            commands.append(shlex.join(["semiseg", "run", str(folder), "--recipe", str(recipe)]))
    return commands


def collected_runs(file: Path, output: Path, results: Path, *, data: Path | None = None, say: Say = print) -> Study:
    """Those runs of a study file that are known, and those whose folders in `output` have scores by now, which are
    added to `results/results.json`; none is made.

    Raises `ConfigError` for a wrong study file, and `DataError` where no run has scores.
    """
    study = load_study(file)
    known = KnownResults(results / "results.json", study, file)
    wanted = _wanted(study, file, data)
    for run, _, key in wanted:
        folder = output / folder_name(run.name, key)
        if not known.has(key) and (folder / "summary.json").exists():
            known.add(row_of_run(study.asked(run), run, folder, key), folder)
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
    known = KnownResults(results / "results.json", study, file)
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
