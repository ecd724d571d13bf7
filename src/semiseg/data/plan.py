"""The plan: everything that preparation, networks and prediction must agree on, as one readable TOML file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf, isfinite, prod
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from semiseg.errors import ConfigError
from semiseg.files import read_toml, write_toml
from semiseg.geometry import LEFT_RIGHT_AXIS, triple
from semiseg.io.dataset import LabelScheme
from semiseg.tables import refuse_unknown_keys
from semiseg.types import Shape, Spacing
from semiseg.words import counted


@dataclass(frozen=True, kw_only=True)
class ChannelNormalisation:
    """How one channel is brought to network units.

    scheme `ct`: clip to [low, high], subtract mean, divide by deviation, all from the labelled foreground of the whole
    training set. scheme `zscore`: mean and deviation of each case's voxels that are not dark, low to deviation unused.
    """

    scheme: Literal["ct", "zscore"]
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    deviation: float = 1.0


@dataclass(frozen=True, kw_only=True)
class NetworkPlan:
    """Kind and sizes of one network. All tuples have one entry per level, from the finest to the coarsest.

    features: channels of a level. kernels: size of its convolutions `(D, H, W)`. strides: pooling *into* the level;
    the first is (1, 1, 1). kind: `unet` (the paper's), `residual_encoder`, or one that was added. blocks: residual
    blocks of each level of a residual encoder; none for other kinds.
    """

    features: tuple[int, ...]
    kernels: tuple[Shape, ...]
    strides: tuple[Shape, ...]
    kind: str = "unet"
    blocks: tuple[int, ...] = ()

    @property
    def reach(self) -> Shape:
        """Along each axis, about how many voxels of the image a voxel of the output is computed from: its receptive
        field, by the convolutions of each level down (two, or two a block) and up (two, or one beside blocks)."""
        reach, unit, last = [1, 1, 1], [1, 1, 1], len(self.kernels) - 1
        for level, (kernel, stride) in enumerate(zip(self.kernels, self.strides, strict=True)):
            down = 2 * self.blocks[level] if self.blocks else 2
            up = 0 if level == last else 1 if self.blocks else 2
            for axis in range(3):
                unit[axis] *= stride[axis]
                reach[axis] += (down + up) * (kernel[axis] - 1) * unit[axis]
        return triple(reach)


USUAL_DEGREES, ANY_DEGREES = 30.0, 180.0
"""How far scans are turned at least (as in nnU-Net), and at most."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The agreement of a run. `(Z, Y, X)` order throughout; spacings in mm.

    anisotropic_axis: the axis whose spacing is more than 3 times that of the others (resampled with order 0 along it),
    or None. mirror_axes: along which mirrored scans could be scans; turn_degrees: how far about Z, Y and X turned ones
    could (`semiseg.data.anatomy`). reasons: sentences that say why it is as it is.
    """

    dataset: str
    channels: tuple[str, ...]
    labels: LabelScheme
    spacing_mm: Spacing
    anisotropic_axis: int | None
    patch: Shape
    batch: int
    normalisation: tuple[ChannelNormalisation, ...]
    teacher: NetworkPlan
    student: NetworkPlan
    mirror_axes: tuple[int, ...] = (LEFT_RIGHT_AXIS,)
    turn_degrees: tuple[float, float, float] = (USUAL_DEGREES,) * 3
    reasons: tuple[str, ...] = ()


MOST_VOXELS, MOST_PATCHES, MOST_FEATURES, MOST_BLOCKS, MOST_LABEL = 4096, 4096, 8192, 64, 65535
"""Larger numbers in a plan are mistakes of who edited it."""
_ADAPTER: TypeAdapter[Plan] = TypeAdapter(Plan)


def write_plan(path: Path, plan: Plan) -> None:
    """Write the plan as TOML that a person can read and edit."""
    value = asdict(plan)
    value["labels"]["names"] = {str(k): name for k, name in plan.labels.names.items()}
    value["labels"] = {k: v for k, v in value["labels"].items() if v is not None}
    write_toml(path, {k: v for k, v in value.items() if v is not None})


def read_plan(path: Path) -> Plan:
    """Read and check a plan; raises `ConfigError` that names the key."""
    value = {"anisotropic_axis": None} | read_toml(path)
    refuse_unknown_keys(value, Plan, str(path))
    try:
        plan = _ADAPTER.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{path}: {key}: {first['msg']}. Correct the key, or delete the file and run `semiseg prepare` again."
        ) from None
    if problem := _inconsistency(plan):
        raise ConfigError(f"{path}: {problem}")
    return plan


def _inconsistency(plan: Plan) -> str | None:
    """What cannot work in an edited plan, as a sentence with the remedy."""
    if problem := _wrong_labels(plan.labels) or _wrong_axes(plan):
        return problem
    if not plan.channels or len(plan.normalisation) != len(plan.channels):
        entries = counted(len(plan.normalisation), "entry", "entries")
        return f"normalisation has {entries} for {counted(len(plan.channels), 'channel')}; give one each."
    for number, one in enumerate(plan.normalisation):
        if not (0 < one.deviation < inf and one.low <= one.high and isfinite(one.low + one.high + one.mean)):
            return f"normalisation[{number}]: deviation must be above 0, low not above high, and all of them finite."
    if not all(1 <= edge <= MOST_VOXELS for edge in plan.patch) or not 1 <= plan.batch <= MOST_PATCHES:
        return f"patch must be 1 to {MOST_VOXELS} voxels along each axis, and batch 1 to {MOST_PATCHES} patches."
    if not all(0 < mm < inf for mm in plan.spacing_mm):
        return "spacing_mm must be positive and finite."
    for name, network in (("teacher", plan.teacher), ("student", plan.student)):
        if not len(network.features) == len(network.kernels) == len(network.strides):
            return f"{name}: features, kernels and strides must have one entry per level."
        if network.blocks and len(network.blocks) != len(network.features):
            return f"{name}: blocks must have one entry per level, or be left out."
        if (network.kind == "residual_encoder") != bool(network.blocks):
            return f"{name}: blocks are of kind residual_encoder, and it has them: correct kind or blocks."
        if not all(1 <= count <= MOST_BLOCKS for count in network.blocks):
            return f"{name}: blocks = {network.blocks} must be 1 to {MOST_BLOCKS} on each level."
        if not network.features or not all(1 <= count <= MOST_FEATURES for count in network.features):
            return f"{name}: features = {network.features} must be 1 to {MOST_FEATURES} on each level."
        if min(edge for sizes in (*network.kernels, *network.strides) for edge in sizes) < 1:
            return f"{name}: kernels and strides must be 1 or more."
        if network.strides[0] != (1, 1, 1):
            return f"{name}: strides[0] = {network.strides[0]} must be [1, 1, 1]: the first level is not pooled."
        if any(edge % 2 == 0 for kernel in network.kernels for edge in kernel):
            return f"{name}: kernels = {network.kernels} must be odd, or features would be shifted against the image."
        if problem := indivisible(plan.patch, network):
            return f"{name}: patch{problem}"
    return None


def _wrong_labels(labels: LabelScheme) -> str | None:
    values, top = sorted(labels.names), len(labels.names)
    if values != list(range(top)) or top < 2:
        return f"labels.names has the values {values}; they must run from 0, the background, on without gaps."
    if strange := [name for name in labels.names.values() if not name.isprintable() or not name]:
        return f"labels.names: {strange[0]!r} is no name that can be printed."
    if labels.ignore is not None and not top <= labels.ignore < MOST_LABEL:
        return f"labels.ignore = {labels.ignore} must be above the classes, and below {MOST_LABEL}."
    if labels.unknown and (labels.ignore is None or not set(labels.unknown) <= set(range(1, top))):
        return f"labels.unknown = {labels.unknown}: are organs, and need labels.ignore."
    if any(not 0 < value < top for pair in labels.mirror_pairs for value in pair):
        return f"labels.mirror_pairs = {labels.mirror_pairs}: are pairs of the values 1 to {top - 1}."
    return None


def _wrong_axes(plan: Plan) -> str | None:
    given = {
        "labels.mirror_axis": (plan.labels.mirror_axis,),
        "mirror_axes": plan.mirror_axes,
        "anisotropic_axis": () if plan.anisotropic_axis is None else (plan.anisotropic_axis,),
    }
    wrong = [key for key, axes in given.items() if not set(axes) <= {0, 1, 2}]
    if wrong:
        return f"{wrong[0]} must be 0, 1 or 2 (Z, Y, X)."
    if not all(0 <= degrees <= ANY_DEGREES for degrees in plan.turn_degrees):
        return f"turn_degrees must be 0 to {ANY_DEGREES:.0f}."
    return None


def indivisible(patch: Shape, network: NetworkPlan) -> str | None:
    """Which edge of a patch a network cannot pool, as the rest of a sentence with the remedy."""
    for axis in range(3):
        stride = prod(level[axis] for level in network.strides)
        if patch[axis] % stride:
            return f"[{axis}] = {patch[axis]} must be a multiple of {stride}, the product of its strides."
    return None
