"""The challenge's container without a container engine: `predict.sh` in the layout that it is called in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "docker" / "predict.sh"


def call(model: Path, workspace: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "SEMISEG_MODEL": str(model),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    folders = [str(workspace / "inputs"), str(workspace / "outputs")]
    return subprocess.run(["sh", str(SCRIPT), *folders], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "inputs").mkdir()
    for name in ("FLARE22_Ts_0001", "FLARE22_Ts_0002"):
        noise = np.random.default_rng(0).integers(-100, 200, (9, 9, 9), dtype=np.int16)
        nib.save(nib.Nifti1Image(noise, np.eye(4)), tmp_path / "inputs" / f"{name}_0000.nii.gz")
    return tmp_path


def test_it_writes_label_maps_under_the_challenges_names(model_folder: Path, workspace: Path) -> None:
    for _ in range(2):  # a second call writes over the first one's
        done = call(model_folder, workspace)
        assert done.returncode == 0, done.stderr
    written = sorted(file.name for file in (workspace / "outputs").iterdir())
    assert written == ["FLARE22_Ts_0001.nii.gz", "FLARE22_Ts_0002.nii.gz"]
    label = nib.load(workspace / "outputs" / written[0])
    assert label.shape == (9, 9, 9)
    assert label.get_data_dtype() == np.uint8


def test_a_bad_scan_fails_the_call_and_stops_no_other(model_folder: Path, workspace: Path) -> None:
    (workspace / "inputs" / "FLARE22_Ts_0001_0000.nii.gz").write_text("no scan")
    done = call(model_folder, workspace)
    assert done.returncode == 1
    assert "FLARE22_Ts_0001_0000.nii.gz: not a readable NIfTI file" in done.stderr
    assert [file.name for file in (workspace / "outputs").iterdir()] == ["FLARE22_Ts_0002.nii.gz"]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt", "README.md", "LICENSE", "src"])
def test_what_the_image_copies_is_there(name: str) -> None:
    """A Dockerfile that cannot be built here at least names files that are there."""
    root = SCRIPT.parents[1]
    assert name in (root / "docker" / "Dockerfile").read_text()
    assert (root / name).exists()
