"""Small runs and folders for the pages to show."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from semiseg.io.scans import read_grid, write_label

sys.path.insert(0, str(Path(__file__).parent))  # for view_server

from view_server import label_maps


@pytest.fixture(scope="session")
def prepared_run(
    phantoms: Path, tmp_path_factory: pytest.TempPathFactory, semiseg_command: Callable[..., object], tiny: list[str]
) -> Path:
    """A run that is prepared, to be left as it is; its unlabelled scans have labels of a model, as if it were one."""
    run = tmp_path_factory.mktemp("view") / "run"
    semiseg_command("prepare", run, "--data", phantoms, "--quiet", *tiny)
    for scan in sorted((phantoms / "imagesUn").glob("*.nii.gz")):
        id = scan.name.removesuffix("_0000.nii.gz")
        label = np.zeros(read_grid(scan).shape_zyx, dtype=np.uint8)
        label[8:16, 8:20, 8:20] = 1
        label[4:8, 20:24, 20:26] = 2
        write_label(run / "pseudo_labels" / f"{id}.nii.gz", label, read_grid(scan), like=scan)
    return run


@pytest.fixture
def run(prepared_run: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(prepared_run, tmp_path / "run", symlinks=False))


@pytest.fixture
def label_folder(tmp_path: Path) -> Path:
    """Twelve label maps alone."""
    return label_maps(tmp_path / "label maps")
