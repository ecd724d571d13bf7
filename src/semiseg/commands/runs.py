"""Commands that make a run or go on with one: check, prepare, train, run, rank, correct, postprocess, report."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from semiseg.commands.arguments import Computes, Quiet, RunArguments, WorksOnCases, say, settings_of, show_scores
from semiseg.errors import ConfigError
from semiseg.processes import asked_ranks, is_first_rank
from semiseg.words import counted, printable


@dataclass(frozen=True, kw_only=True)
class Check(WorksOnCases):
    """Open every file of a dataset folder; say what is there, and what is wrong."""

    folder: tyro.conf.Positional[Path]
    """Dataset folder: nnU-Net, MSD, FLARE22, images/ and labels/, or a mask for each organ. Or a folder or a zip of
    DICOM, whose series are listed."""
    layout: Literal["auto", "nnunet", "msd", "flare22", "plain", "masks"] = "auto"
    """How the folder is laid out."""
    minutes: float | None = None
    """Also make the plan that so many minutes of training on this machine would get, and say why."""
    modality: Literal["auto", "ct", "mr"] = "auto"
    """What the scans are: by default as the channel is called, or by their values where it has no name."""

    series: str = ""
    """Of DICOM, where a folder holds several series: UID, id or a part of the description, or all."""
    resample: Quiet = False
    """Of DICOM: take series of tilted, missing or uneven slices, made regular."""
    paths: Quiet = False
    """Of DICOM: also say in which folder or zip each id lies. Such names may be a patient's: only the terminal gets
    them."""

    def execute(self) -> int:
        from semiseg import workflows

        if (
            listed := workflows.list_series(self.folder, series=self.series, resample=self.resample, paths=self.paths)
        ) is not None:
            return 0 if listed else 1
        report = workflows.check(
            self.folder,
            layout=self.layout,
            modality=self.modality,
            minutes=self.minutes,
            series=self.series,
            resample=self.resample,
            paths=self.paths,
        )
        return 0 if report.ok else 1


@dataclass(frozen=True, kw_only=True)
class Prepare(RunArguments):
    """Make the plan of a run and bring all scans to network units."""

    verify: Quiet = False
    """Read all files again, also those whose size and time are as before."""

    def execute(self) -> int:
        from semiseg import prepare_run

        plan = prepare_run.prepare(self.run, settings_of(self), verify=self.verify, quiet=self.quiet)
        say(f"Prepared. Plan: {self.run}/plan.toml (patch {plan.patch}). Next: semiseg train {self.run}", self.quiet)
        return 0


@dataclass(frozen=True, kw_only=True)
class Train(Computes):
    """Train a prepared run; a run that was cut off goes on."""

    run: tyro.conf.Positional[Path]
    """Run folder that `prepare` made."""
    minutes: float | None = None
    """How long it may take, in the place of what `prepare` was told; the plan stays."""
    quiet: Quiet = False
    """Print results and errors only."""

    def execute(self) -> int:
        from semiseg import train_run

        model = train_run.train(self.run, minutes=self.minutes, quiet=self.quiet)
        quiet = self.quiet or not is_first_rank()
        say(f"Trained. Model: {model}. Next: semiseg predict {model} SCANS --output FOLDER", quiet)
        return 0


@dataclass(frozen=True, kw_only=True)
class Run(RunArguments):
    """The whole way: prepare, train, predict the test cases, evaluate, report; goes on where it was cut off."""

    folds: int | None = None
    """Cross-validation: train so many networks, each without one part of the labelled scans, and score them on it."""
    fold: int | None = None
    """With --folds: make this one alone (from 0 on), on another machine, say."""
    more: Annotated[float | None, tyro.conf.arg(name="continue")] = None
    """Train a run that has ended on, for so many minutes more (steps, where it was asked for steps)."""

    def execute(self) -> int:
        settings = settings_of(self, folds=self.folds)  # a misspelt key is told before torch is loaded
        from semiseg import folds, train_run, workflows
        from semiseg.reporting.closing import closing_lines
        from semiseg.run_folder import prepared_settings
        from semiseg.scoring import read_summary

        if self.more is not None and settings != prepared_settings(self.run):
            raise ConfigError("--continue trains the run on as it is: leave the other flags out.")
        if self.more is None and settings.data.folds and settings.data.fold is None:
            if asked_ranks() > 1:
                raise ConfigError("--folds trains several networks, and torchrun one: leave torchrun out, or --folds.")
            if folds.run_folds(self.run, settings, fold=self.fold, quiet=self.quiet) is not None:
                show_scores(read_summary(self.run / "summary.json"), self.quiet)
                for line in folds.closing_lines(self.run):
                    say(line, self.quiet)
            return 0
        if self.fold is not None:
            raise ConfigError(f"--fold {self.fold}: of how many? Add --folds.")
        asked = nullcontext(settings) if self.more is None else train_run.lengthened(self.run, self.more)
        with asked as settings:
            workflows.run_all(self.run, settings, quiet=self.quiet)
        if not is_first_rank():
            return 0
        if (self.run / "summary.json").exists():
            show_scores(read_summary(self.run / "summary.json"), self.quiet)
        for line in closing_lines(self.run):
            say(line, self.quiet)
        return 0


@dataclass(frozen=True, kw_only=True)
class Rank(WorksOnCases):
    """Order a trained run's unlabelled scans by how doubtful their pseudo-labels are: what to look at or exclude."""

    run: tyro.conf.Positional[Path]
    """Run that was trained."""
    by: Literal["disagreement", "entropy", "random"] = "disagreement"
    """Of the run's two networks; the mean entropy of its labels; or random, the better choice of what to label next
    while labels are few."""
    against: Path | None = None
    """Disagreement with this run's model instead, such as that of the round before."""
    exclude_worst: float = 0.0
    """Also write exclude.txt with this share of the cases, for --set data.exclude=RUN/exclude.txt."""
    top: int = 20
    """How many are printed; ranking.csv has them all."""
    quiet: Quiet = False
    """Print results and errors only."""

    def execute(self) -> int:
        from semiseg import improving
        from semiseg.data.reviews import PSEUDO_LABELS

        order = improving.rank(
            self.run, by=self.by, against=self.against, exclude_worst=self.exclude_worst, quiet=self.quiet
        )
        for place, doubt in enumerate(order[: self.top], start=1):
            print(
                f"{place:4} {doubt['id']:32} disagreement {doubt['disagreement']:.4f}  entropy {doubt['entropy']:.4f}  "
                f"{counted(doubt['organs'], 'organ')}"
            )
        print(f"All {len(order)} are in {self.run}/ranking.csv.")
        shows = "which shows them" + (", the most doubtful first" if self.by != "random" else "")
        if not (self.run / PSEUDO_LABELS).is_dir():
            say(f"Next: semiseg predict {self.run} --unlabelled, which writes the labels to be judged,", self.quiet)
            say(f"then semiseg view {self.run}, {shows}.", self.quiet)
        else:
            say(f"Next: semiseg view {self.run}, {shows}.", self.quiet)
        return 0


