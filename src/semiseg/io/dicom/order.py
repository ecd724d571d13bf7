"""The order of slices by their positions along the normal, and what is wrong with the places that they have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from semiseg.io.dicom.headers import Slice
from semiseg.types import DoubleArray
from semiseg.words import counted

_SAME_MM = 1e-2
"""Slices that lie so close have one place."""
TILT_PIXELS = 0.25
"""So far the slices may have moved in their plane from the first to the last."""
_WHOLE = 0.1
"""So far from a whole number of steps a gap may be."""


@dataclass(frozen=True)
class Fault:
    """What is wrong, as a sentence that names the slice. mendable: by resampling."""

    text: str
    mendable: bool = True


def normal_of(found: Slice) -> DoubleArray:
    """The direction, LPS, along which slices are counted: right-handed with a row's and a column's."""
    along = np.array(found.orientation, dtype=np.float64)
    normal = np.cross(along[:3], along[3:])
    return np.asarray(normal / np.linalg.norm(normal))


def heights(slices: Sequence[Slice]) -> DoubleArray:
    """Their positions along the first one's normal, millimetres."""
    return np.array([found.position for found in slices], dtype=np.float64) @ normal_of(slices[0])


def ordered_by_position(slices: Sequence[Slice]) -> list[Slice]:
    """By position along the normal; of one place, by InstanceNumber and frame."""
    places = np.round(heights(slices) / _SAME_MM)
    key = {id(found): (place, found.number or 0) for found, place in zip(slices, places, strict=True)}
    return sorted(slices, key=lambda found: key[id(found)])


def without_duplicates(ordered: Sequence[Slice]) -> list[Slice]:
    """The first slice of each place."""
    at = heights(ordered)
    kept = [0]
    for index in range(1, len(ordered)):
        if at[index] - at[kept[-1]] > _SAME_MM:
            kept.append(index)
    return [ordered[index] for index in kept]


def in_plane(ordered: Sequence[Slice]) -> DoubleArray:
    """How far each slice has moved against the first within its plane: `(slices, 2)` pixels, along rows and columns."""
    first = ordered[0]
    along, spacing = np.array(first.orientation, dtype=np.float64).reshape(2, 3), first.spacing or (1.0, 1.0)
    moved = np.array([found.position for found in ordered], dtype=np.float64)
    return np.asarray((moved - moved[0]) @ along.T / np.array([spacing[1], spacing[0]]))


def place_tolerance_mm(step_mm: float) -> float:
    """So far off its place a slice may lie: scanners that round positions to 0.1 mm leave almost as much."""
    return max(min(0.1, 0.2 * step_mm), 0.01 * step_mm)


def fault_of(ordered: Sequence[Slice]) -> Fault | None:
    """The first thing that is wrong with the places of slices that are in their order."""
    if len(ordered) == 1:
        return Fault("One slice alone is no volume. Name the folder that holds all of its series.", mendable=False)
    at = heights(ordered)
    steps = np.diff(at)
    if (steps <= _SAME_MM).any():
        return _duplicates(ordered, steps)
    moved = in_plane(ordered)
    if np.abs(moved).max() > TILT_PIXELS:
        return _tilt(ordered, at, moved)
    return _uneven(ordered, at, steps)


def _duplicates(ordered: Sequence[Slice], steps: DoubleArray) -> Fault:
    starts = np.flatnonzero(np.concatenate(([True], steps > _SAME_MM)))
    counts = np.diff(np.append(starts, len(ordered)))
    copies = len({(found.instance or found.file, found.frame) for found in ordered}) < len(ordered)
    if not copies and counts.min() == counts.max():
        places = counted(len(starts), "place")
        return Fault(
            f"4D: {counts[0]} slices at each of {places} (times, echoes or b-values). Export one of them as a series.",
            mendable=False,
        )
    second = int(np.flatnonzero(steps <= _SAME_MM)[0]) + 1
    if len(starts) == 1:
        return Fault(f"All {len(ordered)} slices lie at one place.", mendable=False)
    return Fault(f"{ordered[second].name} lies where {ordered[second - 1].name} does: a duplicate.")


def _tilt(ordered: Sequence[Slice], at: DoubleArray, moved: DoubleArray) -> Fault:
    spacing = ordered[0].spacing or (1.0, 1.0)
    apart_mm = np.linalg.norm(moved * np.array([spacing[1], spacing[0]]), axis=1)
    worst = int(np.argmax(apart_mm))
    angle = float(np.degrees(np.arctan2(apart_mm[worst], at[worst] - at[0])))
    return Fault(
        f"Tilted by {angle:.1f} degrees (a gantry tilt): {ordered[worst].name} lies {apart_mm[worst]:.4g} mm beside "
        f"{ordered[0].name} in its plane."
    )


def _uneven(ordered: Sequence[Slice], at: DoubleArray, steps: DoubleArray) -> Fault | None:
    usual = float(np.median(steps))
    tolerance = place_tolerance_mm(usual)
    even = at[0] + np.arange(len(at)) * (at[-1] - at[0]) / (len(at) - 1)
    off = np.abs(at - even)
    if off.max() <= tolerance:
        return None
    wrong = np.flatnonzero(np.abs(steps - usual) > tolerance)
    if not len(wrong):
        worst = int(np.argmax(off))
        return Fault(f"{ordered[worst].name} lies {off[worst]:.3g} mm off its place: the spacing is uneven.")
    index = int(wrong[0])
    missing = steps[index] / usual - 1
    before, after = ordered[index].name, ordered[index + 1].name
    if missing > 1 - _WHOLE and abs(missing - round(missing)) <= _WHOLE:
        lacking = counted(round(missing), "slice is missing", "slices are missing")
        return Fault(f"A gap of {steps[index]:.4g} mm between {before} and {after}: {lacking}.")
    return Fault(
        f"{after} lies {steps[index]:.4g} mm after {before}, but others {usual:.4g} mm: the spacing is uneven."
    )
