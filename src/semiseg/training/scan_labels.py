"""Pseudo-labels of whole unlabelled scans: made once, by a teacher that stands still, and kept in the run folder.

Beside each label map lies where its classes are, which is read when the scan is drawn.

A teacher that sees a patch alone errs near its faces; a sliding window blends those away.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from semiseg.cases import WAS_KILLED, each_case
from semiseg.data.plan import Plan
from semiseg.data.poses import AS_IT_LIES, Pose, posed_case, read_pose, surest
from semiseg.data.sampling import Locations
from semiseg.errors import DataError
from semiseg.files import hash_files, read_json, remove_leftovers, remove_made, write_json
from semiseg.geometry import Box, triple
from semiseg.io.store import OpenCase, StoredCase, open_case, open_labels, read_case_meta, write_labels
from semiseg.prediction.certainty import Certainty, seen_twice
from semiseg.prediction.engines.base import Engine
from semiseg.prediction.export import largest_class
from semiseg.prediction.predictor import body_margin
from semiseg.prediction.sliding import blended_rows
from semiseg.prediction.window import Window
from semiseg.randomness import Draw
from semiseg.rows import RoundRow
from semiseg.types import FloatArray, LabelArray, Shape
from semiseg.world import first_alone, gathered, own_part, rank, size

KEPT_PER_CLASS = 64
TILE_VOXELS = 1_000_000
TILE_STEP = 0.75
"""Of tiles that are mostly larger than patches: faces count less."""
CLEARLY, FEWEST_VOTES, LEAST_VOTES = 0.05, 2, 0.1
"""By how much a network is to be surer of another pose than of that of the labelled scans, in how many scans at least,
and in which share of them (docs/lab/first_hour.md)."""


def label_scans(
    cases: Sequence[Path],
    folder: Path,
    engine: Engine,
    plan: Plan,
    *,
    seed: int,
    poses: Sequence[Pose] = (),
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, int]:
    """Write `folder/ID.b2nd`, the label map of each stored case on the plan's grid, and `folder/ID.json`, up to 64
    voxels of every class in it (`KeptPlaces`); those that are there are kept, and made anew if they are damaged.

    Returns in how many of the cases each class is found. poses: besides that of the labelled scans, in which a scan
    may lie; its label map is that of the pose in which the network is surest (`kept_poses`). progress: told how many
    of how many are done, after each that was made. Ranks share the cases.
    """
    first_alone(partial(remove_leftovers, folder))
    label = partial(_label_case, folder=folder, engine=engine, plan=plan, seed=seed, poses=(AS_IT_LIES, *poses))
    found = Counter[int]()
    for index, (classes, made) in each_case(label, own_part(list(enumerate(cases))), workers=1, lost=_lost):
        found.update(classes)
        if progress and made:
            progress(index * size() + 1, len(cases))
    return dict(sum(gathered({str(rank()): found}).values(), Counter[int]()))


def _label_case(
    numbered: tuple[int, Path], folder: Path, engine: Engine, plan: Plan, seed: int, poses: Sequence[Pose]
) -> tuple[list[int], bool]:
    """The classes in a case with its number, and whether its labels were made."""
    index, path = numbered
    draw, tried = Draw(seed=seed, sample=index), [pose.name for pose in poses]
    file, beside = label_file(folder, path.name), _places_file(folder, path.name)
    before = _kept(file, beside, tried)
    if before and before.get("drawn_by") == asdict(draw):
        return list(before["places"]), False
    if before:  # as a first look at a few scans may have left it
        labels, lies = np.asarray(open_labels(file, read_case_meta(path).shape_zyx)[:]), before["pose"]
    else:
        pose, labels = _surest(open_case(path), engine, plan, poses)
        lies = asdict(pose)
        write_labels(file, labels)
    found = places_of_classes(labels, plan, draw)
    made = {"drawn_by": asdict(draw), "tried": tried, "pose": lies, "sha256": hash_files([file]), "places": found}
    write_json(beside, made, indent=None)
    return list(found), not before


def _surest(case: OpenCase, engine: Engine, plan: Plan, poses: Sequence[Pose]) -> tuple[Pose, LabelArray]:
    """The pose in which a network is surest of a case, and its labels, as the case lies."""
    if len(poses) == 1:
        return poses[0], scan_labels(case, engine, scan_window(case, plan))
    found = {pose: seen_in_pose(case, engine, plan, pose) for pose in poses}
    pose = surest({pose: sure for pose, (sure, _) in found.items()})
    return pose, np.ascontiguousarray(pose.back(found[pose][1]))


def seen_in_pose(case: OpenCase, engine: Engine, plan: Plan, pose: Pose) -> tuple[float, LabelArray]:
    """How sure a network is of a case in a pose, and its labels there."""
    posed = case if pose == AS_IT_LIES else posed_case(case, pose)
    certainty = Certainty(plan.labels.count)
    window = Window(patch=scan_tile(posed.meta.shape_zyx, plan), step=TILE_STEP)
    rows = scan_logits(posed, seen_twice(engine, plan.mirror_axes), window)
    labels = np.concatenate([certainty.add(part) for part in rows])
    return certainty.value, labels


def clear_poses(cases: Sequence[Path], engine: Engine, plan: Plan, poses: Sequence[Pose]) -> tuple[Pose, ...]:
    """Those of the poses in which some of these stored cases clearly lie: in two of them at least, and in a tenth.

    The half of them of which the network is less sure is seen in each pose. A case lies clearly in one if the network
    is surer of it by `CLEARLY`, and as sure as of half of the cases as they lie: a scan that it knows in no pose tells
    nothing. Ranks share the cases.
    """
    as_they_lie = [sure[AS_IT_LIES] for sure in _how_sure(cases, engine, plan, (AS_IT_LIES,))]
    usual = median(as_they_lie)
    doubtful = {case: sure for case, sure in zip(cases, as_they_lie, strict=True) if sure <= usual}
    votes = Counter[Pose]()
    for before, sure in zip(doubtful.values(), _how_sure(list(doubtful), engine, plan, poses), strict=True):
        pose = surest(sure | {AS_IT_LIES: before}, by=CLEARLY)
        votes[pose] += pose != AS_IT_LIES and sure[pose] >= usual
    return tuple(pose for pose in poses if votes[pose] >= max(FEWEST_VOTES, LEAST_VOTES * len(cases)))


def _how_sure(cases: Sequence[Path], engine: Engine, plan: Plan, poses: Sequence[Pose]) -> Iterator[dict[Pose, float]]:
    """How sure a network is of each case in each pose."""
    look = partial(_sure_of_case, engine=engine, plan=plan, poses=poses)
    numbered = own_part(list(enumerate(cases)))
    found = {str(numbered[i][0]): sure for i, sure in each_case(look, numbered, workers=1, lost=_lost)}
    together = gathered(found)
    return (together[str(number)] for number in range(len(cases)))


def _sure_of_case(numbered: tuple[int, Path], engine: Engine, plan: Plan, poses: Sequence[Pose]) -> dict[Pose, float]:
    case = open_case(numbered[1])
    return {pose: seen_in_pose(case, engine, plan, pose)[0] for pose in poses}


def _kept(file: Path, beside: Path, tried: Sequence[str]) -> dict[str, Any] | None:
    """What lies beside a label map that is as it was written and for which these poses were tried."""
    try:
        value = read_json(beside)
        if value["tried"] == tried and value["sha256"] == hash_files([file]):
            return dict(value) | {"pose": asdict(read_pose(value["pose"])), "places": _numbered(value["places"])}
    except (DataError, OSError, KeyError, TypeError, ValueError, AttributeError):
        pass
    return None


def kept_poses(folder: Path, ids: Iterable[str]) -> dict[str, Pose]:
    """The poses of the cases in a folder of label maps that do not lie as they lie, by id."""
    poses = {}
    for id in ids:
        file = _places_file(folder, id)
        try:
            pose = read_pose(read_json(file)["pose"])
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{file}: damaged. Delete it, and give the same command again.") from None
        if pose != AS_IT_LIES:
            poses[id] = pose
    return poses


def poses_of(row: RoundRow) -> tuple[Pose, ...]:
    """Those that a round tried besides that of the labelled scans; raises `DataError` where they were edited."""
    try:
        return tuple(map(read_pose, row["poses"]))
    except ValueError as error:
        raise DataError(f"rounds.jsonl, round {row['round']}: {error}. Mend or delete the line.") from None


def found_poses(rounds: Sequence[RoundRow]) -> tuple[Pose, ...]:
    """In which poses besides that of the labelled scans the rounds of a run found unlabelled ones. A pose in which
    fewer than one scan a round lies, over the last two that learnt from scans and tried it, was a mistake."""
    named = [poses_of(row) for row in rounds]

    def stands(pose: Pose) -> bool:
        tried = [row for row, poses in zip(rounds, named, strict=True) if pose in poses and row["trusted"]][-2:]
        return sum(row["lying"].get(pose.name, 0) for row in tried) >= len(tried)

    return tuple(pose for pose in dict.fromkeys(pose for poses in named for pose in poses) if stands(pose))


def kept_labels(folder: Path, case: StoredCase) -> Any:
    """The label map of a case in a folder, to be sliced."""
    return open_labels(label_file(folder, case.id), case.shape_zyx)


class KeptPlaces(Mapping[str, Locations]):
    """Voxels of every class in the label maps of a folder, by the scan's id; read when they are asked for."""

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        self._folder, self._ids = folder, frozenset(ids)

    def __getitem__(self, id: str) -> Locations:
        """Raises `DataError` where they are damaged."""
        if id not in self._ids:
            raise KeyError(id)
        file = _places_file(self._folder, id)
        try:
            return _numbered(read_json(file)["places"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise DataError(f"{file}: damaged. Delete it, and give the same command again.") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


def _numbered(places: dict[str, list[list[int]]]) -> dict[int, list[Shape]]:
    """Places as JSON has them, by class."""
    return {int(value): [triple(place) for place in found] for value, found in places.items()}


def _places_file(folder: Path, case: str) -> Path:
    return folder / f"{case}.json"


def _lost(numbered: tuple[int, Path]) -> Any:
    raise DataError(f"{numbered[1]}: {WAS_KILLED}.")


def label_file(folder: Path, case: str) -> Path:
    return folder / f"{case}.b2nd"


def scan_window(case: OpenCase, plan: Plan) -> Window:
    """Large tiles, laid thin: they see more than a patch, and are computed once or little more. Of a CT over the part
    that holds the body, as predicting has it; outside of it is background."""
    window = Window(patch=scan_tile(case.meta.shape_zyx, plan), step=TILE_STEP)
    if plan.normalisation[0].scheme != "ct" or not case.meta.body_locations:
        return window
    low, high = np.min(case.meta.body_locations, axis=0), np.max(case.meta.body_locations, axis=0) + 1
    margin = body_margin(plan)
    start = (max(0, int(a) - m) for a, m in zip(low, margin, strict=True))
    stop = (min(n, int(b) + m) for b, m, n in zip(high, margin, case.meta.shape_zyx, strict=True))
    z, y, x = start
    to_z, to_y, to_x = stop
    return replace(window, region=Box((z, y, x), (to_z, to_y, to_x)))


def scan_tile(shape: Shape, plan: Plan) -> Shape:
    """A tile for a stored scan: the patch, grown by what the network divides along the axis of which the scan needs
    most tiles, up to a size that takes little memory without gradients."""
    units = [prod(level[axis] for level in plan.student.strides) for axis in range(3)]
    tile = list(plan.patch)
    while True:
        room = [n / t for n, t in zip(shape, tile, strict=True)]
        axis = room.index(max(room))
        tile[axis] += units[axis]
        if room[axis] <= 1 or prod(tile) > max(TILE_VOXELS, prod(plan.patch)):
            tile[axis] -= units[axis]
            return (tile[0], tile[1], tile[2])


def scan_labels(case: OpenCase, engine: Engine, window: Window) -> LabelArray:
    """The label map `(Z, Y, X)`, uint8 (uint16 for more than 256 classes), that a network gives to a stored case."""
    return np.concatenate([labels_of(rows) for rows in scan_logits(case, engine, window)])


def scan_logits(case: OpenCase, engine: Engine, window: Window) -> Iterator[Any]:
    """A network's logits `(K, rows, Y, X)` of a stored case, a few rows at a time: an array, or a tensor on the device
    where they were blended there."""
    _, high, wide = case.meta.shape_zyx

    def read(start: int, stop: int) -> FloatArray:
        return case.read_image(Box((start, 0, 0), (stop, high, wide)))

    return blended_rows(read, case.meta.shape_zyx, engine, replace(window, rows_stay=True))


def labels_of(rows: Any) -> LabelArray:
    """The largest class of logits `(K, rows, Y, X)`, the first of equals, uint8 (uint16 for more than 256). Of a
    tensor it is found on its device, and labels alone come back."""
    kind = np.min_scalar_type(len(rows) - 1)
    if isinstance(rows, np.ndarray):
        return largest_class(rows).astype(kind)
    found = rows.argmax(0).to(torch.uint8 if len(rows) <= 256 else torch.int32)
    return np.asarray(found.cpu().numpy().astype(kind, copy=False))


def places_of_classes(labels: LabelArray, plan: Plan, draw: Draw) -> dict[int, list[Shape]]:
    """Up to 64 voxels `(z, y, x)` of every class that a label map holds."""
    occupied = np.flatnonzero(labels)  # once: organs are a small part of a scan
    classes = labels.ravel()[occupied]
    places: dict[int, list[Shape]] = {}
    for value in plan.labels.organs:
        voxels = occupied[classes == value]
        if len(voxels):
            generator = draw.generator(f"predicted voxels of class {value}")
            chosen = generator.choice(len(voxels), min(KEPT_PER_CLASS, len(voxels)), replace=False)
            places[value] = np.transpose(np.unravel_index(voxels[np.sort(chosen)], labels.shape)).tolist()
    return places


def scan_agreement(a: LabelArray, b: LabelArray) -> float:
    """`mean_dice` of two label maps `(Z, Y, X)`."""
    return mean_dice(*overlap_and_sizes(a, b, classes=int(max(a.max(), b.max())) + 1))


def overlap_and_sizes(a: LabelArray, b: LabelArray, *, classes: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """What `mean_dice` takes, of two label maps `(Z, Y, X)`."""
    overlap, *sizes = (np.bincount(labels.ravel(), minlength=classes) for labels in (a[a == b], a, b))
    return overlap, sizes[0] + sizes[1]


def mean_dice(overlap: NDArray[Any], sizes: NDArray[Any]) -> float:
    """Mean Dice over the organs that one of two label maps has, 0 where neither has any.

    overlap, sizes: by class, the background first, voxels that both maps give to it, and the sum of each map's.
    """
    present = sizes[1:] > 0
    return float((2 * overlap[1:][present] / sizes[1:][present]).mean()) if present.any() else 0.0


def labels_folder(kept: Path, network: nn.Module) -> Path:
    """The folder under `kept` for labels by a network.

    So a run that is resumed finds its labels again, and never those of an attempt whose network came out otherwise.
    """
    return kept / weights_digest(network)


def weights_digest(network: nn.Module) -> str:
    """By what a network is known again: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def remove_other_labels(kept: Path, folders: Collection[Path]) -> None:
    """Remove the folders under `kept` that labels were kept in, but for these."""
    for other in kept.glob("*"):
        if other not in folders and other.is_dir() and _IS_OURS.fullmatch(other.name):
            remove_made(other, [f"{file.stem}{end}" for file in other.glob("*.b2nd") for end in (".b2nd", ".json")])


_IS_OURS = re.compile("[0-9a-f]{16}")
