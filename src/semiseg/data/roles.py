"""Who is labelled, unlabelled, held out or tested on in a run: `cases.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from semiseg.data.patients import BIDS, by_patient, patient_of, refuse_wrong_pattern
from semiseg.errors import ConfigError, DataError
from semiseg.files import read_jsonl, write_jsonl
from semiseg.io.dataset import Case, Dataset, Split, unusable_id
from semiseg.io.dicom.series import without_uid
from semiseg.io.file_kinds import label_map
from semiseg.io.masks import is_mask_folder
from semiseg.randomness import Draw
from semiseg.tables import first_problem, refuse_unknown_keys
from semiseg.words import counted

Role = Literal["labelled", "corrected", "accepted", "taught", "unlabelled", "set_aside", "validation", "test"]
"""Taught is an unlabelled case that an earlier model or another program labelled, to learn from as if the labels were
true. By a review: accepted is one whose label a person found right, corrected one that a person mended, and nothing is
learnt from one that was set aside."""
WITH_LABELS: tuple[Role, ...] = ("labelled", "corrected", "accepted", "taught")
"""Roles of the cases that training learns from as labelled ones."""
FEWEST_TO_VALIDATE = 20
"""Below so many labelled cases none is held out unasked: they are too few to give away."""
VALIDATED = 0.2
"""The share that is held out otherwise, where nothing else scores a run."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Section `[data]` of a run file."""

    root: str = ""
    """The dataset folder; relative paths start from the folder of the run file that names them."""
    layout: Literal["auto", "nnunet", "msd", "flare22", "plain", "masks"] = "auto"
    """How the folder is laid out; auto looks."""
    modality: Literal["auto", "ct", "mr"] = "auto"
    """What the scans are: CT is normalised by Hounsfield units, MR scan by scan. auto takes the channel's name in
    dataset.json, and looks at the values of some scans where there is none."""
    series: str = ""
    """Which series of DICOM are scans, where a folder holds several: the id or a part of the description that `semiseg
    check` shows, or all."""
    resample: bool = False
    """Make series of DICOM regular whose slices are tilted, missing or uneven: otherwise they are left out."""
    labelled: int | None = None
    """A label budget: so many training cases keep their labels and all others hide theirs. Not set: all keep them."""
    label_seed: int | None = None
    """Which cases keep theirs: a number draws by that seed. Not set: the first of `splits.json` (or by name)."""
    label_list: str = ""
    """A text file with the ids of the cases that keep their labels, one a line, in the order in which a budget spends
    them: what `semiseg rank` wrote and you have labelled, say. Relative paths as `root`."""
    exclude: str = ""
    """A text file with the ids of training cases that nothing is learnt from, one a line: damaged ones, or those with
    the worst pseudo-labels (`semiseg rank --exclude-worst`). A label budget is not spent on them. Relative paths as
    `root`."""
    patients: str = BIDS
    """Which scans are of one patient: a regular expression for the beginning of an id that names the patient, such as
    `.+(?=_)` for P01_1 and P01_2. Then folds and held-back scans part no patient, nothing is learnt from any scan of a
    patient who is held back, and intervals are over patients. That a patient of the test scans is trained on is said
    by `check`."""
    development: int = 0
    """For choosing settings: the last so many labelled training cases of `splits.json` (or by name) are scored in the
    place of the test cases, which are then left alone, and neither their labels nor their images are trained on."""
    folds: int = 0
    """Cross-validation: so many networks, each trained without one part of the labelled cases and scored on it."""
    fold: int | None = None
    """Which part is held back in this run, from 0 on; set for each fold by `semiseg run --folds`."""
    teacher: str = ""
    """A trained run or model folder that labels the unlabelled cases before training (distillation): so a network on
    another grid, or with fewer features, learns what it knows. A run with folds labels by their average. Relative paths
    as `root`."""
    teacher_labels: str = ""
    """A folder of label maps by another program or person, which the unlabelled cases are learnt from: ID.nii.gz, or
    ID/ORGAN.nii.gz as TotalSegmentator writes. What it calls background may be an organ that it does not know.
    Relative paths as `root`."""
    teacher_names: str = ""
    """Which organ is which in them: a TOML or JSON file with lines such as `liver = 5`, or `spleen = "spleen"` for the
    name of a file; by default names.toml in the folder, or equal names. Relative paths as `root`."""
    decisions: str = ""
    """A run that was reviewed by `semiseg view`, or its decisions.jsonl: accepted and corrected labels are learnt from,
    and what was set aside is not. Relative paths as `root`."""
    store: str = ""
    """Folder for prepared scans, which runs share; by default `prepared-scans` beside the run. Relative paths as
    `root`."""
    mirror_pairs: tuple[tuple[str, str], ...] | None = None
    """Pairs of label names that mirroring exchanges. Not set: those of dataset.json, or left_x with right_x."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "series", without_uid(self.series))
        if self.labelled is not None and self.labelled < 1:
            raise ConfigError(f"data.labelled = {self.labelled}: at least 1 labelled case is needed.")
        if self.label_list and self.label_seed is not None:
            raise ConfigError("data.label_list and data.label_seed both say which labels are kept: leave one out.")
        if self.teacher and self.teacher_labels:
            raise ConfigError("data.teacher and data.teacher_labels both label the unlabelled cases: leave one out.")
        if self.teacher_names and not self.teacher_labels:
            raise ConfigError("data.teacher_names says what the values of data.teacher_labels mean: name both.")
        refuse_wrong_pattern(self.patients)
        if self.development < 0:
            raise ConfigError(f"data.development = {self.development}: give 0 or more.")
        if self.folds and (self.folds < 2 or self.development):
            raise ConfigError(f"data.folds = {self.folds}: give 2 or more, or 0; and not with data.development.")
        if self.fold is not None and not 0 <= self.fold < self.folds:
            raise ConfigError(f"data.fold = {self.fold}: there are data.folds = {self.folds}, numbered from 0 on.")


@dataclass(frozen=True, kw_only=True)
class RunCase:
    """A case and its role in a run; `label` is None where there is none or the label budget hides it."""

    id: str
    images: tuple[str, ...]
    label: str | None
    split: Split
    role: Role
    hash: str | None = None

    def case(self) -> Case:
        label = Path(self.label) if self.label else None
        return Case(id=self.id, images=tuple(map(Path, self.images)), label=label, split=self.split)


_ADAPTER: TypeAdapter[RunCase] = TypeAdapter(RunCase)
_KEYS = {field.name for field in fields(RunCase)}


def assign_roles(
    dataset: Dataset, settings: DataSettings, *, validation_fraction: float | None, seed: int
) -> list[RunCase]:
    """One `RunCase` per case of the dataset, in its order; no test cases where `development` takes their place.

    validation_fraction: share of the labelled training cases that is held out; None is a fifth of 20 or more. seed: of
    the held-out choice. Raises `ConfigError` where the label budget cannot be met, and `DataError` where
    nothing is labelled.
    """
    excluded = set(_known_ids(settings.exclude, "exclude", dataset)) if settings.exclude else set[str]()
    everyone = _listed(dataset)
    listed = [case for case in everyone if case not in excluded]
    if everyone and not listed:
        raise ConfigError(f"data.exclude = {settings.exclude}: names every labelled training case. Take some off.")
    held_back = _last(listed, settings.patients, settings.development)
    if settings.label_list:
        order = _named_labels(dataset, settings, listed=set(listed), excluded=excluded, held_back=held_back)
    else:
        drawn = everyone
        if settings.label_seed is not None:
            patients = _shuffled(everyone, settings.patients, settings.label_seed, "label budget")
            drawn = [case for patient in patients for case in patient]
        left_out = held_back | excluded
        order = [case for case in drawn if case not in left_out]
    kept = _within_budget(dataset, settings, order, listed=len(listed))
    if settings.fold is not None:
        held_back = set(fold_parts(kept, settings.folds, settings.patients)[settings.fold])
        kept = [case for case in kept if case not in held_back]
    held_out = _held_out(kept, settings.patients, validation_fraction, seed)
    learnt_from = set(kept)
    scored = by_patient(held_back | held_out, settings.patients).keys()

    def role(case: Case) -> Role:
        if case.split == "test" or case.id in held_back:
            return "test"
        if case.id in held_out:
            return "validation"
        return "labelled" if case.id in learnt_from else "unlabelled"

    def is_left_out(case: Case) -> bool:
        if case.split == "test":
            return bool(held_back)
        scores_the_run = patient_of(case.id, settings.patients) in scored  # of whom nothing is learnt
        return case.id in excluded or (scores_the_run and role(case) == "unlabelled")

    absolute = _Absolute()
    return [_run_case(case, role(case), absolute) for case in dataset.cases if not is_left_out(case)]


def depend_on_patients(settings: DataSettings, *, validates: bool) -> bool:
    """Whether who is learnt from depends on `DataSettings.patients`. validates: whether cases may be held out."""
    return bool(settings.folds or settings.development or settings.label_seed is not None or validates)


def _last(ids: Sequence[str], pattern: str, count: int) -> set[str]:
    """The last so many ids, and the others of their patients."""
    last = {patient_of(case, pattern) for case in ids[max(0, len(ids) - count) :]} if count else set[str]()
    return {case for case in ids if patient_of(case, pattern) in last}


def _named_labels(
    dataset: Dataset, settings: DataSettings, *, listed: set[str], excluded: set[str], held_back: set[str]
) -> list[str]:
    """The cases of `label_list`, in its order; listed: those with a label that may be learnt from."""
    named = _known_ids(settings.label_list, "label_list", dataset)
    if out := [case for case in named if case in excluded]:
        raise ConfigError(
            f"data.label_list = {settings.label_list}: {out[0]} is also in data.exclude. Take it off one of them."
        )
    if unlabelled := [case for case in named if case not in listed]:
        raise ConfigError(f"data.label_list = {settings.label_list}: {unlabelled[0]} has no label. Take it off.")
    if both := [case for case in named if case in held_back]:
        raise ConfigError(
            f"data.label_list = {settings.label_list}: {both[0]} is one of the {settings.development} cases that "
            "data.development holds back. Take it off."
        )
    if not named:
        raise ConfigError(f"data.label_list = {settings.label_list}: names no case.")
    return named


def _within_budget(dataset: Dataset, settings: DataSettings, order: list[str], *, listed: int) -> list[str]:
    """The first of the cases, as many as are to be labelled; enough for the folds. listed: how many cases
    have a label that was not excluded."""
    if listed and not order:
        raise ConfigError(
            f"data.development = {settings.development} takes all of {counted(listed, 'labelled training case')}."
        )
    if not order:
        raise DataError(f"{dataset.root}: no training case has a label, but at least one is needed. Add labels.")
    if settings.labelled is not None and settings.labelled > len(order):
        besides = f" besides the {settings.development} of data.development" if settings.development else ""
        have = counted(len(order), "training case has", "training cases have")
        raise ConfigError(f"data.labelled = {settings.labelled}, but only {have} a label{besides}.")
    kept = order[: settings.labelled]
    if len(kept) < settings.folds:
        raise ConfigError(
            f"data.folds = {settings.folds}, but only {counted(len(kept), 'case is', 'cases are')} labelled. "
            "Give fewer folds."
        )
    if (patients := len(by_patient(kept, settings.patients))) < settings.folds:
        raise ConfigError(
            f"data.folds = {settings.folds}, but the labelled cases are of {counted(patients, 'patient')} by "
            f"data.patients = {settings.patients!r}. Give fewer folds, or mend data.patients."
        )
    return kept


def _held_out(kept: list[str], pattern: str, validation_fraction: float | None, seed: int) -> set[str]:
    """The labelled cases that are validated on, all or none of a patient's."""
    if validation_fraction is None:
        validation_fraction = VALIDATED if len(kept) >= FEWEST_TO_VALIDATE else 0.0
    if validation_fraction <= 0:
        return set()
    patients = [*by_patient(kept, pattern).values()]
    count = min(max(1, round(validation_fraction * len(patients))), len(patients) - 1)
    generator = Draw(seed=seed).generator("validation cases")
    return {case for i in generator.choice(len(patients), count, replace=False) for case in patients[i]}


