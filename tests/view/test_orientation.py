"""Left and right as the header says: what is drawn against the layer that a page gets, and both against the body."""

from __future__ import annotations

import io
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from view_server import Served, save_scan, serving

from semiseg.geometry import from_canonical
from semiseg.io import nifti
from semiseg.io.scans import read_grid
from semiseg.types import AnyArray

SHAPE = (64, 80, 72)
"""Canonical (Z, Y, X): so large that a slice of 64 pixels or more is drawn pixel by pixel."""
MARK = (50, 60, 55)
"""In the patient's head, front and right, off the middle: a voxel of the cube that is bright."""


def turned(degrees: float) -> AnyArray:
    """About the axis from left to right, and a little about the others."""
    a, b = np.deg2rad(degrees), np.deg2rad(degrees / 2)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    return np.asarray(about_x @ about_z)


ORIENTATIONS = {
    "RAS": np.diag([1.0, 1.0, 1.0]),
    "LAS": np.diag([-1.0, 1.0, 1.0]),
    "LPS": np.diag([-1.0, -1.0, 1.0]),
    "PIR": np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
    "oblique": turned(20),
    "oblique LAS": turned(20) @ np.diag([-1.0, 1.0, 1.0]),
}


def body(affine: AnyArray) -> AnyArray:
    """A smooth canonical scan in HU with a bright cube at the mark."""
    z, y, x = np.indices(SHAPE)
    scan = (60 * np.sin(z / 9) + 50 * np.cos(y / 7) + 40 * np.sin(x / 5)).astype(np.int16)
    mz, my, mx = MARK
    scan[mz - 4 : mz + 5, my - 4 : my + 5, mx - 4 : mx + 5] = 900
    return np.asarray(scan)


@pytest.fixture(params=sorted(ORIENTATIONS))
def served(request: pytest.FixtureRequest, tmp_path: Path):  # type: ignore[no-untyped-def]
    """A dataset of one scan, in a file of this orientation; its label is the cube."""
    affine = np.eye(4)
    affine[:3, :3] = ORIENTATIONS[request.param]
    affine[:3, 3] = (-12.5, 7.25, 31.0)
    scan = body(affine)
    save_scan(tmp_path / "data" / "imagesTr" / "one_0000.nii.gz", scan, affine)
    save_scan(tmp_path / "data" / "labelsTr" / "one.nii.gz", (scan == 900).astype(np.uint8), affine)
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "cube": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    with serving(tmp_path / "data", decisions=tmp_path / "decisions.jsonl") as found:
        yield found


def layer(served: Served, name: str, tmp_path: Path) -> nib.Nifti1Image:
    file = tmp_path / f"{name}.nii"
    answer = served.get(f"/api/cases/one/layers/{name}.nii")
    assert answer.status_code == 200
    file.write_bytes(answer.content)
    return nib.load(file)  # type: ignore[return-value]


def test_a_drawn_slice_is_the_layers_pixel_by_pixel(served: Served, tmp_path: Path) -> None:
    """The page's layer is brought to RAS by nibabel; the displayed slice then has the patient's right at the left."""
    canonical = nib.as_closest_canonical(layer(served, "scan", tmp_path))
    values = np.asarray(canonical.dataobj)
    assert nib.aff2axcodes(canonical.affine) == ("R", "A", "S")
    slices = {"axial": values[:, :, 50].T, "coronal": values[:, 60, :].T, "sagittal": values[55, :, :].T}
    for plane, index in (("axial", 50), ("coronal", 60), ("sagittal", 55)):
        expected = slices[plane][::-1, ::-1]
        answer = served.get(
            "/api/cases/one/slice.png", plane=plane, index=index, low=-200, high=1000, size=max(expected.shape)
        )
        drawn = np.asarray(Image.open(io.BytesIO(answer.content)))
        assert drawn.shape == (*expected.shape, 3)
        grey = np.rint(np.clip((expected.astype(np.float64) + 200) / 1200, 0, 1) * 255)
        assert np.abs(drawn - grey[..., None]).max() <= 1  # float32 against float64


def test_the_cube_is_in_the_head_in_front_and_on_the_right(served: Served, tmp_path: Path) -> None:
    """By the header alone: where the layer's bright voxels lie in millimetres, and where they are drawn."""
    image = layer(served, "scan", tmp_path)
    source = read_grid(next(iter(served.pages.source.contents().cases.values())).images[0])
    np.testing.assert_allclose(image.affine, source.affine, atol=1e-4)
    bright = np.argwhere(np.asarray(image.dataobj) == 900).mean(axis=0)
    found_mm = (image.affine @ [*bright, 1])[:3]
    middle_mm = (image.affine @ [*(np.array(image.shape) / 2 - 0.5), 1])[:3]
    right, front, head = own_axes(image.affine) @ (found_mm - middle_mm)
    assert min(right, front, head) > 5
    for plane, index in (("axial", 50), ("coronal", 60), ("sagittal", 55)):
        answer = served.get("/api/cases/one/slice.png", plane=plane, index=index, low=800, high=900, size=640)
        drawn = np.asarray(Image.open(io.BytesIO(answer.content)))[..., 0] > 128
        rows, columns = np.argwhere(drawn).mean(axis=0) / drawn.shape
        assert max(rows, columns) < 0.5, "right (sagittal: front) is at the left edge, head or front at the top"


def own_axes(affine: AnyArray) -> AnyArray:
    """Directions of the scan's own axes that are nearest to right, front and head, as rows."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    order = nib.io_orientation(affine)
    rows = np.zeros((3, 3))
    for stored, (axis, way) in enumerate(order):
        rows[int(axis)] = way * directions[:, stored]
    return rows


def test_a_label_lies_on_its_scan(served: Served, tmp_path: Path) -> None:
    scan, label = layer(served, "scan", tmp_path), layer(served, "reference", tmp_path)
    np.testing.assert_array_equal(np.asarray(scan.dataobj) == 900, np.asarray(label.dataobj) == 1)
    np.testing.assert_array_equal(scan.affine, label.affine)
    filled = served.get(
        "/api/cases/one/slice.png", plane="coronal", index=60, layers="reference", style="fill", opacity=1, size=64
    )
    plain = served.get("/api/cases/one/slice.png", plane="coronal", index=60, low=899, high=900, size=64)
    coloured, bright = (np.asarray(Image.open(io.BytesIO(one.content))).astype(int) for one in (filled, plain))
    is_coloured = np.ptp(coloured, axis=2) > 40
    # The scan is drawn smoothly and the label by the nearest voxel: they may differ along the edge.
    assert np.count_nonzero(is_coloured != (bright[..., 0] > 128)) <= 0.3 * np.count_nonzero(is_coloured)


def test_from_canonical_is_what_was_saved(tmp_path: Path) -> None:
    """The fixture itself: a LAS file stores the patient's left last along X."""
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    scan = body(affine)
    save_scan(tmp_path / "las.nii.gz", scan, affine)
    stored = nifti.read_voxels(tmp_path / "las.nii.gz").stored
    np.testing.assert_array_equal(stored, from_canonical(scan, affine))
    assert stored[SHAPE[2] - 1 - MARK[2], MARK[1], MARK[0]] == 900
