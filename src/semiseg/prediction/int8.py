"""An int8 network for OpenVINO, made from a trained one: post-training quantisation, calibrated on real tiles.

The layers that cost most of the labels are not quantised (NNCF's accuracy control). It takes minutes, once for a model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from semiseg.data.scan_rows import ScanRows
from semiseg.errors import ConfigError, DataError
from semiseg.files import atomic_folder
from semiseg.io.scans import read_scan
from semiseg.prediction.engines.openvino_engine import int8_file, read_network
from semiseg.prediction.inputs import Scan
from semiseg.prediction.model import Model
from semiseg.prediction.parity import SCANS, SMALLEST_DICE, class_dice, smallest_first
from semiseg.prediction.window import cheapest_axes, turned
from semiseg.types import FloatArray, LabelArray

_TILES, _TILES_TO_RANK = 12, 4
_SCANS = 6
_DROP = (1 - SMALLEST_DICE) / 2
"""What the smallest Dice may lose on the tiles: half of what the check on whole scans allows."""


def make_int8(model: Model, scans: Sequence[Scan], *, say: Callable[[str], None]) -> Path:
    """Write the int8 network of a model into the cache, calibrated on tiles of `scans`; returns the file.

    Tiles are not of the scans that the engine is checked on afterwards, where there are others. Raises `ConfigError`
    where NNCF is not installed, or where torch finds no organ in the tiles.
    """
    try:
        import nncf
    except ImportError:
        raise ConfigError("precision = 'int8' needs NNCF: pip install '.[int8]'.") from None
    tiles = calibration_tiles(model, scans)
    say(f"making an int8 network from {len(tiles)} tiles: minutes, once for this model on this machine")
    nncf.set_log_level(logging.ERROR)
    network = read_network(model)
    # In OpenVINO's own choice of precision, bfloat16 where the processor has it, in which NNCF compiles what it tries:
    # quantisation alone is judged. Against float32 every layer would be given back for what bfloat16 costs.
    agreement = _Agreement(openvino.Core().compile_model(network, "CPU"), tiles)
    if not agreement.finds_organs:
        raise ConfigError("precision = 'int8': the model finds no organ in the scans that it is to be calibrated on.")
    quantised = nncf.quantize_with_accuracy_control(
        network,
        nncf.Dataset(tiles),
        nncf.Dataset(range(len(tiles))),
        agreement,
        max_drop=_DROP,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(tiles),
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
            ranking_subset_size=min(_TILES_TO_RANK, len(tiles))
        ),
    )
    file = int8_file(model)
    file.parent.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(file.parent, made=(file.name, file.with_suffix(".bin").name)) as temporary:
        openvino.save_model(quantised, temporary / file.name, compress_to_fp16=False)
    return file


def calibration_tiles(model: Model, scans: Sequence[Scan]) -> list[FloatArray]:
    """Up to 12 tiles `(1, C, *patch)` from anywhere in up to 6 scans; raises `ConfigError` where none can be read."""
    ordered = smallest_first(scans)
    others = ordered[SCANS:] or ordered
    chosen = others[:: max(1, len(others) // _SCANS)][:_SCANS]
    generator = np.random.default_rng(0)
    tiles: list[FloatArray] = []
    for scan in chosen:
        try:
            tiles += _tiles(model, scan, -(-_TILES // len(chosen)), generator)
        except DataError:
            continue  # prediction will name it
    if not tiles:
        raise ConfigError("precision = 'int8': no scan that can be read, to calibrate it on.")
    return tiles[:_TILES]


def _tiles(model: Model, scan: Scan, count: int, generator: np.random.Generator) -> list[FloatArray]:
    raw = read_scan(scan.images)
    plan = model.plan
    axes = cheapest_axes(raw.grid.shape_zyx, plan.patch)
    rows = ScanRows(raw.channels, raw.grid.spacing_mm, plan, axes)
    patch = turned(plan.patch, axes)
    tiles = []
    for _ in range(count):
        first, y, x = (int(generator.integers(max(0, n - p) + 1)) for n, p in zip(rows.shape, patch, strict=True))
        found = rows.rows(first, min(first + patch[0], rows.shape[0]))[:, :, y : y + patch[1], x : x + patch[2]]
        missing = [(0, 0), *((0, p - n) for n, p in zip(found.shape[1:], patch, strict=True))]
        tile = np.pad(found, missing, mode="edge").transpose(0, *(axes.index(axis) + 1 for axis in range(3)))
        tiles.append(np.ascontiguousarray(tile)[None])
    return tiles


class _Agreement:
    """How a network's labels agree with float32's on the tiles: the smallest Dice of a class, and that of each tile."""

    def __init__(self, reference: Any, tiles: list[FloatArray]) -> None:
        self._tiles = tiles
        self._labels = [_labels(reference, tile) for tile in tiles]

    @property
    def finds_organs(self) -> bool:
        """Whether there is any class but the background."""
        return any(labels.any() for labels in self._labels)

    def __call__(self, network: Any, numbers: Iterable[int]) -> tuple[float, list[float]]:
        """As NNCF asks for it. numbers: of the tiles to look at."""
        pairs = [(self._labels[number], _labels(network, self._tiles[number])) for number in numbers]
        together = class_dice(np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs]))
        return min(together.values(), default=1.0), [min(class_dice(a, b).values(), default=1.0) for a, b in pairs]


def _labels(network: Any, tile: FloatArray) -> LabelArray:
    return np.asarray(network(tile)[0][0].argmax(axis=0), dtype=np.uint16)
