"""What a run or a folder offers to look at: its cases, their label maps, what is known of them. Read anew where files
change, so that a run that is being trained can be watched."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from semiseg.data.plan import read_plan
from semiseg.data.reviews import CORRECTIONS, PSEUDO_LABELS, REVIEWED_LABELS, TEACHER_LABELS
from semiseg.data.roles import read_run_cases
from semiseg.decisions import FILE as DECISIONS
from semiseg.errors import ConfigError, DataError
from semiseg.files import cache_folder
from semiseg.io.dataset import LabelScheme
from semiseg.io.file_kinds import scan_files, stem
from semiseg.io.layouts import read_dataset, refuse_no_folder
from semiseg.io.layouts.folders import read_object
from semiseg.io.layouts.labels import parse_labels
from semiseg.io.layouts.plain import labels_found
from semiseg.io.modality import is_ct
from semiseg.rows import Doubt, read_ranking
from semiseg.run_folder import fold_runs, refuse_links
from semiseg.scoring.summary import read_summary

T = TypeVar("T")
State = tuple[tuple[int, int], ...]
OF_A_RUN = (PSEUDO_LABELS, REVIEWED_LABELS, TEACHER_LABELS)
"""Folders of a run whose labels are judged, the first before the others."""
OTHERS = "labels"
"""What labels are called that no run of ours made."""
TRUE = ("labelled", "validation", "test")
"""Roles of a run whose labels are references; those of others are a model's, or were accepted by a person."""
ROUNDS_SHOWN = 3
_NAMED_BY = 12
"""So many label maps of a folder that names no organs are read for their values."""


def state_of(*paths: Path) -> State:
    """Size and time of files, by which a change is noticed."""
    found = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            found.append((-1, -1))
        else:
            found.append((stat.st_size, stat.st_mtime_ns))
    return tuple(found)


class Fresh(Generic[T]):
    """What is made from files, made anew when one of them changes."""

    def __init__(self, make: Callable[[], T], *paths: Path) -> None:
        self._make, self._paths = make, paths
        self._kept: tuple[State, T] | None = None

    def __call__(self) -> T:
        state = state_of(*self._paths)
        kept = self._kept
        if kept is None or kept[0] != state:
            kept = self._kept = (state, self._make())
        return kept[1]


@dataclass(frozen=True, kw_only=True)
class ViewCase:
    """A case. role: of a run, or `train` and `test` of a folder. reference: its true label map, where it has one."""

    id: str
    role: str
    images: tuple[Path, ...] = ()
    reference: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Something of a case that can be drawn. form: how its file is read. channel: of the scan."""

    name: str
    title: str
    kind: Literal["image", "label", "map"]
    form: Literal["scan", "label", "stored", "feedback", "difference"]
    paths: tuple[Path, ...]
    channel: int = 0


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

    @property
    def is_ct(self) -> bool:
        return bool(self.channels) and is_ct(self.channels[0])


@dataclass(frozen=True, kw_only=True)
class Source:
    """A run or a folder. folder: as it was named. cache: for what is measured. labels: the folder of label maps that
    are judged in the place of the source's own, or None."""

    kind: Literal["run", "folder"]
    folder: Path
    cache: Path
    decisions: Path
    labels: Path | None
    contents: Fresh[Contents]
    _listings: dict[Path, Fresh[dict[str, Path]]] = field(default_factory=dict)

    def case(self, id: str) -> ViewCase | None:
        return self.contents().cases.get(id)

    def of_folder(self, folder: Path, id: str) -> Path | None:
        """A case's label map in a folder."""
        return self._listing(folder).get(id)

    def _listing(self, folder: Path) -> dict[str, Path]:
        if folder not in self._listings:
            self._listings[folder] = Fresh(lambda: {stem(file): file for file in scan_files(folder)}, folder)
        return self._listings[folder]()

    def reviewed(self, case: ViewCase) -> tuple[Path, str] | None:
        """The label map that is judged, and whose it is: a folder of `OF_A_RUN`, or `OTHERS`."""
        if self.labels:
            path = self.of_folder(self.labels, case.id)
            return (path, OTHERS) if path else None
        if self.kind == "folder":
            return (case.reference, OTHERS) if case.reference else None
        for kind in OF_A_RUN:
            if path := self.of_folder(self.folder / kind, case.id):
                return path, kind
        return None

    def all_reviewed(self) -> dict[str, Path]:
        """The label maps that are judged, by case."""
        cases = self.contents().cases
        if self.kind == "folder" and not self.labels:
            return {case.id: case.reference for case in cases.values() if case.reference}
        found: dict[str, Path] = {}
        for listing in reversed(self.listings()):
            found |= listing
        return {id: found[id] for id in cases if id in found}

    def measured(self, case: ViewCase) -> Path | None:
        """The label map whose volumes are shown: the one that is judged, else the prediction, else the reference."""
        found = self.reviewed(case)
        return found[0] if found else self.prediction(case) or case.reference

    def prediction(self, case: ViewCase) -> Path | None:
        return self.of_folder(self.folder / "predictions", case.id) if self.kind == "run" else None

    def correction(self, case: ViewCase) -> Path | None:
        return self.corrected().get(case.id)

    def corrected(self) -> dict[str, Path]:
        """The labels that were corrected, by case; the same dictionary until they change."""
        return self._listing(self.folder / CORRECTIONS) if self.takes_corrections else {}

    def listings(self) -> list[dict[str, Path]]:
        """What lies in the folders of labels that are judged; the same dictionaries until they change."""
        return [self._listing(folder) for folder in self._judged_folders]

    @property
    def _judged_folders(self) -> list[Path]:
        """The first before the others."""
        if self.labels:
            return [self.labels]
        return [self.folder / kind for kind in OF_A_RUN] if self.kind == "run" else []

    @property
    def takes_corrections(self) -> bool:
        """Labels of a run are handed out and taken back; others are mended where they lie."""
        return self.kind == "run" and self.labels is None

    @property
    def label_reviewed(self) -> str:
        """Whose labels are judged."""
        if self.labels or self.kind == "folder":
            return OTHERS
        return next((kind for kind in OF_A_RUN if (self.folder / kind).is_dir()), OF_A_RUN[0])

    def reviewed_layer(self, case: ViewCase) -> str | None:
        """The layer of the label that is judged."""
        found = self.reviewed(case)
        if found is None:
            return None
        return "reference" if found[0] == case.reference else "pseudo_label"

    def rounds(self) -> list[Path]:
        """The folders of the labels of the last rounds, the newest first."""
        found = [path for path in (self.folder / "scan_labels").glob("[!.]*") if path.is_dir()]
        return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)[:ROUNDS_SHOWN]

    def layers(self, case: ViewCase) -> list[Layer]:
        """What of a case can be drawn, the scan first."""
        found: list[Layer] = []
        channels = self.contents().channels or ("scan",)
        for index, name in enumerate(channels if case.images else ()):
            suffix = f"_{index}" if index else ""
            found.append(
                Layer(name=f"scan{suffix}", title=name, kind="image", form="scan", paths=case.images, channel=index)
            )
        reviewed, prediction = self.reviewed(case), self.prediction(case)
        judged = reviewed[0] if reviewed and reviewed[0] != case.reference else None
        for name, title, path in (
            ("reference", "Reference", case.reference),
            ("prediction", "Prediction", prediction),
            ("pseudo_label", _TITLES[reviewed[1]] if reviewed else "", judged),
            ("correction", "Correction", self.correction(case)),
        ):
            if path:
                found.append(Layer(name=name, title=title, kind="label", form="label", paths=(path,)))
        if case.reference and (other := prediction or judged):
            title = "Difference from the reference"
            paths = (case.reference, other)
            found.append(Layer(name="difference", title=title, kind="label", form="difference", paths=paths))
        if self.kind == "run":
            found += self._of_rounds(case)
            feedback = self.folder / "feedback" / f"{case.id}.npz"
            if feedback.is_file():
                found.append(Layer(name="feedback", title="Feedback", kind="map", form="feedback", paths=(feedback,)))
        return found

    def _of_rounds(self, case: ViewCase) -> list[Layer]:
        found = []
        for number, folder in enumerate(self.rounds(), start=1):
            path = folder / f"{case.id}.b2nd"
            if path.is_file():
                title = "Labels of the last round" if number == 1 else f"Labels {number - 1} rounds before"
                found.append(Layer(name=f"round_{number}", title=title, kind="label", form="stored", paths=(path,)))
        return found


