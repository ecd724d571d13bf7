"""What the places of organs say about the scans: which mirror images of them could be scans, and which turns.

Where the directions from organ to organ are alike in all labelled scans, a patient lies as a patient lies: only left
and right may change places, and scans may be turned as far as the labelled ones are. Where they are not, as in scans
whose rows and columns are exchanged in some, all that turning and mirroring in that plane makes could be a scan, too.
With left and right organs mirroring is along their axis alone: it exchanges their names, and turning makes the rest.
Along both axes of the plane it is half a turn, which exchanges none, and along the other axis alone it would have to.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import cos, radians, sqrt
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from semiseg.data.labels import boxes_of, voxels_of
from semiseg.data.laterality import measured_labels, measured_mirror_axis
from semiseg.data.plan import ANY_DEGREES, USUAL_DEGREES
from semiseg.geometry import Box, triple
from semiseg.io.dataset import LabelScheme
from semiseg.types import BoolArray, ComplexArray, DoubleArray, LabelArray, Spacing

LARGEST_SPREAD_DEGREES = 40.0
"""About the mean direction: more is no common direction."""
FEWEST_CASES, FEWEST_PAIRS = 3, 2
"""Fewer scans, or pairs of organs, say nothing of how scans lie; then their headers are believed."""
_FEWEST_VOXELS = 10
_ALIKE, _STRAIGHT, _OVERLAP = 1.6, 0.35, 0.6
"""Of a pair: the largest ratio of volumes, the largest part of the distance that is not along the left-right axis, and
the least Dice of one organ with the other's mirror image."""
_IN_PLANE = 0.5
"""The least length in a plane of unit vectors that says how scans are turned in it."""
_UNNAMED = re.compile(r"(class|label|organ)?[_ ]?\d+")


@dataclass(frozen=True)
class Anatomy:
    """labels: with the axis of left and right and the mirror pairs. mirror_axes: along which a mirrored scan could be a
    scan. turn_degrees: how far, about Z, Y and X, a turned scan could be a scan. reasons: sentences."""

    labels: LabelScheme
    mirror_axes: tuple[int, ...]
    turn_degrees: tuple[float, float, float]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Organ:
    """centre_mm `(3,)`, radius_mm: of a ball of its volume. box: around it. cut: the axes along which the scan's border
    cuts it, so that its centre is not known."""

    centre_mm: DoubleArray
    radius_mm: float
    box: Box
    cut: tuple[int, ...] = ()


Directions = dict[tuple[int, int], DoubleArray]
"""For pairs of organs the unit vectors from centre to centre, `(cases, 3)`, NaN where a case does not show them, and
along axes along which one of them is cut."""


def measured_anatomy(labels: LabelScheme, files: Sequence[Path]) -> Anatomy:
    """What the first 20 label maps show. Files that cannot be read are passed over; the check names them."""
    labels = replace(labels, mirror_axis=measured_mirror_axis(labels, files))
    read = list(measured_labels(files))
    cases = [organs_of(label, spacing, labels) for label, spacing in read]
    reasons = []
    if not labels.mirror_pairs and all(map(_UNNAMED.fullmatch, labels.organs.values())):
        # Along another axis than the headers' only where there is nothing along that one.
        axes = sorted(range(3), key=lambda axis: (axis != labels.mirror_axis, -axis))
        found = {axis: pairs_by_place(read, cases, labels, axis) for axis in axes}
        axis, pairs = next(((axis, pairs) for axis, pairs in found.items() if pairs), (labels.mirror_axis, ()))
        if pairs:
            labels = replace(labels, mirror_pairs=pairs, mirror_axis=axis)
            names = " and ".join(f"{labels.names[a]} with {labels.names[b]}" for a, b in pairs)
            reasons.append(f"Mirror pairs: {names}, by their places and shapes.")
        elif len(labels.organs) > 1:
            reasons.append(
                "Mirror pairs: none found by places and shapes. If organs have two sides, name them left and right."
            )
    axis = labels.mirror_axis
    between = directions(cases, axis)
    plane = varying_plane(between)
    if plane is None:
        why = "organs lie alike in all labelled scans" if between else "the scans' headers are believed"
        reasons.append(f"Mirroring: left and right alone (axis {'ZYX'[axis]}), since {why}.")
        turns = turn_degrees(between)
        if max(turns) > USUAL_DEGREES:
            wide = [f"{by:.0f} degrees about {'ZYX'[axis]}" for axis, by in enumerate(turns) if by > USUAL_DEGREES]
            reasons.append(f"Turning: up to {' and '.join(wide)}, since labelled scans differ from each other so far.")
        return Anatomy(labels, (axis,), turns, tuple(reasons))
    about = next(a for a in range(3) if a not in plane)
    mirrored = (axis,) if labels.mirror_pairs and axis in plane else plane
    along = ["ZYX"[a] for a in mirrored]
    how = f"along {' and '.join(along)}" if mirrored == plane else f"left and right alone (axis {along[0]})"
    reasons.append(
        f"Mirroring: {how}, and turning about {'ZYX'[about]} by any angle, since the directions between organs differ "
        f"from scan to scan in the plane of {' and '.join('ZYX'[a] for a in plane)}."
    )
    turns = triple(ANY_DEGREES if axis == about else USUAL_DEGREES for axis in range(3))
    return Anatomy(labels, mirrored, turns, tuple(reasons))


