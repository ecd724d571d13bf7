"""What the places of organs say about the scans: which mirror images of them could be scans, and which turns.

Where the directions from organ to organ are alike in all labelled scans, a patient lies as a patient lies: only left
and right may change places. Where they are not, as in scans whose rows and columns are exchanged in some, all that
turning and mirroring in that plane makes could be a scan, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from math import cos, radians
from pathlib import Path

import numpy as np

from semiseg.data.laterality import MEASURED_CASES, measured_mirror_axis
from semiseg.errors import DataError
from semiseg.io.dataset import LabelScheme
from semiseg.io.nifti import read_label
from semiseg.types import DoubleArray, LabelArray, Spacing

LARGEST_SPREAD_DEGREES = 40.0
"""About the mean direction: more is no common direction."""
FEWEST_CASES = 3
"""Fewer scans say nothing of how scans lie; then their headers are believed."""
_FEWEST_VOXELS = 10
_ALIKE, _STRAIGHT, _OVERLAP = 1.6, 0.35, 0.6
"""Of a pair: the largest ratio of volumes, the largest part of the distance that is not along the left-right axis, and
the least Dice of one organ with the other's mirror image."""
_UNNAMED = re.compile(r"(class|label|organ)?[_ ]?\d+")


@dataclass(frozen=True)
class Anatomy:
    """labels: with the axis of left and right and the mirror pairs. mirror_axes: along which a mirrored scan could be a
    scan. turned_about: the axis about which turned scans could be scans, or None. reasons: sentences."""

    labels: LabelScheme
    mirror_axes: tuple[int, ...]
    turned_about: int | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Organ:
    """centre_mm `(3,)`, radius_mm: of a ball of its volume."""

    centre_mm: DoubleArray
    radius_mm: float


def measured_anatomy(labels: LabelScheme, files: Sequence[Path]) -> Anatomy:
    """What the first 20 label maps show. Files that cannot be read are passed over; the check names them."""
    labels = replace(labels, mirror_axis=measured_mirror_axis(labels, files))
    read = list(_read(islice(files, MEASURED_CASES)))
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
    axis = labels.mirror_axis
    plane = varying_plane(cases)
    if plane is None:
        known = len(cases) >= FEWEST_CASES and len(labels.organs) > 1
        why = "organs lie alike in all labelled scans" if known else "the scans' headers are believed"
        reasons.append(f"Mirroring: left and right alone (axis {'ZYX'[axis]}), since {why}.")
        return Anatomy(labels, (axis,), None, tuple(reasons))
    about = next(a for a in range(3) if a not in plane)
    letters = " and ".join("ZYX"[a] for a in plane)
    reasons.append(
        f"Mirroring: along {letters}, and turning about {'ZYX'[about]}, since the directions between organs differ "
        "from scan to scan in that plane."
    )
    return Anatomy(labels, plane, about, tuple(reasons))


def _read(files: Iterable[Path]) -> Iterator[tuple[LabelArray, Spacing]]:
    for file in files:
        try:
            label, grid = read_label(file)
        except DataError:
            continue
        yield label, grid.spacing_mm


def organs_of(label: LabelArray, spacing_mm: Spacing, labels: LabelScheme) -> dict[int, Organ]:
    """Centre and radius of every organ in a label map `(Z, Y, X)`."""
    found = {}
    for value in labels.organs:
        voxels = np.argwhere(label == value)
        if len(voxels) >= _FEWEST_VOXELS:
            volume = len(voxels) * float(np.prod(spacing_mm))
            radius = (3 * volume / (4 * np.pi)) ** (1 / 3)
            found[value] = Organ(voxels.mean(axis=0) * np.asarray(spacing_mm), float(radius))
    return found


def varying_plane(cases: Sequence[dict[int, Organ]]) -> tuple[int, int] | None:
    """The two axes in whose plane the directions between organs differ from case to case; None where they agree, or
    too few cases show any.

    Directions of a pair of organs agree where their mean is as long as that of directions within 40 degrees of one.
    """
    spreads: list[DoubleArray] = []
    agree = True
    for a, b in combinations(sorted({value for case in cases for value in case}), 2):
        directions = np.array(
            [
                (step := case[b].centre_mm - case[a].centre_mm) / np.linalg.norm(step)
                for case in cases
                if a in case and b in case and _are_apart(case[a], case[b])
            ]
        )
        if len(directions) < max(FEWEST_CASES, len(cases) / 2):
            continue
        agree = agree and float(np.linalg.norm(directions.mean(axis=0))) >= cos(radians(LARGEST_SPREAD_DEGREES))
        spreads.append(directions.var(axis=0))
    if agree or not spreads:
        return None
    steady = int(np.argmin(np.mean(spreads, axis=0)))
    first, second = (axis for axis in range(3) if axis != steady)
    return first, second


def _are_apart(a: Organ, b: Organ) -> bool:
    """Whether the centre of each lies outside of the other: where a lesion lies in its organ says nothing of how a
    patient lies."""
    return float(np.linalg.norm(a.centre_mm - b.centre_mm)) > max(a.radius_mm, b.radius_mm)


def pairs_by_place(
    read: Sequence[tuple[LabelArray, Spacing]], cases: Sequence[dict[int, Organ]], labels: LabelScheme, axis: int
) -> tuple[tuple[int, int], ...]:
    """Pairs of classes that are each other's mirror image along an axis in most label maps."""
    pairs: list[tuple[int, int]] = []
    for a, b in combinations(labels.organs, 2):
        votes = [
            _mirrors(label, spacing, case, (a, b), axis)
            for (label, spacing), case in zip(read, cases, strict=True)
            if a in case and b in case
        ]
        if len(votes) >= 2 and 2 * sum(votes) > len(votes) and not any({a, b} & set(pair) for pair in pairs):
            pairs.append((a, b))
    return tuple(pairs)


def _mirrors(label: LabelArray, spacing_mm: Spacing, case: dict[int, Organ], pair: tuple[int, int], axis: int) -> bool:
    a, b = (case[value] for value in pair)
    step = a.centre_mm - b.centre_mm
    across = float(np.linalg.norm(np.delete(step, axis)))
    ratio = (max(a.radius_mm, b.radius_mm) / min(a.radius_mm, b.radius_mm)) ** 3
    if ratio > _ALIKE or across > _STRAIGHT * abs(float(step[axis])) or abs(step[axis]) < a.radius_mm + b.radius_mm:
        return False
    first, second = (np.argwhere(label == value) for value in pair)
    # Mirrored and laid onto the other by their centres.
    mirrored = first.astype(np.float64)
    mirrored[:, axis] = -mirrored[:, axis]
    mirrored += np.rint(second.mean(axis=0) - mirrored.mean(axis=0))
    mine, theirs = ({tuple(place) for place in np.rint(places).astype(int)} for places in (mirrored, second))
    return 2 * len(mine & theirs) / (len(mine) + len(theirs)) >= _OVERLAP
