"""A run folder's settings: kept when it is made, held against what is asked later, used by one process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from semiseg.data.planner import PlanSettings
from semiseg.data.roles import of_role, read_run_cases
from semiseg.errors import ConfigError, DataError
from semiseg.methods.settings import USUAL_ROUNDS
from semiseg.settings import RunSettings, read_settings, write_settings


@contextmanager
def alone_in(run: Path) -> Iterator[None]:
    """Keep other processes of semiseg from writing to the run; raises `DataError` where one does."""
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise DataError(f"{run}: another semiseg process works on this run. Wait for it, or end it.") from None
    try:
        yield
    finally:
        lock.release()


def settle(run: Path, settings: RunSettings) -> RunSettings:
    """Keep `run.toml`: a new run gets it, an existing run must not be given other settings.

    A run without a plan holds nothing that was made by its settings (its dataset was misspelt, say): it counts as new.
    Until training has begun, what only training depends on may change, and cases may be excluded. Raises `ConfigError`
    that names each key with what it was and would be.
    """
    path = run / "run.toml"
    settings = _with_absolute_root(settings, Path.cwd())
    if not path.exists() or not (run / "plan.toml").exists():
        settings = replace(settings, plan=_planned_for_here(settings.plan, settings.train.device))
        write_settings(path, settings)
        return settings
    before = _with_absolute_root(read_settings(path), run)
    # What was settled on some machine since (device and its memory, precision, threads, kind of derivative, steps and
    # what is labelled how often, from the budget) is no difference.
    if settings.plan.device == "auto":
        settings = replace(settings, plan=replace(settings.plan, device=before.plan.device))
    if settings.plan.memory_budget_gb is None:
        settings = replace(settings, plan=replace(settings.plan, memory_budget_gb=before.plan.memory_budget_gb))
    train, method = settings.train, settings.method
    if train.precision == "auto":
        train = replace(train, precision=before.train.precision)
    if method.directional_derivative == "auto":
        method = replace(method, directional_derivative=before.method.directional_derivative)
    if method.rounds is None and before.method.rounds == USUAL_ROUNDS:  # as older versions wrote it
        method = replace(method, rounds=USUAL_ROUNDS)
    if train.threads == 0:
        train = replace(train, threads=before.train.threads)
    if before.train.calibrated:
        train = replace(train, steps=before.train.steps, calibrated=True)
        left_open = {key: value for key, value in _LEFT_TO_MINUTES.items() if getattr(method, key) == value}
        if method == replace(before.method, **left_open):
            method = before.method
    now = replace(settings, train=train, method=method)
    trained = (run / "checkpoints").exists()
    free = _FREE if trained else (*_FREE, *_FREE_UNTIL_TRAINED)
    differences = dict(_differences(before, now))
    if changed := [line for key, line in differences.items() if not key.startswith(free)]:
        raise ConfigError(
            f"{path}: this run was made with other settings:\n  "
            + "\n  ".join(changed)
            + "\nUse another run folder, or leave the settings as they were."
        )
    if before.train.calibrated and any(not key.startswith(_FREE) for key in differences):
        timed_anew = replace(now.train, steps=settings.train.steps, calibrated=False)
        now = replace(now, train=timed_anew, method=settings.method)
    write_settings(path, now)
    return now


_LEFT_TO_MINUTES: dict[str, Any] = {"label_scope": "auto", "label_scans": 0, "rounds": None}
"""What calibration settles of section `[method]`, and how it is said that it may."""
_FREE = ("predict.", "evaluate.")
"""What an existing run may change: how it predicts and is scored."""
_FREE_UNTIL_TRAINED = ("data.exclude", "sampling.", "augment.", "method.", "train.")


def _differences(before: RunSettings, now: RunSettings) -> Iterator[tuple[str, str]]:
    """Each `section.key` that differs, and a line that says how."""
    old, new = asdict(before), asdict(now)
    for section, table in old.items():
        for key, value in table.items():
            if new[section][key] != value:
                yield f"{section}.{key}", f"{section}.{key} = {value!r} in the run, {new[section][key]!r} now"


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
        ),
    )


def prepared_settings(run: Path) -> RunSettings:
    """The settings that a prepared run was made with; raises `DataError` where the folder holds none."""
    if not (run / "plan.toml").is_file():
        raise DataError(f"{run}: no prepared run here (no plan.toml). Run `semiseg prepare {run} --data FOLDER` first.")
    return read_settings(run / "run.toml")


_GPU_SHARE = 0.85
"""Of a GPU's memory that is planned with; the rest is for its context, its libraries' workspaces and fragments."""


def _planned_for_here(plan: PlanSettings, device: str) -> PlanSettings:
    """The device that is planned for, where it was left open, and the memory of the GPU that is here."""
    from semiseg.predict.device import choose_device, gpu_bytes

    if plan.device == "auto":
        kind = choose_device(device).type
        plan = replace(plan, device="cuda" if kind == "cuda" else "mps" if kind == "mps" else "cpu")
    total = gpu_bytes(device) if plan.device == "cuda" and plan.memory_budget_gb is None else 0
    return replace(plan, memory_budget_gb=round(_GPU_SHARE * total / 1e9, 1)) if total else plan


def budget(run: Path) -> str:
    """What a run was allowed, for the line below a comparison; nothing for scores of another program's labels."""
    if not (run / "run.toml").exists():
        return ""
    settings = read_settings(run / "run.toml")
    labelled = len(of_role(read_run_cases(run / "cases.jsonl"), "labelled"))
    minutes = f", {settings.train.budget_minutes:g} minutes" if settings.train.budget_minutes else ""
    return f"{labelled} labelled cases, {settings.train.steps} steps{minutes}, seed {settings.train.seed}"
