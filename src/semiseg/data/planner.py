"""The planner: from a fingerprint and a memory budget to the plan. Rules: docs/decisions/0001 and 0002.

Spacing is nnU-Net's (median; the 10th percentile along a coarse axis). The patch starts at 4 voxels of the coarsest
level and grows, always along the axis of which it covers least of the median scan, until it covers that scan, has as
many voxels as the paper's, or fills the memory with the smallest batch; what memory is left goes into the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod
from typing import Literal

import numpy as np

from semiseg.data.fingerprint import ChannelIntensity, Fingerprint
from semiseg.data.memory import training_gb
from semiseg.data.plan import ChannelNormalisation, NetworkPlan, Plan
from semiseg.errors import ConfigError
from semiseg.geometry import triple
from semiseg.io.dataset import LabelScheme
from semiseg.ops.normalise import SMALLEST_DEVIATION
from semiseg.ops.resample import ANISOTROPY_RATIO, coarse_axis, target_shape
from semiseg.types import Shape, Spacing

Device = Literal["cpu", "cuda", "mps"]

SMALLEST_BOTTLENECK = 4
"""Voxels that an axis keeps at the coarsest level: with fewer, 3-voxel kernels see padding more than image."""
HELD_BACK_RATIO = 3.2
"""An axis whose voxels are so many times as long as the finest is neither pooled nor convolved until it no longer is:
slices that lie so far apart have little to do with each other at the first levels. nnU-Net's factor of 2 would hold
back the paper's 2.5 x 0.8 x 0.8 mm, too, which pools in all axes."""
BATCHES = {"cpu": (2, 2), "cuda": (2, 8), "mps": (2, 8)}
"""Smallest and largest batch: batch norm needs two samples, and 8 is the paper's; a CPU has no time for more."""
MOST_FEATURES, RESIDUAL_FEATURES = 512, 320
"""Of the coarsest levels: the paper's, and nnU-Net's."""
RESIDUAL_BLOCKS = (1, 3, 4, 6)
"""Of the levels of a residual encoder, as in nnU-Net's ResEnc presets; deeper levels have as many as the last."""
FEATURES = {"cpu": 16, "cuda": 32, "mps": 32}
_SMALLEST_BASE = 8
GPU_SHARE = 0.85
"""Of a GPU's memory that is planned with; the rest is for its context, its libraries' workspaces and fragments."""
_BUDGET_GB = {"cpu": 4.0, "cuda": 48.0, "mps": 16.0}
PATCH_VOXELS = {"cpu": 64 * 64 * 80, "cuda": 64 * 160 * 160, "mps": 64 * 160 * 160}
"""Patches grow to at most so many: the paper's, and fewer where there is no GPU."""


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What the planner may be told; it chooses where a value is None, and takes what is given as it is."""

    device: Device | Literal["auto"] = "auto"
    """Where training will run; `semiseg prepare` settles auto by what is there, the planner alone takes cuda: a CPU
    gets fewer features, smaller patches and batches, since time is its limit."""
    memory_budget_gb: float | None = None
    """Memory for training in GB. Not set: 16 on mps and 4 on cpu, and on cuda what `semiseg prepare` finds that the GPU
    has, less a reserve. The planner alone takes 48 there, where the paper's plan fits."""
    spacing_mm: Spacing | None = None
    """Target spacing (Z, Y, X) in mm. Not set: chosen for the minutes; by nnU-Net's rule where steps are given."""
    patch: Shape | None = None
    """Patch (Z, Y, X) in voxels of the target spacing. Not set: chosen for the minutes, and grown from the data where
    steps are given."""
    batch: int | None = None
    """Samples in a batch. Not set: what fits, from 2 to the paper's 8, and 2 on cpu."""
    base_features: int | None = None
    """Features of the teacher's finest level. Not set: 8, 16 or 32 by the minutes. Where steps are given it is
    the paper's 32 (16 on cpu), fewer where memory is short."""
    student_base_features: int | None = None
    """Features of the finest level of the student, the network that is shipped. Not set: the teacher's number."""
    network: str = "unet"
    """unet: the paper's. residual_encoder: nnU-Net's ResEnc presets. Or the name of one that was added."""
    max_features: int | None = None
    """No level has more features than this. Not set: the paper's 512, and nnU-Net's 320 for a residual encoder."""
    max_levels: int = 5
    """At most so many levels, the paper's five; small scans get fewer."""

    def __post_init__(self) -> None:
        for name in ("memory_budget_gb", "batch", "base_features", "student_base_features"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"plan.{name} = {value}: must be above 0. Raise it, or remove the key.")
        for name in ("spacing_mm", "patch"):
            values = getattr(self, name)
            if values is not None and not min(values) > 0:
                raise ConfigError(f"plan.{name} = {values}: all three must be above 0. Correct or remove the key.")
        if self.max_features is not None and self.max_features < 1:
            raise ConfigError(f"plan.max_features = {self.max_features}: must be at least 1. Raise it.")
        if self.max_levels < 2:
            raise ConfigError(f"plan.max_levels = {self.max_levels}: a U-Net has at least 2 levels. Raise it.")

    @property
    def most_features(self) -> int:
        """`max_features`, or the network's own."""
        return self.max_features or (RESIDUAL_FEATURES if self.network == "residual_encoder" else MOST_FEATURES)

    @property
    def planned_for(self) -> Device:
        """The device with auto settled."""
        return "cuda" if self.device == "auto" else self.device

    @property
    def budget_gb(self) -> float:
        """The memory budget, by the device where none is given."""
        return self.memory_budget_gb or _BUDGET_GB[self.planned_for]