def fold_parts(ids: Sequence[str], folds: int, pattern: str) -> list[list[str]]:
    """The ids in so many parts, drawn once and for all by the ids themselves; parts differ by one patient at most, and
    no patient is in two. pattern: `DataSettings.patients`."""
    drawn = _shuffled(ids, pattern, 0, "folds")
    return [[case for patient in drawn[part::folds] for case in patient] for part in range(folds)]


def _shuffled(ids: Sequence[str], pattern: str, seed: int, purpose: str) -> list[list[str]]:
    """The ids of each patient, patients in an order that is drawn, and the same in whatever order ids are given."""
    patients = [*by_patient(sorted(ids), pattern).values()]
    return [patients[i] for i in Draw(seed=seed).generator(purpose).permutation(len(patients))]


class _Absolute:
    """Paths from the root on, without links, of files most of which share a folder. A file that is a link itself keeps
    its name, which says the format (DVC and git-annex keep contents under hashes); folders of masks keep all links."""

    def __init__(self) -> None:
        self._folders: dict[Path, Path] = {}

    def of(self, file: Path) -> str:
        if is_mask_folder(file):  # where it lies says which list names its organs
            return str(file.absolute())
        if file.parent not in self._folders:
            self._folders[file.parent] = file.parent.resolve()
        return str(self._folders[file.parent] / file.name)


