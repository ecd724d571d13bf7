"""Scans to label maps on the disk: finished ones are not done again, a bad one does not stop the rest.

While one is predicted, the one before is written and the next one is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

from semiseg.cases import WAS_KILLED, each_case
from semiseg.errors import ConfigError
from semiseg.files import append_jsonl, remove_leftovers
from semiseg.io.dataset import unusable_id
from semiseg.io.file_kinds import PROBABILITIES, stem
from semiseg.prediction.attempt import Attempt, Outcome, Result, row_of
from semiseg.prediction.engines.base import Engine
from semiseg.prediction.inputs import Scan, refuse_among_scans
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
from semiseg.prediction.statistics import statistics_files, write_statistics
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
    cannot be read is listed with its error and does not stop the rest; an output of another model is removed. A file
    that somebody changed since, or put there, is neither replaced nor removed: its scan has an error that says so.

    workers: processes that share the cores, each with the engine of its own. gpus: as of `each_case`. overlapping:
    where one process works, a thread of it reads the next scan and writes the last one meanwhile. progress: called with
    (done, of how many, the id of the last).
    """
    log = output / "predictions.jsonl"
    if log.is_symlink():
        raise ConfigError(f"{log}: a link, and what is behind it would be written to. Name another folder.")
    finished = _finished(output)
    known = {scan.id for scan in scans} | finished.keys()
    _check_outputs(scans, output, settings, outputs, finished.keys())
    output.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output, alone=False)  # others may be predicting into it
    if not log.exists():
        log.touch()  # from here on the folder is known as one of predictions
    outcomes: dict[int, Outcome] = {}

    def done(index: int, result: Result) -> None:
        if result.row:
            append_jsonl(log, result.row, flush=True)
        result.put_in_place()
        outcomes[index] = result.outcome
        if progress:
            progress(len(outcomes), len(scans), scans[index].id)

    begin = partial(_begun, model=model, engine=engine, output=output, settings=settings, outputs=outputs, known=known)
    jobs = [(scan, finished.get(scan.id)) for scan in scans]
    if overlapping and workers == 1 and len(jobs) > 1:
        _overlap(jobs, begin, done)
    else:
        lost = partial(_lost, output=output, model=model, engine=engine, outputs=outputs)
        alone = partial(_one_alone, begin=begin)
        with closing(each_case(alone, jobs, workers=workers, lost=lost, whole=True, gpus=gpus, late=done)) as results:
            for index, found in results:
                done(index, found)
    if outputs.statistics and _had_statistics(output):
        rows = _finished(output)
        write_statistics(
            output / STATISTICS, {id: rows[id]["statistics"] for id in sorted(rows) if "statistics" in rows[id]}
        )
    return [outcomes[index] for index in range(len(scans))]


def _finished(output: Path) -> dict[str, PredictionRow]:
    """The rows of the scans that were predicted into a folder, by id."""
    return {row["id"]: row for row in read_predictions(output) if "error" not in row}


def _had_statistics(output: Path) -> bool:
    """Whether tables of statistics that lie in a folder are from here: a row of any call has some."""
    return any("statistics" in row for row in read_predictions(output))


_Job = tuple[Scan, PredictionRow | None]
"""A scan, and what was said of it when it was predicted before."""


def _begun(
    job: _Job,
    model: Model,
    engine: Engine,
    output: Path,
    settings: PredictSettings,
    outputs: Outputs,
    known: Collection[str],
) -> Attempt:
    """An attempt at a scan, of which nothing is read yet. known: ids of all scans of the folder."""
    scan, finished = job
    targets = targets_in(output, scan.id, outputs, probabilities=settings.probabilities)
    may_be_there = _files_of(scan.id, output, known)
    if finished is None and any(file.exists() for file in may_be_there):  # by another command, since this one began
        finished = _finished(output).get(scan.id)
    attempt = Attempt(scan, model, engine, targets, settings, outputs, finished)
    attempt.may_be_there = may_be_there
    if why := unusable_id(scan.id):
        error = f"{printable(str(scan.images[0]))}: {why}"
        attempt.outcome, attempt.row = Outcome(printable(scan.id), output, error=error), {}
    return attempt


