"""Our surface kernel against the package surface-distance 0.1, Nikolov et al.'s own implementation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import surface_distance
from surface_distance import lookup_tables

from semiseg.io.scans import read_label
from semiseg.ops.surface import robust_hausdorff_mm, surface_dice, surface_distances, surfel_areas_mm2
from semiseg.types import BoolArray, Spacing

# the package imports scipy.ndimage's old sub-modules
pytestmark = pytest.mark.filterwarnings("ignore:Please (import|use) .*:DeprecationWarning")

SPACINGS_MM: tuple[Spacing, ...] = (
    (1.0, 1.0, 1.0),
    (0.4, 0.4, 0.4),  # 3-4-5 triangles: distances of exactly 2 mm in several directions
    (3.0, 0.6, 0.6),
    (2.5, 0.74, 0.74),
    (1.5, 0.8, 0.9),
    (5.0, 0.9765625, 0.9765625),
)


def mask_pairs(count: int) -> Iterator[tuple[BoolArray, BoolArray, Spacing]]:
    """Noise, boxes and noisy boxes, none empty, in arrays of 1 to 12 voxels a side, borders touched."""
    rng = np.random.Generator(np.random.Philox(key=7))
    made = 0
    while made < count:
        shape = tuple(int(n) for n in rng.integers(1, 13, 3))
        a, b = np.zeros((2, *shape), dtype=np.bool_)
        kind = int(rng.integers(3))
        for mask in (a, b):
            corners = [sorted(rng.integers(0, n + 1, 2)) for n in shape]
            mask[tuple(slice(*pair) for pair in corners)] = kind > 0
            mask ^= rng.random(shape) < (0.3, 0.0, 0.03)[kind]
        if a.any() and b.any():
            made += 1
            yield a, b, SPACINGS_MM[made % len(SPACINGS_MM)]


def assert_equal_to_the_package(a: BoolArray, b: BoolArray, spacing_mm: Spacing) -> None:
    theirs = surface_distance.compute_surface_distances(a, b, spacing_mm)
    ours = surface_distances(a, b, spacing_mm)
    # of two neighbours at the same distance either may be picked: their distances differ in the last place
    assert ours.reference_mm == pytest.approx(theirs["distances_gt_to_pred"], rel=1e-14, abs=0)
    assert ours.prediction_mm == pytest.approx(theirs["distances_pred_to_gt"], rel=1e-14, abs=0)
    # sums over at most some 1e5 areas in another order
    assert ours.reference_mm2.sum() == pytest.approx(theirs["surfel_areas_gt"].sum(), rel=1e-12)
    assert ours.prediction_mm2.sum() == pytest.approx(theirs["surfel_areas_pred"].sum(), rel=1e-12)
    for tolerance_mm in (0.0, 1.0, 2.0, 3.0, 5.0):
        # the tolerance is bracketed by the same last place, for surfels at exactly that distance
        low, high = (
            surface_distance.compute_surface_dice_at_tolerance(theirs, tolerance_mm * (1 + hair))
            for hair in (-1e-14, 1e-14)
        )
        assert low - 1e-12 <= surface_dice(ours, tolerance_mm) <= high + 1e-12
    # the percentile is a step function of the area's share: bracket it by a hair, for shares that are 0.95
    # exactly
    low, high = (surface_distance.compute_robust_hausdorff(theirs, 95 + hair) for hair in (-1e-9, 1e-9))
    assert low * (1 - 1e-14) <= robust_hausdorff_mm(ours) <= high * (1 + 1e-14)


@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
def test_the_area_of_every_neighbour_code(spacing_mm: Spacing) -> None:
    kernel = lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
    theirs = lookup_tables.create_table_neighbour_code_to_surface_area(spacing_mm)
    ours = surfel_areas_mm2(spacing_mm)
    for code in range(256):
        corners = np.array([code >> bit & 1 for bit in range(8)]).reshape(2, 2, 2)
        # sums of at most four areas in another order
        assert ours[code] == pytest.approx(theirs[int((kernel * corners).sum())], rel=1e-14), f"code {code:08b}"


def test_generated_masks() -> None:
    for a, b, spacing_mm in mask_pairs(400):
        assert_equal_to_the_package(a, b, spacing_mm)


def test_real_organs(real_data: Path) -> None:
    files = sorted((real_data / "ct_whole" / "flare22_ids" / "labels").glob("*.nii.gz"))
    assert files
    label, grid = read_label(files[0])
    for value in (1, 5, 8):
        organ = label == value
        z, y, x = (slice(max(0, int(i.min()) - 3), int(i.max()) + 4) for i in np.nonzero(organ))
        mask = organ[z, y, x]
        assert_equal_to_the_package(mask, np.roll(mask, (1, 2, -1), axis=(0, 1, 2)), grid.spacing_mm)
