"""A scan in memory to its label map: the work rolls along it, row by row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from semiseg.data.body import BodyBoxes
from semiseg.data.plan import Plan
from semiseg.data.poses import AS_IT_LIES, Pose, surest
from semiseg.data.scan_rows import ScanRows, export_axis
from semiseg.errors import DataError
from semiseg.geometry import triple
from semiseg.io.scans import RawChannel
from semiseg.ops.cleaning import Step, clean
from semiseg.ops.resample import target_shape
from semiseg.prediction.certainty import Certainty, seen_twice
from semiseg.prediction.engines.base import Engine
from semiseg.prediction.engines.opening import open_engine
from semiseg.prediction.export import LabelExport, ProbabilityExport
from semiseg.prediction.model import Model, load_model
from semiseg.prediction.postprocessing import read_steps
from semiseg.prediction.settings import PredictSettings
from semiseg.prediction.sliding import blended_rows
from semiseg.prediction.window import Window, cheapest_axes, turned
from semiseg.processes import usable_cores
from semiseg.types import FloatArray, LabelArray, Shape, Spacing

POSE_STEP = 0.75
"""Of the tiles by which a pose is chosen, as training lays them over unlabelled scans: half of the work is enough."""


@dataclass(frozen=True)
class Predicted:
    """The label map `(Z, Y, X)` of a canonical scan on its own grid; probabilities `(K, Z, Y, X)` if asked for; and the
    pose in which the network saw the scan."""

    labels: LabelArray
    probabilities: FloatArray | None
    pose: Pose = AS_IT_LIES


def predict_labels(
    channels: Sequence[RawChannel], spacing_mm: Spacing, model: Model, engine: Engine, settings: PredictSettings
) -> Predicted:
    """Predict a canonical scan, in the pose in which the network is surest of it where training found several.

    The work rolls along the axis that holds the fewest voxels at a time: neither the scan in float32 nor the logits
    are ever whole in memory.
    """
    if not model.poses:
        return Predicted(*_labels_and_probabilities(channels, spacing_mm, model, engine, settings))
    tried = (AS_IT_LIES, *model.poses)
    pose = surest({one: _certainty(channels, spacing_mm, model, engine, settings, one) for one in tried})
    labels, probabilities = _labels_and_probabilities(
        _posed(channels, pose), pose.shape(spacing_mm), model, engine, settings
    )
    maps = None if probabilities is None else np.ascontiguousarray(pose.back(probabilities))
    return Predicted(np.ascontiguousarray(pose.back(labels)), maps, pose)


def _certainty(
    channels: Sequence[RawChannel],
    spacing_mm: Spacing,
    model: Model,
    engine: Engine,
    settings: PredictSettings,
    pose: Pose,
) -> float:
    """How sure the network is of a scan in a pose."""
    step = max(settings.tile_step, POSE_STEP)
    once = replace(settings, tile_step=step, mirror=False, skip_air=False, probabilities=False)
    rolling = _rolling(_posed(channels, pose), pose.shape(spacing_mm), model, once)
    certainty = Certainty(model.plan.labels.count)
    for logits in rolling.logits(seen_twice(engine, model.mirror_axes)):
        certainty.add(logits)
    return certainty.value


def _posed(channels: Sequence[RawChannel], pose: Pose) -> list[RawChannel]:
    return [RawChannel(pose.of(channel.stored), channel.slope, channel.inter) for channel in channels]


@dataclass(frozen=True)
class _Rolling:
    """A scan as the work rolls along it. axes: in which order. scan: on the plan's grid. window: how tiles are laid."""

    axes: Shape
    scan: ScanRows
    window: Window

    def logits(self, engine: Engine) -> Iterator[Any]:
        return blended_rows(self.scan.rows, self.scan.shape, engine, self.window)


def _rolling(channels: Sequence[RawChannel], spacing_mm: Spacing, model: Model, settings: PredictSettings) -> _Rolling:
    plan = model.plan
    axes = cheapest_axes(target_shape(triple(channels[0].stored.shape), spacing_mm, plan.spacing_mm), plan.patch)
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
        rows_stay=not settings.probabilities,
    )
    return _Rolling(axes, scan, window)


def _labels_and_probabilities(
    channels: Sequence[RawChannel], spacing_mm: Spacing, model: Model, engine: Engine, settings: PredictSettings
) -> tuple[LabelArray, FloatArray | None]:
    rolling = _rolling(channels, spacing_mm, model, settings)
    axes, plan = rolling.axes, model.plan
    coarse = export_axis(spacing_mm, plan)
    shape_out = turned(triple(channels[0].stored.shape), axes)
    anisotropic_axis = None if coarse is None else axes.index(coarse)
    grids = (rolling.scan.shape, shape_out, plan.labels.count, anisotropic_axis, usable_cores())
    labels = LabelExport(*grids)
    maps = ProbabilityExport(*grids) if settings.probabilities else None
    for logits in rolling.logits(engine):
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
    return predict_labels([RawChannel(channel) for channel in channels], spacing_mm, model, engine, settings).labels
