"""What a review of a run says of its scans, for the next run: which labels are learnt from, and which are not.

The next run keeps label maps of its own (`reviewed_labels/`) and what came of every case (`review.json`), so that it
depends neither on the folder that was reviewed, nor on decisions that are taken later.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from semiseg.cases import WAS_KILLED, map_cases
from semiseg.data.labels import read_checked_label
from semiseg.data.partial import ignore_value, on_slices, over, without_organs
from semiseg.data.plan import read_plan
from semiseg.data.roles import Role, RunCase
from semiseg.decisions import FILE, Decision, Key, label_sha256, of_organ, read_decisions, standing
from semiseg.errors import ConfigError, DataError
from semiseg.files import atomic_file, read_json, write_json
from semiseg.io.dataset import LabelScheme
from semiseg.io.file_kinds import label_map
from semiseg.io.scans import files_of, read_grid, write_label
from semiseg.tables import first_problem
from semiseg.types import LabelArray
from semiseg.words import counted, shortened

PSEUDO_LABELS, TEACHER_LABELS, REVIEWED_LABELS = "pseudo_labels", "teacher_labels", "reviewed_labels"
DOUBT, CORRECTIONS = "doubt", "corrections"
"""Folders of a run: labels that its model, its teacher and its review gave to scans; doubt by slice; labels that a
person mended."""
REVIEW_FILE = "review.json"


@dataclass(frozen=True, kw_only=True)
class Slices:
    """Slices of a canonical scan: `axis` 0 is axial (Z), 1 coronal (Y), 2 sagittal (X)."""

    axis: int
    indices: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CorrectionNote:
    """`corrections/ID.json`. slices: those that were corrected, None for all. source_sha256: of the label that was
    handed out. label_sha256: of the correction; None where that is not known, as without a note."""

    slices: Slices | None = None
    source_sha256: str | None = None
    label_sha256: str | None = None

    def fits(self, label: Path) -> bool:
        """Whether it is of this label: notes are written before their labels."""
        return self.label_sha256 in (None, label_sha256(label))


_NOTE: TypeAdapter[CorrectionNote] = TypeAdapter(CorrectionNote)


def read_note(corrections: Path, case: str) -> CorrectionNote:
    """What is known of a correction; raises `DataError` for a damaged file."""
    file = corrections / f"{case}.json"
    if not file.exists():
        return CorrectionNote()
    try:
        return _NOTE.validate_python(read_json(file))
    except ValidationError as error:
        raise DataError(f"{file}: {first_problem(error, CorrectionNote)} Import the correction again.") from None


@dataclass(frozen=True, kw_only=True)
class ReviewedCase:
    """What a review made of a case; its role is labelled where the dataset has a label of it.

    has_label: in `reviewed_labels`. without: organs of it that are ignored. ignored: whether voxels of the label are.
    own_sha256: of the dataset's own label, where it has one.
    """

    id: str
    role: Role
    has_label: bool = False
    own_sha256: str | None = None
    without: tuple[str, ...] = ()
    ignored: bool = False


@dataclass(frozen=True, kw_only=True)
class Review:
    """What a review made of the cases that it says something of. stale: cases with decisions on a label that is another
    now, or is gone. foreign: cases that the run does not have. cases: by id."""

    source: str
    cases: dict[str, ReviewedCase] = field(default_factory=dict)
    stale: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()

    @property
    def ignores(self) -> bool:
        """Whether a label has voxels that nothing is known of."""
        return any(case.ignored for case in self.cases.values())

    def applied(self, cases: Sequence[RunCase], run: Path) -> list[RunCase]:
        """The cases of a run with the roles and labels of the review."""
        return [self._applied(case, run) if case.id in self.cases and case.split == "train" else case for case in cases]

    def _applied(self, case: RunCase, run: Path) -> RunCase:
        found = self.cases[case.id]
        label = str(label_map(run / REVIEWED_LABELS, case.id).resolve()) if found.has_label else None
        # Whether a case with a label of its own is learnt from or held back is not the review's to say.
        return replace(case, role=case.role if found.role == "labelled" else found.role, label=label)

    def sentences(self) -> list[str]:
        """What a person is to know of it."""
        said = []
        if partly := [case.id for case in self.cases.values() if case.without]:
            said.append(f"Without organs that were set aside or not judged: {shortened(partly)}.")
        if self.stale:
            said.append(
                f"Decisions on labels that have changed since do not count: {shortened(list(self.stale))}. Judge them "
                "again."
            )
        if self.foreign:
            said.append(f"Decisions on scans that this run does not have: {shortened(list(self.foreign))}.")
        return said


_REVIEW: TypeAdapter[Review] = TypeAdapter(Review)


def write_review(run: Path, review: Review) -> None:
    """Write `review.json`."""
    write_json(run / REVIEW_FILE, asdict(review))


def read_review(run: Path) -> Review | None:
    """`review.json`, None where there is none; raises `DataError` for a damaged one."""
    if not (run / REVIEW_FILE).exists():
        return None
    try:
        return _REVIEW.validate_python(read_json(run / REVIEW_FILE))
    except ValidationError as error:
        raise DataError(f"{run / REVIEW_FILE}: {first_problem(error, Review)} Use another run folder.") from None


def count_roles(cases: Sequence[RunCase]) -> str:
    """`4 labelled, 20 accepted, 136 unlabelled`: what is learnt from, and what was set aside."""
    counts = Counter(case.role for case in cases)
    wanted: tuple[Role, ...] = ("labelled", "corrected", "accepted", "taught", "unlabelled")
    text = ", ".join(f"{counts[role]} {role}" for role in wanted if counts[role])
    return text + (f"; {counts['set_aside']} set aside" if counts["set_aside"] else "")


def made_review(
    run: Path,
    asked: str,
    cases: Sequence[RunCase],
    labels: LabelScheme,
    *,
    workers: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> Review:
    """Read the review of a run (`data.decisions`), and write the labels that are learnt from into
    `run/reviewed_labels`.

    asked: a run folder, or its `decisions.jsonl`. Raises `ConfigError` where it holds no review or is of other labels,
    and `DataError` that names every label that does not fit its scan.
    """
    source = _Source(asked, labels)
    (run / REVIEWED_LABELS).mkdir(exist_ok=True)
    training = [case for case in cases if case.split == "train"]
    answers = map_cases(
        partial(_reviewed, source=source, run=run, labels=labels),
        training,
        workers=workers,
        lost=lambda case: _Answer(problem=f"{case.id}: {WAS_KILLED}."),
        progress=(lambda done, total, case: progress(done, total, case.id)) if progress else None,
    )
    if wrong := [answer.problem for answer in answers if answer.problem]:
        raise DataError(
            f"{counted(len(wrong), 'label')} of the review cannot be used:\n  "
            + "\n  ".join(wrong)
            + f"\nMend them, or take them out of {source.folder}."
        )
    by_case = dict(zip((case.id for case in training), answers, strict=True))
    return Review(
        source=asked,
        cases={case: answer.found for case, answer in by_case.items() if answer.found},
        stale=tuple(case for case, answer in by_case.items() if answer.stale),
        foreign=tuple(sorted({case for case, _ in source.stand} - {case.id for case in cases})),
    )


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What came of a case, whether decisions on it are stale, and what is wrong with its label."""

    found: ReviewedCase | None = None
    stale: bool = False
    problem: str = ""


