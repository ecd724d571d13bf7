"""A run folder's settings: kept when it is made, held against what is asked later, used by one process at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

from filelock import Timeout

from semiseg.data.roles import depend_on_patients, of_role, read_run_cases
from semiseg.errors import ConfigError, DataError
from semiseg.files import file_lock
from semiseg.rows import read_metrics
from semiseg.settings import RunSettings, read_settings, write_settings
from semiseg.tables import flattened
from semiseg.words import in_minutes, shortened


def refuse_foreign(run: Path) -> None:
    """Raise `ConfigError` where a new run would be made among files that are not of a run; hidden ones do not count."""
    # The lock stays where a run was refused, whose first files may be there already.
    if not run.exists() or (run / "run.toml").is_file() or (run / ".lock").is_file():
        return
    if not run.is_dir():
        raise ConfigError(f"{run}: is a file. Name a folder for the run.")
    if there := sorted(entry.name for entry in run.iterdir() if not entry.name.startswith(".")):
        raise ConfigError(
            f"{run}: is no run (it has no run.toml), and not empty: {shortened(there)}. A run would write over them. "
            "Name a new folder, or an empty one."
        )


def refuse_links(run: Path) -> None:
    """Raise `DataError` where something in a run is a link that leads out of it: what is written or removed there lies
    elsewhere, and a run may come from somebody else."""
    inside = run.resolve()
    for folder in (run, *(run / name for name in _FOLDERS)):
        if not folder.is_dir():
            continue
        for entry in folder.iterdir():
            if entry.is_symlink() and not Path(os.path.realpath(entry)).is_relative_to(inside):
                raise DataError(
                    f"{entry}: a link that leads out of the run. Put the files themselves there, or remove it."
                )


def wait_for(run: Path) -> None:
    """Wait until no other process works on a run, a minute at most."""
    if (run / ".lock").exists():
        with suppress(Timeout), file_lock(run / ".lock", timeout=_PATIENCE_SECONDS):
            pass


_PATIENCE_SECONDS = 60.0
_FOLDERS = (
    "checkpoints",
    "corrections",
    "doubt",
    "export",
    "feedback",
    "inferred",
    "model",
    "out_of_fold",
    "predictions",
    "pseudo_labels",
    "reviewed_labels",
    "scan_labels",
    "store",
    "teacher_labels",
    "tests",
    "validation",
    "view",
)


def is_worked_on(run: Path) -> bool:
    """Whether another process works on a run."""
    if not (run / ".lock").exists():
        return False
    try:
        with file_lock(run / ".lock", timeout=0):
            return False
    except Timeout:
        return True


@contextmanager
def alone_in(run: Path) -> Iterator[None]:
    """Keep other processes of semiseg from writing to the run; raises `DataError` where one does, and where the run has
    links that lead out of it."""
    refuse_links(run)
    lock = file_lock(run / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise DataError(f"{run}: another semiseg process works on this run. Wait for it, or end it.") from None
    try:
        yield
    finally:
        lock.release()


def keep_asked(run: Path, settings: RunSettings) -> RunSettings:
    """Keep `run.toml`, what was asked: a new run gets it, an existing run must not be asked for something else.

    A run without a plan holds nothing that was made by its settings (its dataset was misspelt, say): it counts as new.
    Until training has begun, what only training depends on may change, and cases may be excluded. Raises `ConfigError`
    that names each key with what it was and would be.
    """
    path = run / "run.toml"
    settings = _with_absolute_root(settings, Path.cwd())
    if not path.exists() or not (run / "plan.toml").exists():
        write_settings(path, settings)
        return settings
    before = _with_absolute_root(read_settings(path), run)
    trained = (run / "checkpoints").exists() or any((fold / "checkpoints").exists() for fold in fold_runs(run))
    free = _FREE if trained else (*_FREE, *_FREE_UNTIL_TRAINED)
    if trained and not _depends_on_patients(run, before):
        free = (*free, "data.patients")  # by which scores have their intervals
    differences = dict(_differences(before, settings))
    if before.train.steps and settings.train.steps and not trained:
        differences.pop("train.steps", None)  # however many: the plan is not made for them
    changed = [line for key, line in differences.items() if key in _OF_THE_PLAN or not key.startswith(free)]
    if changed:
        remedy = "Use another run folder, or leave the settings as they were."
        more_minutes = set(differences) == {"train.minutes"} and settings.train.minutes > before.train.minutes
        if more_minutes and (run / "model" / "card.json").is_file():  # training has ended
            more = settings.train.minutes - before.train.minutes
            remedy = f"`semiseg run {run} --continue {more:g}` trains on. Or use another run folder."
        if not trained and all(key in _OF_THE_PLAN or key.startswith(("plan.", *free)) for key in differences):
            remedy = (
                "The plan was made for them. Use another run folder, leave the settings as they were, or delete "
                f"{run}/plan.toml and {run}/settled.toml to have a plan made anew."
            )
        raise ConfigError(f"{path}: this run was made with other settings:\n  " + "\n  ".join(changed) + f"\n{remedy}")
    if settings != before:
        write_settings(path, settings)
    return settings


_FREE = ("predict.", "evaluate.", "data.store")
"""What an existing run may change: how it predicts and is scored, and with whom it shares prepared scans."""
_FREE_UNTIL_TRAINED = ("data.exclude", "data.patients", "sampling.", "augment.", "method.", "train.")
_OF_THE_PLAN = ("train.minutes", "train.steps", "train.device")
"""Settings of training by which the plan is made, too."""


def _depends_on_patients(run: Path, settings: RunSettings) -> bool:
    cases = read_run_cases(run / "cases.jsonl") if (run / "cases.jsonl").is_file() else []
    return depend_on_patients(settings.data, validates=bool(of_role(cases, "validation")))


def _differences(before: RunSettings, now: RunSettings) -> Iterator[tuple[str, str]]:
    """Each `section.key` that differs, and a line that says how."""
    old, new = flattened(asdict(before)), flattened(asdict(now))
    for key in old.keys() | new.keys():  # methods have keys of their own
        was, is_now = (values.get(key) for values in (old, new))
        if was != is_now:
            yield key, f"{key} = {was!r} in the run, {is_now!r} now"


def _with_absolute_root(settings: RunSettings, base: Path) -> RunSettings:
    def absolute(path: str) -> str:
        return str((base / path).resolve()) if path else ""

    data = settings.data
    return replace(
        settings,
        data=replace(
            data,
            root=str((base / data.root).resolve()),
            teacher=absolute(data.teacher),
            label_list=absolute(data.label_list),
            exclude=absolute(data.exclude),
            teacher_labels=absolute(data.teacher_labels),
            teacher_names=absolute(data.teacher_names),
            decisions=absolute(data.decisions),
            store=absolute(data.store),
        ),
        train=replace(settings.train, weights=absolute(settings.train.weights)),
    )


def fold_runs(run: Path) -> list[Path]:
    """The runs of a run's folds, in order; none where it has no folds. Raises `DataError` where one has links that lead
    out of it."""
    found = [folder for folder in run.glob("fold_*") if folder.name.removeprefix("fold_").isdecimal()]
    folds = sorted((folder for folder in found if (folder / "run.toml").is_file()), key=lambda path: int(path.name[5:]))
    for fold in folds:
        refuse_links(fold)
    return folds


def trained_models(run: Path) -> list[Path]:
    """The folders of a run's models: its own, or those of its folds."""
    return [fold / "model" for fold in fold_runs(run)] or [run / "model"]


