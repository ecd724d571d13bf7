"""A plan that fits the time: grid, patch, features and batch such that enough steps fit into the minutes.

The score of a plan is the Dice that it is expected to lose, by four terms (docs/lab/first_hour.md): what its grid keeps
of the labels, what few steps cost, what few features cost in the end, and what is missed where labels are decided by
little of the scan, since patches are small or a network of few levels does not see far. Chosen is the plan that loses
least. With time enough that is the full plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import exp, log, log2, prod
from statistics import fmean, median

from semiseg.data.fingerprint import Fingerprint
from semiseg.data.plan import Plan
from semiseg.data.planner import (
    ALONE,
    BATCHES,
    FEATURES,
    PATCH_VOXELS,
    SMALLEST_BOTTLENECK,
    PlanSettings,
    Ranks,
    estimated_gb,
    make_plan,
    median_shape,
)
from semiseg.data.planner import target_spacing as usual_spacing
from semiseg.errors import ConfigError
from semiseg.geometry import triple
from semiseg.io.dataset import LabelScheme
from semiseg.types import Shape, Spacing
from semiseg.words import in_minutes

FOR_STEPS = 0.85
"""Share of the minutes that steps get; the rest goes to labelling scans, validation and checkpoints."""
FEW_STEPS = (120.0, 12.0)
"""a and b of (a / steps)^2 + b / steps, the loss by few steps where organs have `EASY_ORGAN` voxels or fewer."""
EASY_ORGAN = 4_000
"""Of organs with more voxels the inside looks like anything: a network needs more steps to learn to see far enough, by
the root of how many times more."""
FEW_FEATURES = 0.006
"""For each halving of the features, from 32 on."""
SMALL_PATCH, LARGEST_LOOK, SMALLER_PATCH = 0.04, 0.25, 0.004
"""For each halving of the share of the median scan that a label is decided by: below a quarter, and above. Below it
steps count less, too, by the root."""
EFFECTIVE_REACH = 0.75
"""Of a network's receptive field, what its labels are decided by: the middle counts most (Luo et al. 2016)."""
_COARSER = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
_SMALLEST_PATCH_VOXELS = 8_000
_PATCH_STEP = 1.4
_THIN = 8
"""Voxels of a patch along an axis, at least, where the scan has them."""
_FEWEST_LEVELS = 3


LOST, _NAMED = 0.7, 5
"""Organs of which a grid keeps less are named, the first so many."""
TOO_COARSE = "This grid is too coarse for some organs. Of their labels it keeps a Dice of:"
"""How a reason begins that the user must know."""


def candidate_grids(fingerprint: Fingerprint, settings: PlanSettings) -> list[Spacing]:
    """Target spacings in mm to choose from, the usual one first.

    Coarser along the finest axes until all are alike, along all of them, and along one or two alone, since organs
    differ in which axis they need.
    """
    base = settings.spacing_mm or usual_spacing(fingerprint)
    grids = [base]
    if settings.spacing_mm is not None or settings.patch is not None:
        return grids  # who says how large a patch is, in voxels, knows the grid
    finest = min(base)
    for factor in _COARSER:
        grids += [triple(max(mm, factor * finest) for mm in base), triple(factor * mm for mm in base)]
        if factor <= 2:
            grids += [(factor * base[0], base[1], base[2]), (base[0], factor * base[1], factor * base[2])]
    return list(dict.fromkeys(triple(round(mm, 4) for mm in grid) for grid in grids))


def features_to_try(settings: PlanSettings) -> tuple[int, ...]:
    """Features of the finest level to choose from."""
    if settings.base_features is not None:
        return (settings.base_features,)
    return tuple(base for base in (8, 16, 32) if base <= max(FEATURES[settings.planned_for], 32))


