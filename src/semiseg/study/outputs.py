"""What a study leaves besides results.json: the page with pictures of cases, and tables and figures without."""

from __future__ import annotations

from pathlib import Path

from semiseg.files import write_text
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
    write_text(results / "table.md", study_markdown(study))


def write_pages(study: Study, output: Path, results: Path) -> Path:
    """Write `figures.html` into `results` and `compare.html` into `output`; returns the latter.

    What is in `results` holds no picture of a scan, so that it can be published with the numbers.
    """
    write_study_page(study, results / "figures.html")
    return write_study_page(study, output / "compare.html", runs=output)
