"""Predicting cases: one scan at a time, finished ones are not done again, a bad one does not stop the rest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from semiseg.cases import WAS_KILLED, each_case
from semiseg.data.body import BodyBoxes
from semiseg.data.plan import Plan
from semiseg.data.scan_rows import ScanRows, export_axis
from semiseg.errors import ConfigError, DataError
from semiseg.files import append_jsonl, hash_files, is_full, remove_leftovers, why_not_written
from semiseg.io.dataset import unusable_id
from semiseg.io.file_kinds import NIFTI_ENDINGS, PROBABILITIES, label_map, probability_map
from semiseg.io.scans import RawChannel, read_grid, read_scan, write_label, write_map
from semiseg.ops.cleaning import Step, clean
from semiseg.ops.resample import target_shape
from semiseg.prediction.engines.base import Engine
from semiseg.prediction.engines.opening import open_engine
from semiseg.prediction.export import LabelExport, ProbabilityExport
from semiseg.prediction.foreign import is_foreign
from semiseg.prediction.inputs import Scan
from semiseg.prediction.model import Model, load_model
from semiseg.prediction.postprocessing import read_steps
from semiseg.prediction.settings import PredictSettings
from semiseg.prediction.sliding import blended_rows
from semiseg.prediction.window import Window, cheapest_axes, turned
from semiseg.processes import usable_cores
from semiseg.rows import read_predictions
from semiseg.types import FloatArray, LabelArray, Shape, Spacing
from semiseg.words import printable

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Outcome:
    """What became of a scan: the output, or the error as text. reused: it was there from an earlier call. foreign: its
    values are not those of the model's modality (MR for a CT model, CT for another)."""

    id: str
    output: Path
    seconds: float = 0.0
    reused: bool = False
    error: str | None = None
    foreign: bool = False


def predict_labels(
    channels: Sequence[RawChannel], spacing_mm: Spacing, model: Model, engine: Engine, settings: PredictSettings
) -> tuple[LabelArray, FloatArray | None]:
    """The label map `(Z, Y, X)` of a canonical scan on its own grid, and the probabilities `(K, Z, Y, X)` if asked for.

    The work rolls along the axis that holds the fewest voxels at a time: neither the scan in float32 nor the logits
    are ever whole in memory.
    """
    z, y, x = channels[0].stored.shape
    plan = model.plan
    axes = cheapest_axes(target_shape((z, y, x), spacing_mm, plan.spacing_mm), plan.patch)
    scan = ScanRows(channels, spacing_mm, plan, axes)
    skips_air = settings.skip_air and plan.normalisation[0].scheme == "ct"  # in CT alone it is known what is air
    body = BodyBoxes(channels[0], scan.shape, axes) if skips_air else None
    window = Window(
        patch=plan.patch,
        step=settings.tile_step,
        tile_batch=settings.tile_batch,
        mirror_axes=model.mirror_axes if settings.mirror else (),
        labels=plan.labels,
        axes=axes,
        region=body.region(turned(body_margin(plan), axes)) if body else None,
        holds_body=body,
    )
    coarse = export_axis(spacing_mm, plan)
    shape_out = turned((z, y, x), axes)
    anisotropic_axis = None if coarse is None else axes.index(coarse)
    grids = (scan.shape, shape_out, plan.labels.count, anisotropic_axis, usable_cores())
    labels = LabelExport(*grids)
    maps = ProbabilityExport(*grids) if settings.probabilities else None
    for logits in blended_rows(scan.rows, scan.shape, engine, window):
        labels.add(logits)
        if maps:
            maps.add(logits)
        del logits  # a view of the window, which would outlive the loop
    steps = model_steps(model, settings)
    back = tuple(axes.index(axis) for axis in range(3))
    probabilities = None if maps is None else maps.probabilities.transpose(0, *(axis + 1 for axis in back))
    return clean(labels.labels, steps).transpose(back) if steps else labels.labels.transpose(back), probabilities


def model_steps(model: Model, settings: PredictSettings) -> dict[int, tuple[Step, ...]]:
    """The cleaning of labels that prediction ends with."""
    return read_steps(model.folder, model.plan.labels.organs) if settings.postprocess else {}