@dataclass(frozen=True)
class Candidate:
    """A plan with what it is expected to lose, and why."""

    plan: Plan
    steps: float
    step_seconds: float
    scan: Shape
    """The median scan on the grid."""
    organ_voxels: float
    organs_kept: Mapping[str, float]
    """Dice of the labels there and back, by organ."""

    @property
    def kept(self) -> float:
        """Mean over organs; 1 where none is known."""
        return fmean(self.organs_kept.values()) if self.organs_kept else 1.0

    @property
    def covered(self) -> float:
        """The share of the median scan that a patch covers."""
        return prod(map(min, self.plan.patch, self.scan)) / prod(self.scan)

    @property
    def seen(self) -> float:
        """The share of the median scan that the label of a voxel is decided by: what lies in the patch and within the
        network's effective reach."""
        edges = zip(self.plan.patch, self.plan.student.reach, self.scan, strict=True)
        return prod(min(edge, 1 + EFFECTIVE_REACH * (reach - 1), n) for edge, reach, n in edges) / prod(self.scan)

    @property
    def loss(self) -> float:
        """Expected loss of Dice; comparable between plans for one data set alone."""
        square, single = FEW_STEPS
        harder = max(1.0, self.organ_voxels / EASY_ORGAN)
        effective = max(
            1.0, self.steps * (self.plan.batch / 2 / harder) ** 0.5 * min(1.0, self.seen / LARGEST_LOOK) ** 0.5
        )
        few_steps: float = (square / effective) ** 2 + single / effective
        few_features = FEW_FEATURES * max(0.0, log2(32 / self.plan.teacher.features[0]))
        halvings = -log2(max(1e-6, self.seen))
        below = max(0.0, halvings + log2(LARGEST_LOOK))
        small_patch = SMALL_PATCH * below + SMALLER_PATCH * (halvings - below)
        return (1 - self.kept) + few_steps + few_features + small_patch


def timed_plan(
    fingerprint: Fingerprint,
    labels: LabelScheme,
    settings: PlanSettings,
    kept: Mapping[Spacing, Mapping[str, float]],
    voxel_seconds: Mapping[int, float],
    *,
    seconds: float,
    ranks: Ranks = ALONE,
) -> Plan:
    """The plan that is expected to lose least in so many seconds of training, with its reasons.

    kept: Dice of the labels there and back, by grid and organ (`grid_ceilings`). voxel_seconds: cost of a voxel in a
    training step, by features of the finest level. ranks: divide a step, and its memory. Raises `ConfigError` where no
    plan fits the memory.
    """
    found = list(_candidates(fingerprint, labels, settings, kept, voxel_seconds, seconds, ranks))
    if not found:
        return make_plan(fingerprint, labels, settings, ranks=ranks)  # which says why there is none
    best = min(found, key=lambda one: (one.loss, -prod(one.plan.patch)))
    return replace(best.plan, reasons=tuple(_reasons(best, fingerprint, settings, seconds)))


def _candidates(
    fingerprint: Fingerprint,
    labels: LabelScheme,
    settings: PlanSettings,
    kept: Mapping[Spacing, Mapping[str, float]],
    voxel_seconds: Mapping[int, float],
    seconds: float,
    ranks: Ranks,
) -> Iterator[Candidate]:
    seen: set[tuple[object, ...]] = set()
    least, most = BATCHES[settings.planned_for]
    batches = (settings.batch,) if settings.batch else tuple(sorted({least, 4, most} & set(range(least, most + 1))))
    for grid, share in kept.items():
        median, organ = median_shape(fingerprint, grid), organ_voxels(fingerprint, grid)
        for base, cost in voxel_seconds.items():
            for batch, (levels, patch) in product(batches, _patches(settings, median)):
                told = replace(
                    settings, spacing_mm=grid, base_features=base, patch=patch, max_levels=levels, batch=batch
                )
                try:
                    plan = make_plan(fingerprint, labels, told, ranks=ranks, median=median)
                except ConfigError:
                    continue
                key = (grid, base, plan.patch, batch)
                if key in seen or estimated_gb(plan, settings.planned_for, ranks) > settings.budget_gb:
                    continue
                seen.add(key)
                step = cost * prod(plan.patch) * ranks.patches(batch)
                yield Candidate(plan, FOR_STEPS * seconds / step, step, median, organ, share)


def organ_voxels(fingerprint: Fingerprint, grid: Spacing) -> float:
    """How many voxels an organ has in a labelled scan on a grid: the geometric mean over organs, 1 without any."""
    labelled = [prod(case.spacing_mm) for case in fingerprint.cases if case.labelled]
    sizes = [voxels for value, voxels in fingerprint.class_voxels.items() if value != 0 and voxels]
    if not labelled or not sizes:
        return 1.0
    volume_mm3 = median(labelled) / len(labelled)
    return exp(fmean(log(voxels * volume_mm3 / prod(grid)) for voxels in sizes))


