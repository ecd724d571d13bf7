"""Scans to label maps on the disk: finished ones are not done again, a bad one does not stop the rest.

While one is predicted, the one before is written and the next one is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from semiseg.cases import WAS_KILLED, each_case
from semiseg.errors import ConfigError
from semiseg.files import append_jsonl, remove_leftovers
from semiseg.io.dataset import unusable_id
from semiseg.io.file_kinds import PROBABILITIES
from semiseg.prediction.attempt import Attempt, Outcome, row_of
from semiseg.prediction.engines.base import Engine
from semiseg.prediction.inputs import Scan
from semiseg.prediction.model import Model
from semiseg.prediction.outputs import (
    LABELS_ALONE,
    STATISTICS,
    Outputs,
    Targets,
    all_targets_in,
    check_formats,
    statistics_stem,
    targets_in,
    targets_of_file,
)
from semiseg.prediction.settings import PredictSettings
from semiseg.prediction.statistics import write_statistics
from semiseg.rows import PredictionRow, read_predictions
from semiseg.words import printable

Progress = Callable[[int, int, str], None]


def predict_scans(
    scans: Sequence[Scan],
    model: Model,
    engine: Engine,
    output: Path,
    settings: PredictSettings,
    *,
    outputs: Outputs = LABELS_ALONE,
    workers: int = 1,
    gpus: Sequence[str] = (),
    overlapping: bool = True,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Predict all scans into `output/ID.nii.gz`, or files of other formats; `output/predictions.jsonl` says how each
    went, unless its name is one that no file can have.

    A scan whose output was made from the same files by the same model and settings is not done again. A scan that
    cannot be read is listed with its error and does not stop the rest; an output of another model is removed.

    workers: processes that share the cores, each with the engine of its own. gpus: as of `each_case`. overlapping:
    where one process works, a thread of it reads the next scan and writes the last one meanwhile. progress: called with
    (done, of how many, the id of the last).
    """
    _check_outputs(scans, output, settings, outputs)
    output.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output, alone=False)  # others may be predicting into it
    log = output / "predictions.jsonl"
    if log.is_symlink():
        raise ConfigError(f"{log}: a link, and what is behind it would be written to. Name another folder.")
    if not log.exists():
        log.touch()  # from here on the folder is known as one of predictions
    finished = {row["id"]: row for row in read_predictions(output) if "error" not in row}
    outcomes: dict[int, Outcome] = {}

    def done(index: int, outcome: Outcome, row: dict[str, Any]) -> None:
        if row:
            append_jsonl(log, row)
        outcomes[index] = outcome
        if progress:
            progress(len(outcomes), len(scans), scans[index].id)

    begin = partial(_begun, model=model, engine=engine, output=output, settings=settings, outputs=outputs)
    jobs = [(scan, finished.get(scan.id)) for scan in scans]
    if overlapping and workers == 1 and len(jobs) > 1:
        _overlap(jobs, begin, done)
    else:
        lost = partial(_lost, output=output, model=model, engine=engine, outputs=outputs)
        alone = partial(_one_alone, begin=begin)
        for index, found in each_case(alone, jobs, workers=workers, lost=lost, whole=True, gpus=gpus):
            done(index, *found)
    if outputs.statistics:
        rows = {row["id"]: row for row in read_predictions(output) if "error" not in row}
        write_statistics(
            output / STATISTICS, {id: rows[id]["statistics"] for id in sorted(rows) if "statistics" in rows[id]}
        )
    return [outcomes[index] for index in range(len(scans))]


_Job = tuple[Scan, PredictionRow | None]
"""A scan, and what was said of it when it was predicted before."""


def _begun(
    job: _Job, model: Model, engine: Engine, output: Path, settings: PredictSettings, outputs: Outputs
) -> Attempt:
    """An attempt at a scan, of which nothing is read yet."""
    scan, finished = job
    targets = targets_in(output, scan.id, outputs, probabilities=settings.probabilities)
    attempt = Attempt(scan, model, engine, targets, settings, outputs, finished)
    attempt.may_be_there = all_targets_in(output, scan.id)
    if why := unusable_id(scan.id):
        error = f"{printable(str(scan.images[0]))}: {why}"
        attempt.outcome, attempt.row = Outcome(printable(scan.id), output, error=error), {}
    return attempt


def _one_alone(job: _Job, begin: Callable[[_Job], Attempt]) -> tuple[Outcome, dict[str, Any]]:
    return begin(job).whole()


