"""From what was asked to what this machine makes of it: device, threads, precision, and a plan that fits the time."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from semiseg.console import bar
from semiseg.data.anatomy import measured_anatomy
from semiseg.data.fingerprint import Fingerprint, compute_fingerprint
from semiseg.data.plan import Plan
from semiseg.data.planner import GPU_SHARE, Device, PlanSettings, Ranks, make_plan, median_shape
from semiseg.data.roles import WITH_LABELS, Role, RunCase, of_role
from semiseg.data.round_trip import grid_ceilings
from semiseg.data.sizing import candidate_grids, features_to_try, timed_plan
from semiseg.errors import ConfigError
from semiseg.io.dataset import Case, Dataset, LabelScheme
from semiseg.processes import asked_ranks, processor_name, ranks_here, usable_cores, workers
from semiseg.settings import RunSettings
from semiseg.training.settled import PlanSize, Settled, read_settled, write_settled
from semiseg.words import counted, in_minutes

if TYPE_CHECKING:
    import torch

LEARNT_FROM: tuple[Role, ...] = (*WITH_LABELS, "unlabelled", "validation")
_PREPARED_VOXEL_SECONDS = 3e-7
"""Of a voxel of a scan and of one on the plan's grid, by one core: reading, normalising, resampling and storing."""
_EVALUATED_VOXEL_SECONDS = 3e-8
"""Of a voxel of a scan for each organ, by one core: reading both label maps and measuring distances."""
_TILES_OVERLAP = 3.0


def made_plan(
    run: Path, dataset: Dataset, cases: Sequence[RunCase], settings: RunSettings, *, quiet: bool
) -> tuple[Plan, Fingerprint]:
    """The plan of a run, and the fingerprint that it is made from."""
    training = [case.case() for case in of_role(cases, *LEARNT_FROM)]
    with bar("fingerprint", quiet) as advance:
        fingerprint = compute_fingerprint(
            dataset, training, workers=workers(), seed=settings.train.seed, progress=advance
        )
    from semiseg.models.build import refuse_unknown_kind

    refuse_unknown_kind(settings.plan.network)
    if settings.train.weights:
        return _plan_of(settings.train.weights, dataset), fingerprint
    # Labels of some slices alone would show organs where they are not.
    whole = [case.case() for case in of_role(cases, *LEARNT_FROM) if case.role != "corrected"]
    anatomy = measured_anatomy(dataset.labels, [case.label for case in whole if case.label])
    from semiseg.training.session import torch_as_it_was

    with torch_as_it_was():
        plan = _sized_plan(run, fingerprint, anatomy.labels, whole, settings, quiet=quiet)
    reasons = (*plan.reasons, *anatomy.reasons)
    return replace(
        plan, mirror_axes=anatomy.mirror_axes, turn_degrees=anatomy.turn_degrees, reasons=reasons
    ), fingerprint


def _plan_of(folder: str, dataset: Dataset) -> Plan:
    """The plan of a model that training starts from; raises `ConfigError` where it knows other labels or channels."""
    from semiseg.prediction.model import load_model

    model = load_model(folder)
    for what, its, ours in (
        ("labels", model.plan.labels.names, dataset.labels.names),
        ("channels", model.plan.channels, dataset.channels),
    ):
        if its != ours:
            raise ConfigError(
                f"train.weights = {folder}: has the {what} {its}, but {dataset.root} has {ours}. Name a model of these."
            )
    labels = replace(model.plan.labels, ignore=dataset.labels.ignore, unknown=dataset.labels.unknown)
    sizes = replace(model.plan, labels=labels, teacher=model.sizes, student=model.sizes, dataset=dataset.name)
    reason = "Everything is that of the model whose weights training starts from (train.weights)."
    return replace(sizes, reasons=(reason,))


