"""The paper's network on an NVIDIA GPU: milliseconds of a pass in either memory layout, and what predicting a CT takes.

    python benchmarks/paper_network_on_gpu.py [--device cuda]

The CT has 512 x 512 x 100 voxels of 0.8 x 0.8 x 2.5 mm. Weights are random and the CT is noise in air: neither time nor
memory depends on them. Peaks are of torch's allocator; CUDA's own context comes on top.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch.nn import functional

from semiseg import predict_run
from semiseg.data.plan import ChannelNormalisation, NetworkPlan, Plan
from semiseg.io.flare22_labels import FLARE22_LABELS
from semiseg.models.build import build_network
from semiseg.models.layers import Network
from semiseg.prediction.engines.torch_engine import TorchEngine
from semiseg.prediction.model import save_model
from semiseg.prediction.settings import PredictSettings
from semiseg.prediction.sliding import sliding_window
from semiseg.prediction.window import Window

PRECISIONS = {"bfloat16": torch.bfloat16, "float32": None}
_CONTIGUOUS = torch.contiguous_format
LAYOUTS: dict[str, Any] = {"contiguous": _CONTIGUOUS, "channels last": torch.channels_last_3d}
NETWORK = NetworkPlan(
    features=(32, 64, 128, 256, 512),
    kernels=((3, 3, 3),) * 5,
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--patch", type=int, nargs=3, default=(64, 160, 160))
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    plan = _plan(tuple(arguments.patch))
    network = build_network(NETWORK, channels=1, classes=plan.labels.count, seed=0).to(device)
    print(torch.__version__, torch.cuda.get_device_name(device) if device.type == "cuda" else "")
    for layout in LAYOUTS:
        for precision in PRECISIONS:
            _passes(network, plan, layout, precision, device)
    _network_over_ct(network, plan, arguments.slices, device)
    with tempfile.TemporaryDirectory() as folder:
        _file_to_file(Path(folder), plan, arguments.slices, device)


def _plan(patch: tuple[int, int, int]) -> Plan:
    return Plan(
        dataset="made up",
        channels=("CT",),
        labels=FLARE22_LABELS,
        spacing_mm=(2.5, 1.0, 1.0),
        anisotropic_axis=None,
        patch=patch,
        batch=2,
        normalisation=(ChannelNormalisation(scheme="ct", low=-500, high=500, mean=0, deviation=200),),
        teacher=NETWORK,
        student=NETWORK,
    )


def _passes(network: Network, plan: Plan, layout: str, precision: str, device: torch.device) -> None:
    """Two patches forward and back, and one forward."""
    for weights in network.parameters():
        weights.data = weights.data.contiguous(memory_format=LAYOUTS[layout] if weights.dim() == 5 else _CONTIGUOUS)
    images = torch.randn((2, 1, *plan.patch), device=device).contiguous(memory_format=LAYOUTS[layout])
    labels = torch.randint(0, plan.labels.count, (2, *plan.patch), device=device)
    dtype = PRECISIONS[precision]

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, dtype, enabled=dtype is not None)

    def train() -> None:
        with autocast():
            logits = network(images)
        functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        network.zero_grad(set_to_none=True)

    def predict() -> None:
        with torch.inference_mode(), autocast():
            network(images[:1])

    _forget_peak(device)
    network.train()
    trained = _milliseconds(train, device)
    peak = _peak_gb(device)
    network.eval()
    predicted = _milliseconds(predict, device)
    print(f"{layout}, {precision}: {trained:.1f} ms for a batch of 2 forward and back ({peak:.2f} GB), ", end="")
    print(f"{predicted:.1f} ms for a tile")


def _network_over_ct(network: Network, plan: Plan, slices: int, device: torch.device) -> None:
    """The sliding window over the CT on the network's grid, in channels-last layout, without files and resampling."""
    image = np.random.default_rng(0).standard_normal((1, slices, 410, 410), dtype=np.float32)
    for precision, dtype in PRECISIONS.items():
        for tile_batch in (1, 4):
            engine, window = TorchEngine(network, device, dtype), Window(patch=plan.patch, tile_batch=tile_batch)
            sliding_window(image, engine, window)
            _forget_peak(device)
            began = time.perf_counter()
            sliding_window(image, engine, window)
            print(f"sliding window, {precision}, {tile_batch} tiles at once: {_since(began, device)}")


def _file_to_file(folder: Path, plan: Plan, slices: int, device: torch.device) -> None:
    network = build_network(NETWORK, channels=1, classes=plan.labels.count, seed=0)
    save_model(folder / "model", network, plan, role="student", card={"mirror_axes": []})
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    body = (y / 0.7) ** 2 + (x / 0.85) ** 2 < 1
    scan = np.where(body, np.random.default_rng(0).integers(-80, 80, (slices, 512, 512)), -1000).astype(np.int16)
    image_type: Any = nib.Nifti1Image  # has no type annotations
    nib.save(image_type(scan.transpose(2, 1, 0), np.diag([0.8, 0.8, 2.5, 1])), folder / "scan_0000.nii.gz")
    settings = PredictSettings(device=device.type, engine="torch", precision="float32")
    for repeat in range(3):
        _forget_peak(device)
        began = time.perf_counter()
        output = folder / f"predicted{repeat}"
        predict_run.predict(folder / "model", [folder / "scan_0000.nii.gz"], output, settings=settings, quiet=True)
        print(f"file to file, float32: {_since(began, device)}")


def _milliseconds(work: Callable[[], None], device: torch.device, repeats: int = 3) -> float:
    """Mean, after two to warm up."""
    for _ in range(2):
        work()
    _wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    _wait(device)
    return (time.perf_counter() - began) / repeats * 1e3


def _since(began: float, device: torch.device) -> str:
    _wait(device)
    return f"{time.perf_counter() - began:.2f} s, peak {_peak_gb(device):.2f} GB"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gb(device: torch.device) -> float:
    return torch.cuda.max_memory_reserved(device) / 1e9 if device.type == "cuda" else 0.0


if __name__ == "__main__":
    main()
