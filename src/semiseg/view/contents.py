"""What a run or a folder holds: its cases, organs and scores, read anew where files change."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar

from semiseg.data.plan import read_plan
from semiseg.data.roles import read_run_cases
from semiseg.errors import DataError
from semiseg.io.dataset import Case, LabelScheme
from semiseg.io.dicom.places import EVERY
from semiseg.io.file_kinds import scans_by_stem
from semiseg.io.label_scheme import parse_labels
from semiseg.io.layouts import is_heap, read_dataset
from semiseg.io.layouts.folders import read_object
from semiseg.io.layouts.plain import labels_found
from semiseg.io.masks import is_mask_folder
from semiseg.io.modality import UNKNOWN_CHANNEL, is_ct, name_channels
from semiseg.io.scans import files_of
from semiseg.prediction.inputs import find_scans
from semiseg.rows import Doubt, read_ranking
from semiseg.scoring.summary import read_summary

T = TypeVar("T")
State = tuple[tuple[int, int], ...]
TRUE = ("labelled", "validation", "test")
"""Roles of a run whose labels are references; those of others are a model's, or were accepted by a person."""
_NAMED_BY = 12
"""So many label maps of a folder that names no organs are read for their values."""


def state_of(*paths: Path) -> State:
    """Size and time of files, by which a change is noticed; of scans also of the files that their headers name."""
    found = []
    folders = {path for path in paths if path.is_dir() and not is_mask_folder(path)}
    for file in chain.from_iterable([path] if path in folders else files_of([path]) for path in paths):
        try:
            stat = file.stat()
        except OSError:
            found.append((-1, -1))
        else:
            found.append((stat.st_size, stat.st_mtime_ns))
    return tuple(found)


class Fresh(Generic[T]):
    """What is made from files, made anew when one of them changes. also: further files and folders that what was made
    is of."""

    def __init__(
        self, make: Callable[[], T], *paths: Path, also: Callable[[T], Collection[Path]] = lambda made: ()
    ) -> None:
        self._make, self._paths, self._also = make, paths, also
        self._kept: tuple[State, T, tuple[Path, ...]] | None = None

    def __call__(self) -> T:
        kept = self._kept
        if kept is None or kept[0] != state_of(*self._paths, *kept[2]):
            before = state_of(*self._paths)
            made = self._make()
            also = tuple(self._also(made))
            kept = self._kept = ((*before, *state_of(*also)), made, also)
        return kept[1]


@dataclass(frozen=True, kw_only=True)
class ViewCase:
    """A case. role: of a run; `train` and `test` of a dataset, `scan` of an archive, `label` of label maps alone.
    reference: its true label map, where it has one."""

    id: str
    role: str
    images: tuple[Path, ...] = ()
    reference: Path | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """The cases by id, in order. scheme: None where no organ is known yet. scores: Dice by case and organ."""

    name: str
    cases: dict[str, ViewCase]
    scheme: LabelScheme | None
    channels: tuple[str, ...]
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)
    doubts: dict[str, Doubt] = field(default_factory=dict)

    @cached_property
    def organs(self) -> dict[int, str]:
        return self.scheme.organs if self.scheme else {}

    @cached_property
    def values(self) -> dict[str, str]:
        """The organs' label values as text, by name."""
        return {name: str(value) for value, name in self.organs.items()}

    def is_ct(self, channel: int) -> bool:
        return channel < len(self.channels) and is_ct(self.channels[channel])