def prepared_settings(run: Path) -> RunSettings:
    """The settings that a prepared run was made with; raises `DataError` where the folder holds none."""
    if not (run / "plan.toml").is_file():
        raise DataError(f"{run}: no prepared run here (no plan.toml). Run `semiseg prepare {run} --data FOLDER` first.")
    refuse_links(run)
    return read_settings(run / "run.toml")


def budget(run: Path) -> str:
    """What a run was allowed, for the line below a comparison; nothing for scores of another program's labels."""
    if not (run / "run.toml").exists():
        return ""
    settings = read_settings(run / "run.toml")
    cases = read_run_cases(run / "cases.jsonl")
    reviewed = len(of_role(cases, "accepted", "corrected"))
    besides = f" and {reviewed} reviewed" if reviewed else ""
    labelled = len(of_role(cases, "labelled"))
    made = [row["step"] for row in read_metrics(next(iter(fold_runs(run)), run))]
    steps = f"{made[-1]} steps" if made else f"{settings.train.steps} steps"
    minutes = f" in {in_minutes(settings.train.minutes)}" if settings.train.steps is None else ""
    begun = f" from the weights of {Path(settings.train.weights).name}" if settings.train.weights else ""
    return f"{labelled} labelled{besides} cases, {steps}{minutes}{begun}, seed {settings.train.seed}"
