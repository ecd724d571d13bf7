"""Pseudo-labels of whole unlabelled scans: made once, by a teacher that stands still, and kept in the run folder.

A teacher that sees a patch alone errs near its faces; a sliding window blends those away.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from semiseg.data.plan import Plan
from semiseg.data.sampling import Locations
from semiseg.errors import DataError
from semiseg.files import remove_leftovers
from semiseg.geometry import Box
from semiseg.io.store import OpenCase, open_case, open_labels, read_case_meta, write_labels
from semiseg.methods.base import HIDDEN
from semiseg.predict.engines.base import Engine
from semiseg.predict.predictor import body_margin
from semiseg.predict.sliding import blended_rows
from semiseg.predict.window import Window
from semiseg.randomness import Draw
from semiseg.types import FloatArray, LabelArray, Shape

KEPT_PER_CLASS = 64


def label_scans(
    cases: Sequence[Path],
    folder: Path,
    engine: Engine,
    window: Window,
    plan: Plan,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Locations]:
    """Write `folder/ID.b2nd`, the label map of each stored case on the plan's grid; those that are there are kept, and
    made anew if they are damaged.

    Returns up to 64 voxels of every class that is found in it, by case. window: its patch is the labelling network's.
    progress: told how many of how many are done, after each that was made.
    """
    found: dict[str, Locations] = {}
    remove_leftovers(folder)
    for index, path in enumerate(cases):
        case = open_case(path)
        file = label_file(folder, case.meta.id)
        kept = _kept(file, case.meta.shape_zyx)
        labels = scan_labels(case, engine, around_body(window, case, plan)) if kept is None else kept
        if kept is None:
            write_labels(file, labels)
        draw = Draw(seed=seed, sample=index)
        found[case.meta.id] = places_of_classes(labels, plan, draw)
        if progress and kept is None:
            progress(index + 1, len(cases))
    return found


def _kept(file: Path, shape: Shape) -> LabelArray | None:
    if not file.is_file():
        return None
    try:
        return np.asarray(open_labels(file, shape)[:])
    except (DataError, RuntimeError, ValueError):
        return None


def label_file(folder: Path, case: str) -> Path:
    return folder / f"{case}.b2nd"


def around_body(window: Window, case: OpenCase, plan: Plan) -> Window:
    """The window over the part of a CT that holds the body, as predicting has it; outside of it is background."""
    if plan.normalisation[0].scheme != "ct" or not case.meta.body_locations:
        return window
    low, high = np.min(case.meta.body_locations, axis=0), np.max(case.meta.body_locations, axis=0) + 1
    margin = body_margin(plan)
    start = (max(0, int(a) - m) for a, m in zip(low, margin, strict=True))
    stop = (min(n, int(b) + m) for b, m, n in zip(high, margin, case.meta.shape_zyx, strict=True))
    z, y, x = start
    to_z, to_y, to_x = stop
    return replace(window, region=Box((z, y, x), (to_z, to_y, to_x)))


def scan_labels(case: OpenCase, engine: Engine, window: Window) -> LabelArray:
    """The label map `(Z, Y, X)`, uint8 (uint16 for more than 256 classes), that a network gives to a stored case."""
    parts = scan_logits(case, engine, window)
    return np.concatenate([logits.argmax(axis=0).astype(np.min_scalar_type(len(logits) - 1)) for logits in parts])


def scan_logits(case: OpenCase, engine: Engine, window: Window) -> Iterator[FloatArray]:
    """A network's logits `(K, rows, Y, X)` of a stored case, a few rows at a time."""
    _, high, wide = case.meta.shape_zyx

    def read(start: int, stop: int) -> FloatArray:
        return case.read_image(Box((start, 0, 0), (stop, high, wide)))

    return blended_rows(read, case.meta.shape_zyx, engine, window)


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


def agreed_most(cases: Sequence[Path], folders: Sequence[Path], share: float) -> list[str]:
    """Ids of that share of the stored cases, one at least, whose label maps in two folders agree most."""
    agreement: dict[str, float] = {}
    for path in cases:
        meta = read_case_meta(path)
        a, b = (np.asarray(open_labels(label_file(folder, meta.id), meta.shape_zyx)[:]) for folder in folders)
        agreement[meta.id] = scan_agreement(a, b)
    return sorted(agreement, key=lambda case: (-agreement[case], case))[: max(1, round(share * len(agreement)))]


def scan_agreement(a: LabelArray, b: LabelArray) -> float:
    """`mean_dice` of two label maps `(Z, Y, X)`."""
    classes = int(max(a.max(), b.max())) + 1
    overlap, *sizes = (np.bincount(labels.ravel(), minlength=classes) for labels in (a[a == b], a, b))
    return mean_dice(overlap, sizes[0] + sizes[1])


def mean_dice(overlap: NDArray[Any], sizes: NDArray[Any]) -> float:
    """Mean Dice over the organs that one of two label maps has, 0 where neither has any.

    overlap, sizes: by class, the background first, voxels that both maps give to it, and the sum of each map's.
    """
    present = sizes[1:] > 0
    return float((2 * overlap[1:][present] / sizes[1:][present]).mean()) if present.any() else 0.0


@dataclass(frozen=True)
class AgreedLabels:
    """Two label maps of a scan as one, read like an array: `HIDDEN` where they differ."""

    labels: Any
    others: Any
    dtype: ClassVar[np.dtype[np.int16]] = np.dtype(np.int16)

    def __getitem__(self, where: Any) -> NDArray[np.int16]:
        labels, others = np.asarray(self.labels[where]), np.asarray(self.others[where])
        return np.where(labels == others, labels.astype(np.int16), np.int16(HIDDEN))


def folders_of(kept: Path, labellers: Sequence[tuple[nn.Module, Window]], cases: Sequence[Path]) -> list[Path]:
    """The folders under `kept` for labels of these stored cases by each network with its window; all others are
    removed.

    So a run that is resumed finds its labels again, and never those of an attempt whose teacher came out otherwise.
    """
    hashes = [read_case_meta(case).hash for case in cases]
    folders = []
    for network, window in labellers:
        digest = hashlib.sha256(repr((window.patch, tuple(window.mirror_axes), hashes)).encode())
        for value in network.state_dict().values():
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        folders.append(kept / digest.hexdigest()[:16])
    for other in kept.glob("*"):
        if other not in folders and other.is_dir():
            shutil.rmtree(other)
    return folders
