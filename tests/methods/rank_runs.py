"""What a rank of `test_ranks.py` does: each method on its part of the same batches. Runs alone, too."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import CLASSES, tiny_unet
from torch import Tensor, distributed

from plans import PLAN
from semiseg.data.plan import write_plan
from semiseg.errors import ConfigError, TrainingError
from semiseg.files import write_json, write_jsonl
from semiseg.io.store import StoredCase, write_case
from semiseg.methods import mpl
from semiseg.methods.base import HIDDEN, Batch, UnlabelledBatch
from semiseg.methods.copy_paste import CopyPaste
from semiseg.methods.cross_pseudo import CrossPseudo
from semiseg.methods.feedback import dense_feedback
from semiseg.methods.learner import StudentMethod
from semiseg.methods.masked import Masked
from semiseg.methods.mean_teacher import MeanTeacher
from semiseg.methods.mpl import MetaPseudoLabels
from semiseg.methods.phases import Phases
from semiseg.methods.pseudo_label import PseudoLabel
from semiseg.methods.pseudo_rounds import PseudoRounds
from semiseg.methods.settings import OptimiserSettings, method_settings
from semiseg.methods.supervised import Supervised
from semiseg.prediction.engines.torch_engine import TorchEngine
from semiseg.randomness import Draw
from semiseg.settings import RunSettings, write_settings
from semiseg.train_run import lengthened, together
from semiseg.training.checkpoint import Checkpoint
from semiseg.training.loop import _check_equal_state
from semiseg.training.settings import TrainSettings
from semiseg.training.validate import validate
from semiseg.world import first_sample, rank, size, total

STEPS = 6
"""Two of warm-up, four of training."""
PATCH = (4, 4, 4)
IGNORE = 7
SEEDS = {"student": 1, "partner": 2, "teacher": 3}
KINDS: dict[str, tuple[type[StudentMethod[Any]], dict[str, object]]] = {
    "supervised": (Supervised, {}),
    "pseudo_rounds": (PseudoRounds, {"rounds": 2}),
    "masked": (Masked, {}),
    "pseudo_label": (PseudoLabel, {}),
    "pseudo_label of patches": (PseudoLabel, {"label_scope": "patch"}),
    "mpl": (MetaPseudoLabels, {"teacher_every": 2}),
    "mpl scalar": (MetaPseudoLabels, {"feedback": "scalar", "teacher_every": 1}),
    "mpl forward": (MetaPseudoLabels, {"teacher_every": 2}),
    "mean_teacher": (MeanTeacher, {"uncertainty_passes": 2}),
    "cross_pseudo": (CrossPseudo, {}),
    "copy_paste": (CopyPaste, {}),
}
VARIANTS = [(4, None, "float64"), (2, IGNORE, "float64"), (4, None, "float32")]
"""Patches of all ranks, a label to ignore, and the precision. With two patches a rank has one."""


def whole_batch(step: int, batch: int, dtype: torch.dtype) -> tuple[Batch, UnlabelledBatch]:
    """The patches of a step; some voxels are to be ignored."""
    generator = torch.Generator().manual_seed(step)
    images, weak, noise = torch.randn((3, batch, 1, *PATCH), generator=generator, dtype=torch.float64).to(dtype)
    labels, given = torch.randint(0, CLASSES, (2, batch, *PATCH), generator=generator)
    labels[:, 0, 0] = IGNORE
    given[:, 1, 1] = HIDDEN
    return Batch(images, labels), UnlabelledBatch(weak, weak + 0.3 * noise, given)


def trained(kind: str, batch: int, ignore: int | None, precision: str) -> dict[str, Tensor]:
    """All tensors of a method after `STEPS` steps, and the losses of the first."""
    dtype: torch.dtype = getattr(torch, precision)
    cls, given = KINDS[kind]
    mpl.dense_feedback = partial(dense_feedback, derivative="forward" if kind == "mpl forward" else "central")
    settings = method_settings(kind.split()[0], optimiser=OptimiserSettings(learning_rate=0.01), **given)
    networks = {name: tiny_unet(SEEDS[name], dtype) for name in cls.learner_names}
    phases = replace(Phases.of_steps(2, STEPS, STEPS), pretrain=2 / STEPS if kind == "masked" else 0.0)
    method = cls(networks, settings, phases, ignore=ignore)
    share = batch // size()
    own = slice(first_sample(share), first_sample(share) + share)
    first: dict[str, Tensor] = {}
    for step in range(STEPS):
        labelled, unlabelled = whole_batch(step, batch, dtype)
        if ignore is None:
            labelled = Batch(labelled.images, labelled.labels.clamp_max(CLASSES - 1))
        part = Batch(labelled.images[own], labelled.labels[own])
        views = UnlabelledBatch(
            unlabelled.weak[own],
            unlabelled.strong[own],
            unlabelled.labels[own] if unlabelled.labels is not None and method.scan_labellers(step) else None,
        )
        if kind == "pseudo_label" and views.labels is not None:
            views = UnlabelledBatch(views.weak, views.strong, views.labels.clamp_min(0))
        draw = Draw(seed=4, step=step, sample=own.start)
        metrics = method.step(part, views if method.needs_unlabelled(step) else None, draw)
        if step == 0:
            first = {f"first/{name}": value.double() for name, value in metrics.items() if name.endswith("loss")}
    return method.state()[0] | first


def results() -> dict[str, dict[str, Tensor]]:
    """Of each kind in each variant."""
    return {
        f"{kind}, {batch}, {ignore}, {dtype}": trained(kind, batch, ignore, dtype)
        for kind in KINDS
        for batch, ignore, dtype in VARIANTS
    }


def store_cases(folder: Path) -> None:
    """Three labelled cases to validate on: an odd number for two ranks."""
    for number in range(3):
        generator = np.random.default_rng(number)
        shape = (8, 8, 8 + 2 * number)
        meta = StoredCase(
            id=f"case{number}",
            shape_zyx=shape,
            spacing_mm=PLAN.spacing_mm,
            source_shape_zyx=shape,
            source_spacing_mm=PLAN.spacing_mm,
            hash="",
            labelled=True,
            channels=1,
            channel_quantiles=((),),
            class_voxels={},
            class_locations={},
            body_locations=(),
        )
        image, label = generator.normal(size=(1, *shape)).astype(np.float32), generator.integers(0, CLASSES, shape)
        write_case(folder / meta.id, image=image, label=label.astype(np.uint8), meta=meta)


def validated(folder: Path) -> dict[str, Tensor]:
    """What validation says of the stored cases, of which each rank has some."""
    engine = TorchEngine(tiny_unet(1, torch.float32).eval(), torch.device("cpu"))
    found = validate([folder / f"case{number}" for number in range(3)], engine, PLAN, torch.device("cpu"))
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}


def refusals() -> dict[str, str]:
    """What each rank says where they are started for different runs, or with different settings, and of weights."""
    rates = [OptimiserSettings(learning_rate=rate) for rate in (0.1, 0.2)]
    settings = [RunSettings(method=method_settings("supervised", optimiser=one)) for one in rates]
    asked = {
        "one run": (Path("one"), settings[0]),
        "two runs": (Path(("one", "two")[rank()]), settings[0]),
        "two settings": (Path("one"), settings[rank()]),
    }
    said = {}
    for name, (run, of_rank) in asked.items():
        try:
            with together(run, of_rank):
                said[name] = ""
        except ConfigError as error:
            said[name] = str(error)
    weights = {
        "equal": torch.tensor([2.0, 1.0]),
        "of one sum": torch.tensor(([2.0, 1.0], [1.0, -2.0])[rank()]),
        "not finite": torch.tensor([1.0, math.nan]),
    }
    for name, value in weights.items():
        try:
            _check_equal_state(Checkpoint(40, {"w": value, "half": value.bfloat16()}, {}, {}, {}), Path("checkpoints"))
            said[name] = ""
        except TrainingError as error:
            said[name] = str(error)
    return said


def ended_run(folder: Path) -> Path:
    """What is looked at of a run that made the steps that it was asked for."""
    (folder / "model").mkdir(parents=True)
    write_settings(folder / "run.toml", RunSettings(train=TrainSettings(steps=STEPS)))
    write_plan(folder / "plan.toml", PLAN)
    write_jsonl(folder / "metrics.jsonl", [{"step": STEPS, "seconds": 1.0}])
    return folder


def failure(run: Path) -> dict[str, str | bool]:
    """How a rank ends, and whether it is still joined, where a run is trained on and the second fails in a step."""
    kind = ""
    try:
        with lengthened(run, 2) as settings, together(run, settings):
            total(torch.ones(()))
            if rank() == 1:
                raise TrainingError("the second failed")
            total(torch.ones(()))
    except (TrainingError, RuntimeError) as error:
        kind = type(error).__name__
    return {"kind": kind, "joined": distributed.is_initialized()}


def as_rank(number: int, count: int, folder: str, port: int) -> None:
    """One of `count` processes; leaves `folder/RANK.pt` and `folder/RANK.json`. port: of the store by which they meet,
    as by that of torchrun."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=count, timeout=timedelta(seconds=60)
    )
    torch.save(results() | {"validation": validated(Path(folder))}, Path(folder) / f"{number}.pt")
    refused = refusals()
    distributed.destroy_process_group()
    os.environ |= {"MASTER_PORT": str(port), "SEMISEG_PATIENCE_SECONDS": "60"}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    write_json(Path(folder) / f"{number}.json", {"refused": refused, "failed": failure(Path(folder) / "run")})
