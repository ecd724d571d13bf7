"""A study file: which methods are trained with how many labels, which label subsets and which seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from semiseg.config import PATHS, load_settings
from semiseg.errors import ConfigError
from semiseg.files import read_toml
from semiseg.scoring.study_results import run_name
from semiseg.settings import RunSettings
from semiseg.tables import first_problem, refuse_unknown_keys
from semiseg.words import counted

_METHOD_NAME = re.compile(r"[A-Za-z0-9_-]+")
FIRST = -1
"""As a label seed: the first labels of `splits.json`."""


_OF_THE_STUDY = {
    "data.labelled": "labelled of [[budgets]]",
    "data.label_seed": "label_seeds of [[budgets]]",
    "train.seed": "seeds of [[budgets]]",
    "train.minutes": "minutes",
    "train.threads": "--jobs",
}
"""Settings that no method of a study has for itself, and where they come from."""
_NO_FOLDS = (
    "a study scores all runs on the same test cases. Delete it, and put labels into labelsTs; or let labelled cases be "
    'held back, ten for example: in the study file, under [common], "data.development" = 10.'
)


@dataclass(frozen=True, kw_only=True)
class BudgetSettings:
    """One `[[budgets]]` table: runs of one number of labels."""

    labelled: int
    """Training cases that keep their labels."""
    label_seeds: tuple[int, ...] = (FIRST,)
    """Label subsets: -1 is the first of `splits.json`, other numbers draw one by that seed."""
    label_lists: tuple[str, ...] = ()
    """In the place of label_seeds: files of ids (`data.label_list`), a subset each, called as the file is. A relative
    path starts from the study file's folder, or else from the dataset's."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of training, each with every subset."""
    methods: tuple[str, ...] = ()
    """Names of methods that are run; empty is all."""

    def __post_init__(self) -> None:
        if self.labelled < 1 or not self.label_seeds or not self.seeds:
            raise ConfigError(f"budgets: labelled = {self.labelled}: give 1 label, one subset and one seed at least.")
        if self.label_lists and self.label_seeds != (FIRST,):
            raise ConfigError(f"budgets: labelled = {self.labelled}: give label_seeds or label_lists, not both.")


@dataclass(frozen=True, kw_only=True)
class ReferenceSettings:
    """The `[reference]` table: a run with more labels that all methods with fewer are compared with."""

    method: str
    """One of the study's methods, or one that another program added to results.json."""
    labelled: int
    """Its number of labels."""


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """A study file. All methods have the recipe in common, and the minutes, but for one that sets `train.steps`."""

    recipe: str = ""
    """The run file that all runs start from; a relative path starts from the study file's folder. By default none."""
    minutes: float = 0.0
    """Training time of every run; 0 where all methods set `train.steps`."""
    baseline: str = "supervised"
    """The method that the others are compared with."""
    ceiling: int = 0
    """The label budget that counts as full supervision, if it is among the budgets (of one method, then)."""
    compute: tuple[float, ...] = (1.0,)
    """How many times its steps or minutes each method is given, in runs of their own: (1, 2, 4) shows whether more
    training still helps."""
    reference: ReferenceSettings | None = None
    """A method with more labels that all with fewer are compared with besides."""
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name, what each sets besides: keys such as `method.name`."""
    common: dict[str, Any] = field(default_factory=dict)
    """What all set besides: keys such as `data.development`."""
    budgets: tuple[BudgetSettings, ...] = ()
    """Which runs are made."""

    def __post_init__(self) -> None:
        if self.minutes < 0:
            raise ConfigError(f"minutes = {self.minutes}: give a number above 0.")
        if wrong := [name for name in self.methods if not _METHOD_NAME.fullmatch(name)]:
            raise ConfigError(f"methods.{wrong[0]}: a name is letters, digits, _ and -, since run folders have it.")
        if not self.minutes and (untold := [name for name in self.methods if self.steps(name) is None]):
            raise ConfigError(f'minutes: give them, or set "train.steps" for all methods (methods.{untold[0]}).')
        if not self.compute or min(self.compute) <= 0:
            raise ConfigError(f"compute = {list(self.compute)}: give numbers above 0, such as [1, 2, 4].")
        if self.baseline not in self.methods:
            raise ConfigError(f"baseline = {self.baseline!r}: name one of [methods]: {', '.join(self.methods)}.")
        for name in self.methods:
            if not isinstance(steps := self.steps(name) or 1, int) or isinstance(steps, bool):
                raise ConfigError(f'methods.{name}: "train.steps" = {steps!r}: give a whole number, without quotes.')
        tables = {"common": self.common} | {f"methods.{name}": keys for name, keys in self.methods.items()}
        for name, given in tables.items():
            if unquoted := [key for key, value in given.items() if isinstance(value, dict)]:
                raise ConfigError(f'[{name}] {unquoted[0]}: keys with a dot need quotes: "{unquoted[0]}.KEY" = VALUE.')
            if own := [key for key in _OF_THE_STUDY if key in given]:
                raise ConfigError(f'[{name}] "{own[0]}": is set by {_OF_THE_STUDY[own[0]]}. Delete it here.')
            if folds := [key for key in given if key == "data.folds"]:
                raise ConfigError(f'[{name}] "{folds[0]}": {_NO_FOLDS}')
            if name != "common" and (rules := [key for key in given if key.startswith("evaluate.")]):
                raise ConfigError(f'[{name}] "{rules[0]}": methods are scored alike. Put it under [common].')
        if self.ceiling and self.ceiling not in [budget.labelled for budget in self.budgets]:
            raise ConfigError(f"ceiling = {self.ceiling}: no [[budgets]] table has so many labels. Add one, or set 0.")
        if not self.budgets:
            raise ConfigError("budgets: name one at least, as a [[budgets]] table with labelled = 4, say.")
        names = [run.name for run in planned_runs(self)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"budgets: {twice[0]} is asked for twice. Name labels, subset and seed once.")
        if self.reference:
            self._check_reference(self.reference)
        for budget in self.budgets:
            if unknown := [name for name in budget.methods if name not in self.methods]:
                raise ConfigError(
                    f"budgets: methods = {unknown[0]!r}: is none of [methods]: {', '.join(self.methods)}."
                )

    def _check_reference(self, reference: ReferenceSettings) -> None:
        asked = {(run.method, run.labelled) for run in planned_runs(self)}
        if reference.method in self.methods and (reference.method, reference.labelled) not in asked:
            raise ConfigError(
                f"reference: {reference.method} is a method of this study, but is not run with labelled = "
                f"{reference.labelled}. Add a [[budgets]] table with so many, or name a run that is made."
            )
        if all(labelled >= reference.labelled for _, labelled in asked):
            raise ConfigError(
                f"reference: labelled = {reference.labelled}, but no run has fewer labels. Name one with more labels "
                "than some of [[budgets]]."
            )

    def asked(self, run: PlannedRun) -> str:
        """What a run is given, for `StudyRun.asked`."""
        steps = self.steps(run.method)
        return f"{self.minutes * run.compute:g} minutes" if steps is None else f"{round(steps * run.compute)} steps"

    def steps(self, method: str) -> int | None:
        """The steps that the study sets for a method; None where they come of minutes."""
        return (self.common | self.methods[method]).get("train.steps")


_ADAPTER: TypeAdapter[StudySettings] = TypeAdapter(StudySettings)


def load_study(file: Path) -> StudySettings:
    """Read a study file; raises `ConfigError` that names file, key and remedy."""
    tables = read_toml(file)
    refuse_unknown_keys(tables, StudySettings, str(file))
    try:
        return _ADAPTER.validate_json(json.dumps(tables, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{file}: {first_problem(error, StudySettings)}") from None
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a study."""

    method: str
    labelled: int
    subset: int | str | None
    """A label seed, or the path of a list; None is the first labels of `splits.json`."""
    seed: int
    compute: float

    @property
    def subset_name(self) -> int | str | None:
        """As `StudyRun.label_seed`."""
        return Path(self.subset).stem if isinstance(self.subset, str) else self.subset

    @property
    def name(self) -> str:
        """What it is called."""
        return run_name(self.method, self.labelled, self.subset_name, self.seed, self.compute)

    def __str__(self) -> str:
        subset = "the first" if self.subset is None else f"subset {self.subset_name}"
        times = f", {self.compute:g} x compute" if self.compute != 1 else ""
        return f"{self.method}, {counted(self.labelled, 'label')} ({subset}), seed {self.seed}{times}"


