"""The command for studies: methods by label budgets by seeds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from semiseg.commands.arguments import Computes, Quiet, say
from semiseg.errors import ConfigError

if TYPE_CHECKING:
    from semiseg.scoring.study_results import Study as Known


@dataclass(frozen=True, kw_only=True)
class Study(Computes):
    """Make and compare the runs of a study file: methods by label budgets by seeds."""

    file: tyro.conf.Positional[Path]
    """The study file (.toml)."""
    data: Path | None = None
    """Dataset folder; by default the recipe's."""
    output: Path | None = None
    """Folder for its runs and its page; by default runs/NAME."""
    results: Path | None = None
    """Folder for its small files (results.json, table.md, figures), which hold no scan; by default the output."""
    jobs: int = 1
    """Runs at a time, which share the cores."""
    list: Quiet = False
    """Make no run: print the commands that make those that are missing, one a line, for a batch system."""
    collect: Quiet = False
    """Make no run: add those that have been made by these commands, and write table and page."""
    known: Quiet = False
    """Make no run: print those that results.json has, and write their table and page."""
    baseline: str | None = None
    """With --known: the method that the others are compared with, in the place of the study's; nothing is written."""
    quiet: Quiet = False
    """Print results and errors only."""

    def execute(self) -> int:
        from semiseg.study.outputs import print_study, refuse_other_files, write_pages, write_table
        from semiseg.study.runner import collected_runs, known_runs, listed_runs, made_runs

        if self.file.suffix != ".toml":
            raise ConfigError(f"{self.file}: is no study file (.toml). Runs are compared by `semiseg compare`.")
        if self.baseline and not self.known:
            raise ConfigError(
                f"--baseline {self.baseline}: for what is known. Add --known, or change it in {self.file}."
            )
        output = self.output or Path("runs") / self.file.stem
        results = self.results or output
        refuse_other_files(output, results)

        def show(study: Known) -> None:
            print_study(study)
            print(write_pages(study, output, results))

        if sum((self.list, self.collect, self.known)) > 1:
            raise ConfigError("--list, --collect and --known: give one of them.")
        if self.list:
            for command in listed_runs(self.file, output, results, data=self.data):
                print(command)
            return 0
        if self.collect:
            study = collected_runs(self.file, output, results, data=self.data, say=partial(say, quiet=self.quiet))
            write_table(study, results)
            show(study)
            return 0
        if self.known:
            study = known_runs(self.file, results, baseline=self.baseline, say=partial(say, quiet=self.quiet))
            if self.baseline:
                print_study(study)
                return 0
            write_table(study, results)
            show(study)
            return 0
        so_far: Known | None = None
        tell = partial(say, quiet=self.quiet)
        try:
            for so_far in made_runs(self.file, output, results, data=self.data, jobs=self.jobs, say=tell):
                write_table(so_far, results)
        finally:  # a study that is stopped, or of which a run failed, is shown as far as it got
            if so_far:
                show(so_far)
        return 0