def body_margin(plan: Plan) -> Shape:
    """How far around the body tiles are laid, in voxels: an eighth of the patch, the width of a tile's weights."""
    z, y, x = (size // 8 for size in plan.patch)
    return (z, y, x)


def predict_scans(
    scans: Sequence[Scan],
    model: Model,
    engine: Engine,
    output: Path,
    settings: PredictSettings,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Predict all scans into `output/ID.nii.gz`; `output/predictions.jsonl` says how each went, unless its name is one
    that no file can have.

    A scan whose output was made from the same files by the same model and settings is not done again. A scan that
    cannot be read is listed with its error and does not stop the rest; an output of another model is removed.

    workers: processes that share the cores, each with the engine of its own; progress: called with (done, of how many,
    the id of the last).
    """
    _check_outputs(scans, output, settings)
    output.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output, alone=False)  # others may be predicting into it
    log = output / "predictions.jsonl"
    if log.is_symlink():
        raise ConfigError(f"{log}: a link, and what is behind it would be written to. Name another folder.")
    if not log.exists():
        log.touch()  # from here on the folder is known as one of predictions
    finished = {row["id"]: row.get("key") for row in read_predictions(output) if "error" not in row}
    outcomes: dict[int, Outcome] = {}
    predicted = partial(_attempt_into, model=model, engine=engine, output=output, settings=settings)
    jobs = [(scan, finished.get(scan.id)) for scan in scans]
    lost = partial(_lost, output=output, model=model, engine=engine)
    for index, (outcome, row) in each_case(predicted, jobs, workers=workers, lost=lost, whole=True):
        if row:
            append_jsonl(log, row)
        outcomes[index] = outcome
        if progress:
            progress(len(outcomes), len(scans), scans[index].id)
    return [outcomes[index] for index in range(len(scans))]


def _attempt_into(
    job: tuple[Scan, str | None], model: Model, engine: Engine, output: Path, settings: PredictSettings
) -> tuple[Outcome, dict[str, Any]]:
    """What becomes of a scan, given the key of what there is of it; and the row for the log, or an empty one."""
    scan, finished = job
    if why := unusable_id(scan.id):
        return Outcome(printable(scan.id), output, error=f"{printable(str(scan.images[0]))}: {why}"), {}
    outcome, row = _attempt(scan, model, engine, label_map(output, scan.id), settings, finished)
    return outcome, {} if outcome.reused else row


def _lost(job: tuple[Scan, str | None], output: Path, model: Model, engine: Engine) -> tuple[Outcome, dict[str, Any]]:
    scan = job[0]
    text = f"{scan.images[0]}: {WAS_KILLED}. Use fewer --workers, or a machine with more memory."
    target = label_map(output, scan.id)
    return Outcome(scan.id, target, error=text), _row(scan, target, model, engine) | {"error": text}


def predict_scan_to(scan: Scan, model: Model, engine: Engine, file: Path, settings: PredictSettings) -> Outcome:
    """Predict one scan into a file (`.nii.gz` or `.nii`), which is not there yet; nothing else is written, but class
    probabilities beside it where they are asked for. Raises as `predict_scans`."""
    check_output_file(file, settings)
    file.parent.mkdir(parents=True, exist_ok=True)
    outcome, _ = _attempt(scan, model, engine, file, settings, None)
    return outcome


def check_output_file(file: Path, settings: PredictSettings) -> None:
    """Raise `ConfigError` where a file to predict into, or that of its probabilities, is there already."""
    if not file.name.endswith(NIFTI_ENDINGS):
        raise ConfigError(f"--output {file}: write the ending in small letters, .nii.gz or .nii.")
    for target in (file, probability_map(file)) if settings.probabilities else (file,):
        if target.exists():
            raise ConfigError(
                f"{target}: is there already, and a file that is named is never overwritten. Name another, remove it, "
                "or name a folder: there finished scans are known again."
            )


def _attempt(
    scan: Scan, model: Model, engine: Engine, target: Path, settings: PredictSettings, finished: str | None
) -> tuple[Outcome, dict[str, Any]]:
    maps, row = probability_map(target), _row(scan, target, model, engine)
    started = time.perf_counter()
    try:
        no_matter = {"max_memory": "", "max_gpu_memory": "", "compile": False}
        made_by = asdict(settings) | {"engine": engine.name, "precision": engine.precision} | no_matter
        key = hash_files(scan.images, salt=f"{model.hash} {made_by} {model_steps(model, settings)}")
        if finished == key and target.is_file() and (maps.is_file() or not settings.probabilities):
            return Outcome(scan.id, target, reused=True), row
        for old in (target, maps):
            old.unlink(missing_ok=True)
        foreign = _predict_to_file(scan, model, engine, target, settings)
        seconds = time.perf_counter() - started
        return Outcome(scan.id, target, seconds, foreign=foreign), row | {"key": key, "seconds": round(seconds, 3)}
    except DataError as error:
        text = str(error)
    except MemoryError:
        grid = read_grid(scan.images[0])
        z, y, x = grid.shape_zyx
        mm = " x ".join(f"{length:g}" for length in grid.spacing_mm)
        text = (
            f"{scan.images[0]}: not enough memory for {z} x {y} x {x} voxels of {mm} mm at the model's "
            f"{model.plan.spacing_mm} mm. If that is their size, use a machine with more memory; or mend the header."
        )
    except OSError as error:
        if is_full(error):
            raise  # the others would not fit either
        error.filename = error.filename or str(target)
        text = why_not_written(error)
    return Outcome(scan.id, target, error=text), row | {"error": text}


def _row(scan: Scan, target: Path, model: Model, engine: Engine) -> dict[str, Any]:
    made_by = {"model": model.hash, "engine": engine.name, "precision": engine.precision}
    return {"id": scan.id, "output": target.name} | made_by


def _predict_to_file(scan: Scan, model: Model, engine: Engine, target: Path, settings: PredictSettings) -> bool:
    """Predict and write; returns whether the scan's values are foreign to the model."""
    volume = read_scan(scan.images)
    try:
        labels, maps = predict_labels(volume.channels, volume.grid.spacing_mm, model, engine, settings)
    except DataError as error:
        several = " Files of one name with numbers from _0000 on count as channels of one scan."
        raise DataError(f"{scan.images[0]}: {error}{several if len(scan.images) > 1 else ''}") from None
    if maps is not None:
        write_map(probability_map(target), maps, volume.grid, scan.images[0])
    write_label(target, labels, volume.grid, scan.images[0])
    return is_foreign(volume.channels, model.plan)


def _check_outputs(scans: Sequence[Scan], output: Path, settings: PredictSettings) -> None:
    """No label map may take the place of a scan, lie among scans, or take the place of a file that is not from here."""
    inputs = {file.resolve() for scan in scans for file in scan.images}
    begun_here = (output / "predictions.jsonl").exists()
    ids = {scan.id for scan in scans}
    both = [scan.id for scan in scans if scan.id.removesuffix(PROBABILITIES) in ids - {scan.id}]
    if settings.probabilities and both:
        raise ConfigError(
            f"{both[0]}: the label map of this scan would be the probabilities of another. Rename one of them."
        )
    for scan in scans:
        target = label_map(output, scan.id)
        for file in (target, probability_map(target)):
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


def predict_array(
    array: FloatArray,
    spacing_mm: Spacing,
    model: Model | str | Path,
    *,
    engine: Engine | None = None,
    settings: PredictSettings | None = None,
) -> LabelArray:
    """The label map of a scan that is already in memory.

    array: `(Z, Y, X)` or `(C, Z, Y, X)`, in canonical orientation (z to the head, y to the front, x to the right) and
    in the units of the training scans (HU for CT). spacing_mm: `(Z, Y, X)`. model: from `load_model`, or its folder.
    engine: what computes, from `open_engine`; for many scans open it once. By default that of the settings, where
    `auto` is torch; it is not checked, and `max_memory` is not looked at.

    Raises `DataError` for another number of channels or dimensions, for voxels that are not finite, and for a spacing
    that is not positive; `ConfigError` as `predict_scans`.
    """
    model = model if isinstance(model, Model) else load_model(model)
    array = np.asarray(array)
    channels = array[None] if array.ndim == 3 else array
    if channels.ndim != 4:
        raise DataError(f"array of shape {array.shape}: give (Z, Y, X), or (C, Z, Y, X) with one channel per image.")
    if not np.isfinite(channels).all():
        raise DataError("array: some voxels are NaN or infinite. Replace them first.")
    if np.shape(spacing_mm) != (3,) or not all(0 < mm < math.inf for mm in spacing_mm):
        raise DataError(f"spacing_mm = {spacing_mm}: give three positive numbers in mm, in (Z, Y, X) order.")
    settings = settings or PredictSettings()
    if engine is None:
        name = "torch" if settings.engine == "auto" else settings.engine
        precision = "float32" if settings.precision == "auto" else settings.precision
        engine = open_engine(
            model,
            name,
            precision=precision,
            device=settings.device,
            max_gpu_memory=settings.max_gpu_memory,
            compiled=settings.compile,
        )
    labels, _ = predict_labels([RawChannel(channel) for channel in channels], spacing_mm, model, engine, settings)
    return labels
