"""How scans may lie: a pose and back again, what is read in one, and which ones are looked for."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, combinations, permutations

import numpy as np
import pytest

from plans import PLAN
from semiseg.data.plan import ANY_DEGREES, Plan
from semiseg.data.poses import AS_IT_LIES, Pose, PosedArray, possible_poses, read_pose

EVERY = [
    Pose(axes, tuple(flipped))
    for axes in permutations(range(3))
    for flipped in chain.from_iterable(combinations(range(3), count) for count in range(4))
]


@pytest.mark.parametrize("pose", EVERY, ids=lambda pose: pose.name)
def test_a_scan_in_a_pose_is_read_and_taken_back(pose: Pose) -> None:
    array = np.random.default_rng(0).random((2, 4, 5, 6))
    posed = pose.of(array)
    assert posed.shape[1:] == pose.shape((4, 5, 6))
    assert pose.shape_before(posed.shape[1:]) == (4, 5, 6)
    assert np.array_equal(pose.back(posed), array)
    where = (slice(1, 3), slice(0, 4), slice(2, 4))
    assert np.array_equal(PosedArray(array, pose)[(..., *where)], posed[(..., *where)])
    assert read_pose({"axes": list(pose.axes), "flipped": list(pose.flipped)}) == pose


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"axes": [0, 0, 1], "flipped": []},
        {"axes": [0, 1, 2], "flipped": [3]},
        {"axes": [0, 2.0, 1], "flipped": []},
        None,
    ],
)
def test_what_is_no_pose_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="is no pose"):
        read_pose(value)


def _plan(**changes: object) -> Plan:
    labels = replace(PLAN.labels, mirror_pairs=())
    known = {"labels": labels, "spacing_mm": (8.0, 1.0, 1.0), "anisotropic_axis": 0, "mirror_axes": (2,)}
    return replace(PLAN, **known | changes)  # type: ignore[arg-type]


def test_poses_are_looked_for_in_the_plane_of_the_slices() -> None:
    """And not those that mirroring makes anyway: with left and right mirrored, half of the eight."""
    assert [pose.name for pose in possible_poses(_plan())] == [
        "Y flipped",
        "Y and X exchanged",
        "Y and X exchanged, Y flipped",
    ]
    assert len(possible_poses(_plan(mirror_axes=()))) == 7
    assert [pose.name for pose in possible_poses(_plan(mirror_axes=(1, 2)))] == ["Y and X exchanged"]
    coronal = possible_poses(_plan(spacing_mm=(1.0, 8.0, 1.0), anisotropic_axis=1))
    assert {axis for pose in coronal for axis in pose.flipped} == {0}
    assert AS_IT_LIES not in possible_poses(_plan(mirror_axes=()))


def test_no_pose_is_looked_for_where_none_could_be_told() -> None:
    """Without thick slices, with left and right organs, with voxels that are longer one way, and where training turns
    scans by any angle."""
    assert possible_poses(_plan(spacing_mm=(1.0, 1.0, 1.0), anisotropic_axis=None)) == ()
    pairs = replace(PLAN.labels, mirror_pairs=((1, 2),))
    assert possible_poses(_plan(labels=pairs)) == ()
    assert possible_poses(_plan(spacing_mm=(8.0, 1.0, 1.3))) == ()
    assert possible_poses(_plan(turn_degrees=(ANY_DEGREES, 30.0, 30.0))) == ()