def _reviewed(case: RunCase, source: _Source, run: Path, labels: LabelScheme) -> _Answer:
    composer = _Composer(case, source, run, labels)
    try:
        return _Answer(found=composer.result(), stale=composer.stale)
    except DataError as error:
        return _Answer(problem=str(error))


class _Source:
    """What was reviewed."""

    def __init__(self, asked: str, labels: LabelScheme) -> None:
        given = Path(asked)
        self.folder = given if given.is_dir() else given.parent
        file = given / FILE if given.is_dir() else given
        self.stand: dict[Key, Decision] = standing(read_decisions(file))
        self.corrections = self.folder / CORRECTIONS
        before = read_review(self.folder)
        self.before = before.cases if before else {}
        if not (self.stand or self.before or any(self.corrections.glob("*.nii.gz"))):
            raise ConfigError(
                f"data.decisions = {asked}: nothing was decided or corrected there. Review it first: semiseg view "
                f"{self.folder}"
            )
        if (self.folder / "plan.toml").exists():
            names = read_plan(self.folder / "plan.toml").labels.names
            if names != labels.names:
                raise ConfigError(
                    f"data.decisions = {asked}: the labels there are {', '.join(names.values())}, and not "
                    f"{', '.join(labels.names.values())}. Name a run of the same labels."
                )


