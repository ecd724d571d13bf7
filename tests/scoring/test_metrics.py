"""The standard rules: values worked out by hand, empty masks, ignored voxels."""

from __future__ import annotations

import numpy as np
import pytest

from semiseg.scoring.metrics import score_case
from semiseg.types import LabelArray

ORGANS = {1: "left", 2: "right"}
TOLERANCE_MM = {"left": 1.0, "right": 1.0}
SPACING_MM = (2.0, 1.0, 1.0)


def label_map(**boxes: tuple[int, int]) -> LabelArray:
    """A map of 8×8×20 voxels in which each organ takes the columns `[start, stop)` of a 4×4 bar."""
    label = np.zeros((8, 8, 20), dtype=np.uint8)
    for name, (start, stop) in boxes.items():
        label[2:6, 2:6, start:stop] = {"left": 1, "right": 2}[name]
    return label


def test_values_by_hand() -> None:
    reference, prediction = label_map(left=(2, 8), right=(12, 16)), label_map(left=(2, 10), right=(12, 16))
    scores = score_case(reference, prediction, SPACING_MM, ORGANS, TOLERANCE_MM)
    left = scores["left"]
    assert left["dice"] == pytest.approx(2 * 6 / (6 + 8))
    assert left["volume_ml"] == pytest.approx(4 * 4 * 8 * 2 / 1000)
    assert left["reference_volume_ml"] == pytest.approx(4 * 4 * 6 * 2 / 1000)
    assert left["hd95_mm"] == 2.0
    assert left["nsd"] is not None
    assert 0 < left["nsd"] < 1
    assert scores["right"] == {
        "dice": 1.0,
        "nsd": 1.0,
        "hd95_mm": 0.0,
        "volume_ml": pytest.approx(0.128),
        "reference_volume_ml": pytest.approx(0.128),
    }


@pytest.mark.parametrize(
    ("reference", "prediction", "expected"),
    [
        (label_map(), label_map(), None),
        (label_map(), label_map(left=(2, 4)), 0.0),
        (label_map(left=(2, 4)), label_map(), 0.0),
    ],
    ids=["both empty", "found where there is none", "missed"],
)
def test_empty_masks(reference: LabelArray, prediction: LabelArray, expected: float | None) -> None:
    left = score_case(reference, prediction, SPACING_MM, ORGANS, TOLERANCE_MM)["left"]
    assert (left["dice"], left["nsd"], left["hd95_mm"]) == (expected, expected, None)


def test_what_lies_in_ignored_voxels_changes_nothing() -> None:
    reference, good = label_map(left=(2, 8)), label_map(left=(2, 8))
    reference[:, :, 6:12] = 255
    bad = good.copy()
    bad[:, :, 6:12] = 2
    scores = [score_case(reference, p, SPACING_MM, ORGANS, TOLERANCE_MM, ignore=255) for p in (good, bad)]
    assert scores[0] == scores[1]
    assert scores[0]["left"]["dice"] == scores[0]["left"]["nsd"] == 1.0
    assert scores[0]["left"]["volume_ml"] == pytest.approx(4 * 4 * 4 * 2 / 1000)
    assert scores[0]["right"]["dice"] is None


def test_an_error_outside_of_ignored_voxels_still_counts() -> None:
    reference, prediction = label_map(left=(2, 8)), label_map(left=(4, 8))
    reference[:, :, 6:12] = 255
    left = score_case(reference, prediction, SPACING_MM, ORGANS, TOLERANCE_MM, ignore=255)["left"]
    assert left["dice"] == pytest.approx(2 * 2 / (2 + 4))
    assert left["hd95_mm"] == 2.0


def test_an_organ_at_the_border_of_the_array() -> None:
    full = np.ones((3, 3, 3), dtype=np.uint8)
    left = score_case(full, full, SPACING_MM, ORGANS, TOLERANCE_MM)["left"]
    assert (left["dice"], left["nsd"], left["hd95_mm"]) == (1.0, 1.0, 0.0)
