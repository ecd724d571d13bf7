"""What a study leaves besides results.json: the page with pictures of cases, and tables and figures without."""

from __future__ import annotations

from pathlib import Path

from semiseg.files import refuse_foreign, write_text
from semiseg.reporting.study import (
    noticed_table,
    scored_text,
    study_markdown,
    study_tables,
    too_few_cases,
    write_study_page,
)
from semiseg.scoring.study_results import Study
from semiseg.scoring.tables import print_table
from semiseg.words import counted

_TABLE, _FIGURES, _COMPARED = "table.md", "figures.html", "compare.html"
_SIGN = "semiseg"
"""All three name the program."""


def refuse_other_files(output: Path, results: Path) -> None:
    """Raise `ConfigError` where the tables and pages of a study would replace a file that is not ours."""
    for path in (results / _TABLE, results / _FIGURES, output / _COMPARED):
        refuse_foreign(path, _SIGN)


def print_study(study: Study) -> None:
    """The tables of methods by label budgets."""
    print(f"{study['name']}, {scored_text(study)}, {counted(len(study['runs']), 'run')}")
    if few := too_few_cases(study):
        print(few)
    for table in study_tables(study):
        print()
        print_table(*table, total=False)
    title, _, rows = noticed_table(study)
    if rows:
        print(f"\n{title}")
    for labels, *which, text in rows:
        print(f"  {counted(int(labels), 'label')}, {', '.join(which)} runs: {text}")


def write_table(study: Study, results: Path) -> None:
    """Write `table.md`: quick and small, so that it can be done after every run."""
    write_text(results / _TABLE, study_markdown(study))


def write_pages(study: Study, output: Path, results: Path) -> Path:
    """Write `figures.html` into `results` and `compare.html` into `output`; returns the latter.

    What is in `results` holds no picture of a scan, so that it can be published with the numbers.
    """
    write_study_page(study, results / _FIGURES)
    return write_study_page(study, output / _COMPARED, runs=output)