def planned_runs(study: StudySettings) -> Iterator[PlannedRun]:
    """All runs, the short ones first, so that methods can be compared early: subset by subset, and seed by seed, every
    method."""
    for compute in study.compute:
        for budget in study.budgets:
            subsets: tuple[int | str, ...] = budget.label_lists or budget.label_seeds
            for seed, subset in product(budget.seeds, subsets):
                for method in budget.methods or study.methods:
                    yield PlannedRun(
                        method=method,
                        labelled=budget.labelled,
                        subset=None if subset == FIRST else subset,
                        seed=seed,
                        compute=compute,
                    )


def run_settings(study: StudySettings, file: Path, data: Path | None, run: PlannedRun) -> RunSettings:
    """The settings of a run; its number of steps only where the study sets it."""
    given: dict[str, Any] = study.common | study.methods[run.method]
    # As in a recipe, paths start from the file that names them.
    paths = {f"{section}.{key}" for section, keys in PATHS.items() for key in keys} & given.keys()
    given |= {key: str((file.parent / given[key]).resolve()) for key in paths if given[key]}
    given |= {"data.labelled": run.labelled, "train.seed": run.seed}
    if (steps := study.steps(run.method)) is not None:
        given["train.steps"] = round(steps * run.compute)
    else:
        given["train.minutes"] = study.minutes * run.compute
    if isinstance(run.subset, str):
        given["data.label_list"] = str(_label_list(file, data, run.subset))
    elif run.subset is not None:
        given["data.label_seed"] = run.subset
    if data is not None:
        given["data.root"] = str(data.resolve())
    # A JSON value is a TOML value.
    overrides = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items()]
    try:
        settings = load_settings((file.parent / study.recipe).resolve() if study.recipe else None, overrides)
    except ConfigError as error:
        raise ConfigError(f"{file}, methods.{run.method}: {error}") from None
    if settings.data.folds:
        raise ConfigError(f"{study.recipe}: data.folds = {settings.data.folds}: {_NO_FOLDS}")
    # TOML has no null: the first subset, and the study's minutes, whatever the recipe says.
    if run.subset is None:
        settings = replace(settings, data=replace(settings.data, label_seed=None))
    return settings if steps is not None else replace(settings, train=replace(settings.train, steps=None))


def _label_list(file: Path, data: Path | None, name: str) -> Path:
    beside = file.parent / name
    return (beside if beside.exists() or data is None else data / name).resolve()
