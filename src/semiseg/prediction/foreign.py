"""Scans that a model did not learn: of another modality (MR for a model of CT, CT for another), or of another size."""

from __future__ import annotations

from collections.abc import Sequence

from semiseg.data.body import every_nth
from semiseg.data.plan import Plan
from semiseg.io.grid import Grid, numbers_text
from semiseg.io.modality import judge
from semiseg.io.scans import RawChannel
from semiseg.words import shortened

_SMALL = 3.0
"""So many times smaller than a patch along every axis, a scan shows next to nothing: its voxel size is a wrong one."""


def size_doubt(grid: Grid, plan: Plan) -> str:
    """A sentence where the header of a scan makes it much smaller than a patch of the plan, or a single slice; else
    empty."""
    if min(grid.shape_zyx) == 1 < min(plan.patch):
        return "the scan is one slice, and the model learnt volumes: do not trust its labels unseen."
    extent_mm = [n * mm for n, mm in zip(grid.shape_zyx, grid.spacing_mm, strict=True)]
    patch_mm = [n * mm for n, mm in zip(plan.patch, plan.spacing_mm, strict=True)]
    if any(_SMALL * mine >= patch for mine, patch in zip(extent_mm, patch_mm, strict=True)):
        return ""
    return (
        f"the scan measures {numbers_text(extent_mm)} mm (Z, Y, X), and the model looks at {numbers_text(patch_mm)} mm "
        f"at a time. Look whether the voxels of {numbers_text(grid.spacing_mm)} mm in its header are right."
    )


def is_foreign(channels: Sequence[RawChannel], plan: Plan) -> bool:
    """Whether a channel holds Hounsfield units where the plan normalises others, or has no value below 0 where it
    normalises those."""
    pairs = zip(channels, plan.normalisation, strict=True)
    seen = [(judge(every_nth(channel)[0]), normalisation.scheme) for channel, normalisation in pairs]
    return any(values.minimum >= 0 if scheme == "ct" else values.hounsfield for values, scheme in seen)


def foreign_text(scans: list[str], plan: Plan) -> str:
    """The warning that such scans were predicted. scans: their ids."""
    one = len(scans) == 1
    if any(channel.scheme == "ct" for channel in plan.normalisation):
        seen = f"{'has' if one else 'have'} no value below 0, as MR has and no CT in Hounsfield units"
    else:
        seen = f"{'looks' if one else 'look'} like CT in Hounsfield units"
    labels = "its labels" if one else "their labels"
    return (
        f"warning: {shortened(scans)} {seen}, but the model was trained on {', '.join(plan.channels)} "
        f"({plan.dataset}): do not trust {labels} unseen."
    )