def _overlap(
    jobs: list[_Job],
    begin: Callable[[_Job], Attempt],
    done: Callable[[int, Outcome, dict[str, Any]], None],
) -> None:
    """While a scan is predicted, a thread writes the one before and then reads the next: two are in memory at a time.

    done: called by that thread, scan by scan in their order. What is predicted is written, too, where Ctrl-C ends the
    work.
    """

    def read(job: _Job | None) -> Attempt | None:
        attempt = begin(job) if job else None
        if attempt:
            attempt.read()
        return attempt

    def finish(index: int, attempt: Attempt) -> None:
        attempt.write()
        done(index, *attempt.result())

    with ThreadPoolExecutor(1) as beside:
        reading = beside.submit(read, jobs[0])
        written = beside.submit(lambda: None)
        try:
            for index, following in enumerate([*jobs[1:], None]):
                attempt = reading.result()
                reading = beside.submit(read, following)
                assert attempt is not None
                attempt.predict()
                if attempt.lacked_memory:  # beside another scan: once more, alone
                    reading.result()
                    attempt, reading = begin(jobs[index]), beside.submit(lambda: None)
                    attempt.read()
                    attempt.predict()
                    reading = beside.submit(read, following)
                written.result()  # raises what ends all: a full disk
                written = beside.submit(finish, index, attempt)
            written.result()
        finally:
            reading.cancel()


def _lost(job: _Job, output: Path, model: Model, engine: Engine, outputs: Outputs) -> tuple[Outcome, dict[str, Any]]:
    scan = job[0]
    text = f"{scan.images[0]}: {WAS_KILLED}. Use fewer --workers, or a machine with more memory."
    target = targets_in(output, scan.id, outputs, probabilities=False).first
    return Outcome(scan.id, target, error=text), row_of(scan, target, model, engine) | {"error": text}


def predict_scan_to(
    scan: Scan, model: Model, engine: Engine, file: Path, settings: PredictSettings, outputs: Outputs = LABELS_ALONE
) -> Outcome:
    """Predict one scan into a file, which is not there yet; nothing else is written, but what is asked for besides,
    beside it. Raises as `predict_scans`."""
    targets = check_output_file(file, settings, outputs)
    check_formats([scan], tuple(targets.labels))
    file.parent.mkdir(parents=True, exist_ok=True)
    outcome, row = Attempt(scan, model, engine, targets, settings, outputs, None).whole()
    if outputs.statistics and not outcome.error:
        write_statistics(statistics_stem(file), {scan.id: row["statistics"]})
    return outcome


def check_output_file(file: Path, settings: PredictSettings, outputs: Outputs) -> Targets:
    """The files of a scan whose label map is to be `file`. Raises `ConfigError` where one is there already."""
    targets = targets_of_file(file, outputs, probabilities=settings.probabilities)
    tables = [statistics_stem(file).with_name(f"{statistics_stem(file).name}{end}") for end in (".csv", ".json")]
    for target in [*targets.all, *(tables if outputs.statistics else [])]:
        if target.exists():
            raise ConfigError(
                f"{target}: is there already, and a file that is named is never overwritten. Name another, remove it, "
                "or name a folder: there finished scans are known again."
            )
    return targets


def _check_outputs(scans: Sequence[Scan], output: Path, settings: PredictSettings, outputs: Outputs) -> None:
    """No label map may take the place of a scan, lie among scans, or take the place of a file that is not from here."""
    check_formats(scans, outputs.in_folder)
    inputs = {file.resolve() for scan in scans for file in scan.images}
    begun_here = (output / "predictions.jsonl").exists()
    ids = {scan.id for scan in scans}
    both = [scan.id for scan in scans if scan.id.removesuffix(PROBABILITIES) in ids - {scan.id}]
    if settings.probabilities and both:
        raise ConfigError(
            f"{both[0]}: the label map of this scan would be the probabilities of another. Rename one of them."
        )
    for scan in scans:
        for file in all_targets_in(output, scan.id):
            if file.resolve() in inputs:
                raise ConfigError(f"{file}: is a scan, and would be overwritten. Name another folder with --output.")
            if file.exists() and not begun_here:
                raise ConfigError(
                    f"{file}: was not predicted here (the folder has no predictions.jsonl), and would be overwritten. "
                    "Name another folder with --output, or move the file away."
                )
    if output.resolve() in {file.parent for file in inputs}:
        raise ConfigError(
            f"{output}: is the scans' own folder, where label maps would be taken for scans. Name another folder with "
            "--output."
        )