def organs_of(label: LabelArray, spacing_mm: Spacing, labels: LabelScheme) -> dict[int, Organ]:
    """Centre and radius of every organ in a label map `(Z, Y, X)`."""
    found = {}
    for value, box in boxes_of(label).items():
        if value not in labels.organs:
            continue
        voxels = voxels_of(label, value, box)
        if len(voxels) >= _FEWEST_VOXELS:
            volume = len(voxels) * float(np.prod(spacing_mm))
            radius = (3 * volume / (4 * np.pi)) ** (1 / 3)
            cut = tuple(axis for axis in range(3) if box.start[axis] == 0 or box.stop[axis] == label.shape[axis])
            found[value] = Organ(voxels.mean(axis=0) * np.asarray(spacing_mm), float(radius), box, cut)
    return found


def directions(cases: Sequence[dict[int, Organ]], mirror_axis: int) -> Directions:
    """From organ to organ in each case; none where too few cases or pairs of organs show them.

    What lies on the left in some and on the right in others, as a tumour of one kidney, is taken to one side: mirrored
    scans are scans anyway.
    """
    found: Directions = {}
    for a, b in combinations(sorted({value for case in cases for value in case}), 2):
        rows = np.full((len(cases), 3), np.nan)
        for row, case in zip(rows, cases, strict=True):
            if a in case and b in case:
                step = case[b].centre_mm - case[a].centre_mm
                apart = np.linalg.norm(step)
                # Where a lesion lies in its organ says nothing of how a patient lies.
                if apart > max(case[a].radius_mm, case[b].radius_mm):
                    row[:] = step / apart
                    row[[*case[a].cut, *case[b].cut]] = np.nan
        if not any(len(_in_plane(rows, axis)) for axis in range(3)):
            continue
        one_side = rows.copy()
        one_side[:, mirror_axis] = np.abs(one_side[:, mirror_axis])
        found[a, b] = one_side if _agree(one_side) and not _agree(rows) else rows
    return found if len(found) >= FEWEST_PAIRS else {}


def _agree(rows: DoubleArray) -> bool:
    """Whether in each plane directions agree as those within 40 degrees of one do."""
    return min(_agreement(rows, axis) for axis in range(3)) >= cos(radians(LARGEST_SPREAD_DEGREES))


def _agreement(rows: DoubleArray, axis: int) -> float:
    """The length of the mean of directions in the plane across an axis, by the mean of their lengths; 1 where too few
    cases show them, or they do not lie in it."""
    planar = _in_plane(rows, axis)
    if not len(planar) or (length := float(np.linalg.norm(planar, axis=1).mean())) < _IN_PLANE:
        return 1.0
    return float(np.linalg.norm(planar.mean(axis=0))) / length


def _in_plane(rows: DoubleArray, axis: int) -> DoubleArray:
    """What directions are in the plane across an axis, of the cases that show both of its axes; none of too few."""
    planar = np.delete(rows, axis, axis=1)
    planar = planar[np.isfinite(planar).all(axis=1)]
    return planar if len(planar) >= max(FEWEST_CASES, len(rows) / 2) else planar[:0]


def _without_one(pairs: Directions) -> list[BoolArray]:
    """For each of the organs which pairs are left without it, since one may lie anywhere, as a lesion does."""
    organs = np.array(list(pairs)).reshape(-1, 2)
    left = [(organs != organ).all(axis=1) for organ in np.unique(organs)]
    return [rest for rest in left if rest.any()]


