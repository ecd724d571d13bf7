"""Left and right are where the labels show them, whatever the header says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from semiseg.data.check import check_dataset
from semiseg.data.laterality import MEASURED_CASES, measured_mirror_axis, pair_distances_mm
from semiseg.demo.phantom import phantom_case
from semiseg.io.dataset import LabelScheme
from semiseg.io.flare22_labels import FLARE22_LABELS
from semiseg.io.layouts import read_dataset
from semiseg.randomness import Draw

PAIR = LabelScheme(names={0: "background", 1: "left_x", 2: "right_x", 3: "c"}, mirror_pairs=((1, 2),))
SPACING = (5.0, 2.0, 1.0)


def two_blobs(shift_zyx: tuple[int, int, int]) -> np.ndarray:
    label = np.zeros((20, 20, 20), np.uint8)
    label[4:6, 4:6, 4:6] = 1
    z, y, x = (4 + n for n in shift_zyx)
    label[z : z + 2, y : y + 2, x : x + 2] = 2
    return label


def save(path: Path, array_zyx: np.ndarray, spacing_mm: tuple[float, float, float] = SPACING) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array_zyx.transpose(2, 1, 0), np.diag([*spacing_mm[::-1], 1.0])), path)
    return path


def test_distances_are_in_millimetres_along_each_axis() -> None:
    assert pair_distances_mm(two_blobs((1, -3, 10)), SPACING, PAIR).tolist() == [5.0, 6.0, 10.0]
    only_one = two_blobs((1, -3, 10))
    only_one[only_one == 2] = 3
    assert pair_distances_mm(only_one, SPACING, PAIR).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("shift", "axis"), [((3, 0, 10), 0), ((0, 6, 10), 1), ((1, 3, 10), 2)])
def test_the_axis_of_the_largest_distance_in_millimetres(
    tmp_path: Path, shift: tuple[int, int, int], axis: int
) -> None:
    """Voxels would decide otherwise: 10 along X are fewer millimetres than 3 along Z."""
    assert measured_mirror_axis(PAIR, [save(tmp_path / "a.nii.gz", two_blobs(shift))]) == axis


def test_x_where_nothing_can_be_measured(tmp_path: Path) -> None:
    turned = save(tmp_path / "a.nii.gz", two_blobs((0, 10, 0)))
    empty = save(tmp_path / "b.nii.gz", np.zeros((4, 4, 4), np.uint8))
    (tmp_path / "c.nii.gz").write_text("damaged")
    assert measured_mirror_axis(replace(PAIR, mirror_pairs=()), [turned]) == 2
    assert measured_mirror_axis(PAIR, []) == 2
    assert measured_mirror_axis(PAIR, [empty, tmp_path / "c.nii.gz"]) == 2
    assert measured_mirror_axis(PAIR, [empty, tmp_path / "c.nii.gz", turned]) == 1


def test_twenty_label_maps_are_enough(tmp_path: Path) -> None:
    right = save(tmp_path / "a.nii.gz", two_blobs((0, 0, 10)))
    wrong = save(tmp_path / "b.nii.gz", two_blobs((10, 0, 0)))
    assert measured_mirror_axis(PAIR, [right] * MEASURED_CASES + [wrong] * 100) == 2
    assert measured_mirror_axis(PAIR, [right] * (MEASURED_CASES - 10) + [wrong] * 10) == 0  # the farther one decides


def phantom_set(root: Path, *, turned: bool) -> Path:
    """Two phantoms of kidneys and more; `turned`: stored with X and Y exchanged, under headers that say RAS."""
    spacing = (8.0, 7.0, 7.0)
    for index in range(2):
        image, label = phantom_case(Draw(seed=index), shape_zyx=(40, 40, 56), spacing_mm=spacing)
        assert {2, 13} <= set(np.unique(label).tolist())
        for folder, name, array in (
            ("imagesTr", f"p{index}_0000", image.astype(np.int16)),
            ("labelsTr", f"p{index}", label),
        ):
            stored = array.transpose(0, 2, 1) if turned else array
            save(root / folder / f"{name}.nii.gz", np.ascontiguousarray(stored), spacing)
    labels = {name: value for value, name in FLARE22_LABELS.names.items()}
    (root / "dataset.json").write_text(json.dumps({"name": "P", "channel_names": {"0": "CT"}, "labels": labels}))
    return root


@pytest.mark.parametrize("turned", [False, True])
def test_phantoms_under_right_and_wrong_headers(tmp_path: Path, turned: bool) -> None:
    data = read_dataset(phantom_set(tmp_path, turned=turned))
    assert data.labels.mirror_pairs
    axis = measured_mirror_axis(data.labels, [case.label for case in data.cases if case.label])
    assert axis == (1 if turned else 2)
    warnings = [p for p in check_dataset(data).problems if "lies apart" in p.text]
    if not turned:
        assert warnings == []
        return
    (warning,) = warnings
    assert warning.severity == "warning"
    assert "along Y, not along X as the headers say" in warning.text
    assert "Correct the headers" in warning.text


def test_the_head_and_neck_set_is_turned(real_data: Path) -> None:
    data = read_dataset(real_data / "Dataset101_HeadNeckCT")
    names = [{data.labels.names[a], data.labels.names[b]} for a, b in data.labels.mirror_pairs]
    assert names == [{"right_parotid", "left_parotid"}]
    assert measured_mirror_axis(data.labels, [case.label for case in data.cases if case.label]) == 1
