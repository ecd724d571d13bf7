"""Segments put back in our order, and labels as NRRD in every direction."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semiseg.errors import DataError
from semiseg.geometry import canonical_grid, to_canonical
from semiseg.io.dataset import LabelScheme
from semiseg.io.grid import Grid
from semiseg.serve.forms import label_nrrd
from semiseg.serve.saving import in_our_order, segment_names

SCHEME = LabelScheme(names=dict(enumerate(("background", "a", "b c", "leber", "ü"))))


@given(st.permutations([*SCHEME.organs.values(), "ignore"]), st.integers(0, 5), st.integers(0, 1000))
def test_whatever_the_order_each_voxel_keeps_its_name(names: list[str], count: int, seed: int) -> None:
    """Also where segments were removed."""
    sent = np.random.default_rng(seed).integers(0, count + 1, (3, 4, 5), np.uint8)
    found = in_our_order(sent, names[:count], SCHEME)
    ours = SCHEME.organs | {5: "ignore"}
    for theirs, value in zip(sent.ravel(), found.ravel(), strict=True):
        assert (value == 0) == (theirs == 0)
        assert theirs == 0 or ours[int(value)] == names[int(theirs) - 1]


def test_names_are_by_position_and_those_of_no_organ_have_none() -> None:
    info = [{"name": "background", "idx": 1}, {"name": "leber", "idx": 7}, {"name": "a", "idx": 2}]
    assert segment_names({"label_info": info}) == ["leber", "a"]
    assert segment_names({}) == segment_names({"label_info": None}) == []
    for wrong in ("leber", [1], [{"idx": 1}], [{"name": 1}], {"leber": 1}):
        with pytest.raises(DataError, match="label_info"):
            segment_names({"label_info": wrong})


def test_labels_go_out_as_they_lie_in_all_48_directions(tmp_path: Path) -> None:
    """SimpleITK reads the voxels at their places; slices ascend along row × column."""
    sitk = pytest.importorskip("SimpleITK")
    shape_xyz = (3, 4, 5)
    for axes in permutations(range(3)):
        for signs in product((1.0, -1.0), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = (np.eye(3) * signs)[:, list(axes)] * [0.6, 1.0, 5.0]
            affine[:3, 3] = (10, -20.5, 1 / 3)
            shape_zyx, spacing_mm = canonical_grid(affine, shape_xyz)
            grid = Grid(shape_zyx, spacing_mm, affine, (0.6, 1.0, 5.0))
            label = np.random.default_rng(1).integers(0, 4, shape_zyx, np.uint8)
            (tmp_path / "label.nrrd").write_bytes(label_nrrd(label, grid, compressed=axes[0] == 0))
            image = sitk.ReadImage(str(tmp_path / "label.nrrd"))
            lps = np.eye(4)
            lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
            lps[:3, 3] = image.GetOrigin()
            assert np.linalg.det(lps[:3, :3]) > 0
            ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
            np.testing.assert_array_equal(to_canonical(sitk.GetArrayFromImage(image).transpose(), ras), label)
            there = Grid(shape_zyx, spacing_mm, ras, (0.6, 1.0, 5.0))
            assert there.difference(grid) is None