def varying_plane(pairs: Directions) -> tuple[int, int] | None:
    """The two axes in whose plane directions differ from case to case; None where all agree, but for those of one
    organ."""
    agreeing = np.array([_agree(rows) for rows in pairs.values()])
    if not pairs or any(agreeing[rest].all() for rest in _without_one(pairs)):
        return None
    steady = min(range(3), key=lambda axis: sum(_agreement(rows, axis) for rows in pairs.values()))
    first, second = (axis for axis in range(3) if axis != steady)
    return first, second


def turn_degrees(pairs: Directions) -> tuple[float, float, float]:
    """How far about Z, Y and X scans are turned against their mean: the larger of 30 degrees and what 95 % of scans
    stay within, by Student's prediction interval for one more scan (n cases, deviation s: t * s * sqrt(1 + 1 / n)),
    without the organ that widens it most."""
    without = _without_one(pairs)
    if not without:
        return USUAL_DEGREES, USUAL_DEGREES, USUAL_DEGREES
    found = []
    for axis in range(3):
        rows = np.array([_turns(rows, axis) for rows in pairs.values()])
        telling = np.isfinite(rows).any(axis=1)
        found.append(min(_widest(rows[rest & telling]) for rest in without))
    return triple(found)


def _turns(rows: DoubleArray, axis: int) -> ComplexArray:
    """A pair's directions in the plane across an axis `(cases,)`, as complex numbers, whose angles are those to their
    mean; NaN where a case does not show them, and all of it where they say nothing of turns about the axis."""
    first, second = (other for other in range(3) if other != axis)
    planar: ComplexArray = rows[:, first] + 1j * rows[:, second]
    # What lies along the axis says nothing of turns about it.
    if not len(_in_plane(rows, axis)) or abs(mean := np.nanmean(planar)) < _IN_PLANE:
        return np.full(len(rows), np.nan, dtype=np.complex128)
    # Each pair's mean direction is taken to one axis, so that what is left is how a case is turned.
    return np.asarray(planar * mean.conj())


def _widest(turned: ComplexArray) -> float:
    """How far scans are turned by pairs' directions `(pairs, cases)`."""
    if not len(turned):
        return USUAL_DEGREES
    shown = np.isfinite(turned).any(axis=0)
    angles = np.degrees(np.angle(np.nanmean(turned[:, shown], axis=0)))
    n = len(angles)
    wide = float(stdtrit(n - 1, 0.975) * np.std(angles, ddof=1) * sqrt(1 + 1 / n))
    return min(ANY_DEGREES, max(USUAL_DEGREES, wide))


def pairs_by_place(
    read: Sequence[tuple[LabelArray, Spacing]], cases: Sequence[dict[int, Organ]], labels: LabelScheme, axis: int
) -> tuple[tuple[int, int], ...]:
    """Pairs of classes that are each other's mirror image along an axis in most label maps."""
    pairs: list[tuple[int, int]] = []
    for a, b in combinations(labels.organs, 2):
        votes = [
            _mirrors(label, case, (a, b), axis)
            for (label, _), case in zip(read, cases, strict=True)
            if a in case and b in case
        ]
        if len(votes) >= 2 and 2 * sum(votes) > len(votes) and not any({a, b} & set(pair) for pair in pairs):
            pairs.append((a, b))
    return tuple(pairs)


def _mirrors(label: LabelArray, case: dict[int, Organ], pair: tuple[int, int], axis: int) -> bool:
    a, b = (case[value] for value in pair)
    step = a.centre_mm - b.centre_mm
    across = float(np.linalg.norm(np.delete(step, axis)))
    ratio = (max(a.radius_mm, b.radius_mm) / min(a.radius_mm, b.radius_mm)) ** 3
    if ratio > _ALIKE or across > _STRAIGHT * abs(float(step[axis])) or abs(step[axis]) < a.radius_mm + b.radius_mm:
        return False
    first, second = (voxels_of(label, value, case[value].box) for value in pair)
    # Mirrored and laid onto the other by their centres.
    mirrored = first.astype(np.float64)
    mirrored[:, axis] = -mirrored[:, axis]
    mirrored += np.rint(second.mean(axis=0) - mirrored.mean(axis=0))
    mine, theirs = ({tuple(place) for place in np.rint(places).astype(int)} for places in (mirrored, second))
    return 2 * len(mine & theirs) / (len(mine) + len(theirs)) >= _OVERLAP
