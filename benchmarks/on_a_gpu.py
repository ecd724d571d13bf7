"""What is to be measured on an NVIDIA GPU, in eight minutes: passes, training by the paper's plan, prediction.

    python benchmarks/on_a_gpu.py                          # writes benchmarks/results/on_a_gpu.json after each part
    python benchmarks/on_a_gpu.py --device cpu --small     # the same on a few voxels: whether it runs

Parts, in this order, and about how long each may take; what would begin after --minutes is left out, and named:

    passes      a batch of 2 of the paper's network there and back, and a tile, by precision and layout of memory
    compiled    a batch of 2 of small networks there and back, eager and compiled, and how long compiling takes
    feedback    dense feedback in supervised steps, in turn
    train       `semiseg train` of the paper's plan on phantoms: steps a second, waiting for batches and checkpoints
    file        a CT of 512 x 512 x 100 voxels, file to file, again and again, by the network that was trained
    folder      16 such scans
    same        labels of a smaller scan on the GPU against those on the CPU: Dice of a class

Peaks are of torch's allocator; CUDA's own context comes on top.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from torch.nn import functional

from semiseg import predict_run, prepare_run, train_run
from semiseg.data.plan import NetworkPlan
from semiseg.data.planner import PlanSettings
from semiseg.data.roles import DataSettings
from semiseg.data.sampling import SamplingSettings
from semiseg.demo.phantom import phantom_case
from semiseg.errors import ConfigError
from semiseg.files import write_json
from semiseg.geometry import triple
from semiseg.io.flare22_labels import FLARE22_LABELS
from semiseg.io.scans import read_label
from semiseg.methods.settings import MplSettings, SupervisedSettings
from semiseg.models.build import build_network, compiled_passes, in_channels_last
from semiseg.models.layers import Network
from semiseg.prediction.parity import class_dice
from semiseg.prediction.settings import PredictSettings
from semiseg.processes import processor_name, usable_cores
from semiseg.randomness import Draw
from semiseg.rows import read_metrics
from semiseg.settings import RunSettings
from semiseg.training.settings import TrainSettings
from semiseg.types import AnyArray, Shape, Spacing

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import training_speed  # noqa: E402

PRECISIONS = {"bfloat16": torch.bfloat16, "float32": None}
SMALL_NETWORKS, SMALL_PATCH = (8, 16), (32, 48, 64)
LAYOUTS: dict[str, Any] = {"channels last": torch.channels_last_3d, "contiguous": torch.contiguous_format}


@dataclass(frozen=True)
class Sizes:
    """Of the paper's plan, or of one that a CPU does in seconds."""

    features: int = 32
    patch: Shape = (64, 160, 160)
    batch: int = 8
    scan: Shape = (100, 512, 512)
    scans: int = 16
    phantom: Shape = (96, 320, 320)
    minutes: float = 0.75

    @property
    def scan_mm(self) -> Spacing:
        """Of the CT of `file`: that of 512 x 512 x 100 voxels of 0.8 x 0.8 x 2.5 mm."""
        z, y, x = self.scan
        return (250 / z, 409.6 / y, 409.6 / x)

    @property
    def grid_mm(self) -> Spacing:
        """The plan's, and that of the phantoms: 1 mm in plane there."""
        z, y, x = self.scan_mm
        return (z, 1.25 * y, 1.25 * x)

    @property
    def network(self) -> NetworkPlan:
        return NetworkPlan(
            features=tuple(self.features * 2**level for level in range(5)),
            kernels=((3, 3, 3),) * 5,
            strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        )


SMALL = Sizes(features=2, patch=(16, 32, 32), batch=2, scan=(32, 64, 64), scans=2, phantom=(32, 64, 64), minutes=0.2)
Part = Callable[[Path, Sizes, torch.device], dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=7.0, help="after which no part begins")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--results", type=Path, default=HERE / "results" / "on_a_gpu.json")
    arguments = parser.parse_args()
    device, sizes = torch.device(arguments.device), SMALL if arguments.small else Sizes()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    result: dict[str, Any] = {"device": name, "cores": usable_cores(), "torch": torch.__version__, "left out": []}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.parts:
            if time.perf_counter() - began > 60 * arguments.minutes:
                result["left out"].append(part)
                continue
            started = time.perf_counter()
            try:
                with redirect_stdout(sys.stderr):
                    found = PARTS[part](Path(folder), sizes, device)
            except Exception as error:  # noqa: BLE001 (the other parts are to be measured, too)
                found = {"failed": f"{type(error).__name__}: {error}"}
            result[part] = found | {"took": round(time.perf_counter() - started, 1)}
            print(part, json.dumps(result[part]), flush=True)
            write_json(arguments.results, result)


