"""Series of DICOM for tests of what is made of them, and programs that look at it."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

import dicom_series
from semiseg.geometry import canonical_grid, to_canonical
from semiseg.io.dicom.series import Series, find_series
from semiseg.io.grid import Grid

PATIENT = "Geheim^Päule"
STUDY = {
    "SpecificCharacterSet": "ISO_IR 100",
    "PatientName": PATIENT,
    "PatientSex": "O",
    "StudyDate": "20200102",
    "StudyTime": "101112",
    "StudyID": "7",
    "AccessionNumber": "A-1",
    "StudyDescription": "Abdomen für alle",
    "PositionReferenceIndicator": "",
}


def axis_orientations() -> list[np.ndarray]:
    """All 48: columns are the directions along a row, along a column and from slice to slice."""
    return [
        np.eye(3)[:, list(order)] * np.array(signs)
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1.0, -1.0), repeat=3)
    ]


def oblique(seed: int) -> np.ndarray:
    """A rotation by chance."""
    turned, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return np.asarray(turned * np.sign(np.linalg.det(turned)))


def write_series(
    folder: Path,
    voxels: np.ndarray,
    directions: np.ndarray | None = None,
    spacing: tuple[float, float, float] = (0.7, 0.9, 2.5),
    *,
    enhanced: bool = False,
) -> Series:
    """Write voxels `(slices, rows, columns)` and read back the series. spacing: of columns, rows and slices."""
    directions = np.eye(3) if directions is None else directions
    voxels, orientation = voxels.astype(np.int16), tuple(directions[:, :2].T.ravel())
    across, steps = (spacing[1], spacing[0]), np.arange(len(voxels))[:, None] * spacing[2]
    if enhanced:
        file, order = folder / "enhanced.dcm", list(reversed(range(len(voxels))))
        dicom_series.write_enhanced(
            file, voxels, orientation=orientation, spacing=across, step_mm=spacing[2], intercepts=[0.0], order=order
        )
        one = pydicom.dcmread(file)
        for keyword, value in STUDY.items():
            setattr(one, keyword, value)
        one.save_as(file)
    else:
        positions = (-31.5, 12.25, 104.0) + steps * directions[:, 2]
        dicom_series.write_series(
            folder, voxels, orientation=orientation, spacing=across, positions=positions.tolist(), intercepts=[0.0],
            **STUDY,
        )  # fmt: skip
    (series,) = find_series(folder)
    assert isinstance(series, Series)
    return series


def reversed_series(series: Series) -> Series:
    """The same volume with its slices in the other order, as no reader of ours gives it: a left-handed grid."""
    affine, count = series.grid.affine.copy(), len(series.files)
    affine[:3, 3] += (count - 1) * affine[:3, 2]
    affine[:3, 2] *= -1
    first = series.slices[0].pixels
    shape, spacing = canonical_grid(affine, (first.columns, first.rows, count))
    grid = Grid(shape, spacing, affine, series.grid.stored_mm)
    return replace(series, files=series.files[::-1], frames=series.frames[::-1], slices=series.slices[::-1], grid=grid)


def tool(name: str) -> str:
    """A program of a wheel beside this Python, or of the system; skips the test where there is none."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def canonical(planes: np.ndarray, series: Series) -> np.ndarray:
    return to_canonical(planes.transpose(2, 1, 0), series.grid.affine)


def errors_of(path: Path) -> list[str]:
    """What dciodvfy has against a file."""
    done = subprocess.run([tool("dciodvfy"), str(path)], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert any("Segmentation" in line or "RTStructureSet" in line for line in lines)
    return [line for line in lines if line.startswith("Error")]
