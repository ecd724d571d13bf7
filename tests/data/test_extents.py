"""A scan whose header tells a wrong size of voxels is named, and no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from semiseg.data.extents import odd_extents
from semiseg.types import Shape, Spacing

MOST: list[tuple[Path, Shape, Spacing]] = [
    (Path("a"), (100, 512, 512), (5.0, 0.8, 0.8)),
    (Path("b"), (400, 512, 512), (1.0, 0.7, 0.7)),
    (Path("half"), (60, 512, 512), (5.0, 0.9, 0.9)),
    (Path("fine"), (250, 400, 400), (2.0, 1.0, 1.0)),
]


@pytest.mark.parametrize(
    ("shape_zyx", "spacing_mm", "words"),
    [
        ((100, 512, 512), (0.005, 0.0008, 0.0008), "measures (0.5, 0.4096, 0.4096) mm (Z, Y, X), where most measure"),
        ((40, 64, 64), (1.0, 1.0, 1.0), "voxels of (1, 1, 1) mm in its header"),
        ((100, 512, 512), (1000.0, 100.0, 100.0), "voxels of (1000, 100, 100) mm in its header"),
        ((30, 512, 512), (5.0, 0.8, 0.8), None),  # a part of the body
        ((1, 512, 512), (5.0, 0.8, 0.8), None),  # which is refused as 2D
    ],
)
def test_scans_of_another_size_are_named(shape_zyx: Shape, spacing_mm: Spacing, words: str | None) -> None:
    found = odd_extents([*MOST, (Path("odd"), shape_zyx, spacing_mm)])
    assert [str(file) for _, file, _ in found] == ([] if words is None else ["odd"])
    assert all(severity == "warning" and str(words) in text for severity, _, text in found)


def test_of_few_scans_none_is_odd() -> None:
    assert odd_extents([MOST[0], MOST[1], (Path("odd"), (9, 9, 9), (1.0, 1.0, 1.0))]) == []
    assert odd_extents([]) == []


def test_the_order_does_not_matter() -> None:
    scans = [*MOST, (Path("odd"), (9, 9, 9), (1.0, 1.0, 1.0))]
    order = np.random.default_rng(0).permutation(len(scans))
    assert odd_extents([scans[i] for i in order]) == odd_extents(scans)
