"""An int8 network for OpenVINO, made from a trained one: post-training quantisation, calibrated on real tiles.

The first and the last layer, which cost labels most and time least, stay in float32. Others are given back to float32,
the worst first, until the labels are those of float32. It takes a minute or two, once for a model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from semiseg.data.scan_rows import ScanRows
from semiseg.errors import ConfigError, DataError
from semiseg.files import atomic_folder
from semiseg.io.scans import read_scan
from semiseg.prediction.engines.openvino_engine import compiled, int8_file, read_network
from semiseg.prediction.inputs import Scan
from semiseg.prediction.model import Model
from semiseg.prediction.parity import SCANS, SMALLEST_DICE, class_dice, smallest_first
from semiseg.prediction.window import cheapest_axes, turned
from semiseg.types import FloatArray, LabelArray

_TILES, _SCANS = 8, 4
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
    say(f"making an int8 network from {len(tiles)} tiles: a minute or two, once for this model on this machine")
    nncf.set_log_level(logging.ERROR)
    reference = compiled(read_network(model), "float32")
    labels = [_labels(reference, tile) for tile in tiles]
    if not any(tile.any() for tile in labels):
        raise ConfigError("precision = 'int8': the model finds no organ in the scans that it is to be calibrated on.")
    quantised = nncf.quantize(
        read_network(model),
        nncf.Dataset(tiles),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(tiles),
        # A bias that was corrected for a layer in int8 would be wrong where the layer is given back.
        advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
    )
    names = _convolutions(quantised)
    give_back(quantised, [names[0], names[-1]])
    quantised = _accurate(quantised, worst_first(quantised, reference, tiles, labels), tiles, labels)
    file = int8_file(model)
    file.parent.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(file.parent, made=(file.name, file.with_suffix(".bin").name)) as temporary:
        openvino.save_model(quantised, temporary / file.name, compress_to_fp16=False)
    return file


def calibration_tiles(model: Model, scans: Sequence[Scan]) -> list[FloatArray]:
    """Up to 8 tiles `(1, C, *patch)` from anywhere in up to 4 scans; raises `ConfigError` where none can be read."""
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


def _convolutions(network: Any) -> list[str]:
    """The names of all, transposed ones among them, from the first to the last."""
    kinds = ("Convolution", "ConvolutionBackpropData")
    return [op.get_friendly_name() for op in network.get_ordered_ops() if op.get_type_name() in kinds]


def give_back(network: Any, names: Sequence[str]) -> None:
    """Have these convolutions of a quantised network compute in float32."""
    for operation in network.get_ops():
        if operation.get_friendly_name() in names:
            for its_input in operation.inputs():
                _skip_quantiser(its_input)


def _skip_quantiser(consumer: Any) -> None:
    source = consumer.get_source_output().get_node()
    if source.get_type_name() == "FakeQuantize":
        consumer.replace_source_output(source.input_value(0))
    elif source.get_type_name() in ("Concat", "MaxPool"):  # which have one reader, and pass on what was quantised
        for its_input in source.inputs():
            _skip_quantiser(its_input)


def worst_first(network: Any, reference: Any, tiles: list[FloatArray], labels: list[LabelArray]) -> list[str]:
    """The convolutions whose return to float32 brings the logits nearest to the reference's, on the tile that holds
    most organs."""
    tile = tiles[int(np.argmax([np.count_nonzero(found) for found in labels]))]
    logits = reference(tile)[0]
    errors = {}
    for name in _convolutions(network)[1:-1]:
        tried = network.clone()
        give_back(tried, [name])
        errors[name] = float(np.square(compiled(tried, "int8")(tile)[0] - logits).mean())
    return sorted(errors, key=errors.__getitem__)


def _accurate(network: Any, names: Sequence[str], tiles: list[FloatArray], labels: list[LabelArray]) -> Any:
    """The network with as few of these convolutions in float32 as suffice, or the best that was found: none, one, two
    and four are tried. Of more a network has half of its time in float32."""
    best, found = -1.0, network
    for count in (0, 1, 2, 4):
        tried = network.clone()
        give_back(tried, names[: min(count, len(names) - 1)])
        dice = _agreement(tried, tiles, labels)
        if dice > best:
            best, found = dice, tried
        if best >= 1 - _DROP:
            break
    return found


def _agreement(network: Any, tiles: list[FloatArray], labels: list[LabelArray]) -> float:
    """The smallest Dice of a class between what a network finds in the tiles and these labels."""
    run = compiled(network, "int8")
    found = [_labels(run, tile) for tile in tiles]
    return min(class_dice(np.stack(labels), np.stack(found)).values())


def _labels(network: Any, tile: FloatArray) -> LabelArray:
    return np.asarray(network(tile)[0][0].argmax(axis=0), dtype=np.uint16)
