"""The promise of memory: what is planned is enough, and not much more than is taken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from semiseg.data.plan import NetworkPlan, Plan
from semiseg.errors import ConfigError
from semiseg.files import write_json
from semiseg.io.dataset import LabelScheme
from semiseg.io.scans import read_grid
from semiseg.models.build import build_network
from semiseg.ops.operators import BLOCK_ROWS, HALO_ROWS, zoom_band
from semiseg.prediction.byte_sizes import parse_bytes, show_bytes
from semiseg.prediction.engines.opening import open_engine
from semiseg.prediction.inputs import find_scans
from semiseg.prediction.memory import check_budget, scan_memory, within_budget
from semiseg.prediction.model import load_model, save_model
from semiseg.prediction.settings import PredictSettings

SIZES = NetworkPlan(features=(4, 6), kernels=((3, 3, 3),) * 2, strides=((1, 1, 1), (2, 2, 2)))
ORGANS = 13
SETTINGS = PredictSettings(tile_step=1.0, device="cpu", mirror=False)


@pytest.fixture(scope="module")
def organs(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of as many organs as FLARE22 has, so that logits weigh what they weigh there."""
    names = {0: "background"} | {value: f"organ {value}" for value in range(1, ORGANS + 1)}
    plan = replace(plan, labels=LabelScheme(names=names), patch=(16, 32, 32), spacing_mm=(2.0, 1.0, 1.0), student=SIZES)
    folder = tmp_path_factory.mktemp("organs") / "model"
    save_model(
        folder,
        build_network(SIZES, channels=1, classes=ORGANS + 1, seed=0),
        plan,
        role="student",
        card={"mirror_axes": [0, 1]},
    )
    return folder


def write_scan(
    path: Path, shape_xyz: tuple[int, int, int], spacing_xyz: tuple[float, float, float], dtype: str = "int16"
) -> Path:
    noise = np.random.default_rng(0).integers(0, 200, shape_xyz).astype(dtype)
    nib.save(nib.Nifti1Image(noise, np.diag([*spacing_xyz, 1.0])), path)
    return path


MEASURE = """
import json, sys
from pathlib import Path
from semiseg.prediction.engines.opening import open_engine
from semiseg.prediction.inputs import find_scans
from semiseg.prediction.memory import measure_engine, peak_bytes, reset_peak, scan_needs
from semiseg.prediction.model import load_model
from semiseg.prediction.scans import predict_scans
from semiseg.prediction.settings import PredictSettings

folder, scan, output, name, options = sys.argv[1:]  # scan: or a folder of several, of which two are in memory
model = load_model(Path(folder))
engine = open_engine(model, name, device="cpu")
settings = PredictSettings(tile_step=1.0, device="cpu", **{"mirror": False} | json.loads(options))
engine_bytes = measure_engine([engine], model, settings)
scans = find_scans([Path(scan)])
needs = scan_needs(scans, model, settings, engine_bytes=engine_bytes).values()
planned = max(need.at_peak for need in needs) + (max(need.beside for need in needs) if len(needs) > 1 else 0)
reset_peak()
errors = [outcome.error for outcome in predict_scans(scans, model, engine, Path(output), settings)]
assert not any(errors), errors
print(planned - engine_bytes, peak_bytes() - engine_bytes)
"""
WIDE, FINE, THIN = (
    ((192, 192, 128), (1.0, 1.0, 2.0)),
    ((192, 192, 128), (0.8, 0.8, 1.5)),
    ((64, 256, 192), (1.3, 0.7, 2.0)),
)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks can be reset on Linux only")
@pytest.mark.parametrize(
    ("name", "grid", "dtype", "options"),
    [
        ("openvino", WIDE, "int16", {}),
        pytest.param("openvino", FINE, "float64", {}, marks=pytest.mark.thorough),
        pytest.param("torch", THIN, "int16", {"tile_batch": 4}, marks=pytest.mark.thorough),
        ("openvino", THIN, "int16", {"probabilities": True}),
        pytest.param("openvino", THIN, "uint8", {"mirror": True}, marks=pytest.mark.thorough),
        pytest.param("openvino", WIDE, "int16", {"cleaned": True}, marks=pytest.mark.thorough),
        pytest.param("openvino", THIN, "float32", {"scans": 3}, marks=pytest.mark.thorough),
        ("openvino", THIN, "int16", {"scans": 3, "probabilities": True}),
    ],
    ids=[
        *("the plan's own grid", "finer", "torch along another axis", "probabilities", "mirrored", "cleaned"),
        *("two read and predicted", "two predicted and written"),
    ],
)
def test_what_is_planned_is_enough(
    organs: Path,
    tmp_path: Path,
    name: str,
    grid: tuple[tuple[int, int, int], tuple[float, float, float]],
    dtype: str,
    options: dict[str, Any],
) -> None:
    """In a process of its own, on noise: all voxels lie between labels, the most that export can be asked for."""
    options = dict(options)
    scan = tmp_path / "scans"
    scan.mkdir()
    for number in range(options.pop("scans", 1)):
        write_scan(scan / f"{number}.nii.gz", *grid, dtype=dtype)
    folder = shutil.copytree(organs, tmp_path / "model")
    if options.pop("cleaned", False):
        write_json(folder / "postprocessing.json", {"steps": {"organ 1": ["largest_component", "fill_holes"]}})
    command = [sys.executable, "-c", MEASURE, str(folder), str(scan), str(tmp_path / "out"), name, json.dumps(options)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # tiles this small are slow on several
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread)
    assert done.returncode == 0, done.stderr
    planned, taken = map(int, done.stdout.split())
    assert taken <= planned
    assert taken > 0.3 * planned  # a plan that nobody needs would refuse scans that fit