def what_comes(run: Path, plan: Plan, fingerprint: Fingerprint, cases: Sequence[RunCase], settings: RunSettings) -> str:
    """What a run is going to do, and about how long each part takes."""
    prepared, tests = of_role(cases, *LEARNT_FROM), of_role(cases, "test")
    sizes = [prod(case.shape_zyx) for case in fingerprint.cases]
    own, on_grid = sum(sizes) / max(1, len(sizes)), prod(median_shape(fingerprint, plan.spacing_mm))
    seconds = len(prepared) * (own + on_grid) * _PREPARED_VOXEL_SECONDS / workers()
    size = read_settled(run).plan
    parts = [f"prepare {counted(len(prepared), 'scan')} ({_about(seconds)})"]
    length = in_minutes(settings.train.minutes)
    if settings.train.steps is not None:
        length = counted(settings.train.steps, "step")
    folds = settings.data.folds if settings.data.fold is None else 0
    parts.append(f"train {counted(folds, 'network')}, {length} each" if folds else f"train {length}")
    if tests:
        # A pass without gradients is a third of a training step, tiles overlap, and each is seen mirrored, too.
        views = 2 ** len(_mirrored(plan, settings))
        cost = size.voxel_seconds * on_grid * _TILES_OVERLAP * views / 3 if size and size.voxel_seconds else None
        took = f" ({_about(cost * len(tests))})" if cost is not None else ""
        parts.append(f"predict {counted(len(tests), 'test case')}{took}")
        if any(case.label for case in tests):
            seconds = len(tests) * own * len(plan.labels.organs) * _EVALUATED_VOXEL_SECONDS / workers()
            parts.append(f"evaluate ({_about(seconds)})")
    return "Now: " + ", ".join(parts) + "."


def _mirrored(plan: Plan, settings: RunSettings) -> tuple[int, ...]:
    """The axes along which prediction mirrors: those of training."""
    if not (settings.predict.mirror and settings.augment.enabled):
        return ()
    return plan.mirror_axes if settings.augment.mirror_axes is None else settings.augment.mirror_axes


def lacking_space(run: Path, plan: Plan, fingerprint: Fingerprint, cases: Sequence[RunCase]) -> str:
    """A sentence where the prepared scans, which are compressed, might not fit on the run's disk."""
    voxels = prod(median_shape(fingerprint, plan.spacing_mm)) * len(of_role(cases, *LEARNT_FROM))
    needed, free = voxels * (4 * len(plan.channels) + 1) / 1e9, shutil.disk_usage(run).free / 1e9
    if needed < free:
        return ""
    return (
        f"Note: prepared scans take up to {needed:.1f} GB, before compression, and {free:.1f} GB are free in {run}. If "
        "they do not fit, make room and give the same command again."
    )


def _about(seconds: float) -> str:
    return "under a minute" if seconds < 45 else f"about {counted(max(1, round(seconds / 60)), 'minute')}"


