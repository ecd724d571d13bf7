"""How doubtful the pseudo-labels of unlabelled cases are, judged by the networks of a run."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from typing_extensions import TypedDict

from semiseg.cases import WAS_KILLED, map_cases
from semiseg.data.plan import Plan
from semiseg.data.poses import AS_IT_LIES, Pose, posed_case, surest
from semiseg.errors import ConfigError, DataError
from semiseg.files import digest_of, read_json, write_json, write_text
from semiseg.geometry import triple
from semiseg.io.store import OpenCase, StoredCase, open_case
from semiseg.methods.phases import Phases
from semiseg.prediction.engines.base import Engine
from semiseg.prediction.engines.torch_engine import TorchEngine, torch_engine
from semiseg.prediction.model import load_model
from semiseg.prediction.window import Window
from semiseg.randomness import Draw
from semiseg.rows import Doubt
from semiseg.training.checkpoint import load_latest
from semiseg.training.scan_labels import labels_of, mean_dice, scan_logits, seen_in_pose, weights_digest
from semiseg.training.session import Session
from semiseg.types import DoubleArray
from semiseg.words import as_text_cell

Order = Literal["disagreement", "entropy", "random"]
_FORM = 1
"""Of what is kept of a case. Raise it where a case is judged otherwise: then all are judged anew."""
BACKGROUND = 0.99
"""Voxels that are background with a higher probability say nothing of doubt, and are most of a scan."""


class SliceDoubt(TypedDict):
    """Mean doubt of each slice of the scan's own canonical grid, along Z, Y and X: of a voxel 1 where the two networks
    label it differently, else its entropy as a share of the largest."""

    axial: list[float]
    coronal: list[float]
    sagittal: list[float]


def case_and_slices(
    case: OpenCase, first: Engine, second: Engine | None, plan: Plan, poses: Sequence[Pose] = ()
) -> tuple[Doubt, SliceDoubt]:
    """The doubt of one stored case and of its slices; `first` is the network whose labels count, `second` the one that
    may contradict. poses: besides that of the labelled scans, in which a case may lie; it is judged in the one that
    `first` is surest of, as it is predicted.

    Both roll over the scan together, so that neither's logits are ever whole in memory.
    """
    classes, meta, pose = plan.labels.count, case.meta, AS_IT_LIES
    if poses:
        pose = surest({one: seen_in_pose(case, first, plan, one)[0] for one in (AS_IT_LIES, *poses)})
        case = posed_case(case, pose)
    along: tuple[list[DoubleArray], ...] = ([], [], [])
    overlap, sizes, voxels = np.zeros(classes), np.zeros(classes), np.zeros(classes)
    entropy = counted = 0.0
    rows = [scan_logits(case, engine, Window(patch=plan.patch)) for engine in (first, second) if engine]
    for mine, *others in zip(*rows, strict=True):
        a, b = labels_of(mine), labels_of(others[0] if others else mine)
        overlap += np.bincount(a[a == b].ravel(), minlength=classes)
        counts = [np.bincount(labels.ravel(), minlength=classes) for labels in (a, b)]
        voxels += counts[0]
        sizes += counts[0] + counts[1]
        log_p = torch.log_softmax(torch.as_tensor(mine), dim=0)  # where the logits are
        p = log_p.exp()
        doubtful = p[0] < BACKGROUND
        of_voxels = -(p * log_p).sum(0) * doubtful
        entropy += float(of_voxels.sum(dtype=torch.float64))
        counted += float(doubtful.sum())
        doubt = of_voxels / math.log(max(2, classes))
        doubt = torch.where(torch.from_numpy(a == b).to(doubt.device), doubt, torch.ones_like(doubt))
        for sums, axes in zip(along, ((1, 2), (0, 2), (0, 1)), strict=True):
            sums.append(doubt.sum(axes, dtype=torch.float64).cpu().numpy())
    whole = (np.concatenate(along[0]), np.sum(along[1], axis=0), np.sum(along[2], axis=0))
    turned = [total[::-1] if axis in pose.flipped else total for axis, total in enumerate(whole)]
    return Doubt(
        id=meta.id,
        entropy=round(entropy / (counted or 1.0) / math.log(max(2, classes)), 6) if counted else 1.0,
        disagreement=round(1 - mean_dice(overlap, sizes), 6) if second else math.nan,
        organs=int((voxels[1:] > 0).sum()),
        organ_voxels=int(voxels[1:].sum()),
    ), _on_own_grid(pose.shape_before(triple(turned)), meta)


def _on_own_grid(sums: Sequence[DoubleArray], meta: StoredCase) -> SliceDoubt:
    """Sums of doubt by slice of the stored grid as means by slice of the scan's own."""
    means = []
    for total, size in zip(sums, meta.source_shape_zyx, strict=True):
        mean = total * len(total) / math.prod(meta.shape_zyx)
        centres = (np.arange(size) + 0.5) * len(total) / size - 0.5
        means.append([round(float(value), 5) for value in np.interp(centres, np.arange(len(total)), mean)])
    return SliceDoubt(axial=means[0], coronal=means[1], sagittal=means[2])