def _files_of(id: str, output: Path, known: Collection[str]) -> list[Path]:
    """Every file that may be there of a scan. `ID_probabilities` may be the name of another."""
    other = f"{id}{PROBABILITIES}"
    return [file for file in all_targets_in(output, id) if other not in known or stem(file) != other]


def _one_alone(job: _Job, begin: Callable[[_Job], Attempt]) -> Result:
    return begin(job).whole()


def _overlap(
    jobs: list[_Job],
    begin: Callable[[_Job], Attempt],
    done: Callable[[int, Result], None],
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
        done(index, attempt.result())

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


def _lost(job: _Job, output: Path, model: Model, engine: Engine, outputs: Outputs) -> Result:
    scan = job[0]
    text = f"{printable(str(scan.images[0]))}: {WAS_KILLED}. Use fewer --workers, or a machine with more memory."
    target = targets_in(output, scan.id, outputs, probabilities=False).first
    return Result(Outcome(scan.id, target, error=text), row_of(scan, target, model, engine) | {"error": text})


def predict_scan_to(
    scan: Scan, model: Model, engine: Engine, file: Path, settings: PredictSettings, outputs: Outputs = LABELS_ALONE
) -> Outcome:
    """Predict one scan into a file, which is not there yet; nothing else is written, but what is asked for besides,
    beside it. Raises as `predict_scans`."""
    targets = check_output_file(file, settings, outputs)
    check_formats([scan], tuple(targets.labels))
    file.parent.mkdir(parents=True, exist_ok=True)
    result = Attempt(scan, model, engine, targets, settings, outputs, None).whole()
    result.put_in_place()
    if outputs.statistics and not result.outcome.error:
        write_statistics(statistics_stem(file), {scan.id: result.row["statistics"]})
    return result.outcome


def check_output_file(file: Path, settings: PredictSettings, outputs: Outputs) -> Targets:
    """The files of a scan whose label map is to be `file`. Raises `ConfigError` where one is there already."""
    targets = targets_of_file(file, outputs, probabilities=settings.probabilities)
    for target in [*targets.all, *(statistics_files(statistics_stem(file)) if outputs.statistics else [])]:
        if target.exists():
            raise ConfigError(
                f"{target}: is there already, and a file that is named is never overwritten. Name another, remove it, "
                "or name a folder: there finished scans are known again."
            )
    return targets


def _check_outputs(
    scans: Sequence[Scan], output: Path, settings: PredictSettings, outputs: Outputs, finished: Set[str]
) -> None:
    """No label map may take the place of a scan, lie among scans, or take the place of a file that is not from here;
    tables neither.

    finished: ids of scans that were predicted into the folder, to which another process may add; each attempt looks at
    their files itself.
    """
    check_formats(scans, outputs.in_folder)
    inputs = {file.resolve() for scan in scans for file in scan.images}
    ids = {scan.id for scan in scans}
    known = ids | finished
    pairs = [(one, one.removesuffix(PROBABILITIES)) for one in sorted(known) if one.endswith(PROBABILITIES)]
    both = [one for one, base in pairs if base in known and (one in ids or base in ids)]
    if settings.probabilities and both:
        raise ConfigError(
            f"{both[0]}: the label map of this scan would be the probabilities of another. Rename one of them."
        )
    for scan in scans:
        for file in _files_of(scan.id, output, known):
            if file.resolve() in inputs:
                raise ConfigError(f"{file}: is a scan, and would be overwritten. Name another folder with --output.")
            if file.exists() and scan.id not in finished and scan.id not in _finished(output):  # by another just now
                raise ConfigError(
                    f"{file}: was not predicted here (the folder has no predictions.jsonl that lists it), and would be "
                    "overwritten. Name another folder with --output, or move the file away."
                )
    tables = statistics_files(output / STATISTICS) if outputs.statistics else []
    if (table := next(filter(Path.exists, tables), None)) and not _had_statistics(output):
        raise ConfigError(
            f"{table}: was not written here (no row of predictions.jsonl has statistics), and would be overwritten. "
            "Name another folder with --output, or move the file away."
        )
    refuse_among_scans(output, {file.parent for file in inputs})
