"""Along which axis left and right really lie: measured from the labels, since headers can be wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from semiseg.data.labels import boxes_of, voxels_of
from semiseg.errors import DataError
from semiseg.geometry import LEFT_RIGHT_AXIS
from semiseg.io.dataset import LabelScheme
from semiseg.io.scans import read_label
from semiseg.types import DoubleArray, LabelArray, Spacing

MEASURED_CASES = 20
"""Label maps that are read for it; a few agree or the set is mixed anyway."""


def measured_mirror_axis(labels: LabelScheme, label_files: Iterable[Path]) -> int:
    """The axis (Z, Y, X) along which the organs of mirror pairs lie farthest apart, over the first 20 label maps.

    The left-right axis of canonical orientation where there are no pairs, or none is in any map. Files that cannot be
    read are passed over; the check names them.
    """
    distances_mm = np.zeros(3)
    if labels.mirror_pairs:
        for label, spacing_mm in measured_labels(label_files):
            distances_mm += pair_distances_mm(label, spacing_mm, labels)
    return int(np.argmax(distances_mm)) if distances_mm.any() else LEFT_RIGHT_AXIS


def measured_labels(label_files: Iterable[Path]) -> Iterator[tuple[LabelArray, Spacing]]:
    """The first 20 label maps with their spacings, but those that cannot be read."""
    for file in islice(label_files, MEASURED_CASES):
        try:
            label, grid = read_label(file)
        except DataError:
            continue
        yield label, grid.spacing_mm


def pair_distances_mm(label: LabelArray, spacing_mm: Spacing, labels: LabelScheme) -> DoubleArray:
    """Distance in mm along each axis between the centres of the organs of a pair, summed over the pairs: `(3,)`."""
    total = np.zeros(3)
    boxes = boxes_of(label)
    for a, b in labels.mirror_pairs:
        if a in boxes and b in boxes:
            first, second = (voxels_of(label, value, boxes[value]).mean(axis=0) for value in (a, b))
            total += np.abs(first - second) * np.asarray(spacing_mm)
    return total