def _run_case(case: Case, role: Role, absolute: _Absolute) -> RunCase:
    label = absolute.of(case.label) if case.label and role != "unlabelled" else None
    images = tuple(map(absolute.of, case.images))
    return RunCase(id=case.id, images=images, label=label, split=case.split, role=role)


def _listed(dataset: Dataset) -> list[str]:
    """Ids of the labelled training cases: first those that `splits.json` lists, in its order."""
    labelled = [case.id for case in dataset.cases if case.split == "train" and case.label is not None]
    first = set(dataset.train_order) & set(labelled)
    return [*(case for case in dataset.train_order if case in first), *(case for case in labelled if case not in first)]


def read_ids(file: str, key: str) -> list[str]:
    """The ids of a list, each once, that `data.KEY` names; raises `ConfigError` where it cannot be read."""
    try:
        lines = Path(file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"data.{key} = {file}: cannot be read ({error}). Give a text file with an id a line."
        ) from None
    return list(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")))


def _known_ids(file: str, key: str, dataset: Dataset) -> list[str]:
    """The same; raises `ConfigError` for one that is no training case."""
    ids = read_ids(file, key)
    known = {case.id for case in dataset.cases if case.split == "train"}
    if tests := [case.id for case in dataset.cases if case.split == "test" and case.id in ids and case.id not in known]:
        raise ConfigError(
            f"data.{key} = {file}: {tests[0]} is a test case. A list is of training cases: to leave a test case out, "
            "move its scan out of the data folder."
        )
    if unknown := [case for case in ids if case not in known]:
        raise ConfigError(f"data.{key} = {file}: {unknown[0]} is no training case of {dataset.root}. Mend the list.")
    return ids


def taught(cases: Sequence[RunCase], labels: Path) -> list[RunCase]:
    """The cases, of which the unlabelled ones have the label maps `labels/ID.nii.gz` of a teacher."""
    return [
        replace(case, role="taught", label=str(label_map(labels, case.id).resolve()))
        if case.role == "unlabelled"
        else case
        for case in cases
    ]


def of_role(cases: Sequence[RunCase], *roles: Role) -> list[RunCase]:
    """The cases that have one of the roles, in order."""
    return [case for case in cases if case.role in roles]


def write_run_cases(path: Path, cases: Sequence[RunCase]) -> None:
    """Write `cases.jsonl`."""
    write_jsonl(path, [asdict(case) for case in cases])


def read_run_cases(path: Path) -> list[RunCase]:
    """Read `cases.jsonl`; raises `DataError` that names the line."""
    rows = read_jsonl(path)
    if not rows:
        raise DataError(f"{path}: missing or empty. Run `semiseg prepare` first.")
    cases: dict[str, RunCase] = {}
    for number, row in enumerate(rows, start=1):
        try:
            if not row.keys() <= _KEYS:  # or else looked at closely, which takes a tenth of a millisecond
                refuse_unknown_keys(row, RunCase, "a case")
            case = _ADAPTER.validate_python(row)
        except (ConfigError, ValidationError) as error:
            wrong = first_problem(error, RunCase) if isinstance(error, ValidationError) else error
            raise DataError(f"{path}, line {number}: not a case ({wrong}). Prepare the run again.") from None
        if why := unusable_id(case.id):
            raise DataError(f"{path}, line {number}: case {case.id!r}: {why}")
        if case.id in cases:
            raise DataError(f"{path}, line {number}: case {case.id} stands there twice. Prepare the run again.")
        cases[case.id] = case
    return list(cases.values())


def with_hashes(cases: Sequence[RunCase], hashes: dict[str, str | None]) -> list[RunCase]:
    """The cases with the hash that preparation found for each."""
    return [replace(case, hash=hashes.get(case.id)) for case in cases]
