"""Which case and which box each sample of a batch is cut from: pure functions of the key of the draw.

A sample is known by its global index, `step * batch + sample`, so any step can be computed without the steps before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from semiseg.errors import ConfigError
from semiseg.geometry import Box, triple
from semiseg.io.store import StoredCase
from semiseg.randomness import Draw
from semiseg.types import Shape

Locations = Mapping[int, Sequence[Shape]]
"""Voxels `(z, y, x)` of each class."""
PredictedLocations = Mapping[str, Locations]
"""Voxels of the classes that the teacher predicts in an unlabelled case, by case id."""

_T = TypeVar("_T")


PREDICTED_FRACTION = 0.5
"""Share of the unlabelled patches that are placed on a class that the teacher predicts, once there are predictions; the
rest is placed on the body, since the teacher may have missed an organ altogether."""
JITTER = 0.25
"""Largest offset of a patch from the voxel that it is placed on, as a share of its edge; below 0.5, so that the voxel
stays inside, and above 0, so that organs are not always seen in the middle."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How patches are chosen. Raises `ConfigError` for a value out of range."""

    foreground_fraction: float = 0.5
    """Share of the labelled patches that must hold a voxel of a class drawn evenly from those that are
    labelled; 0.5 is what nnU-Net's 0.33 comes to at its usual batch of 2."""
    cache_gb: float = 2.0
    """Memory for decompressed cases in gigabytes (1e9 bytes), which saves most of the reading time of small
    data sets; cases beyond it are read patch by patch."""

    def __post_init__(self) -> None:
        if not 0 <= self.foreground_fraction <= 1:
            raise ConfigError(f"sampling.foreground_fraction = {self.foreground_fraction}: give a number from 0 to 1.")
        if not self.cache_gb >= 0:
            raise ConfigError(f"sampling.cache_gb = {self.cache_gb} must not be negative; 0 keeps nothing in memory.")


@dataclass(frozen=True)
class Patch:
    """case: index in the list of cases. box: in the case's stored grid; it may reach outside of the volume."""

    case: int
    box: Box


def labelled_patch(
    cases: Sequence[StoredCase],
    holders: Mapping[int, Sequence[int] | NDArray[np.int64]],
    patch: Shape,
    draw: Draw,
    batch: int,
    settings: SamplingSettings,
) -> Patch:
    """The patch of one sample of a labelled batch.

    holders: indices of the cases that hold each class, by class in ascending order. draw: its sample is the position in
    the global batch. A forced sample draws the class first and then a case and a voxel of it, so that rare classes are
    seen as often as common ones; the others are uniform over cases and over the places in the volume, since the network
    has to learn the empty parts too.
    """
    generator = draw.generator("patch/labelled")
    if holders and is_forced(draw.step * batch + draw.sample, settings.foreground_fraction):
        value = _choice(generator, list(holders))
        case = int(_choice(generator, holders[value]))
        meta = cases[case]
        centre = _choice(generator, meta.class_locations[value])
        return Patch(case, place_box(centre, meta.shape_zyx, patch, generator))
    case = int(generator.integers(len(cases)))
    return Patch(case, uniform_box(cases[case].shape_zyx, patch, generator))


def unlabelled_patch(
    cases: Sequence[StoredCase],
    predicted: PredictedLocations,
    patch: Shape,
    draw: Draw,
    batch: int,
) -> Patch:
    """The patch of one sample of an unlabelled batch: every case once a pass, in an order drawn for each pass.

    predicted: what the teacher found, or empty. draw: its sample is the position in the global batch.
    """
    generator = draw.generator("patch/unlabelled")
    number, position = divmod(draw.step * batch + draw.sample, len(cases))
    case = int(case_order(draw.seed, number, len(cases))[position])
    meta = cases[case]
    found = {value: places for value, places in predicted.get(meta.id, {}).items() if value != 0 and places}
    if found and generator.random() < PREDICTED_FRACTION:
        centre = _choice(generator, found[_choice(generator, sorted(found))])
    elif meta.body_locations:
        centre = _choice(generator, meta.body_locations)
    else:
        return Patch(case, uniform_box(meta.shape_zyx, patch, generator))
    return Patch(case, place_box(centre, meta.shape_zyx, patch, generator))


def is_forced(index: int, fraction: float) -> bool:
    """Whether the labelled sample of this global index must hold foreground.

    Spread as evenly as can be: among any n samples in a row, the number of forced ones is within 1 of n * fraction.
    """
    return int((index + 1) * fraction) > int(index * fraction)


@lru_cache(maxsize=8)
def case_order(seed: int, number: int, count: int) -> NDArray[np.int64]:
    """The order of the unlabelled cases in one pass over them, a permutation of `range(count)`."""
    return Draw(seed=seed, step=number).generator("pass over unlabelled cases").permutation(count)


def place_box(centre: Shape, shape: Shape, patch: Shape, generator: np.random.Generator) -> Box:
    """A box of the patch's size that holds the voxel `centre`, off its middle by up to `JITTER` edges.

    Along an axis on which the volume is the larger one, the box lies inside of it; else it holds the whole
    volume, which is off the box's middle by up to `JITTER` edges.
    """
    offsets = generator.uniform(-JITTER, JITTER, size=3) * np.array(patch)
    starts = [
        _start(c if n > p else n // 2, offset, n, p)
        for c, offset, n, p in zip(centre, offsets, shape, patch, strict=True)
    ]
    return _box(starts, patch)


def uniform_box(shape: Shape, patch: Shape, generator: np.random.Generator) -> Box:
    """A box of the patch's size, uniform over the places inside of the volume where it holds the patch; else as
    `place_box`."""
    where, offsets = generator.random(3), generator.uniform(-JITTER, JITTER, size=3) * np.array(patch)
    starts = [
        int(w * (n - p + 1)) if n >= p else _start(n // 2, offset, n, p)
        for w, offset, n, p in zip(where, offsets, shape, patch, strict=True)
    ]
    return _box(starts, patch)


def _start(centre: int, offset: float, size: int, edge: int) -> int:
    start = centre - edge // 2 + int(offset)  # towards zero, so that an edge of 1 or 2 still holds the centre
    return min(max(start, min(0, size - edge)), max(0, size - edge))


def _box(starts: Sequence[int], patch: Shape) -> Box:
    return Box(triple(starts), triple(start + edge for start, edge in zip(starts, patch, strict=True)))


def _choice(generator: np.random.Generator, options: Sequence[_T] | NDArray[Any]) -> _T:
    return options[int(generator.integers(len(options)))]
