"""A scan on its way to its label map: read, predicted, written; and what became of it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from semiseg.data.labels import read_checked_label
from semiseg.data.poses import AS_IT_LIES
from semiseg.decisions import label_sha256
from semiseg.errors import DataError
from semiseg.files import atomic_file, is_full, put_in_place, staging_folder, why_not_written
from semiseg.io.dataset import LabelScheme
from semiseg.io.file_kinds import PROBABILITIES, is_written, stem
from semiseg.io.grid import Grid
from semiseg.io.scans import RawVolume, hash_of, read_grid, read_scan, write_map
from semiseg.prediction.engines.base import Engine
from semiseg.prediction.foreign import is_foreign, size_doubt
from semiseg.prediction.inputs import Scan
from semiseg.prediction.model import Model
from semiseg.prediction.outputs import (
    Outputs,
    Targets,
    Written,
    write_labels,
)
from semiseg.prediction.predictor import model_steps, predict_labels
from semiseg.prediction.settings import PredictSettings
from semiseg.prediction.statistics import organ_rows, take_census
from semiseg.rows import PredictionRow
from semiseg.types import FloatArray, LabelArray
from semiseg.words import counted, printable


@dataclass(frozen=True)
class Outcome:
    """What became of a scan: the output, or the error as text. reused: it was there from an earlier call. foreign: its
    values are not those of the model's modality (MR for a CT model, CT for another). pose: how it was read, in words,
    where it does not lie as the labelled scans did. notes: what a person is to know of its files, in sentences. doubts:
    what of its header is to be looked at, in sentences."""

    id: str
    output: Path
    seconds: float = 0.0
    reused: bool = False
    error: str | None = None
    foreign: bool = False
    pose: str = ""
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


class Result(NamedTuple):
    """An attempt's end. row: for the log, which must have it before the files of `staged` are put in place: so every
    file that is in its place is known there, whenever a process is killed. Empty where nothing new is to be said.
    staged: None where nothing was written."""

    outcome: Outcome
    row: dict[str, Any]
    staged: Path | None = None

    def put_in_place(self) -> None:
        """Once the log has the row."""
        if self.staged:
            put_in_place(self.staged)


class Attempt:
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
        """Every file that may be there of this scan. Before it is predicted anew they are removed; one that somebody
        made or changed is refused instead."""
        self.row = row_of(scan, self._target, model, engine)
        """For the log; empty where nothing new is to be said."""
        self._staged: Path | None = None
        self.outcome: Outcome | None = None
        self.lacked_memory = False
        self._seconds, self._key, self._foreign = 0.0, "", False
        self._volume: RawVolume | None = None
        self._written = {} if finished is None else finished.get("files", {})
        self._kept: dict[str, str] = {}
        self._from: Path | None = None
        """The label map that is there, which further formats are made of; first one that was mended in its place."""
        self._made: tuple[LabelArray, FloatArray | None] | None = None
        self._preview: bytes | None = None
        self._grid: Grid | None = None

    def whole(self) -> Result:
        """All at once."""
        self.read()
        self.predict()
        self.write()
        return self.result()

    def result(self) -> Result:
        """What became of it, once it is written."""
        assert self.outcome is not None
        return Result(self.outcome, self.row, self._staged)

    def read(self) -> None:
        """The scan into memory, unless there is a result of the same files, model and settings."""
        self._go_on(self._read)

    def predict(self) -> None:
        """What was read is let go of."""
        self._go_on(self._predict)
        self._volume = None

    def write(self) -> None:
        """Onto the disk, but not yet in place."""
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
        text = printable(text)  # which a path need not be
        self.outcome = Outcome(self._scan.id, self._target, error=text)
        self.row |= {"error": text}

    def _read(self) -> None:
        engine, settings = self._engine, self._settings
        no_matter = {"max_memory": "", "max_gpu_memory": "", "compile": False}
        made_by = asdict(settings) | {"engine": engine.name, "precision": engine.precision} | no_matter
        salt = f"{self._model.hash} {made_by} {model_steps(self._model, settings)}"
        if self._model.poses:  # of the card, which the model's hash knows nothing of
            salt += f" {self._model.poses}"
        self._key = hash_of(self._scan.images, salt=salt)
        before = self._finished
        if before is None or before.get("key") != self._key:
            self._refuse_others()
            for old in self.may_be_there:
                old.unlink(missing_ok=True)
        else:
            lacking, not_counted = self._lacking(before), self._outputs.statistics and "statistics" not in before
            if not lacking and not not_counted and not self._in_the_way(before):
                pose = before.get("pose", "")
                self.outcome, self.row = Outcome(self._scan.id, self._target, reused=True, pose=pose), {}
                return
            mended = next(filter(self._is_changed, self._maps_there()), None)
            self._refuse_others(but=mended)
            self._from = mended or next(self._maps_there(), None)
            self._targets = self._targets.only(lacking)  # what is there stays as it is: DICOM keeps its UIDs
            self.row |= {name: before[name] for name in ("pose", "statistics", "nothing_found") if name in before}
            self._kept = {file.name: self._written[file.name] for file in self.may_be_there if file.is_file()}
        self._refuse_other_count()
        self._volume = read_scan(self._scan.images)
        self._grid = self._volume.grid

    def _in_the_way(self, before: PredictionRow) -> bool:
        """Whether a file that is asked for is there, and was not predicted; rows of an older version do not
        tell, and what they are of is taken as it is."""
        others = (file for file in self._targets.all if file.name not in self._written)
        return "files" in before and any(file.is_file() for file in others)

    def _maps_there(self) -> Iterator[Path]:
        """The label maps that are there, and were predicted, in formats that can be read."""
        for file in self.may_be_there:
            if is_written(file) and not stem(file).endswith(PROBABILITIES) and file.is_file():
                yield file

    def _is_changed(self, file: Path) -> bool:
        return file.name in self._written and label_sha256(file) != self._written[file.name]

    def _refuse_others(self, but: Path | None = None) -> None:
        """Raise `DataError` for a file of this scan's name that is not, byte by byte, what was predicted."""
        for file in self.may_be_there:
            if not file.exists():
                continue
            if file.name not in self._written:
                why = "was not predicted here (predictions.jsonl does not list it)"
                if self._finished is not None and "files" not in self._finished:
                    why = "may be of an older version, whose predictions.jsonl does not tell whether it was changed"
                raise DataError(f"{file}: {why}. Move it away.")
            if file != but and self._is_changed(file):
                raise DataError(
                    f"{file}: was changed since it was predicted, and is neither replaced nor removed. Move it away; a "
                    "correction of a run's label may be taken back from there by `semiseg correct`."
                )

    def _refuse_other_count(self) -> None:
        """Raise `DataError` for another number of numbered files than the model has channels, before their grids are
        held against each other: more may be scans that somebody numbered."""
        images, names = self._scan.images, self._model.plan.channels
        if len(images) > len(names):
            raise DataError(
                f"{images[0]}: {len(images)} files count as channels of one scan, by four digits at the end of their "
                f"names, but the model expects {len(names)} ({', '.join(names)}). Leave out what is no channel, "
                f"and number scans of their own otherwise, as {self._scan.id}-0000."
            )
        numbered = stem(images[0]).rpartition("_")[0] == self._scan.id
        if numbered and len(images) < len(names) and read_grid(images[0]).channels == 1:  # else one 4D file of channels
            raise DataError(
                f"{images[0]}: {counted(len(images), 'channel')}, but the model expects {len(names)} "
                f"({', '.join(names)}). Name the files of all channels, {self._scan.id}_0000 to "
                f"{self._scan.id}_{len(names) - 1:04d}, or their folder."
            )

    def _lacking(self, before: PredictionRow) -> list[Path]:
        """The files that are asked for and not there."""
        of_dicom = [self._targets.labels[one] for one in self._outputs.of_dicom if one in self._targets.labels]
        return [
            file
            for file in self._targets.all
            if not file.is_file() and not (before.get("nothing_found") and file in of_dicom)
        ]

    def _predict(self) -> None:
        assert self._volume is not None
        channels, images = self._volume.channels, self._scan.images
        spacing_mm, plan = self._volume.grid.spacing_mm, self._model.plan
        maps = None
        if self._from is None or self._targets.probabilities:
            try:
                found = predict_labels(channels, spacing_mm, self._model, self._engine, self._settings)
            except DataError as error:
                raise DataError(f"{images[0]}: {error}") from None
            labels, maps = found.labels, found.probabilities
            if found.pose != AS_IT_LIES:
                self.row["pose"] = found.pose.name
        if self._from is not None:  # whose voxels somebody may have mended
            organs = LabelScheme(names=plan.labels.names)
            labels, _ = read_checked_label(self._from, images[0], self._volume.grid, organs)
        self._made = labels, maps
        self._foreign = is_foreign(channels, plan)
        if self._outputs.needs_scan:
            labels = self._made[0]
            census = take_census(labels, channels, plan.labels.count)
            if self._outputs.statistics:
                self.row["statistics"] = organ_rows(census, spacing_mm, plan)
            if self._outputs.picture and self._targets.preview:
                self._preview = self._outputs.picture(channels[0], labels, spacing_mm, census, plan)

    def _write(self) -> None:
        assert self._made is not None
        assert self._grid is not None
        started, (labels, maps) = time.perf_counter(), self._made
        self._staged = staging_folder(self._target)
        try:
            written = self._write_into(self._targets.within(self._staged), labels, maps)
            new = {file.name: label_sha256(file) for file in sorted(self._staged.iterdir())}
        except BaseException:
            shutil.rmtree(self._staged, ignore_errors=True)
            self._staged = None
            raise
        seconds = self._seconds + time.perf_counter() - started
        self.outcome = Outcome(
            self._scan.id,
            self._target,
            seconds,
            foreign=self._foreign,
            pose=self.row.get("pose", ""),
            notes=_notes(written, self._scan.id),
            doubts=(*self._grid.doubts, *filter(None, [size_doubt(self._grid, self._model.plan)])),
        )
        self.row |= {"key": self._key, "files": self._kept | new, "seconds": round(seconds, 3)}
        if written.empty:
            self.row["nothing_found"] = True

    def _write_into(self, targets: Targets, labels: LabelArray, maps: FloatArray | None) -> Written:
        assert self._grid is not None
        if maps is not None and targets.probabilities:
            write_map(targets.probabilities, maps, self._grid, self._scan.images[0])
        if self._preview is not None and targets.preview:
            with atomic_file(targets.preview) as temporary:
                temporary.write_bytes(self._preview)
        organs = self._model.plan.labels.organs
        return write_labels(targets, labels, self._grid, self._scan.images[0], organs, self._model.hash)


def _notes(written: Written, id: str) -> tuple[str, ...]:
    notes = []
    if written.empty:
        notes.append(f"{id}: no organ was found, so there is no DICOM file of it.")
    if written.new_study:
        notes.append(f"{id}: its files have no StudyInstanceUID, so what was made of them is in a study of its own.")
    return tuple(notes)


def row_of(scan: Scan, target: Path, model: Model, engine: Engine) -> dict[str, Any]:
    made_by = {"model": model.hash, "engine": engine.name, "precision": engine.precision}
    return {"id": scan.id, "output": target.name} | made_by