class _Composer:
    """What comes of one case. A correction comes first, then decisions, then what came of it in the round before."""

    def __init__(self, case: RunCase, source: _Source, run: Path, labels: LabelScheme) -> None:
        self.case, self.source, self.labels = case, source, labels
        self.ignore = ignore_value(labels)
        self.target = label_map(run / REVIEWED_LABELS, case.id)
        self.stale = False

    @cached_property
    def own(self) -> str | None:
        """The hash of the dataset's label."""
        return None if self.case.label is None else label_sha256(*files_of([Path(self.case.label)]))

    def result(self) -> ReviewedCase | None:
        """None where nothing is to be changed."""
        decided = self._decided()
        corrected = label_map(self.source.corrections, self.case.id)
        if corrected.exists():
            return self._corrected(corrected, decided)
        return decided or self._before()

    def _corrected(self, file: Path, decided: ReviewedCase | None) -> ReviewedCase:
        note = read_note(self.source.corrections, self.case.id)
        if not note.fits(file):
            raise DataError(
                f"{file}: not the label that its note is of: taking it back was cut off, or it was changed here since. "
                f"Take the label back again (semiseg correct), or delete {self.case.id}.json where all of it is right."
            )
        base = decided or self._before()
        role: Role = "corrected" if self.own is None else "labelled"
        if note.slices is None:
            return self._keep(file, role)
        label = on_slices(self._read(file), note.slices.axis, note.slices.indices, self.ignore)
        if base is not None and base.has_label:
            return self._write(over(self._read(self.target), label, self.ignore), role, base.without)
        if self.case.label is not None:
            return self._write(over(self._read(Path(self.case.label)), label, self.ignore), role)
        return self._write(label, role)

    def _decided(self) -> ReviewedCase | None:
        """By the decisions on a label that is still as it was judged."""
        lines = {value: self._line(name) for value, name in self.labels.organs.items()}
        decisions = [line for line in lines.values() if line is not None]
        if not decisions:
            return None
        judged = self._judged(max(decisions, key=lambda line: line["number"])["label_sha256"])
        if judged is None:
            self.stale = self.case.label is None  # a label that a person made since needs no decision on another
            return None
        sha = label_sha256(*files_of([judged]))
        self.stale = any(line["label_sha256"] != sha for line in decisions)
        verdicts = {
            v: line["decision"] for v, line in lines.items() if line is not None and line["label_sha256"] == sha
        }
        aside = {value for value, verdict in verdicts.items() if verdict == "set_aside"}
        if aside == set(self.labels.organs):
            return ReviewedCase(id=self.case.id, role="set_aside", own_sha256=self.own)
        if self.case.label is not None:  # a person's own, of which all is believed that was not set aside
            return self._keep(judged, "labelled", aside) if aside else None
        accepted = {value for value, verdict in verdicts.items() if verdict == "accept"}
        if not accepted:
            return None
        return self._keep(judged, "accepted", set(self.labels.organs) - accepted)

    def _line(self, organ: str) -> Decision | None:
        return of_organ(self.source.stand, self.case.id, organ)

    def _judged(self, sha256: str) -> Path | None:
        """The label with this hash: the case's own, or one that the reviewed run gave it."""
        if self.case.label is not None:
            files = [Path(self.case.label)]
        else:
            files = [label_map(self.source.folder / name, self.case.id) for name in _JUDGED]
        return next((file for file in files if file.exists() and label_sha256(*files_of([file])) == sha256), None)

    def _before(self) -> ReviewedCase | None:
        """As it was in the run that was reviewed, unless its own label has changed since."""
        before = self.source.before.get(self.case.id)
        if before is None or before.own_sha256 != self.own:
            return None
        if not before.has_label:
            return before
        file = label_map(self.source.folder / REVIEWED_LABELS, self.case.id)
        return replace(self._keep(file, before.role), without=before.without)

    def _keep(self, file: Path, role: Role, unknown: set[int] | None = None) -> ReviewedCase:
        label = self._read(file)
        if unknown:
            names = tuple(self.labels.names[value] for value in sorted(unknown))
            return self._write(without_organs(label, unknown, self.ignore), role, names)
        with atomic_file(self.target) as temporary:  # byte by byte: its hash stays that of what was judged
            shutil.copyfile(file, temporary)
        return self._made(role, bool((label == self.ignore).any()))

    def _write(self, label: LabelArray, role: Role, without: tuple[str, ...] = ()) -> ReviewedCase:
        image = Path(self.case.images[0])
        write_label(self.target, label, read_grid(image), image)
        return self._made(role, bool((label == self.ignore).any()), without)

    def _made(self, role: Role, ignored: bool, without: tuple[str, ...] = ()) -> ReviewedCase:
        return ReviewedCase(
            id=self.case.id, role=role, has_label=True, own_sha256=self.own, without=without, ignored=ignored
        )

    def _read(self, file: Path) -> LabelArray:
        image = Path(self.case.images[0])
        return read_checked_label(file, image, read_grid(image), replace(self.labels, ignore=self.ignore))[0]


_JUDGED = (PSEUDO_LABELS, TEACHER_LABELS, REVIEWED_LABELS, CORRECTIONS)
