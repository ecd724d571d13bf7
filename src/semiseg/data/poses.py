"""How a scan may lie that its header does not tell: rows and columns exchanged, or upside down, as in scans that were
once converted without their headers.

Only in the plane of thick slices, where scans are often kept as pictures, and only as no mirroring and no turning of
training covers it already. A scan with left and right organs is never taken to another pose: which side is which could
not be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from semiseg.data.plan import ANY_DEGREES, Plan
from semiseg.geometry import CANONICAL_AXES, triple
from semiseg.io.store import OpenCase
from semiseg.types import AnyArray, Shape

_LARGEST_RATIO = 1.2
"""Of the spacings of two axes that may be exchanged."""
DOUBT = 0.01
"""By so much less surer a network may be by chance (docs/lab/first_hour.md)."""


@dataclass(frozen=True)
class Pose:
    """A way to take a scan to how labelled scans lie. Axis `i` of the result is axis `axes[i]` of the scan; then the
    result's axes `flipped` are flipped."""

    axes: Shape
    flipped: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """In words, such as `Y and X exchanged, Y flipped`."""
        moved = ["ZYX"[axis] for axis in CANONICAL_AXES if self.axes[axis] != axis]
        parts = [f"{' and '.join(moved)} exchanged"] if moved else []
        return ", ".join([*parts, *(f"{'ZYX'[axis]} flipped" for axis in self.flipped)]) or "as it lies"

    def of(self, array: Any) -> Any:
        """The scan, or anything of its shape `(..., Z, Y, X)`, in the pose; a view."""
        lead = array.ndim - 3
        return np.flip(self._moved(array, self.axes), tuple(lead + axis for axis in self.flipped))

    def back(self, array: Any) -> Any:
        """The inverse of `of`; a view."""
        lead = array.ndim - 3
        return self._moved(np.flip(array, tuple(lead + axis for axis in self.flipped)), self._inverse)

    def shape(self, values: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        """Three numbers of the scan's axes, such as its shape, in the pose."""
        return triple(values[axis] for axis in self.axes)

    def shape_before(self, values: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        """The inverse of `shape`."""
        return triple(values[axis] for axis in self._inverse)

    @property
    def _inverse(self) -> Shape:
        return triple(self.axes.index(axis) for axis in CANONICAL_AXES)

    def _moved(self, array: Any, axes: Shape) -> Any:
        lead = array.ndim - 3
        return array.transpose(*range(lead), *(lead + axis for axis in axes))


AS_IT_LIES = Pose(CANONICAL_AXES)


def read_pose(value: Any) -> Pose:
    """A pose from JSON; raises `ValueError` for what is none."""
    try:
        axes, flipped = triple(value["axes"]), tuple(value["flipped"])
    except (KeyError, TypeError):
        raise ValueError(f"{value!r} is no pose") from None
    whole = all(type(axis) is int for axis in (*axes, *flipped))
    if not whole or set(axes) != {0, 1, 2} or not set(flipped) <= {0, 1, 2} or len(set(flipped)) < len(flipped):
        raise ValueError(f"{value!r} is no pose")
    return Pose(axes, flipped)


def is_in_plane(pose: Pose, plan: Plan) -> bool:
    """Whether a pose turns scans of a plan in the plane of their thick slices."""
    normal = plan.anisotropic_axis
    return normal is not None and pose.axes[normal] == normal and normal not in pose.flipped


def possible_poses(plan: Plan) -> tuple[Pose, ...]:
    """The poses in which scans of a plan may lie besides that of the labelled ones, in a fixed order."""
    normal = plan.anisotropic_axis
    if normal is None:
        return ()
    a, b = (axis for axis in CANONICAL_AXES if axis != normal)
    fine, coarse = sorted((plan.spacing_mm[a], plan.spacing_mm[b]))
    if plan.labels.mirror_pairs or coarse > _LARGEST_RATIO * fine or plan.turn_degrees[normal] >= ANY_DEGREES:
        return ()
    exchanged = triple({a: b, b: a}.get(axis, axis) for axis in CANONICAL_AXES)
    seen = [axis for axis in (a, b) if axis not in plan.mirror_axes]
    flips = [flipped for count in range(len(seen) + 1) for flipped in combinations(seen, count)]
    poses = [Pose(axes, flipped) for axes in (CANONICAL_AXES, exchanged) for flipped in flips]
    return tuple(pose for pose in poses if pose != AS_IT_LIES)


def surest(certainties: Mapping[Pose, float], by: float = DOUBT) -> Pose:
    """The pose that a network is surest of, by so much at least; else that of the labelled scans."""
    best = max(certainties, key=lambda pose: certainties[pose])
    return best if certainties[best] >= certainties[AS_IT_LIES] + by else AS_IT_LIES


class PosedArray:
    """A stored array `(..., Z, Y, X)` in a pose; what is sliced of it is read."""

    def __init__(self, stored: Any, pose: Pose) -> None:
        self._stored, self._pose = stored, pose
        self._shape: Shape = pose.shape(triple(stored.shape[-3:]))

    def __getitem__(self, index: tuple[Any, ...]) -> AnyArray:
        """index: ends with three slices that have a start and a stop."""
        *lead, z, y, x = index
        where = [
            slice(n - part.stop, n - part.start) if axis in self._pose.flipped else part
            for axis, (part, n) in enumerate(zip((z, y, x), self._shape, strict=True))
        ]
        read = np.asarray(self._stored[(*lead, *self._pose.shape_before(triple(where)))])
        return np.asarray(self._pose.of(read))


def posed_case(case: OpenCase, pose: Pose) -> OpenCase:
    """A stored case in a pose: its image, and its shape. What else is known of it is of how it lies."""
    meta = replace(case.meta, shape_zyx=pose.shape(case.meta.shape_zyx))
    return replace(case, meta=meta, image=PosedArray(case.image, pose), label=None)


Poses = Mapping[str, Pose]
"""Of scans by their id; those that are not named lie as the labelled ones do."""
ALL_ALIKE: Poses = {}
