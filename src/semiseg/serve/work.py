"""What is served: scans, the names of organs, and the folder that keeps what comes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from semiseg.data.plan import read_plan, write_plan
from semiseg.data.reviews import PSEUDO_LABELS
from semiseg.decisions import FILE as DECISIONS
from semiseg.errors import ConfigError, DataError
from semiseg.files import read_json, write_json
from semiseg.io.dataset import LabelScheme, unusable_id
from semiseg.io.dicom.places import EVERY, place_of, series_of
from semiseg.io.dicom.series import hashed
from semiseg.io.layouts import detect_layout, read_dataset, refuse_no_folder
from semiseg.prediction.inputs import Scan, find_scans
from semiseg.rows import read_predictions
from semiseg.run_folder import refuse_links
from semiseg.view.contents import Contents, Fresh, ViewCase, scheme_beside
from semiseg.view.source import Source, open_source
from semiseg.words import shortened

Say = Callable[[str], None]
DEFAULT_FOLDER = Path("semiseg-review")
"""Where what comes of scans goes that are no run's."""
INFERRED = "inferred"
"""Folder for labels that a client asked for, and that are not the ones to be judged."""
_FILE = "serve.json"
_TO_LABEL = ("unlabelled", "set_aside", "taught")


class Infers(Protocol):
    """What predicts, one scan at a time. hash: of the model."""

    hash: str

    def __call__(self, scan: Scan, output: Path) -> Path:
        """The label map of a scan in a folder; raises `DataError` where there can be none."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """source: the cases, and the folder that keeps labels, corrections and decisions. to_label: roles of the cases that
    are handed out."""

    source: Source
    scheme: LabelScheme
    to_label: tuple[str, ...] = _TO_LABEL

    @property
    def folder(self) -> Path:
        return self.source.folder

    @property
    def cases(self) -> Mapping[str, ViewCase]:
        """Without those of the test, whose labels nothing is learnt from."""
        return {id: case for id, case in self.source.contents().cases.items() if case.role != "test"}

    def by_series(self, uid: str) -> ViewCase | None:
        """The case of a series of DICOM; None also where several volumes of the series are cases."""
        wanted = hashed(uid)
        places = [(case, place) for case in self.cases.values() if case.images and (place := place_of(case.images[0]))]
        if named := [case for case, place in places if place.id == wanted]:
            return named[0]
        found = [case for case, _ in places if _uid_of(case.images[0]) == uid]
        return found[0] if len(found) == 1 else None

    def original(self, case: ViewCase) -> Path | None:
        """The label that a person would mend: a model's or the one of the round before, else the case's own."""
        found = self.source.reviewed(case)
        return found[0] if found else case.reference

    def scans(self) -> list[Scan]:
        return [Scan(case.id, case.images) for case in self.cases.values() if case.images]

    def inferred(self, case: ViewCase, infers: Infers) -> Path:
        """The label of a model, as it was made before or is made now. A label that is judged is never replaced: of a
        case that has one of another model, or its own, the new one goes elsewhere."""
        judged = self.folder / PSEUDO_LABELS
        there = self.source.of_folder(judged, case.id)
        output = judged if there is None and case.reference is None else self.folder / INFERRED
        for folder in (judged, output):
            made = self.source.of_folder(folder, case.id)
            if made and _model_of(folder, case.id) == infers.hash:
                return made
        return infers(Scan(case.id, case.images), output)


def _uid_of(image: Path) -> str | None:
    """The SeriesInstanceUID of a scan of DICOM; None where it cannot be read any more."""
    try:
        return series_of(image).uid
    except DataError:
        return None


def _model_of(folder: Path, case: str) -> str | None:
    """The hash of the model that made a label map."""
    rows = [row for row in read_predictions(folder) if row["id"] == case and "error" not in row]
    return rows[-1]["model"] if rows else None


def open_work(model: Path | None, data: Path | None, folder: Path | None, *, say: Say = lambda text: None) -> Work:
    """What is served. model: a model folder or a run; None for a review without one. data: a dataset, or a folder of
    scans; None for a run's own. folder: for what comes of it, unless that is the run. say: told of what is left out.

    Raises `ConfigError` or `DataError` that says what is missing or does not fit.
    """
    if model is not None:
        refuse_no_folder(model)
    if model is not None and (model / "run.toml").is_file():
        if folder is not None:
            raise ConfigError(
                f"--output {folder}: what comes of a run's scans is kept in the run. Leave it out, or name a model "
                "folder in the place of the run."
            )
        return _of_run(model, data, say)
    if data is None:
        raise ConfigError("name the scans: --data FOLDER; or a run, which knows its own.")
    refuse_no_folder(data)
    cases, scheme = _cases_in(data, say)
    folder = folder or DEFAULT_FOLDER
    if model is not None:
        plan_file = (model / "model" if (model / "model").is_dir() else model) / "plan.toml"
        if not plan_file.is_file():
            raise DataError(f"{model}: is no model folder and no run (it has no plan.toml and no run.toml).")
        plan = read_plan(plan_file)
        _keep(folder, data, plan.labels)
        write_plan(folder / "plan.toml", plan)  # by which the next run knows whether its organs are the same
        made = Contents(name=data.resolve().name, cases=cases, scheme=plan.labels, channels=plan.channels)
        return Work(source=_source(folder, made), scheme=plan.labels)
    if scheme is None:
        raise ConfigError(
            f"{data}: nothing says which organs there are. Name them in {data / 'labels.json'}: "
            '{"liver": 1, "spleen": 2}.'
        )
    _keep(folder, data, scheme)
    made = Contents(name=data.resolve().name, cases=cases, scheme=scheme, channels=())
    return Work(source=_source(folder, made), scheme=scheme, to_label=(*_TO_LABEL, "labelled"))


def _of_run(run: Path, data: Path | None, say: Say) -> Work:
    source = open_source(run)
    contents = source.contents()
    if contents.scheme is None:
        raise DataError(f"{run}: is not prepared yet (no plan.toml). Run `semiseg prepare {run} --data FOLDER` first.")
    if data is not None:
        refuse_no_folder(data)
        cases, _ = _cases_in(data, say)
        if other := [id for id in cases if id in contents.cases and not _same_files(cases[id], contents.cases[id])]:
            raise ConfigError(
                f"--data {data}: {shortened(other)}: the run has another scan of that name. Leave --data out to serve "
                f"the run's own; or name {run / 'model'} in the place of the run."
            )
        of_data = replace(contents, cases=cases | {id: contents.cases[id] for id in cases if id in contents.cases})
        source = replace(source, contents=Fresh(lambda: of_data))
    return Work(source=source, scheme=contents.scheme)


def _same_files(one: ViewCase, other: ViewCase) -> bool:
    return [path.resolve() for path in one.images] == [path.resolve() for path in other.images]


def _source(folder: Path, contents: Contents) -> Source:
    return Source(
        kind="run",  # it is kept as in a run
        folder=folder,
        cache=folder / "view",
        decisions=folder / DECISIONS,
        labels=None,
        contents=Fresh(lambda: contents),
        folds=Fresh(list),
    )


def _cases_in(data: Path, say: Say) -> tuple[dict[str, ViewCase], LabelScheme | None]:
    """The cases of a dataset, or scans that lie in no layout; and the organs, where they are named."""
    try:
        detect_layout(data)
    except DataError:
        return _scans_in(data, say), scheme_beside(data)
    dataset = read_dataset(data)
    for file, text in dataset.problems:
        say(f"{file}: {text}")
    cases = {
        case.id: ViewCase(
            id=case.id,
            role="test" if case.split == "test" else "labelled" if case.label else "unlabelled",
            images=case.images,
            reference=case.label,
        )
        for case in dataset.cases
    }
    return cases, dataset.labels


def _scans_in(data: Path, say: Say) -> dict[str, ViewCase]:
    """Those of a folder that is no dataset; of DICOM each series that is a volume."""
    found = {}
    for scan in find_scans([data], series=EVERY, say=say):
        if why := unusable_id(scan.id):
            say(f"{scan.images[0]}: {why}")
        else:
            found[scan.id] = ViewCase(id=scan.id, role="unlabelled", images=scan.images)
    return found


def _keep(folder: Path, data: Path, scheme: LabelScheme) -> None:
    """Begin a folder, or go on with one of the same scans and organs."""
    if folder.resolve().is_relative_to(data.resolve()):
        raise ConfigError(
            f"{folder}: lies among the scans, where labels may be taken for some. Name another with --output."
        )
    refuse_links(folder)
    file = folder / _FILE
    wanted = {"data": str(data.resolve()), "labels": {name: value for value, name in scheme.names.items()}}
    if file.is_file():
        if (before := read_json(file)) != wanted:
            what = "organs" if isinstance(before, dict) and before.get("data") == wanted["data"] else "scans"
            raise ConfigError(f"{folder}: was begun for other {what}. Name another folder with --output.")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is there already, and not from here. Name another folder with --output.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, wanted)