def _patches(settings: PlanSettings, median: Shape) -> Sequence[tuple[int, Shape | None]]:
    """Most levels and patches to choose from. None is the patch that the planner grows, the largest, which may be
    smaller with fewer levels; the others have as many levels as they can be halved, up to the most."""
    most_levels = settings.max_levels
    levels = list(range(most_levels, _FEWEST_LEVELS - 1, -1)) or [most_levels]
    if settings.patch:
        return [(one, settings.patch) for one in levels]
    most = PATCH_VOXELS[settings.planned_for]
    sizes = [float(most)]
    while sizes[-1] / _PATCH_STEP >= _SMALLEST_PATCH_VOXELS:
        sizes.append(sizes[-1] / _PATCH_STEP)
    patches = dict.fromkeys(proportional_patch(median, size) for size in sizes)
    return [*((one, None) for one in levels), *((most_levels, patch) for patch in patches if prod(patch) <= most)]


def proportional_patch(scan: Shape, voxels: float) -> Shape:
    """A patch of about so many voxels with the proportions of a scan, which holds more of what tells places apart than
    a cube does (docs/lab/first_hour.md). Thin axes are not cut; edges can be halved while 4 voxels are left."""
    thin = {axis for axis in range(3) if scan[axis] <= _THIN}
    while True:
        free = [axis for axis in range(3) if axis not in thin]
        room = voxels / prod(scan[axis] for axis in thin)
        factor = min(1.0, (room / prod(scan[axis] for axis in free)) ** (1 / max(1, len(free))))
        if not (cut := {axis for axis in free if factor * scan[axis] < _THIN}):
            break
        thin |= cut  # these keep as many voxels as a thin axis has, or nearly
        scan = triple(min(edge, _THIN) if axis in cut else edge for axis, edge in enumerate(scan))
    edges = (edge if axis in thin else factor * edge for axis, edge in enumerate(scan))
    return triple(_halvable(edge) for edge in edges)


def _halvable(edge: float) -> int:
    unit = 1
    while edge / (2 * unit) >= SMALLEST_BOTTLENECK:
        unit *= 2
    return max(1, round(edge / unit) * unit)


def _reasons(best: Candidate, fingerprint: Fingerprint, asked: PlanSettings, seconds: float) -> Iterator[str]:
    plan = best.plan
    own, grid = usual_spacing(fingerprint), plan.spacing_mm
    length, step = in_minutes(seconds / 60), f"{best.step_seconds:.2g} s"
    yield f"Time: about {best.steps:,.0f} training steps fit into {length}, of {step} each."
    if all(abs(a - b) < 1e-3 for a, b in zip(own, grid, strict=True)):
        yield f"Grid: {_mm(grid)}, that of the median scan."
    else:
        yield (
            f"Grid: {_mm(grid)}, coarser than the median scan's {_mm(own)}: labels taken there and back keep a Dice of "
            f"{best.kept:.3f}, and more steps fit."
        )
    if lost := [name for name, dice in best.organs_kept.items() if dice < LOST]:
        kept = ", ".join(f"{name} {best.organs_kept[name]:.2f}" for name in lost[:_NAMED])
        others = f", and {len(lost) - _NAMED} more" * (len(lost) > _NAMED)
        yield f"{TOO_COARSE} {kept}{others}: no network does better there. {_finer(own, grid, asked)}"
    patch, scan = (" x ".join(map(str, shape)) for shape in (plan.patch, median_shape(fingerprint, grid)))
    yield (
        f"Patch: {patch} voxels, {best.covered:.0%} of the median scan ({scan} voxels on this grid); {plan.batch} "
        "patches a step."
    )
    yield f"Network: {plan.teacher.features[0]} features at the finest of {len(plan.teacher.features)} levels."


def _finer(own: Spacing, grid: Spacing, asked: PlanSettings) -> str:
    """What to do for a finer grid. own: that of the median scan; no minutes get a finer one than that."""
    finer = [round(min(edges), 2) for edges in zip(own, grid, strict=True)]
    if finer == [round(mm, 2) for mm in grid]:
        return "Give a finer one with plan.spacing_mm."
    given = asked.spacing_mm is not None or asked.patch is not None
    return f"{'Give a finer one' if given else 'More minutes get a finer grid, or give one'}: plan.spacing_mm={finer}."


def _mm(spacing: Spacing) -> str:
    return " x ".join(f"{mm:.3g}" for mm in spacing) + " mm"