def _passes(folder: Path, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    network = build_network(sizes.network, channels=1, classes=FLARE22_LABELS.count, seed=0).to(device)
    return {
        f"{layout}, {precision}": _milliseconds_of(network, sizes, layout, precision, device)
        for layout in LAYOUTS
        for precision in PRECISIONS
    }


def _milliseconds_of(
    network: Network, sizes: Sizes, layout: str, precision: str, device: torch.device
) -> dict[str, float]:
    for weights in network.parameters():
        if weights.dim() == 5:
            weights.data = weights.data.contiguous(memory_format=LAYOUTS[layout])
    images = torch.randn((2, 1, *sizes.patch), device=device).contiguous(memory_format=LAYOUTS[layout])
    labels = torch.randint(0, FLARE22_LABELS.count, (2, *sizes.patch), device=device)
    dtype = PRECISIONS[precision]

    def train() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits = network(images)
        functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        network.zero_grad(set_to_none=True)

    def predict() -> None:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            network(images[:1])

    _forget_peak(device)
    network.train()
    trained, peak = _milliseconds(train, device), _peak_gb(device)
    network.eval()
    return {"batch_of_2_ms": round(trained, 2), "peak_gb": peak, "tile_ms": round(_milliseconds(predict, device), 2)}


def _compiled(folder: Path, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """What a run of an hour tries. On a CPU, where this is only to run, by the tracer alone."""
    found, repeats = {}, 50 if device.type == "cuda" else 1
    for features in SMALL_NETWORKS:
        plan = NetworkPlan(
            features=tuple(features * 2**level for level in range(4)),
            kernels=((3, 3, 3),) * 4,
            strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        )
        network = in_channels_last(build_network(plan, channels=1, classes=3, seed=0).to(device))
        images = torch.randn((2, 1, *SMALL_PATCH), device=device).contiguous(memory_format=torch.channels_last_3d)
        labels = torch.randint(0, 3, (2, *SMALL_PATCH), device=device)
        forward = compiled_passes(network, "" if device.type == "cuda" else "aot_eager")
        train = partial(_there_and_back, network, images, labels)
        eager = _milliseconds(partial(train, network), device, repeats)
        began = time.perf_counter()
        train(forward)
        _wait(device)
        made = time.perf_counter() - began
        compiled = _milliseconds(partial(train, forward), device, repeats)
        found[f"{features} features"] = {
            "eager_ms": round(eager, 2),
            "compiled_ms": round(compiled, 2),
            "made_s": round(made, 1),
        }
    return found


def _there_and_back(
    network: Network,
    images: torch.Tensor,
    labels: torch.Tensor,
    forward: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    with torch.autocast(images.device.type, torch.bfloat16):
        logits = forward(images)
    functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
    network.zero_grad(set_to_none=True)


def _feedback(folder: Path, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    given = argparse.Namespace(
        features=sizes.features, levels=5, patch=sizes.patch, precision="bfloat16", batch=2, device=device
    )
    methods = {
        "supervised": SupervisedSettings(),
        "dense": MplSettings(teacher_every=1),
        "dense, every 4th step": MplSettings(),
        "scalar": MplSettings(feedback="scalar", teacher_every=1),
    }
    runners = {name: training_speed.runner(given, settings, 2, device) for name, settings in methods.items()}
    times: dict[str, list[float]] = {name: [] for name in runners}
    for step in range(12):
        for name, run in runners.items():
            took = run(step)[1]
            if step >= 4:
                times[name].append(took)
    base = statistics.fmean(times["supervised"])
    return {
        name: {"seconds": round(statistics.fmean(one), 4), "supervised steps": round(statistics.fmean(one) / base, 2)}
        for name, one in times.items()
    }


def _train(folder: Path, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Scans are read patch by patch, as if there were too many to be kept in memory."""
    data = folder / "data"
    for number in range(7):
        part, labels = (("imagesTr", "labelsTr"), ("imagesUn", None), ("imagesTs", "labelsTs"))[number // 3]
        _write_phantom(data, part, labels, f"case{number}", sizes.phantom, sizes.grid_mm, number)
    names = {name: value for value, name in FLARE22_LABELS.names.items()}
    write_json(
        data / "dataset.json",
        {"channel_names": {"0": "CT"}, "labels": names, "numTraining": 3, "file_ending": ".nii.gz"},
    )
    found = {}
    for name, method in (("supervised", SupervisedSettings()), ("mpl", MplSettings())):
        settings = RunSettings(
            data=DataSettings(root=str(data)),
            plan=PlanSettings(
                device="cuda",
                spacing_mm=sizes.grid_mm,
                patch=sizes.patch,
                batch=sizes.batch,
                base_features=sizes.features,
            ),
            sampling=SamplingSettings(cache_gb=0.0),
            method=method,
            train=TrainSettings(minutes=sizes.minutes, device=str(device), log_every=5, validation_every=0),
        )
        run = folder / name
        prepare_run.prepare(run, settings, quiet=True)
        _forget_peak(device)
        train_run.train(run, quiet=True)
        found[name] = _pace(run) | {"peak_gb": _peak_gb(device)}
    return found


def _pace(run: Path) -> dict[str, Any]:
    """By the rows of the second half. pause: what is beyond the median time of a step: checkpoints, and whatever else
    happens now and then."""
    rows = read_metrics(run)
    rows = rows[min(len(rows) // 2, len(rows) - 2) :]
    steps, seconds = rows[-1]["step"] - rows[0]["step"], rows[-1]["seconds"] - rows[0]["seconds"]
    each = statistics.median((b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairwise(rows))
    return {
        "steps_a_second": round(steps / seconds, 3),
        "waiting": round(statistics.fmean(row["input_share"] for row in rows[1:]), 4),
        "pause": round(max(0.0, 1 - each * steps / seconds), 4),
        "steps": rows[-1]["step"],
    }


def _file(folder: Path, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    scan = _write_phantom(folder, "scan", None, "scan", sizes.scan, sizes.scan_mm, 9)
    found: dict[str, Any] = {}
    for precision in PRECISIONS:
        times, peak = [], 0.0
        try:
            for repeat in range(4):
                _forget_peak(device)
                began = time.perf_counter()
                _predict(folder, scan, f"file {precision} {repeat}", device, precision)
                times.append(round(time.perf_counter() - began, 3))
                peak = max(peak, _peak_gb(device))
        except ConfigError as error:  # bfloat16 is not as good: that is a result, too
            found[precision] = {"refused": str(error)}
            continue
        found[precision] = {"first": times[0], "warm": statistics.median(times[1:]), "peak_gb": peak}
    return found


def _folder(folder: Path, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    scan, scans = folder / "scan" / "scan_0000.nii.gz", folder / "scans"
    scans.mkdir()
    for number in range(sizes.scans):
        os.link(scan, scans / f"scan{number:02}_0000.nii.gz")
    _forget_peak(device)
    began = time.perf_counter()
    _predict(folder, scans, "many", device, "float32")
    seconds = time.perf_counter() - began
    return {"seconds": round(seconds, 2), "a scan": round(seconds / sizes.scans, 3), "peak_gb": _peak_gb(device)}


def _same(folder: Path, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    scan = next((folder / "data" / "imagesTs").glob("*.nii.gz"))
    cpu = _predict(folder, scan, "on the cpu", torch.device("cpu"), "float32")
    reference, _ = read_label(cpu)
    found: dict[str, Any] = {}
    for precision in PRECISIONS:
        try:
            labels, _ = read_label(_predict(folder, scan, f"same {precision}", device, precision))
        except ConfigError as error:
            found[precision] = {"refused": str(error)}
            continue
        dice = class_dice(reference, labels)
        found[precision] = {"smallest": min(dice.values(), default=None), "dice": dice}
    return found


PARTS: dict[str, Part] = {
    "passes": _passes,
    "compiled": _compiled,
    "feedback": _feedback,
    "train": _train,
    "file": _file,
    "folder": _folder,
    "same": _same,
}


def _predict(folder: Path, scans: Path, output: str, device: torch.device, precision: str) -> Path:
    """The last label map. Without mirroring, which would only multiply the work of the GPU. bfloat16 is checked first,
    as always."""
    settings = PredictSettings(
        device=str(device), engine="torch", precision=_PRECISION[precision], mirror=False, postprocess=False
    )
    outcomes = predict_run.predict(folder / "supervised", [scans], folder / output, settings=settings, quiet=True)
    if errors := [one.error for one in outcomes if one.error]:
        raise RuntimeError(errors[0])
    return Path(str(outcomes[-1].output))


_PRECISION: dict[str, Literal["float32", "bfloat16"]] = {"float32": "float32", "bfloat16": "bfloat16"}


def _write_phantom(
    folder: Path, part: str, labels: str | None, case: str, shape: Shape, spacing_mm: Spacing, seed: int
) -> Path:
    """A CT whose voxels are drawn on a grid twice as coarse, four times in plane: a phantom of this size takes minutes
    otherwise."""
    repeats = (2, 4, 4)
    coarse = triple(n // r for n, r in zip(shape, repeats, strict=True))
    image, label = phantom_case(
        Draw(seed=seed), shape_zyx=coarse, spacing_mm=triple(mm * r for mm, r in zip(spacing_mm, repeats, strict=True))
    )
    file = folder / part / f"{case}_0000.nii.gz"
    _write(file, image.astype(np.int16), repeats, spacing_mm)
    if labels is not None:
        _write(folder / labels / f"{case}.nii.gz", label, repeats, spacing_mm)
    return file


def _write(file: Path, array: AnyArray, repeats: Shape, spacing_mm: Spacing) -> None:
    for axis, count in enumerate(repeats):
        array = np.repeat(array, count, axis)
    file.parent.mkdir(parents=True, exist_ok=True)
    image_type: Any = nib.Nifti1Image  # has no type annotations
    nib.save(image_type(array.transpose(2, 1, 0), np.diag([*spacing_mm[::-1], 1.0])), file)


def _milliseconds(work: Callable[[], None], device: torch.device, repeats: int = 5) -> float:
    """Mean, after two to warm up."""
    for _ in range(2):
        work()
    _wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    _wait(device)
    return (time.perf_counter() - began) / repeats * 1e3


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gb(device: torch.device) -> float:
    return round(torch.cuda.max_memory_reserved(device) / 1e9, 3) if device.type == "cuda" else 0.0


if __name__ == "__main__":
    main()