@dataclass(frozen=True)
class Ranks:
    """How many processes train together, and how many of them share a GPU, or the memory of a machine."""

    count: int = 1
    sharing: int = 1

    def patches(self, batch: int) -> int:
        """Of a batch, what a rank has."""
        return ceil(batch / self.count)


ALONE = Ranks()


def make_plan(
    fingerprint: Fingerprint,
    labels: LabelScheme,
    settings: PlanSettings | None = None,
    *,
    ranks: Ranks = ALONE,
    median: Shape | None = None,
) -> Plan:
    """The plan for a training set; the same fingerprint, labels, settings and ranks always give the same plan.

    median: `median_shape` on the plan's grid where it is known, since making it looks at every case.

    Raises `ConfigError` if no network fits into the memory budget, or if a given patch cannot be pooled.
    """
    settings = settings or PlanSettings()
    spacing = settings.spacing_mm or target_spacing(fingerprint)
    median = median or median_shape(fingerprint, spacing)
    strides, kernels = _levels(settings.patch or median, spacing, settings)
    units = triple(prod(stride[axis] for stride in strides) for axis in range(3))
    limit = triple(ceil(n / unit) * unit for n, unit in zip(median, units, strict=True))
    smallest = triple(min(n, SMALLEST_BOTTLENECK * unit) for n, unit in zip(limit, units, strict=True))
    least_batch, most_batch = (settings.batch, settings.batch) if settings.batch else BATCHES[settings.planned_for]

    def plan(base: int, patch: Shape, batch: int) -> Plan:
        return Plan(
            dataset=fingerprint.dataset,
            channels=fingerprint.channels,
            labels=labels,
            spacing_mm=spacing,
            anisotropic_axis=coarse_axis(spacing),
            patch=patch,
            batch=batch,
            normalisation=tuple(map(_normalisation, fingerprint.channels, fingerprint.intensities)),
            teacher=_network(base, strides, kernels, settings),
            student=_network(settings.student_base_features or base, strides, kernels, settings),
        )

    def fits(candidate: Plan) -> bool:
        return estimated_gb(candidate, settings.planned_for, ranks) <= settings.budget_gb

    base = settings.base_features or _affordable_base(
        lambda base: plan(base, settings.patch or smallest, least_batch), fits, settings, ranks
    )
    most_voxels = PATCH_VOXELS[settings.planned_for]
    patch = settings.patch or _grow(
        smallest,
        limit,
        units,
        median,
        lambda patch: prod(patch) <= most_voxels and fits(plan(base, patch, least_batch)),
    )
    batches = range(most_batch, least_batch, -1)
    return plan(base, patch, next((n for n in batches if fits(plan(base, patch, n))), least_batch))


def estimated_gb(plan: Plan, device: Device, ranks: Ranks = ALONE) -> float:
    """The memory in GB that training is expected to take of a GPU, or of a machine: teacher and student with one batch
    each, or a rank's part of it.

    On cuda the teacher's feature maps are in mixed precision. The student's are in float32 everywhere: while the
    teacher's wait for its gradient, feedback is measured on the student in float32.
    """
    return ranks.sharing * sum(
        training_gb(
            network,
            patch=plan.patch,
            batch=ranks.patches(plan.batch),
            channels=len(plan.channels),
            classes=plan.labels.count,
            activation_bytes=activation_bytes,
        )
        for network, activation_bytes in ((plan.teacher, 2 if device == "cuda" else 4), (plan.student, 4))
    )


def target_spacing(fingerprint: Fingerprint) -> Spacing:
    """nnU-Net's rule: the median spacing of each axis, in mm.

    If the coarsest axis is more than 3 times as coarse as the others and has less than a third of their
    voxels, it takes the 10th percentile of its spacings instead, but never less than the others have.
    """
    spacings = np.array([case.spacing_mm for case in fingerprint.cases])
    target = np.median(spacings, axis=0)
    size = np.median([case.shape_zyx for case in fingerprint.cases], axis=0)
    worst = int(target.argmax())
    others = [axis for axis in range(3) if axis != worst]
    finer = float(target[others].max())
    if target[worst] > ANISOTROPY_RATIO * finer and size[worst] * ANISOTROPY_RATIO < size[others].min():
        target[worst] = max(float(np.percentile(spacings[:, worst], 10)), finer)
    return triple(map(float, target))


