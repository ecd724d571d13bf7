"""How much memory the prediction of a scan takes, known before it starts: the promise behind `--max-memory`.

Prediction rolls along one axis, so that what it holds is a few slabs of fixed thickness. They are added up here; the
memory of the engine is measured, on a tile.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path

import numpy as np
import psutil

from semiseg.data.plan import Plan
from semiseg.errors import ConfigError, DataError
from semiseg.io.nifti import Grid, read_grid
from semiseg.ops.operators import BLOCK_ROWS, HALO_ROWS
from semiseg.ops.resample import target_shape
from semiseg.predict.engines.base import Engine
from semiseg.predict.export import ROWS_AT_ONCE
from semiseg.predict.inputs import Scan
from semiseg.predict.model import Model
from semiseg.predict.predictor import model_steps
from semiseg.predict.settings import PredictSettings
from semiseg.predict.sliding import cheapest_axes, turned
from semiseg.processes import usable_cores

_FLOAT, _CELL = 4, 4
"""Bytes of a float32, and of a label while it is being found."""
_UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}
_SLACK, _FIXED = 1.05, 32 * 10**6
"""What the allocator needs besides, as a factor of all that is counted; and what is imported and started late, in
bytes."""


def parse_bytes(text: str) -> int:
    """`4GB`, `3500MB`, `4GiB` in bytes; raises `ConfigError` for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MG]i?B)\s*", text, re.IGNORECASE)
    if not match:
        raise ConfigError(f"max_memory = {text!r}: give a number with its unit, such as 4GB, 3500MB or 4GiB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def show_bytes(count: int) -> str:
    """A size in GB, rounded up to what `parse_bytes` reads."""
    return f"{ceil(count / 10**7) / 100:.2f}GB"


@dataclass(frozen=True)
class ScanMemory:
    """Bytes that the prediction of one scan takes at its peak, part by part."""

    engine: int
    """Libraries, weights and the feature maps of a tile: measured."""
    scan: int
    """As its file stores it."""
    image: int
    """The rows of the normalised scan that the tiles at hand reach, and those that are being made."""
    logits: int
    """The window of blended logits, and those of the tiles at hand."""
    export: int
    """The rows that are being interpolated, and the label map."""

    @property
    def total(self) -> int:
        """All of it."""
        return int(_SLACK * (self.scan + self.image + self.logits + self.export)) + self.engine + _FIXED


def scan_memory(
    grid: Grid, item_bytes: int, plan: Plan, settings: PredictSettings, *, engine_bytes: int, cleaned: bool = False
) -> ScanMemory:
    """What a scan on this grid takes. item_bytes: of a stored voxel. cleaned: its labels are, in the end."""
    axes = cheapest_axes(target_shape(grid.shape_zyx, grid.spacing_mm, plan.spacing_mm), plan.patch)
    source = turned(grid.shape_zyx, axes)
    shape = turned(target_shape(grid.shape_zyx, grid.spacing_mm, plan.spacing_mm), axes)
    patch = turned(plan.patch, axes)
    rows, high, wide = (max(n, p) for n, p in zip(shape, patch, strict=True))
    channels, classes = len(plan.channels), plan.labels.count
    # A block is made from its rows and a halo on both sides: stored order, float32, normalised, then resampled.
    block_rows = ceil(BLOCK_ROWS * source[0] / shape[0]) + 2 * HALO_ROWS
    block = _FLOAT * (4 * block_rows * source[1] * source[2] + 3 * BLOCK_ROWS * max(source[1] * source[2], high * wide))
    slab = _FLOAT * channels * min(patch[0], rows) * high * wide
    tile = _FLOAT * classes * prod(patch) * settings.tile_batch
    window = _FLOAT * (classes + 1) * patch[0] * high * wide
    threads = usable_cores()
    plane, plane_out = _FLOAT * classes * high * wide, _FLOAT * classes * source[1] * source[2]
    label_bytes = prod(grid.shape_zyx) * (1 if classes <= 256 else 2)
    export = 2 * _CELL * ROWS_AT_ONCE * high * wide + threads * (2 * plane + 2 * plane_out) + label_bytes
    if cleaned:  # a copy, a mask, and numbered components where an organ fills the scan
        export += prod(grid.shape_zyx) * 6
    if settings.probabilities:
        export += 2 * _FLOAT * classes * prod(grid.shape_zyx)
    return ScanMemory(
        engine=engine_bytes,
        scan=prod(grid.shape_zyx) * item_bytes * channels,
        image=block + channels * _FLOAT * BLOCK_ROWS * high * wide + 2 * slab,
        logits=window + 3 * tile,
        export=export,
    )


def check_budget(
    scans: Sequence[Scan], model: Model, engine: Engine, settings: PredictSettings, max_memory: str
) -> None:
    """Raise `ConfigError` with the smallest budget that would do where a scan needs more than `max_memory`.

    Scans that cannot be read are left to prediction, which names them.
    """
    budget, engine_bytes = parse_bytes(max_memory), measure_engine(engine, model)
    cleaned = bool(model_steps(model, settings))
    needs: dict[str, int] = {}
    for scan in scans:
        with suppress(DataError, OSError):
            grid = read_grid(scan.images[0])
            item = grid.header.get_data_dtype().itemsize
            memory = scan_memory(grid, item, model.plan, settings, engine_bytes=engine_bytes, cleaned=cleaned)
            needs[str(scan.images[0])] = memory.total
    largest = max(needs, key=lambda file: needs[file], default=None)
    if largest is not None and needs[largest] > budget:
        raise ConfigError(
            f"max_memory = {max_memory}, but {largest} needs {show_bytes(needs[largest])} "
            f"({show_bytes(engine_bytes)} of it for {engine.name} and a tile): give --max-memory "
            f"{show_bytes(needs[largest])}, or leave the scan out."
        )


def measure_engine(engine: Engine, model: Model) -> int:
    """The most memory in bytes that this process takes while the engine computes a tile: libraries, weights, features.

    What was taken before and given back does not count, where the system can tell (Linux).
    """
    reset_peak()
    tile = np.zeros((1, len(model.plan.channels), *model.plan.patch), dtype=np.float32)
    for _ in range(3):  # libraries keep more for a shape once they have seen it again
        engine.run(tile)
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
    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", info.rss))