_TITLES = {
    PSEUDO_LABELS: "Pseudo-label",
    REVIEWED_LABELS: "Reviewed label",
    TEACHER_LABELS: "Teacher's label",
    OTHERS: "Label",
}


def open_source(folder: Path, *, labels: Path | None = None, decisions: Path | None = None) -> Source:
    """A run or a folder, to be looked at. Raises `DataError` or `ConfigError` where it holds nothing that can be."""
    refuse_no_folder(folder)
    if labels is not None:
        refuse_no_folder(labels)
    is_run = (folder / "run.toml").is_file()
    if is_run:
        refuse_links(folder)
    kept = decisions or folder / DECISIONS
    if kept.is_dir():
        raise ConfigError(f"--decisions {kept}: is a folder. Name a file.")
    cache = folder / "view" if is_run else cache_folder() / "view" / _digest(str(folder.resolve()))
    return Source(
        kind="run" if is_run else "folder",
        folder=folder,
        cache=cache,
        decisions=kept,
        labels=labels,
        contents=_run_contents(folder) if is_run else _folder_contents(folder, labels),
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:20]


def _run_contents(run: Path) -> Fresh[Contents]:
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


def _folder_contents(folder: Path, labels: Path | None) -> Fresh[Contents]:
    def make() -> Contents:
        try:
            dataset = read_dataset(folder)
        except DataError:
            files = scan_files(folder)
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

    return Fresh(make, folder, *(folder / name for name in _FOLDERS_OF_DATASETS))


_FOLDERS_OF_DATASETS = ("dataset.json", "imagesTr", "labelsTr", "imagesTs", "labelsTs", "imagesUn", "images", "labels")


def _label_maps(folder: Path, files: Sequence[Path]) -> Contents:
    """A folder of label maps alone; their organs are named by a file beside them, or are the values of some."""
    return Contents(
        name=folder.resolve().name,
        cases={stem(file): ViewCase(id=stem(file), role="label", reference=file) for file in files},
        scheme=_scheme_beside(folder) or labels_found(folder, list(files[:_NAMED_BY])),
        channels=(),
    )


def _scheme_beside(folder: Path) -> LabelScheme | None:
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


def runs_of(run: Path) -> list[Path]:
    """The runs whose training is shown: of the folds, where there are any."""
    return fold_runs(run) or [run]
