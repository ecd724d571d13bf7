"""Several networks as one: the mean of their logits. For models of one plan, such as runs that differ by their seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from semiseg.errors import ConfigError
from semiseg.prediction.engines.base import Engine
from semiseg.prediction.model import Model
from semiseg.types import FloatArray

_SAME = ("channels", "labels", "spacing_mm", "patch", "normalisation")


class EnsembleEngine:
    """Runs tiles through all engines; averages logits, as nnU-Net does over its folds."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines
        self.name = "+".join(dict.fromkeys(engine.name for engine in engines))
        self.precision = "+".join(dict.fromkeys(engine.precision for engine in engines))

    def run(self, tiles: FloatArray) -> FloatArray:
        """As `Engine.run`."""
        total = self._engines[0].run(tiles).copy()
        for engine in self._engines[1:]:
            total += engine.run(tiles)
        total /= len(self._engines)
        return total


def _part(model: Model, name: str) -> Any:
    """Of its plan; of the labels what a network knows, which is not the value of voxels that nobody labelled."""
    part = getattr(model.plan, name)
    return replace(part, ignore=None, unknown=()) if name == "labels" else part


def joined(models: Sequence[Model]) -> Model:
    """The first model, under a hash of all: labels of an ensemble are not those of a member.

    Raises `ConfigError` for models whose scans are not prepared alike, or that know other labels.
    """
    first = models[0]
    for other in models[1:]:
        for name in _SAME:
            if _part(other, name) != _part(first, name):
                raise ConfigError(
                    f"{other.folder}: has another {name} than {first.folder}. Ensembles are of models of one plan, "
                    "such as runs with the same labels and other seeds."
                )
    if len({model.hash for model in models}) < len(models):
        raise ConfigError(f"{first.folder}: a model is named twice. Name each once.")
    together = hashlib.sha256(" ".join(sorted(model.hash for model in models)).encode()).hexdigest()
    mirror_axes = [axis for axis in first.mirror_axes if all(axis in model.mirror_axes for model in models)]
    poses = [asdict(pose) for pose in dict.fromkeys(pose for model in models for pose in model.poses)]
    return replace(first, hash=together, card=first.card | {"mirror_axes": mirror_axes, "poses": poses})
