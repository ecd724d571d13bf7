"""MONAI itself runs the bundle, in a process without semiseg, and gives our label maps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from semiseg.models.build import build_network
from semiseg.predict_run import predict
from semiseg.prediction.model import load_model, save_model
from semiseg.prediction.settings import PredictSettings
from semiseg.sharing.monai_bundle import export_bundle

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(find_spec("monai") is None, reason="MONAI is not installed: pip install monai"),
]
RUN = """
import sys
sys.modules["semiseg"] = None  # it cannot be imported
from monai.bundle import run
root, scans = sys.argv[1], sys.argv[2:]
run(
    config_file=f"{root}/configs/inference.json",
    meta_file=f"{root}/configs/metadata.json",
    bundle_root=root,
    datalist=[scan.split(",") for scan in scans],
)
"""
SETTINGS = PredictSettings(engine="torch", precision="float32", skip_air=False, postprocess=False, device="cpu")


def run_by_monai(bundle: Path, scans: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(bundle), *scans],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


TURNED = np.array([[0, 0, -1.5, 7], [-1, 0, 0, 3], [0, -2, 0, 5], [0, 0, 0, 1]], dtype=float)
"""The spacing of the plan, stored front to back, head to foot and right to left."""
PHANTOMS = {
    "one_tile": (TURNED, (8, 8, 12), 1.0),
    "tiles": (TURNED, (12, 12, 12), 0.99),  # weights of a tile's corners differ by a quarter
    "other_grid": (np.diag([1.2, 0.9, 2.3, 1.0]), (16, 13, 9), 0.97),
}
"""Affine and shape of a file, and the share of voxels whose labels are ours."""


def test_monai_gives_our_labels(run: Path, tmp_path: Path) -> None:
    """One channel of CT and one that is normalised by its scan; mirrored along two axes."""
    model, generator = load_model(run), np.random.default_rng(0)
    scans = []
    for id, (affine, shape, _) in PHANTOMS.items():
        files = [tmp_path / f"{id}_{channel:04}.nii.gz" for channel in range(2)]
        for file, scale in zip(files, (150.0, 40.0), strict=True):
            nib.save(nib.Nifti1Image((smooth(generator, shape) * scale + 60).astype(np.float32), affine), file)
        scans.append(",".join(map(str, files)))
    bundle = export_bundle(model, tmp_path / "bundle")
    run_by_monai(bundle, scans)
    predict(
        model, [file for scan in scans for file in scan.split(",")], tmp_path / "ours", settings=SETTINGS, quiet=True
    )
    for id, (_, shape, least) in PHANTOMS.items():
        theirs = nib.load(bundle / "labels" / f"{id}_0000.nii.gz")
        ours = nib.load(tmp_path / "ours" / f"{id}.nii.gz")
        np.testing.assert_allclose(theirs.affine, ours.affine, atol=1e-5)
        found, expected = np.asarray(theirs.dataobj), np.asarray(ours.dataobj)
        assert found.shape == expected.shape == shape
        assert set(np.unique(expected)) == {0, 1, 2}
        assert (found == expected).mean() >= least, id


def smooth(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Noise with structures of a few voxels: that is what may be resampled."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(generator.standard_normal(shape), 1.5)
    return noise / noise.std()


def test_names_are_no_programs_for_monai(run: Path, tmp_path: Path) -> None:
    """A text that begins with a dollar runs when MONAI reads it; a model that was pulled may have any name in it."""
    model = load_model(run)
    names = {0: "background", 1: "$__import__('os').abort()", 2: "@bundle_root %x"}
    plan = replace(
        model.plan, labels=replace(model.plan.labels, names=names), channels=("$1", "T1"), dataset="$exit(3)"
    )
    network = build_network(plan.student, channels=2, classes=3, seed=0)
    card = {"method": "$exit(4)", "intended_use": "$exit(5)", "classes": {"_target_": "os.abort"}}
    save_model(tmp_path / "model", network, plan, role="student", card=card)
    bundle = export_bundle(load_model(tmp_path / "model"), tmp_path / "bundle")
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())

    def strings(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [text for pair in value.items() for part in pair for text in strings(part)]
        return [text for one in value for text in strings(one)] if isinstance(value, list) else [str(value)]

    assert not [text for text in strings(metadata) if set("$@%") & set(text) or text == "_target_"]