def _sized_plan(
    run: Path,
    fingerprint: Fingerprint,
    labels: LabelScheme,
    training: Sequence[Case],
    settings: RunSettings,
    *,
    quiet: bool,
) -> Plan:
    """The plan for the minutes that were asked for, on this machine; or as large as `settled.toml` says already."""
    from semiseg.prediction.device import gpu_bytes
    from semiseg.training.precision import autocast_dtype
    from semiseg.training.trial import TRIAL_SHARE, TRIED_LEVELS, voxel_seconds

    settled, device = settle_machine(run, settings)
    kind: Device = "cuda" if device.type == "cuda" else "mps" if device.type == "mps" else "cpu"
    asked = settings.plan if settings.plan.device != "auto" else replace(settings.plan, device=kind)
    if asked.memory_budget_gb is None and (total := gpu_bytes(str(device))):
        asked = replace(asked, memory_budget_gb=round(GPU_SHARE * total / 1e9, 1))
    ranks = Ranks(asked_ranks(), ranks_here() if kind == "cpu" else 1)
    if settled.plan:
        size = settled.plan
        told = replace(
            asked, spacing_mm=size.spacing_mm, patch=size.patch, base_features=size.base_features, batch=size.batch
        )
        return replace(make_plan(fingerprint, labels, told, ranks=ranks), reasons=size.reasons)
    if settings.train.steps is not None:
        return make_plan(fingerprint, labels, asked, ranks=ranks)
    grids = candidate_grids(fingerprint, asked)
    with bar("what coarser grids keep of the labels", quiet) as advance:
        kept = grid_ceilings(
            [case.label for case in training if case.label], grids, labels, workers=workers(), progress=advance
        )
    if not quiet:
        print("Times training steps of a few networks on this machine.")
    costs = voxel_seconds(
        make_plan(fingerprint, labels, replace(asked, max_levels=min(asked.max_levels, TRIED_LEVELS)), ranks=ranks),
        features_to_try(asked),
        device,
        autocast_dtype(settled.precision or "float32"),
        most_features=asked.most_features,
        most_seconds=TRIAL_SHARE * 60 * settings.train.minutes,
    )
    plan = timed_plan(fingerprint, labels, asked, kept, costs, seconds=60 * settings.train.minutes, ranks=ranks)
    size = PlanSize(
        spacing_mm=plan.spacing_mm,
        patch=plan.patch,
        base_features=plan.teacher.features[0],
        batch=plan.batch,
        voxel_seconds=costs.get(plan.teacher.features[0]),
        reasons=plan.reasons,
    )
    write_settled(run, replace(settled, plan=size))
    return plan


def for_ranks(plan: Plan, asked: PlanSettings, ranks: int) -> Plan:
    """The plan with a batch that so many ranks can share, the next larger one, where none was asked for."""
    if asked.batch is not None or plan.batch % ranks == 0:
        return plan
    batch = ranks * (plan.batch // ranks + 1)
    return replace(plan, batch=batch, reasons=(*plan.reasons, f"Batches have {batch} patches, for {ranks} ranks."))


def settle_machine(run: Path, settings: RunSettings) -> tuple[Settled, torch.device]:
    """Device, threads and precision as asked, or as trials of this machine show them to be best; kept in
    `settled.toml`, so that a run goes on as it began. With many ranks the first tries; each gets a GPU, or its share of
    the cores."""
    from semiseg.prediction.device import choose_device
    from semiseg.training.session import set_up_torch
    from semiseg.world import first_alone, own_device

    settled = first_alone(lambda: _settled_here(run, settings))
    device = own_device(choose_device(settled.device or "auto"))
    set_up_torch(settled.threads or usable_cores(), deterministic=settings.train.deterministic)
    return settled, device


def _settled_here(run: Path, settings: RunSettings) -> Settled:
    import torch

    from semiseg.prediction.device import choose_device
    from semiseg.training.precision import choose_precision
    from semiseg.training.session import set_up_torch
    from semiseg.training.trial import fastest_threads

    train, settled = settings.train, read_settled(run)
    begun = bool(settled.timeline) or (run / "checkpoints").exists()
    device = choose_device(train.device)
    if train.device == "auto" and begun and settled.device:
        with suppress(ConfigError):  # a GPU that it began on may be missing here: it goes on with what there is
            device = choose_device(settled.device)
    if settled.device and not settled.device.startswith(device.type):  # prepared on another machine
        settled = replace(settled, threads=None, precision=None)
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    if (settled.processor, settled.torch) != (processor, str(torch.__version__)):
        settled = replace(settled, compiled=None)  # what another machine or another torch compiled may fail here
    cores = max(1, usable_cores() // ranks_here())
    threads = train.threads or settled.threads or (fastest_threads(cores) if device.type == "cpu" else cores)
    if ranks_here() > 1:
        threads = min(threads, cores)
    set_up_torch(threads, deterministic=train.deterministic)
    precision = settled.precision if train.precision == "auto" else None
    settled = replace(
        settled,
        device=device.type if settings.train.device == "auto" else settings.train.device,
        processor=processor,
        threads=threads,
        precision=precision or choose_precision(train.precision, device),
        torch=str(torch.__version__),
    )
    write_settled(run, settled)
    return settled
