"""Check a dataset before work begins: open every file, list what is there and every problem with its remedy."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from semiseg.cases import WAS_KILLED, map_cases
from semiseg.data.check_case import (
    NO_HOUNSFIELD,
    CaseFacts,
    Problem,
    Remark,
    as_problem,
    inspect_case,
    role_of,
    set_aside,
)
from semiseg.data.check_plan import plan_remarks
from semiseg.data.extents import odd_extents
from semiseg.data.laterality import measured_mirror_axis
from semiseg.data.patients import BIDS
from semiseg.data.remarks import patient_remarks
from semiseg.geometry import LEFT_RIGHT_AXIS, triple
from semiseg.io.dataset import Case, Dataset, LabelScheme
from semiseg.io.layouts.folders import TRAINING, TRAINING_LABELS
from semiseg.types import Spacing

Progress = Callable[[int, int], None]
"""Called with the number of cases done and of all cases."""


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What a dataset holds and what is wrong with it.

    target_spacing_mm: the spacing that disk_bytes was estimated for, None if no scan was readable. disk_bytes: upper
    bound of what preparation writes: float32 images and uint8 labels at that spacing, before compression.
    """

    name: str
    layout: str
    root: str
    channels: tuple[str, ...]
    labels: LabelScheme
    cases: tuple[CaseFacts, ...]
    problems: tuple[Problem, ...]
    target_spacing_mm: Spacing | None
    disk_bytes: int

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings and notes do not count."""
        return not any(problem.severity == "error" for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        """The report in types that JSON has; label values become strings."""
        value = asdict(self) | {"ok": self.ok}
        value["labels"]["names"] = {str(number): name for number, name in self.labels.names.items()}
        for case in value["cases"]:
            voxels = case["label_voxels"]
            case["label_voxels"] = None if voxels is None else {str(number): n for number, n in voxels.items()}
        return value


def check_dataset(dataset: Dataset, *, workers: int = 1, progress: Progress | None = None) -> CheckReport:
    """Open every file of the dataset and report. A damaged file never stops the rest, nor does a killed worker.

    workers: processes; up to 1 reads in this one.
    """
    findings = map_cases(
        partial(inspect_case, dataset=replace(dataset, cases=())),  # of which each process gets one
        dataset.cases,
        workers=workers,
        lost=partial(_lost, root=dataset.root),
        progress=(lambda done, total, case: progress(done, total)) if progress else None,
    )
    facts = tuple(fact for fact, _ in findings)
    problems = [as_problem(set_aside(file, text), dataset.root) for file, text in dataset.problems]
    of_cases = [problem for _, found in findings for problem in found]
    problems += [
        as_problem(remark, dataset.root)
        for remark in dataset.remarks
        # what is said of the whole set by some values need not be said of it when each of its scans is named
        if NO_HOUNSFIELD not in remark[2] or not any(NO_HOUNSFIELD in problem.text for problem in of_cases)
    ]
    problems += of_cases
    between_cases = [
        *_same_content(facts, dataset),
        *_odd_extents(facts, dataset),
        *_orientations(facts, dataset.root),
        *_unseen_classes(facts, dataset),
        *_turned_headers(dataset),
        *_unlabelled(facts, dataset.root),
        *plan_remarks(facts, dataset),
        *patient_remarks(dataset, BIDS),
    ]
    problems += [as_problem(remark, dataset.root) for remark in between_cases]
    target = _median_spacing(facts)
    return CheckReport(
        name=dataset.name,
        layout=dataset.layout,
        root=str(dataset.root),
        channels=dataset.channels,
        labels=dataset.labels,
        cases=facts,
        problems=tuple(sorted(problems, key=lambda problem: ("error", "warning", "note").index(problem.severity))),
        target_spacing_mm=target,
        disk_bytes=_disk_bytes(facts, len(dataset.channels), target) if target else 0,
    )


def _lost(case: Case, root: Path) -> tuple[CaseFacts, list[Problem]]:
    text = f"{WAS_KILLED}. Leave the case out."
    return CaseFacts(id=case.id, role=role_of(case)), [as_problem(("error", case.images[0], text), root, case.id)]


def _same_content(facts: Sequence[CaseFacts], dataset: Dataset) -> list[Remark]:
    """A warning for every case whose voxels are those of an earlier one."""
    files = {case.id: case.images[0] for case in dataset.cases}
    groups: defaultdict[str, list[CaseFacts]] = defaultdict(list)
    for fact in facts:
        if fact.content is not None:
            groups[fact.content].append(fact)
    remarks: list[Remark] = []
    for first, *others in groups.values():
        for other in others:
            text = f"the same voxels as case {first.id}. Remove one of the two."
            if (first.role == "test") != (other.role == "test"):
                text = f"the same voxels as {first.role} case {first.id}: a test scan is trained on. Remove one."
            remarks.append(("warning", files[other.id], text))
    return remarks


def _odd_extents(facts: Sequence[CaseFacts], dataset: Dataset) -> list[Remark]:
    files = {case.id: case.images[0] for case in dataset.cases}
    return odd_extents([(files[f.id], f.shape_zyx, f.spacing_mm) for f in facts if f.shape_zyx and f.spacing_mm])


def _orientations(facts: Sequence[CaseFacts], root: Path) -> list[Remark]:
    counts = Counter(fact.orientation for fact in facts if fact.orientation is not None)
    if len(counts) < 2:
        return []
    listed = ", ".join(f"{name} {count}" for name, count in counts.most_common())
    text = f"orientations are mixed ({listed}): every scan is brought to RAS on reading. Nothing to do."
    return [("note", root, text)]


def _unseen_classes(facts: Sequence[CaseFacts], dataset: Dataset) -> list[Remark]:
    """Classes that no training label contains are not learned; without any label nothing is."""
    maps = [fact.label_voxels for fact in facts if fact.role == "labelled" and fact.label_voxels is not None]
    if not maps:
        text = "no training case has a readable label: nothing can be learned. Label a few scans."
        if (dataset.root / TRAINING).is_dir() and not (dataset.root / TRAINING_LABELS).exists():
            text += f" Labels of {TRAINING} are looked for in {TRAINING_LABELS}, which is not there."
        return [("error", dataset.root, text)]
    if not any(value in m for m in maps for value in dataset.labels.organs):
        text = "every training label is empty: no voxel has a class, so nothing can be learned. Restore the labels."
        return [("error", dataset.root, text)]
    unseen = [value for value in dataset.labels.organs if not any(value in m for m in maps)]
    if not unseen:
        return []
    it, them = ("it", "it") if len(unseen) == 1 else ("they", "them")
    gap = any(value > unseen[0] for value in dataset.labels.organs if value not in unseen)
    remedy = f"take {them} off the list" + (", and renumber the classes above without a gap" if gap else "")
    named = ", ".join(f"{dataset.labels.organs[value]} ({value})" for value in unseen)
    text = f"no training label contains {named}: {it} cannot be learned. Label {them}, or {remedy}."
    return [("warning", dataset.root, text)]


def _unlabelled(facts: Sequence[CaseFacts], root: Path) -> list[Remark]:
    """A note where no scan is unlabelled: then nothing is learnt but the labels."""
    if any(fact.role == "unlabelled" for fact in facts):
        return []
    text = (
        "no unlabelled scans: training learns from the labels alone, unless --labelled N hides some of them. Put scans "
        "without a label into imagesUn to learn from them, too."
    )
    return [("note", root, text)]


def _turned_headers(dataset: Dataset) -> list[Remark]:
    """A warning where left and right organs lie apart along another axis than the headers say."""
    axis = measured_mirror_axis(
        dataset.labels, [case.label for case in dataset.cases if case.label is not None and case.split == "train"]
    )
    if axis == LEFT_RIGHT_AXIS:
        return []
    a, b = (dataset.labels.names[value] for value in dataset.labels.mirror_pairs[0])
    text = (
        f"the pair {a} and {b} lies apart along {'ZYX'[axis]}, not along X as the headers say: the stored orientation "
        f"looks wrong. Training mirrors along {'ZYX'[axis]} as left-right; pictures will carry the headers' letters. "
        "Correct the headers if you can."
    )
    return [("warning", dataset.root, text)]


def _median_spacing(facts: Sequence[CaseFacts]) -> Spacing | None:
    """Median per axis over the training cases, over all where none is readable."""
    known = [fact for fact in facts if fact.spacing_mm is not None]
    spacings = [f.spacing_mm for f in known if f.role != "test"] or [f.spacing_mm for f in known]
    if not spacings:
        return None
    return triple(map(float, np.median(np.array(spacings), axis=0)))


def _disk_bytes(facts: Sequence[CaseFacts], channels: int, target: Spacing) -> int:
    total = 0
    for fact in facts:
        if fact.shape_zyx is None or fact.spacing_mm is None:
            continue
        sizes = (int(np.ceil(n * mm / new)) for n, mm, new in zip(fact.shape_zyx, fact.spacing_mm, target, strict=True))
        total += int(np.prod([*sizes], dtype=np.int64)) * (4 * channels + (fact.label_voxels is not None))
    return total
