"""Which case and which box each sample of a batch is cut from: pure functions of the key of the draw.

A sample is known by its global index, `step * batch + sample`, so any step can be computed without the steps before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from semiseg.data.poses import ALL_ALIKE, AS_IT_LIES, Poses
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
    accepted_share: float = 0.5
    """Largest share of the labelled patches that are cut from cases whose labels a program made: those that a person
    accepted, and those of `data.teacher_labels`. Below it they are drawn as often as others."""
    cache_gb: float = 2.0
    """Memory for decompressed cases in gigabytes (1e9 bytes), which saves most of the reading time of small
    data sets; cases beyond it are read patch by patch."""

    def __post_init__(self) -> None:
        if not 0 <= self.foreground_fraction <= 1:
            raise ConfigError(f"sampling.foreground_fraction = {self.foreground_fraction}: give a number from 0 to 1.")
        if not 0 <= self.accepted_share < 1:
            raise ConfigError(f"sampling.accepted_share = {self.accepted_share}: give a number from 0 to below 1.")
        if not self.cache_gb >= 0:
            raise ConfigError(f"sampling.cache_gb = {self.cache_gb} must not be negative; 0 keeps nothing in memory.")


@dataclass(frozen=True)
class Patch:
    """case: index in the list of cases. box: in the case's stored grid; it may reach outside of the volume."""

    case: int
    box: Box


@dataclass(frozen=True)
class Part:
    """Labelled cases that are drawn alike: their indices, and those that hold each class."""

    cases: list[int]
    holders: dict[int, list[int]]


@dataclass(frozen=True)
class Reviewed:
    """Labelled cases of which a program labelled some. share: of patches that are cut from these, `accepted`. scarce:
    cases of whose label more than half is ignored."""

    others: Part
    accepted: Part
    share: float
    scarce: frozenset[int]


def reviewed_cases(cases: Sequence[StoredCase], accepted: Collection[str], settings: SamplingSettings) -> Reviewed:
    """How labelled cases are drawn of which a program labelled these, by id."""
    others, those = Part([], {}), Part([], {})
    scarce = set()
    for index, case in enumerate(cases):
        part = those if case.id in accepted else others
        part.cases.append(index)
        held = [value for value, places in sorted(case.class_locations.items()) if len(places)]
        for value in held:
            part.holders.setdefault(value, []).append(index)
        if held and 2 * _ignored(case) > sum(case.class_voxels.values()):
            scarce.add(index)
    others, those = (Part(part.cases, dict(sorted(part.holders.items()))) for part in (others, those))
    share = min(settings.accepted_share, len(those.cases) / max(1, len(cases))) if others.cases else 1.0
    return Reviewed(others, those, share, frozenset(scarce))


def _ignored(case: StoredCase) -> int:
    return sum(n for value, n in case.class_voxels.items() if value and value not in case.class_locations)


def labelled_patch(
    cases: Sequence[StoredCase],
    holders: Mapping[int, Sequence[int] | NDArray[np.int64]],
    patch: Shape,
    draw: Draw,
    batch: int,
    settings: SamplingSettings,
    reviewed: Reviewed | None = None,
) -> Patch:
    """The patch of one sample of a labelled batch.

    holders: indices of the cases that hold each class, by class in ascending order. draw: its sample is the position in
    the global batch. A forced sample draws the class first and then a case and a voxel of it, so that rare classes are
    seen as often as common ones; the others are uniform over cases and over the places in the volume, since the network
    has to learn the empty parts too.

    reviewed: where not all labels are a person's own. Then each batch has its share of accepted ones, since a batch of
    labels that leave something open would pull the network to what they name. A patch of a label that is mostly ignored
    always lies on a class: it would be empty elsewhere.
    """
    generator = draw.generator("patch/labelled")
    among: Sequence[int] = range(len(cases))
    if reviewed is not None:
        part = reviewed.others
        # By lot which of a batch they are: they would fall on those with foreground, or on those without.
        turn = int(draw.at(sample=0).generator("which are accepted").integers(batch))
        turned = draw.step * batch + (draw.sample + turn) % batch
        if reviewed.accepted.cases and is_forced(turned, reviewed.share):
            part = reviewed.accepted
        among, holders = part.cases, part.holders
    if holders and is_forced(draw.step * batch + draw.sample, settings.foreground_fraction):
        value = _choice(generator, list(holders))
        case = int(_choice(generator, holders[value]))
        meta = cases[case]
        centre = _choice(generator, meta.class_locations[value])
        return Patch(case, place_box(centre, meta.shape_zyx, patch, generator))
    case = among[int(generator.integers(len(among)))]
    if reviewed is not None and case in reviewed.scarce:
        meta = cases[case]
        places = meta.class_locations
        centre = _choice(generator, places[_choice(generator, sorted(value for value in places if places[value]))])
        return Patch(case, place_box(centre, meta.shape_zyx, patch, generator))
    return Patch(case, uniform_box(cases[case].shape_zyx, patch, generator))


def unlabelled_patch(
    cases: Sequence[StoredCase],
    predicted: PredictedLocations,
    patch: Shape,
    draw: Draw,
    batch: int,
    poses: Poses = ALL_ALIKE,
) -> Patch:
    """The patch of one sample of an unlabelled batch: every case once a pass, in an order drawn for each pass.

    predicted: what the teacher found, or empty. draw: its sample is the position in the global batch. poses: the box is
    as the case lies, and has the patch's shape in its pose.
    """
    generator = draw.generator("patch/unlabelled")
    number, position = divmod(draw.step * batch + draw.sample, len(cases))
    case = int(case_order(draw.seed, number, len(cases))[position])
    meta = cases[case]
    patch = poses.get(meta.id, AS_IT_LIES).shape_before(patch)
    found = {value: places for value, places in predicted.get(meta.id, {}).items() if value != 0 and places}
    if found and generator.random() < PREDICTED_FRACTION:
        centre = _choice(generator, found[_choice(generator, sorted(found))])
    elif meta.body_locations:
        centre = _choice(generator, meta.body_locations)
    else:
        return Patch(case, uniform_box(meta.shape_zyx, patch, generator))
    return Patch(case, place_box(centre, meta.shape_zyx, patch, generator))


def is_forced(index: int, fraction: float) -> bool:
    """Whether the sample of this global index is one of a share, such as those that must hold foreground.

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