@dataclass(frozen=True, kw_only=True)
class Postprocess(WorksOnCases):
    """Choose on a run's validation cases which cleaning of labels helps: largest component, hole filling, by organ."""

    run: tyro.conf.Positional[Path]
    """Run that was trained with validation cases."""
    quiet: Quiet = False
    """Print results and errors only."""

    def execute(self) -> int:
        from semiseg import improving

        chosen = improving.postprocess(self.run, quiet=self.quiet)
        for organ, dice in chosen["dice"].items():
            steps = " + ".join(chosen["steps"].get(organ, ["as predicted"]))
            print(f"{organ:24} {steps}: Dice {dice[steps]:.4f} (as predicted {dice['as predicted']:.4f})")
        return 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write the page of a run: report.html."""

    run: tyro.conf.Positional[Path]
    """Run folder."""

    def execute(self) -> int:
        from semiseg import workflows

        print(workflows.report(self.run))
        return 0


@dataclass(frozen=True, kw_only=True)
class Correct:
    """Take labels that you mended back into a run: checked, and learnt from by a run with `--set
    data.decisions=RUN`."""

    run: tyro.conf.Positional[Path]
    """Run that was reviewed."""
    labels: tyro.conf.Positional[Path | None] = None
    """Folder with ID.nii.gz, or one label map."""
    export: tuple[str, ...] = ()
    """Hand out these cases first: scan, label, and the organs' names for ITK-SNAP and 3D Slicer."""
    output: Path | None = None
    """Folder for what is handed out; by default RUN/export."""
    case: str = ""
    """Take this one alone, or name whose label the file is."""
    slices: str = ""
    """Learn from these slices of it alone: axial:40-60,72 (coronal, sagittal; numbered as the pages show them), or
    axial:changed for those that differ from the label that was handed out. Without it all of them count."""

    def execute(self) -> int:
        from semiseg.corrections import export_cases, import_folder, parse_slices, taken_text

        if self.export:
            if self.labels or self.slices:
                raise ConfigError("--export hands labels out: leave LABELS and --slices out.")
            folder = export_cases(self.run, self.export, self.output)
            print(f"{folder}: {counted(len(self.export), 'case')}. Its README.txt says what to do.")
            return 0
        if self.labels is None:
            raise ConfigError("name the folder of the labels that you mended, or --export IDS to hand some out.")
        taken, refused = import_folder(self.run, self.labels, case=self.case, slices=parse_slices(self.slices))
        for line in taken_text(taken):
            print(line)
        for text in refused:
            print(printable(f"refused: {text}"), file=sys.stderr)
        if not taken and not refused:
            print("Nothing was changed: all labels are as they were handed out.")
        elif taken:
            print(f"Learn from them: semiseg run NEW_RUN --data DATA --set data.decisions={self.run}")
        return 1 if refused else 0