def run_contents(run: Path) -> Fresh[Contents]:
    cases, plan, summary, ranking = (run / name for name in ("cases.jsonl", "plan.toml", "summary.json", "ranking.csv"))

    def make() -> Contents:
        known = read_plan(plan) if plan.is_file() else None
        listed = read_run_cases(cases) if cases.is_file() else []
        scores = read_summary(summary)["cases"] if summary.is_file() else []
        return Contents(
            name=run.resolve().name,
            cases={
                case.id: ViewCase(
                    id=case.id,
                    role=case.role,
                    images=tuple(map(Path, case.images)),
                    reference=Path(case.label) if case.label and case.role in TRUE else None,
                )
                for case in listed
            },
            scheme=known.labels if known else None,
            channels=known.channels if known else (),
            scores={case["id"]: {organ: found["dice"] for organ, found in case["organs"].items()} for case in scores},
            doubts={doubt["id"]: doubt for doubt in read_ranking(run)} if ranking.is_file() else {},
        )

    return Fresh(make, cases, plan, summary, ranking)


def folder_contents(folder: Path, labels: Path | None = None) -> Fresh[Contents]:
    """labels: the folder of label maps that are judged, which tell the organs of an archive of DICOM."""

    def make() -> Contents:
        try:
            dataset = read_dataset(folder)
        except DataError:
            files = scans_by_stem(folder)
            if not files and is_heap(folder):
                return _archive(folder, labels)
            if not files or (folder / "imagesTr").is_dir() or (folder / "images").is_dir():
                raise
            return _label_maps(folder, files)
        scheme = dataset.labels
        return Contents(
            name=dataset.name,
            cases={
                case.id: ViewCase(id=case.id, role=case.split, images=case.images, reference=case.label)
                for case in dataset.cases
            },
            scheme=scheme,
            channels=dataset.channels,
        )

    def folders(made: Contents) -> set[Path]:
        files = [file for case in made.cases.values() for file in (*case.images, case.reference) if file]
        return {file.parent for file in files}

    return Fresh(make, folder / "dataset.json", folder / "labels.json", folder / "meta.csv", also=folders)


def _archive(folder: Path, labels: Path | None) -> Contents:
    """The series of DICOM below a folder. Raises `DataError` where there is none that is a volume, as in a folder of
    segmentations."""
    try:
        scans = find_scans([folder], series=EVERY)
    except DataError as error:
        raise DataError(f"{str(error).removesuffix('.')}. {SEG_AS_NIFTI}") from None
    files = scans_by_stem(labels) if labels else {}
    scheme = scheme_beside(folder) or (scheme_beside(labels) if labels else None)
    if files and labels and scheme is None:
        scheme = labels_found(labels, list(files.values())[:_NAMED_BY])
    cases = [Case(id=scan.id, images=scan.images, label=None) for scan in scans]
    channels, _ = name_channels((UNKNOWN_CHANNEL,), cases, folder, "auto")
    return Contents(
        name=folder.resolve().name,
        cases={case.id: ViewCase(id=case.id, role="scan", images=case.images) for case in cases},
        scheme=scheme,
        channels=channels,
    )


SEG_AS_NIFTI = (
    "DICOM SEG are not shown here: 3D Slicer opens them; semiseg predict --format nifti writes what --labels FOLDER "
    "takes."
)


def _label_maps(folder: Path, files: Mapping[str, Path]) -> Contents:
    """A folder of label maps alone; their organs are named by a file beside them, or are the values of some."""
    return Contents(
        name=folder.resolve().name,
        cases={id: ViewCase(id=id, role="label", reference=file) for id, file in files.items()},
        scheme=scheme_beside(folder) or labels_found(folder, list(files.values())[:_NAMED_BY]),
        channels=(),
    )


def scheme_beside(folder: Path) -> LabelScheme | None:
    """The organs that a file beside scans or label maps names; None where there is none."""
    for file in (folder / "dataset.json", folder / "labels.json"):
        if file.is_file():
            value: Any = read_object(file)
            return parse_labels(value.get("labels", value) if isinstance(value, dict) else value, file)
    return None


def doubt_of(doubt: Doubt | None) -> float | None:
    """One number: disagreement, or entropy where a run has one network alone."""
    if doubt is None:
        return None
    value = doubt["entropy"] if math.isnan(doubt["disagreement"]) else doubt["disagreement"]
    return value if math.isfinite(value) else None
