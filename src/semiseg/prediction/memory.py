"""How much memory the prediction of a scan takes, known before it starts: the promise behind `--max-memory`.

Prediction rolls along one axis, so that what it holds is a few slabs of fixed thickness. They are added up here; the
memory of the engine is measured, on a tile.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from math import ceil, prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from semiseg.data.plan import Plan
from semiseg.errors import ConfigError, DataError
from semiseg.io.dicom.decoding import held_bytes
from semiseg.io.dicom.places import place_of, series_of
from semiseg.io.grid import Grid
from semiseg.io.scans import read_grid
from semiseg.ops.operators import BLOCK_ROWS, HALO_ROWS
from semiseg.ops.resample import target_shape
from semiseg.prediction.byte_sizes import parse_bytes, show_bytes
from semiseg.prediction.engines.base import Engine
from semiseg.prediction.export import ROWS_AT_ONCE
from semiseg.prediction.inputs import Scan
from semiseg.prediction.model import Model
from semiseg.prediction.outputs import LABELS_ALONE, Outputs
from semiseg.prediction.predictor import model_steps
from semiseg.prediction.settings import PredictSettings
from semiseg.prediction.window import cheapest_axes, turned
from semiseg.processes import usable_cores

_FLOAT, _CELL = 4, 4
"""Bytes of a float32, and of a label while it is being found."""
_SLACK, _FIXED = 1.05, 32 * 10**6
"""What the allocator needs besides, as a factor of all that is counted; and what is imported and started late, in
bytes."""
_FRAME_BYTES = 60_000
"""Of what a SEG says of a frame."""
_OUTLINE_BYTES = 400
"""A pixel of a slice, where each is of another organ than its neighbours."""
_BESIDE = 24 * 10**6
"""The same of the thread that reads and writes other scans meanwhile: blocks, and an allocator of its own."""


class Need(NamedTuple):
    """Bytes that a scan takes."""

    at_peak: int
    """While it is predicted, with all that the process holds."""
    beside: int
    """Of its own, while another one is predicted: its voxels as they are stored, or what is to be written."""


def scan_memory(
    grid: Grid,
    stored_bytes: int,
    plan: Plan,
    settings: PredictSettings,
    *,
    engine_bytes: int,
    cleaned: bool = False,
    posed: bool = False,
) -> int:
    """Bytes that the prediction of a scan on this grid takes at its peak.

    stored_bytes: of all its files' voxels. engine_bytes: libraries, weights and the feature maps of a tile. cleaned:
    its labels are, in the end. posed: its pose is looked for.
    """
    axes = cheapest_axes(target_shape(grid.shape_zyx, grid.spacing_mm, plan.spacing_mm), plan.patch)
    source = turned(grid.shape_zyx, axes)
    shape = turned(target_shape(grid.shape_zyx, grid.spacing_mm, plan.spacing_mm), axes)
    patch = turned(plan.patch, axes)
    rows, high, wide = (max(n, p) for n, p in zip(shape, patch, strict=True))
    channels, classes = len(plan.channels), plan.labels.count
    # A block is made from its rows, and a halo on both sides where they are resampled: stored order, float32,
    # normalised, then resampled.
    block_rows = ceil(BLOCK_ROWS * source[0] / shape[0]) + (2 * HALO_ROWS if source[0] != shape[0] else 0)
    block = _FLOAT * (4 * block_rows * source[1] * source[2] + 3 * BLOCK_ROWS * max(source[1] * source[2], high * wide))
    slab = _FLOAT * channels * min(patch[0], rows) * high * wide
    tile = _FLOAT * classes * prod(patch) * settings.tile_batch
    blended = _FLOAT * (classes + 1) * patch[0] * high * wide
    threads = usable_cores()
    plane, plane_out = _FLOAT * classes * high * wide, _FLOAT * classes * source[1] * source[2]
    voxels = prod(grid.shape_zyx)
    # The rows of the normalised scan that the tiles at hand reach, and those that are being made.
    image = block + channels * _FLOAT * BLOCK_ROWS * high * wide + 3 * slab
    # The window of blended logits, and those of the tiles at hand.
    logits = blended + (5 if settings.mirror else 2) * tile
    if posed:  # twice as many classes: those of the mirror image are kept apart
        logits = max(logits, 2 * blended + 5 * tile)
    # The rows that are being interpolated, and the label map.
    export = 2 * _CELL * ROWS_AT_ONCE * high * wide + threads * (2 * plane + 2 * plane_out)
    if cleaned:  # a copy, masks, and numbered components where an organ fills the scan; all else is given back by then
        export = max(export, 10 * voxels - image - logits)
    export += _result_bytes(voxels, classes, settings)
    return int(_SLACK * (stored_bytes + image + logits + export)) + engine_bytes + _FIXED


def _result_bytes(voxels: int, classes: int, settings: PredictSettings) -> int:
    """Of the label map, and of the probabilities where they are asked for."""
    return voxels * ((1 if classes <= 256 else 2) + (_FLOAT * classes if settings.probabilities else 0))


def _written_bytes(scan: Scan, grid: Grid, organs: int, outputs: Outputs) -> int:
    """What making DICOM files takes beside the label map: the most of them, since they are made one after the other."""
    if not outputs.of_dicom:
        return 0
    voxels, series = prod(grid.shape_zyx), series_of(scan.images[0])
    slices, pixels = len(series.slices), series.slices[0].pixels
    label = voxels * (1 if organs < 256 else 2)
    needs = {
        # The planes of slices that lie on no grid, and consecutive numbers in the place of values; all frames at a bit
        # a voxel, twice; and what is said of each.
        "dicom-seg": 2 * label + organs * (voxels // 4 + slices * _FRAME_BYTES),
        "dicom-labelmap": 4 * label + slices * _FRAME_BYTES,
        "rtstruct": (label if series.regular else 0) + _OUTLINE_BYTES * pixels.rows * pixels.columns,
    }
    return max(needs[one] for one in outputs.of_dicom)


def _decoder_bytes(scan: Scan) -> int:
    """Of the process that decodes the slices of a series of DICOM, which ends when the scan is read."""
    if place_of(scan.images[0]) is None:
        return 0
    return held_bytes(series_of(scan.images[0]).slices[0].pixels)


def scan_needs(
    scans: Sequence[Scan],
    model: Model,
    settings: PredictSettings,
    *,
    engine_bytes: int,
    outputs: Outputs = LABELS_ALONE,
) -> dict[str, Need]:
    """What each scan takes, by its id; scans that cannot be read are left out, for prediction to name."""
    cleaned = bool(model_steps(model, settings))
    settings = replace(settings, mirror=settings.mirror and bool(model.mirror_axes))
    needs: dict[str, Need] = {}
    for scan in scans:
        with suppress(DataError, OSError):
            grids = [read_grid(file) for file in scan.images]
            stored = sum(prod(g.shape_zyx) * g.channels * g.voxel_bytes for g in grids)
            result = _result_bytes(prod(grids[0].shape_zyx), model.plan.labels.count, settings)
            result += _written_bytes(scan, grids[0], model.plan.labels.count - 1, outputs)
            predicting = scan_memory(
                grids[0],
                stored,
                model.plan,
                settings,
                engine_bytes=engine_bytes,
                cleaned=cleaned,
                posed=bool(model.poses),
            )
            decoder = _decoder_bytes(scan)
            needs[scan.id] = Need(
                max(predicting, int(_SLACK * max(result, stored + decoder)) + engine_bytes + _FIXED),
                int(_SLACK * max(stored + decoder, result)) + _BESIDE,
            )
    return needs


def check_budget(
    scans: Sequence[Scan],
    model: Model,
    engine: Engine,
    settings: PredictSettings,
    *,
    outputs: Outputs = LABELS_ALONE,
    workers: int = 1,
) -> bool:
    """Whether `max_memory` has room for the largest scan and for another one, read or written meanwhile.

    Raises `ConfigError` with the smallest budget that would do where a scan needs more alone; with workers, each may
    have the largest at once, beside the engine of this process.
    """
    engine_bytes = measure_engine([engine], model, settings)
    needs = scan_needs(scans, model, settings, engine_bytes=engine_bytes, outputs=outputs)
    if not needs:
        return False
    largest = max(needs, key=lambda scan: needs[scan].at_peak)
    peak, side_by_side = needs[largest].at_peak, min(workers, len(scans))
    total = peak if side_by_side <= 1 else engine_bytes + side_by_side * peak
    budget = parse_bytes(settings.max_memory)
    if total <= budget:
        return total + max(need.beside for need in needs.values()) <= budget
    file = next(scan.images[0] for scan in scans if scan.id == largest)
    each, fewer = ("", "") if side_by_side <= 1 else (f" by each of {side_by_side} workers", "use fewer workers, ")
    raise ConfigError(
        f"max_memory = {settings.max_memory}, but {file} needs {show_bytes(peak)}{each} "
        f"({show_bytes(engine_bytes)} of it for {engine.name} and its tiles): give --max-memory {show_bytes(total)}, "
        f"{fewer}or leave the scan out."
    )


def within_budget(
    scans: Sequence[Scan], model: Model, engines: Sequence[Engine], settings: PredictSettings
) -> list[Scan]:
    """The scans that these engines, loaded at once, may predict within `max_memory`; all where none is given."""
    if not settings.max_memory:
        return list(scans)
    budget, engine_bytes = parse_bytes(settings.max_memory), measure_engine(engines, model, settings)
    needs = scan_needs(scans, model, settings, engine_bytes=engine_bytes)
    return [scan for scan in scans if scan.id in needs and needs[scan.id].at_peak <= budget]


def measure_engine(engines: Sequence[Engine], model: Model, settings: PredictSettings) -> int:
    """The most memory in bytes that this process takes while the engines compute a batch of tiles: libraries, weights,
    features.

    What was taken before and given back does not count, where the system can tell (Linux).
    """
    reset_peak()
    shape = (settings.tile_batch, len(model.plan.channels), *model.plan.patch)
    tiles = np.zeros(shape, dtype=np.float32)
    for engine in engines:
        for _ in range(3):  # libraries keep more for a shape once they have seen it again
            engine.run(tiles)
    return peak_bytes()


def reset_peak() -> None:
    """Have `peak_bytes` count from here on."""
    with suppress(OSError):  # not Linux, or not allowed: earlier peaks count too
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most memory that this process has held, in bytes."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