def median_shape(fingerprint: Fingerprint, spacing_mm: Spacing) -> Shape:
    """The median over the training cases of their shapes at `spacing_mm`, rounded up."""
    shapes = [target_shape(case.shape_zyx, case.spacing_mm, spacing_mm) for case in fingerprint.cases]
    return triple(ceil(n) for n in np.median(shapes, axis=0))


def _levels(median: Shape, spacing_mm: Spacing, settings: PlanSettings) -> tuple[tuple[Shape, ...], tuple[Shape, ...]]:
    """Strides and kernels of each level for scans of shape `median`, or for the patch that the settings give.

    A level is added while at least two axes have room for it. An axis that would fall under 4 voxels is left alone; one
    that is more than 3.2 times as coarse as the finest is held back, and convolved with kernel 1 until it no longer is.
    """
    shape, given = settings.patch or median, settings.patch is not None
    units, current, kernel = (1, 1, 1), spacing_mm, (1, 1, 1)
    strides: list[Shape] = [(1, 1, 1)]
    kernels: list[Shape] = []
    while True:
        bound = HELD_BACK_RATIO * min(current)
        kernel = triple(3 if k == 3 or s <= bound else 1 for k, s in zip(kernel, current, strict=True))
        kernels.append(kernel)
        room = [_can_pool(n, unit, given) for n, unit in zip(shape, units, strict=True)]
        bound = HELD_BACK_RATIO * min((s for s, free in zip(current, room, strict=True) if free), default=0.0)
        stride = triple(2 if free and s <= bound else 1 for free, s in zip(room, current, strict=True))
        if len(kernels) == settings.max_levels or sum(room) < 2:
            break
        strides.append(stride)
        units = triple(a * b for a, b in zip(units, stride, strict=True))
        current = triple(a * b for a, b in zip(current, stride, strict=True))
    if len(strides) == 1:
        source = f"plan.patch = {shape}" if given else f"the median scan of {shape} voxels at {spacing_mm} mm"
        raise ConfigError(
            f"{source} cannot be pooled: two axes need 7 voxels or more (in a patch: 8, and even). "
            "Give plan.patch or plan.spacing_mm other values."
        )
    return tuple(strides), tuple(kernels)


def _can_pool(size: int, unit: int, given: bool) -> bool:
    """Whether an axis that is already pooled by `unit` keeps 4 voxels after one more pooling by 2.

    A patch that is given must be divisible; a grown one is rounded up to what is.
    """
    if given and size % (2 * unit):
        return False
    return ceil(size / (2 * unit)) >= SMALLEST_BOTTLENECK


def _affordable_base(
    plan: Callable[[int], Plan], fits: Callable[[Plan], bool], settings: PlanSettings, ranks: Ranks
) -> int:
    """The device's usual number of features, halved until the smallest patch fits into the memory."""
    base = FEATURES[settings.planned_for]
    while not fits(plan(base)):
        if base <= _SMALLEST_BASE:
            raise ConfigError(
                f"plan.memory_budget_gb = {settings.budget_gb:g}: even {base} features and a patch of "
                f"{plan(base).patch} need {estimated_gb(plan(base), settings.planned_for, ranks):.2g} GB. Raise it, or "
                "lower plan.max_levels or plan.patch."
            )
        base //= 2
    return base


def _grow(smallest: Shape, limit: Shape, units: Shape, median: Shape, fits: Callable[[Shape], bool]) -> Shape:
    """`smallest` grown by `units` along the axis of which it covers least of the `median` scan, while it `fits` and is
    within `limit`."""
    patch, growing = smallest, {0, 1, 2}
    while growing:
        axis = min(growing, key=lambda a: (patch[a] / median[a], a))
        larger = triple(n + units[a] if a == axis else n for a, n in enumerate(patch))
        if larger[axis] <= limit[axis] and fits(larger):
            patch = larger
        else:
            growing.remove(axis)
    return patch


def _network(base: int, strides: tuple[Shape, ...], kernels: tuple[Shape, ...], settings: PlanSettings) -> NetworkPlan:
    residual = settings.network == "residual_encoder"
    blocks = [RESIDUAL_BLOCKS[min(level, len(RESIDUAL_BLOCKS) - 1)] for level in range(len(strides))]
    return NetworkPlan(
        kind=settings.network,
        features=tuple(min(base * 2**level, settings.most_features) for level in range(len(strides))),
        kernels=kernels,
        strides=strides,
        blocks=tuple(blocks) if residual else (),
    )


def _normalisation(channel: str, intensity: ChannelIntensity) -> ChannelNormalisation:
    if channel.strip().casefold() != "ct":
        return ChannelNormalisation(scheme="zscore")
    return ChannelNormalisation(
        scheme="ct",
        low=intensity.percentile_00_5,
        high=intensity.percentile_99_5,
        mean=intensity.mean,
        deviation=max(intensity.deviation, SMALLEST_DEVIATION),  # as `normalise_ct` takes it
    )