def doubts(
    cases: Sequence[Path],
    first: Engine,
    second: Engine | None,
    plan: Plan,
    *,
    poses: Sequence[Pose] = (),
    workers: int = 1,
    kept: Path | None = None,
    progress: Callable[[int, int, str], None],
) -> tuple[list[Doubt], list[str]]:
    """The doubt of every stored case, and of those that cannot be read, or whose process was killed, why not. poses: as
    `case_and_slices`. kept: a folder for what is found, with the doubt of slices, `ID.json`; a case that these networks
    judged before is not judged again."""
    networks = [weights_digest(engine.network) for engine in (first, second) if isinstance(engine, TorchEngine)]
    judge = digest_of([_FORM, networks, plan.patch, [asdict(pose) for pose in poses]])[:16]
    found = map_cases(
        partial(_doubt_or_why, first=first, second=second, plan=plan, poses=poses, kept=kept, judge=judge),
        cases,
        workers=workers,
        lost=lambda folder: f"{folder}: {WAS_KILLED}.",
        progress=lambda done, total, folder: progress(done, total, folder.name),
        whole=True,
    )
    return [one for one in found if not isinstance(one, str)], [one for one in found if isinstance(one, str)]


def _doubt_or_why(
    folder: Path,
    first: Engine,
    second: Engine | None,
    plan: Plan,
    poses: Sequence[Pose],
    kept: Path | None,
    judge: str,
) -> Doubt | str:
    try:
        case = open_case(folder)
        judged_by = f"{judge} {case.meta.hash}"
        file = kept / f"{case.meta.id}.json" if kept else None
        if file and (before := _judged_before(file, judged_by)):
            return before
        found, of_slices = case_and_slices(case, first, second, plan, poses)
    except DataError as error:
        return str(error)
    if file:
        doubt = dict(found) | ({} if second else {"disagreement": None})  # JSON has no nan
        write_json(file, dict(of_slices) | {"doubt": doubt, "judged_by": judged_by})
    return found


def _judged_before(file: Path, judged_by: str) -> Doubt | None:
    """What the same networks said of the same case, if they did."""
    if not file.is_file():
        return None
    try:
        said: dict[str, Any] = read_json(file)
        if said["judged_by"] != judged_by:
            return None
        known = said["doubt"]
        return Doubt(
            id=known["id"],
            entropy=known["entropy"],
            disagreement=math.nan if known["disagreement"] is None else known["disagreement"],
            organs=known["organs"],
            organ_voxels=known["organ_voxels"],
        )
    except (DataError, KeyError, TypeError):  # damaged, or of an earlier form: it is written anew
        return None


def ranked(found: Sequence[Doubt], by: Order, *, seed: int = 0) -> list[Doubt]:
    """The cases, the most doubtful first.

    random is the baseline that a ranking has to beat: cases in which every organ is found that any case shows, in an
    order drawn by the seed, then those with fewer.
    """
    if by != "random":
        return sorted(found, key=lambda doubt: (-doubt[by], doubt["id"]))
    names = sorted(doubt["id"] for doubt in found)
    drawn = Draw(seed=seed).generator("annotation order").permutation(len(names))
    place = {names[index]: position for position, index in enumerate(drawn)}
    return sorted(found, key=lambda doubt: (-doubt["organs"], place[doubt["id"]]))


def write_ranking(run: Path, order: Sequence[Doubt], by: Order, *, exclude_worst: float) -> None:
    """`run/ranking.csv` and, where a share of the cases is to be excluded, `run/exclude.txt` for `data.exclude`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(order[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(dict(doubt) | {"id": as_text_cell(doubt["id"])} for doubt in order)
    write_text(run / "ranking.csv", text.getvalue())
    if exclude_worst:
        worst = [doubt["id"] for doubt in order[: max(1, round(exclude_worst * len(order)))]]
        write_text(run / "exclude.txt", "\n".join([f"# the worst {exclude_worst:.0%} by {by}", *worst]) + "\n")


def ranking_engines(session: Session, against: Path | None) -> tuple[TorchEngine, TorchEngine | None]:
    """The network whose labels count, and the one that may contradict it: of the same run, or another run's model, or
    None where the run has one network alone.

    Raises `DataError` without a checkpoint, and `ConfigError` where the other model is of another plan.
    """
    method = session.build(Phases.of_steps(0, 1, 1))
    checkpoint = load_latest(session.run / "checkpoints")
    if checkpoint is None:
        raise DataError(f"{session.run}: no checkpoint here. Train the run first: semiseg train {session.run}")
    numbers = {
        key.removeprefix("method/"): value for key, value in checkpoint.numbers.items() if key.startswith("method/")
    }
    method.load_state(checkpoint.tensors, numbers)
    for network in method.networks.values():
        network.eval()  # threads of a cluster's worker share them, and none may switch another's mode
    first = method.networks[method.evaluated]
    if against is None:
        second = method.networks[method.doubter] if method.doubter else None
        return TorchEngine(first, session.device), TorchEngine(second, session.device) if second else None
    other = load_model(against)
    same = ("spacing_mm", "channels", "normalisation", "patch")
    different = [name for name in same if getattr(other.plan, name) != getattr(session.plan, name)]
    if other.plan.labels.names != session.plan.labels.names:
        different.append("list of labels")
    if different:
        raise ConfigError(
            f"{against}: has another {different[0]} than {session.run}, whose prepared scans it is to label. Name a "
            "run that was made with the same plan."
        )
    return TorchEngine(first, session.device), torch_engine(other, session.device)
