"""A model of random weights, scans on several grids, and the way to `rest_server.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from semiseg.data.plan import ChannelNormalisation, NetworkPlan, Plan
from semiseg.geometry import canonical_grid
from semiseg.io import nifti
from semiseg.io.dataset import LabelScheme
from semiseg.io.grid import Grid

sys.path.insert(0, str(Path(__file__).parent))

ORGANS = ("liver", "left_kidney", "spleen", "gallbladder")
ABSENT = "spleen"
"""Which the model never finds."""
NETWORK = NetworkPlan(features=(4, 6), kernels=((3, 3, 3),) * 2, strides=((1, 1, 1), (2, 2, 2)))
PLAN = Plan(
    dataset="made up",
    channels=("CT",),
    labels=LabelScheme(names=dict(enumerate(("background", *ORGANS)))),
    spacing_mm=(2.0, 2.0, 2.0),
    anisotropic_axis=None,
    patch=(16, 16, 16),
    batch=2,
    normalisation=(ChannelNormalisation(scheme="ct", low=-100, high=200, mean=50, deviation=75),),
    teacher=NETWORK,
    student=NETWORK,
)
TURNED = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])
AFFINES = {
    "fine": np.diag([-0.6, -0.6, 0.6]),  # LPS, as DICOM has it
    "middle": np.diag([1.0, 1.0, 1.0])[:, [1, 2, 0]] * [1, -1, 1],  # another order of axes, one of them turned round
    "thick": TURNED @ np.diag([0.8, 0.8, 5.0]),  # oblique
}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that no test may change. Each organ but one is the likeliest somewhere."""
    torch = pytest.importorskip("torch")
    from semiseg.models.build import build_network
    from semiseg.prediction.model import save_model

    folder = tmp_path_factory.mktemp("serve_model") / "model"
    network = build_network(NETWORK, channels=1, classes=len(ORGANS) + 1, seed=1)
    noise = torch.randn((4, 1, *PLAN.patch), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(20):
            network.train()(noise)
        network.head.bias -= network.eval()(noise).mean((0, 2, 3, 4))
        network.head.bias[1 + ORGANS.index(ABSENT)] = -1000
    save_model(folder, network, PLAN, role="student", card={"method": "mpl", "steps": 7})
    return folder


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of scans on grids of 0.6, 1 and 5 mm, to be left as it is."""
    folder = tmp_path_factory.mktemp("serve_scans")
    for seed, (name, directions) in enumerate(AFFINES.items()):
        affine = np.eye(4)
        affine[:3, :3] = directions
        affine[:3, 3] = (12.5, -80.25, 31)
        write_scan(folder / f"{name}.nii.gz", affine, (30, 26, 12 if name == "thick" else 22), seed)
    return folder


def write_scan(path: Path, affine: np.ndarray, shape_xyz: tuple[int, int, int], seed: int) -> None:
    voxels = np.random.default_rng(seed).normal(50, 75, shape_xyz).round().astype(np.int16)
    shape_zyx, spacing_mm = canonical_grid(affine, shape_xyz)
    x, y, z = (float(mm) for mm in np.linalg.norm(affine[:3, :3], axis=0))
    nifti.write(path, voxels, Grid(shape_zyx, spacing_mm, affine, (x, y, z)), None)
