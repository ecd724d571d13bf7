"""The check that an engine must pass before its labels are used: those of torch in float32, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from semiseg.errors import DataError
from semiseg.io.scans import files_of, read_scan
from semiseg.prediction.engines.base import Engine
from semiseg.prediction.inputs import Scan
from semiseg.prediction.model import Model
from semiseg.prediction.predictor import predict_labels
from semiseg.prediction.settings import PredictSettings
from semiseg.types import LabelArray

SMALLEST_DICE = 0.995
"""Of every class that torch finds in a scan, however small: what speed may cost."""
SCANS = 3
"""Scans that an engine is checked on."""


def class_dice(reference: LabelArray, labels: LabelArray) -> dict[str, float]:
    """Dice of every class but the background that `reference` has, by number."""
    classes = int(max(reference.max(initial=0), labels.max(initial=0))) + 1
    sizes, found, both = np.zeros((3, classes), dtype=np.int64)
    for ours, theirs in zip(reference, labels, strict=True):  # `bincount` makes a copy of 8 bytes a voxel
        for counts, values in ((sizes, ours), (found, theirs), (both, ours[ours == theirs])):
            counts += np.bincount(values.ravel(), minlength=classes)
    return {str(k): float(2 * both[k] / (n + found[k])) for k, n in enumerate(sizes) if k and n}


class References:
    """The labels of torch in float32 on a few scans, made when they are first asked for and then kept."""

    def __init__(self, model: Model, engine: Engine, scans: Sequence[Scan], settings: PredictSettings) -> None:
        """scans: the smallest of them are taken, unless they cannot be read."""
        self._model, self._engine = model, engine
        self._settings = replace(settings, probabilities=False, postprocess=False)
        self._scans = smallest_first(scans)
        self._labels: dict[str, LabelArray] = {}

    def check(self, engine: Engine) -> dict[str, dict[str, float]]:
        """Hold an engine's labels against them: Dice of each scan, of each class that torch finds in it, by number."""
        dice: dict[str, dict[str, float]] = {}
        for scan in self._scans:
            if len(self._labels) == SCANS and scan.id not in self._labels:
                continue
            try:
                if scan.id not in self._labels:
                    self._labels[scan.id] = self._predict(scan, self._engine)
                if self._labels[scan.id].any() and (
                    found := class_dice(self._labels[scan.id], self._predict(scan, engine))
                ):
                    dice[scan.id] = found
            except (DataError, MemoryError):
                continue  # prediction will name it
        return dice

    def _predict(self, scan: Scan, engine: Engine) -> LabelArray:
        raw = read_scan(scan.images)
        as_it_lies = replace(self._model, card=self._model.card | {"poses": []})
        return predict_labels(raw.channels, raw.grid.spacing_mm, as_it_lies, engine, self._settings).labels


def smallest_first(scans: Sequence[Scan]) -> list[Scan]:
    """The scans whose files are there, by their size on disk."""
    sizes: dict[str, int] = {}
    for scan in scans:
        with suppress(OSError):
            sizes[scan.id] = sum(file.stat().st_size for file in files_of(scan.images))
    return sorted((scan for scan in scans if scan.id in sizes), key=lambda scan: sizes[scan.id])