LIMITED = """
import resource, sys
from pathlib import Path
from semiseg.prediction.engines.opening import open_engine
from semiseg.prediction.inputs import find_scans
from semiseg.prediction.memory import measure_engine, scan_needs
from semiseg.prediction.model import load_model
from semiseg.prediction.scans import predict_scans
from semiseg.prediction.settings import PredictSettings

folder, scan, output, share = sys.argv[1:]
model = load_model(Path(folder))
engine = open_engine(model, "openvino")
settings = PredictSettings(tile_step=1.0, device="cpu", mirror=False)
engine_bytes = measure_engine([engine], model, settings)
scans = find_scans([Path(scan)])
(planned,) = (need.at_peak for need in scan_needs(scans, model, settings, engine_bytes=engine_bytes).values())
lines = Path("/proc/self/status").read_text().splitlines()
held = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
limit = held + int(float(share) * (planned - engine_bytes))
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
(outcome,) = predict_scans(scans, model, engine, Path(output), settings)
print(outcome.error or "predicted")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone counts what it limits here")
def test_a_long_scan_is_predicted_under_a_hard_limit(organs: Path, tmp_path: Path) -> None:
    """The system refuses what goes beyond the plan, stacks of threads included; with far less it is not enough."""
    scan = write_scan(tmp_path / "long.nii.gz", (160, 160, 320), (0.9, 0.9, 2.0))
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}

    def predicted(share: float) -> str:
        command = [sys.executable, "-c", LIMITED, str(organs), str(scan), str(tmp_path / "out"), str(share)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert "not enough memory" in predicted(0.3)
    assert not (tmp_path / "out" / "long.nii.gz").exists()
    assert predicted(1.0) == "predicted"
    assert nib.load(tmp_path / "out" / "long.nii.gz").shape == (160, 160, 320)  # type: ignore[attr-defined]


def test_the_plan_grows_with_the_slab_not_with_the_length(plan: Plan, tmp_path: Path) -> None:
    def needed(length: int) -> int:
        grid = read_grid(write_scan(tmp_path / f"{length}.nii", (64, 64, length), (1.0, 1.0, 2.0)))
        return scan_memory(grid, 2 * 64 * 64 * length, plan, SETTINGS, engine_bytes=0)

    voxels = 64 * 64 * 600
    # 2 bytes of the scan and 1 of the label
    assert needed(800) - needed(200) == pytest.approx(1.05 * voxels * 3, rel=1e-6)


def test_a_budget_that_does_not_suffice_is_refused_with_one_that_does(organs: Path, tmp_path: Path) -> None:
    write_scan(tmp_path / "large.nii.gz", (128, 128, 64), (1.0, 1.0, 2.0))
    write_scan(tmp_path / "small.nii.gz", (32, 32, 16), (1.0, 1.0, 2.0))
    (tmp_path / "broken.nii.gz").write_text("no scan")
    model, scans = load_model(organs), find_scans([tmp_path])
    engine = open_engine(model, "torch", device="cpu")
    with pytest.raises(
        ConfigError, match=r"100MB, but .*large\.nii\.gz needs (\d+\.\d\dGB) .*--max-memory \1"
    ) as found:
        check_budget(scans, model, engine, replace(SETTINGS, max_memory="100MB"))
    suggested = str(found.value).split("--max-memory ")[1].split(",")[0]
    enough = replace(SETTINGS, max_memory=f"{parse_bytes(suggested) / 1e9 + 0.1}GB")
    check_budget(scans, model, engine, enough)
    assert within_budget(scans, model, [engine], SETTINGS) == scans
    assert [scan.id for scan in within_budget(scans, model, [engine], enough)] == ["large", "small"]
    assert within_budget(scans, model, [engine], replace(SETTINGS, max_memory="1MB")) == []


@pytest.mark.parametrize(
    ("text", "count"), [("4GB", 4 * 10**9), ("3500 MB", 35 * 10**8), ("1.5GiB", 3 * 2**29), ("2gb", 2 * 10**9)]
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count
    assert count <= parse_bytes(show_bytes(count)) < count + 10**7


@pytest.mark.parametrize("text", ["", "4", "GB", "-1GB", "4 bananas", "4KB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="such as 4GB"):
        parse_bytes(text)
    if text:  # which is no limit
        with pytest.raises(ConfigError, match="such as 4GB"):
            PredictSettings(max_memory=text)


@pytest.mark.parametrize(("n_in", "n_out"), [(512, 410), (410, 512), (250, 100), (800, 320), (1000, 333), (100, 399)])
def test_the_halo_is_as_long_as_is_planned_for(n_in: int, n_out: int) -> None:
    widest = max(weights.shape[1] for weights in zoom_band(n_in, n_out, 3).blocks)
    assert widest <= BLOCK_ROWS * n_in / n_out + 2 * HALO_ROWS
