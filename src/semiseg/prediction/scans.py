"""Scans to label maps on the disk: finished ones are not done again, a bad one does not stop the rest.

While one is predicted, the one before is written and the next one is read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from semiseg.cases import WAS_KILLED, each_case
from semiseg.data.poses import AS_IT_LIES
from semiseg.errors import ConfigError, DataError
from semiseg.files import append_jsonl, atomic_file, is_full, remove_leftovers, why_not_written
from semiseg.io.dataset import unusable_id
from semiseg.io.file_kinds import PROBABILITIES, is_written, stem
from semiseg.io.grid import Grid
from semiseg.io.scans import RawVolume, hash_of, read_grid, read_label, read_scan, write_map
from semiseg.prediction.engines.base import Engine
from semiseg.prediction.foreign import is_foreign
from semiseg.prediction.inputs import Scan
from semiseg.prediction.model import Model
from semiseg.prediction.outputs import (
    LABELS_ALONE,
    STATISTICS,
    Outputs,
    Targets,
    Written,
    all_targets_in,
    check_formats,
    statistics_stem,
    targets_in,
    targets_of_file,
    write_labels,
)
from semiseg.prediction.predictor import model_steps, predict_labels
from semiseg.prediction.settings import PredictSettings
from semiseg.prediction.statistics import organ_rows, take_census, write_statistics
from semiseg.rows import PredictionRow, read_predictions
from semiseg.types import FloatArray, LabelArray
from semiseg.words import printable

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Outcome:
    """What became of a scan: the output, or the error as text. reused: it was there from an earlier call. foreign: its
    values are not those of the model's modality (MR for a CT model, CT for another). notes: what a person is to know of
    its files, each as a sentence."""

    id: str
    output: Path
    seconds: float = 0.0
    reused: bool = False
    error: str | None = None
    foreign: bool = False
    notes: tuple[str, ...] = ()


def predict_scans(
    scans: Sequence[Scan],
    model: Model,
    engine: Engine,
    output: Path,
    settings: PredictSettings,
    *,
    outputs: Outputs = LABELS_ALONE,
    workers: int = 1,
    overlapping: bool = True,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Predict all scans into `output/ID.nii.gz`, or files of other formats; `output/predictions.jsonl` says how each
    went, unless its name is one that no file can have.

    A scan whose output was made from the same files by the same model and settings is not done again. A scan that
    cannot be read is listed with its error and does not stop the rest; an output of another model is removed.

    workers: processes that share the cores, each with the engine of its own. overlapping: where one process works, a
    thread of it reads the next scan and writes the last one meanwhile. progress: called with (done, of how many, the
    id of the last).
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
        for index, found in each_case(alone, jobs, workers=workers, lost=lost, whole=True):
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
) -> _Attempt:
    """An attempt at a scan, of which nothing is read yet."""
    scan, finished = job
    targets = targets_in(output, scan.id, outputs, probabilities=settings.probabilities)
    attempt = _Attempt(scan, model, engine, targets, settings, outputs, finished)
    attempt.may_be_there = all_targets_in(output, scan.id)
    if why := unusable_id(scan.id):
        error = f"{printable(str(scan.images[0]))}: {why}"
        attempt.outcome, attempt.row = Outcome(printable(scan.id), output, error=error), {}
    return attempt


def _one_alone(job: _Job, begin: Callable[[_Job], _Attempt]) -> tuple[Outcome, dict[str, Any]]:
    return begin(job).whole()


def _overlap(
    jobs: list[_Job],
    begin: Callable[[_Job], _Attempt],
    done: Callable[[int, Outcome, dict[str, Any]], None],
) -> None:
    """While a scan is predicted, a thread writes the one before and then reads the next: two are in memory at a time.

    done: called by that thread, scan by scan in their order. What is predicted is written, too, where Ctrl-C ends the
    work.
    """

    def read(job: _Job | None) -> _Attempt | None:
        attempt = begin(job) if job else None
        if attempt:
            attempt.read()
        return attempt

    def finish(index: int, attempt: _Attempt) -> None:
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
    return Outcome(scan.id, target, error=text), _row(scan, target, model, engine) | {"error": text}


def predict_scan_to(
    scan: Scan, model: Model, engine: Engine, file: Path, settings: PredictSettings, outputs: Outputs = LABELS_ALONE
) -> Outcome:
    """Predict one scan into a file, which is not there yet; nothing else is written, but what is asked for besides,
    beside it. Raises as `predict_scans`."""
    targets = check_output_file(file, settings, outputs)
    check_formats([scan], tuple(targets.labels))
    file.parent.mkdir(parents=True, exist_ok=True)
    outcome, row = _Attempt(scan, model, engine, targets, settings, outputs, None).whole()
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


class _Attempt:
    """A scan on its way: read, predicted, written. What goes wrong with it is its outcome; a full disk is raised."""

    def __init__(
        self,
        scan: Scan,
        model: Model,
        engine: Engine,
        targets: Targets,
        settings: PredictSettings,
        outputs: Outputs,
        finished: PredictionRow | None,
    ) -> None:
        """finished: what was said of this scan when it was predicted before, if it was."""
        self._scan, self._model, self._engine, self._targets = scan, model, engine, targets
        self._settings, self._outputs, self._finished = settings, outputs, finished
        self._target = targets.first
        self.may_be_there: list[Path] = []
        """Files that go where they are of something else."""
        self.row = _row(scan, self._target, model, engine)
        """For the log; empty where nothing new is to be said."""
        self.outcome: Outcome | None = None
        self.lacked_memory = False
        self._seconds, self._key, self._foreign = 0.0, "", False
        self._volume: RawVolume | None = None
        self._known: tuple[LabelArray, Grid, Path] | None = None
        self._made: tuple[LabelArray, FloatArray | None] | None = None
        self._preview: bytes | None = None
        self._grid: Grid | None = None

    def whole(self) -> tuple[Outcome, dict[str, Any]]:
        """All at once: what became of it, and the row."""
        self.read()
        self.predict()
        self.write()
        return self.result()

    def result(self) -> tuple[Outcome, dict[str, Any]]:
        """What became of it, once it is written."""
        assert self.outcome is not None
        return self.outcome, self.row

    def read(self) -> None:
        """The scan into memory, unless there is a result of the same files, model and settings."""
        self._go_on(self._read)

    def predict(self) -> None:
        """What was read is let go of."""
        self._go_on(self._predict)
        self._volume = None

    def write(self) -> None:
        """Onto the disk."""
        self._go_on(self._write)
        self._made = None

    def _go_on(self, stage: Callable[[], None]) -> None:
        if self.outcome:
            return
        started, images = time.perf_counter(), self._scan.images
        try:
            stage()
        except DataError as error:
            self._fail(str(error))
        except MemoryError:
            self.lacked_memory = True
            grid = read_grid(images[0])
            z, y, x = grid.shape_zyx
            mm = " x ".join(f"{length:g}" for length in grid.spacing_mm)
            self._fail(
                f"{images[0]}: not enough memory for {z} x {y} x {x} voxels of {mm} mm at the model's "
                f"{self._model.plan.spacing_mm} mm. If that is their size, use a machine with more memory; or mend the "
                "header."
            )
        except OSError as error:
            if is_full(error):
                raise  # the others would not fit either
            error.filename = error.filename or str(self._target)
            self._fail(why_not_written(error))
        self._seconds += time.perf_counter() - started

    def _fail(self, text: str) -> None:
        self.outcome = Outcome(self._scan.id, self._target, error=text)
        self.row |= {"error": text}

    def _read(self) -> None:
        engine, settings = self._engine, self._settings
        no_matter = {"max_memory": "", "max_gpu_memory": "", "compile": False}
        made_by = asdict(settings) | {"engine": engine.name, "precision": engine.precision} | no_matter
        salt = f"{self._model.hash} {made_by} {model_steps(self._model, settings)}"
        self._key = hash_of(self._scan.images, salt=salt)
        before = self._finished
        if before is None or before.get("key") != self._key:
            for old in [*self._targets.all, *self.may_be_there]:
                old.unlink(missing_ok=True)
        elif not (lacking := self._lacking(before)):
            self.outcome, self.row = Outcome(self._scan.id, self._target, reused=True), {}
            return
        else:
            self._known = self._labels_from_before(lacking)
            self.row |= {name: before[name] for name in ("pose", "statistics", "nothing_found") if name in before}
        self._volume = read_scan(self._scan.images)
        self._grid = self._volume.grid
        if self._known is not None:
            self._check_known(*self._known)

    def _lacking(self, before: PredictionRow) -> list[Path]:
        """What is asked for and not there."""
        of_dicom = [self._targets.labels[one] for one in self._outputs.of_dicom if one in self._targets.labels]
        lacking = [
            file
            for file in self._targets.all
            if not file.is_file() and not (before.get("nothing_found") and file in of_dicom)
        ]
        return lacking or [self._target] * (self._outputs.statistics and "statistics" not in before)

    def _labels_from_before(self, lacking: list[Path]) -> tuple[LabelArray, Grid, Path] | None:
        """The label map where one is there in a format that can be read, and no probabilities are asked for anew."""
        if self._targets.probabilities in lacking:
            return None
        known = (file for file in self.may_be_there if is_written(file) and not stem(file).endswith(PROBABILITIES))
        file = next((file for file in known if file.is_file()), None)
        return None if file is None else (*read_label(file), file)

    def _check_known(self, labels: LabelArray, grid: Grid, file: Path) -> None:
        """Somebody may have put another file in its place since."""
        assert self._grid is not None
        if int(labels.max(initial=0)) >= self._model.plan.labels.count or self._grid.difference(grid):
            raise DataError(f"{file}: no longer the label map that was predicted here. Move it away, or restore it.")

    def _predict(self) -> None:
        assert self._volume is not None
        channels, images = self._volume.channels, self._scan.images
        spacing_mm, plan = self._volume.grid.spacing_mm, self._model.plan
        try:
            if self._known is None:
                found = predict_labels(channels, spacing_mm, self._model, self._engine, self._settings)
                self._made = found.labels, found.probabilities
                if found.pose != AS_IT_LIES:
                    self.row["pose"] = found.pose.name
            else:
                self._made = self._known[0], None
        except DataError as error:
            several = " Files of one name with numbers from _0000 on count as channels of one scan."
            raise DataError(f"{images[0]}: {error}{several if len(images) > 1 else ''}") from None
        self._foreign = is_foreign(channels, plan)
        if self._outputs.needs_scan:
            labels = self._made[0]
            census = take_census(labels, channels, plan.labels.count)
            if self._outputs.statistics:
                self.row["statistics"] = organ_rows(census, spacing_mm, plan)
            if self._outputs.picture:
                self._preview = self._outputs.picture(channels[0], labels, spacing_mm, census, plan)

    def _write(self) -> None:
        assert self._made is not None
        assert self._grid is not None
        started, (labels, maps), targets = time.perf_counter(), self._made, self._targets
        if maps is not None and targets.probabilities:
            write_map(targets.probabilities, maps, self._grid, self._scan.images[0])
        if self._preview is not None and targets.preview:
            with atomic_file(targets.preview) as temporary:
                temporary.write_bytes(self._preview)
        organs = self._model.plan.labels.organs
        written = write_labels(targets, labels, self._grid, self._scan.images[0], organs, self._model.hash)
        seconds = self._seconds + time.perf_counter() - started
        self.outcome = Outcome(
            self._scan.id,
            self._target,
            seconds,
            foreign=self._foreign,
            notes=_notes(written, self._scan.id, self.row.get("pose")),
        )
        self.row |= {"key": self._key, "seconds": round(seconds, 3)}
        if written.empty:
            self.row["nothing_found"] = True


def _notes(written: Written, id: str, pose: str | None) -> tuple[str, ...]:
    notes = []
    if pose:
        notes.append(f"{id}: does not lie as its header says, or not as the labelled scans do; read with {pose}.")
    if written.empty:
        notes.append(f"{id}: no organ was found, so there is no DICOM file of it.")
    if written.new_study:
        notes.append(f"{id}: its files have no StudyInstanceUID, so what was made of them is in a study of its own.")
    return tuple(notes)


def _row(scan: Scan, target: Path, model: Model, engine: Engine) -> dict[str, Any]:
    made_by = {"model": model.hash, "engine": engine.name, "precision": engine.precision}
    return {"id": scan.id, "output": target.name} | made_by


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
