"""What a step of each method costs, by supervised steps, and how long steps wait for augmentation.

    python benchmarks/training_speed.py [--features 16] [--patch 32 48 32] [--batch 2] [--device cpu]
        [--precision float32]    # on a GPU the paper's network: --device cuda --precision bfloat16 --features 32
                                 #     --levels 5 --patch 64 160 160

Steps of all methods are taken alternately in one process, so that a noisy machine slows them alike; means are printed
and written to `benchmarks/results/training_speed_batchN.json` (`..._bfloat16.json` in bfloat16, `..._cuda.json` on a
GPU). A pass forward is one unit and a pass backward two: a supervised step is 3, a step of dense feedback in which the
teacher moves is 14 (labelling with a graph 1, the student's pass 3, the teacher's labelled pass 3, the probe's gradient
3, the directional derivative 2, the meta term's way back 2); in forward mode the derivative is 3.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from semiseg.augment.settings import Augmentation
from semiseg.augment.views import labelled_view, unlabelled_views
from semiseg.data.plan import ChannelNormalisation, NetworkPlan, Plan
from semiseg.files import write_json
from semiseg.io.dataset import LabelScheme
from semiseg.methods.base import Batch, UnlabelledBatch
from semiseg.methods.build import build_method
from semiseg.methods.phases import Phases
from semiseg.methods.settings import (
    CopyPasteSettings,
    CrossPseudoSettings,
    MeanTeacherSettings,
    MethodSettings,
    MplSettings,
    PseudoLabelSettings,
    PseudoRoundsSettings,
    SupervisedSettings,
)
from semiseg.processes import processor_name, usable_cores
from semiseg.randomness import Draw
from semiseg.training.precision import autocast_dtype

METHODS: dict[str, MethodSettings] = {
    "supervised": SupervisedSettings(),
    "dense, teacher moves": MplSettings(teacher_every=1),
    "dense, every 4th step": MplSettings(),
    "scalar, teacher moves": MplSettings(feedback="scalar", teacher_every=1),
    "pseudo_label, patches labelled": PseudoLabelSettings(label_scope="patch"),
    "pseudo_label, scans labelled": PseudoLabelSettings(),
    "mean_teacher": MeanTeacherSettings(),
    "cross_pseudo": CrossPseudoSettings(),
    "copy_paste": CopyPasteSettings(),
    "pseudo_rounds": PseudoRoundsSettings(),
}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--patch", type=int, nargs=3, default=(32, 48, 32))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="supervised must be one")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    runners = {name: runner(arguments, METHODS[name], arguments.batch, device) for name in arguments.methods}
    if "dense, teacher moves" in runners:
        half = runner(arguments, METHODS["dense, teacher moves"], arguments.batch // 2, device)
        runners["dense, teacher moves, batch halved"] = half
    times: dict[str, list[float]] = {name: [] for name in runners}
    inputs: dict[str, list[float]] = {name: [] for name in runners}
    for step in range(arguments.steps + 4):
        for name, run in runners.items():
            waited, took = run(step)
            if step >= 4:
                inputs[name].append(waited)
                times[name].append(took)
    base = statistics.fmean(times["supervised"])
    rows = {
        name: {
            "seconds": round(statistics.fmean(found), 4),
            "of a supervised step": round(statistics.fmean(found) / base, 2),
            "augmentation share": round(sum(inputs[name]) / (sum(inputs[name]) + sum(found)), 3),
        }
        for name, found in times.items()
    }
    result: dict[str, Any] = {
        "machine": {"processor": processor_name(), "cores": usable_cores(), "torch": torch.__version__},
        "device": arguments.device,
        "precision": arguments.precision,
        "network": {"features": arguments.features, "levels": arguments.levels},
        "patch": list(arguments.patch),
        "batch": arguments.batch,
        "steps": arguments.steps,
        "methods": rows,
    }
    suffix = "" if arguments.precision == "float32" else f"_{arguments.precision}"
    if device.type == "cuda":
        suffix += "_cuda"
        result["machine"] |= {"gpu": torch.cuda.get_device_name(device)}
    write_json(RESULTS / f"training_speed_batch{arguments.batch}{suffix}.json", result)
    print(json.dumps(result, indent=1))


def runner(
    arguments: argparse.Namespace, settings: MethodSettings, batch: int, device: torch.device
) -> Callable[[int], tuple[float, float]]:
    """Takes a step of the training phase and returns the seconds of augmentation, and of the step."""
    z, y, x = arguments.patch
    plan = _plan(arguments, batch)
    autocast = autocast_dtype(arguments.precision)
    method = build_method(plan, settings, Phases.of_steps(0, 10**6, 10**6), seed=0, device=device, autocast=autocast)
    augment = Augmentation()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((batch, 1, z, y, x), generator=generator).to(device)
    labels = torch.randint(0, 3, (batch, z, y, x), generator=generator).to(device)

    def run(step: int) -> tuple[float, float]:
        draw = Draw(seed=0, step=step)
        began = _now(device)
        labelled = Batch(*labelled_view(images, labels, draw, augment, plan.labels))
        unlabelled = None
        if method.needs_unlabelled(step):
            pseudo = (labels, plan.labels) if method.labelling_steps else None
            unlabelled = UnlabelledBatch(*unlabelled_views(images, draw, augment, pseudo))
        made = _now(device)
        method.step(labelled, unlabelled, draw)
        return made - began, _now(device) - made

    return run


def _plan(arguments: argparse.Namespace, batch: int) -> Plan:
    levels = arguments.levels
    network = NetworkPlan(
        features=tuple(min(512, arguments.features * 2**level) for level in range(levels)),
        kernels=((3, 3, 3),) * levels,
        strides=((1, 1, 1), *((2, 2, 2),) * (levels - 1)),
    )
    return Plan(
        dataset="made up",
        channels=("MRI",),
        labels=LabelScheme(names={0: "background", 1: "a", 2: "b"}),
        spacing_mm=(1.0, 1.0, 1.0),
        anisotropic_axis=None,
        patch=tuple(arguments.patch),
        batch=batch,
        normalisation=(ChannelNormalisation(scheme="zscore"),),
        teacher=network,
        student=network,
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
