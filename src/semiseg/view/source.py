"""What of a run or a folder can be looked at: which label of a case is judged, which layers it has."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from semiseg.data.reviews import CORRECTIONS, PSEUDO_LABELS, REVIEWED_LABELS, TEACHER_LABELS
from semiseg.decisions import FILE as DECISIONS
from semiseg.errors import ConfigError, DataError
from semiseg.files import cache_folder
from semiseg.io.file_kinds import scans_by_stem
from semiseg.io.layouts import is_heap, refuse_no_folder
from semiseg.run_folder import fold_runs, refuse_links
from semiseg.view.contents import SEG_AS_NIFTI, Contents, Fresh, ViewCase, folder_contents, run_contents
from semiseg.words import counted

ROUNDS_SHOWN = 3
OF_A_RUN = (PSEUDO_LABELS, REVIEWED_LABELS, TEACHER_LABELS)
"""Folders of a run whose labels are judged, the first before the others."""
OTHERS = "labels"
"""What labels are called that no run of ours made."""
_NONE: dict[str, Path] = {}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Something of a case that can be drawn. form: how its file is read. channel: of the scan."""

    name: str
    title: str
    kind: Literal["image", "label", "map"]
    form: Literal["scan", "label", "stored", "feedback", "difference"]
    paths: tuple[Path, ...]
    channel: int = 0


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
    folds: Fresh[list[Path]]
    _listings: dict[Path, Fresh[dict[str, Path]]] = field(default_factory=dict)

    def case(self, id: str) -> ViewCase | None:
        return self.contents().cases.get(id)

    def of_folder(self, folder: Path, id: str) -> Path | None:
        """A case's label map in a folder."""
        return self._listing(folder).get(id)

    def _listing(self, folder: Path) -> dict[str, Path]:
        if folder not in self._listings:
            self._listings[folder] = Fresh(lambda: scans_by_stem(folder), folder)
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
        """Of a run with folds that of the network which has not seen the case."""
        if self.kind == "folder":
            return None
        folders = [self.folder, *self.folds()]
        return next((path for folder in folders if (path := self.of_folder(folder / "predictions", case.id))), None)

    def correction(self, case: ViewCase) -> Path | None:
        return self.corrected().get(case.id)

    def corrected(self) -> dict[str, Path]:
        """The labels that were corrected, by case; the same dictionary until they change."""
        return self._listing(self.folder / CORRECTIONS) if self.takes_corrections else _NONE

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
                title = "Labels of the last round" if number == 1 else f"Labels {counted(number - 1, 'round')} before"
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
        if is_heap(labels):
            raise DataError(f"{labels}: DICOM, and no label maps that are read. {SEG_AS_NIFTI}")
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
        folds=Fresh(lambda: fold_runs(folder), folder),
        contents=run_contents(folder) if is_run else folder_contents(folder, labels),
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:20]
