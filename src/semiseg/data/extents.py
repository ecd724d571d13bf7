"""Scans that are much larger or smaller than the others of their set: their headers tell a wrong size of voxels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from semiseg.data.check_case import Remark
from semiseg.io.grid import numbers_text
from semiseg.types import Shape, Spacing

_FEWEST = 4
"""Of fewer scans none is unlike the others."""
_FAR = 3.0
"""So many times larger or smaller than the median, in all directions on average: metres that are taken for millimetres
are 1000 times; a scan of 5 mm whose header says 1 mm is 5 times; a third of the slices is 1.4 times."""


def odd_extents(scans: Sequence[tuple[Path, Shape, Spacing]]) -> list[Remark]:
    """A warning for every scan whose edges are, on average, three times as long or short as those of most. 2D scans are
    passed over."""
    scans = [scan for scan in scans if min(scan[1]) > 1]
    if len(scans) < _FEWEST:
        return []
    extents_mm = np.array([shape for _, shape, _ in scans]) * np.array([spacing for _, _, spacing in scans])
    sizes = np.log(extents_mm).mean(axis=1)
    odd = np.abs(sizes - np.median(sizes)) > np.log(_FAR)
    median = numbers_text(np.median(extents_mm, axis=0))
    return [
        (
            "warning",
            file,
            f"the scan measures {numbers_text(extent)} mm (Z, Y, X), where most measure some {median}. Look whether "
            f"the voxels of {numbers_text(spacing)} mm in its header are right.",
        )
        for (file, _, spacing), extent, is_odd in zip(scans, extents_mm, odd, strict=True)
        if is_odd
    ]
