"""What commands have in common: flags, settings from them, and how results are printed."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from semiseg.errors import ConfigError

if TYPE_CHECKING:
    from semiseg.scoring import Summary
    from semiseg.settings import RunSettings

Quiet = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True, kw_only=True)
class Computes:
    """What all commands that compute share."""

    threads: int = 0
    """CPU threads and processes; by default all cores, for training what a short trial shows to be fastest."""


@dataclass(frozen=True, kw_only=True)
class WorksOnCases(Computes):
    """What commands share that go through many scans."""

    workers: int = 0
    """Processes that work on scans side by side, each with memory of its own; by default one a core, and one alone
    where a network predicts."""
    scheduler: str = ""
    """A Dask cluster that is to work on scans instead: the address of its scheduler, or its scheduler file."""


@dataclass(frozen=True, kw_only=True)
class RunArguments(WorksOnCases):
    """What `prepare` and `run` share."""

    run: tyro.conf.Positional[Path]
    """Run folder, for example runs/first; everything is kept there, and the same command goes on."""
    data: Path | None = None
    """Dataset folder; overrides the recipe's data.root."""
    minutes: float | None = None
    """How long training may take, an hour by default: the plan and the number of steps follow; overrides
    train.minutes."""
    labelled: int | None = None
    """Keep only so many labels and hide all others; overrides data.labelled."""
    method: str | None = None
    """Learning method: pseudo_rounds (the default), supervised, masked, pseudo_label, mpl, mean_teacher, cross_pseudo
    or copy_paste; overrides method.name."""
    modality: Literal["auto", "ct", "mr"] | None = None
    """What the scans are, where the channel's name and their values should not count; overrides data.modality."""
    series: str | None = None
    """Of DICOM, where a folder holds several series: UID, the id or a part of the description that `semiseg check`
    shows, or all; overrides data.series."""
    resample: Quiet = False
    """Of DICOM: make series of tilted, missing or uneven slices regular, which are otherwise left out; overrides
    data.resample."""
    recipe: Path | None = None
    """A TOML file of settings (recipes/flare22.toml has the plan of the published system)."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Any setting, as section.key=value, for example --set train.steps=100; can be repeated."""
    quiet: Quiet = False
    """Print results and errors only."""


def settings_of(arguments: RunArguments, *, folds: int | None = None) -> RunSettings:
    """The recipe with the flags on top; an existing run is its own recipe where none is named. folds: a flag of `run`
    alone."""
    from semiseg.config import load_settings
    from semiseg.settings import read_settings

    given = {
        # A JSON string is a TOML string: a folder's name may hold quotes or look like a number.
        "data.root": None if arguments.data is None else json.dumps(str(arguments.data.resolve()), ensure_ascii=False),
        "data.labelled": arguments.labelled,
        "data.folds": folds,
        "train.minutes": arguments.minutes,
        "train.threads": arguments.threads or None,
        "data.modality": arguments.modality,
        "data.series": None if not arguments.series else json.dumps(arguments.series, ensure_ascii=False),
        "data.resample": "true" if arguments.resample else None,
        "method.name": arguments.method,
    }
    flags = [f"{key}={value}" for key, value in given.items() if value is not None]
    recipe, existing = arguments.recipe, arguments.run / "run.toml"
    if recipe is None and existing.exists():
        recipe = existing
    another_method = (
        recipe == existing and arguments.method is not None and arguments.method != read_settings(existing).method.name
    )
    settings = load_settings(recipe, [*flags, *arguments.set], another_method=another_method)
    steps = next((given for given in arguments.set if given.partition("=")[0].strip() == "train.steps"), None)
    if arguments.minutes is not None and steps:
        raise ConfigError(f"--minutes and --set {steps} both say how long training is. Leave one of them out.")
    if arguments.minutes is not None:
        # TOML has no null: steps that a recipe gives would be taken in the place of these minutes.
        settings = replace(settings, train=replace(settings.train, steps=None))
    return settings


def show_scores(summary: Summary, quiet: bool) -> None:
    """Results are printed by quiet commands too; otherwise the workflow has printed them."""
    if quiet:
        from semiseg.scoring import print_summary

        print_summary(summary)


def say(text: str, quiet: bool) -> None:
    if not quiet:
        print(text)
