"""What a study leaves besides results.json: the page with pictures of cases, and tables and figures without."""

from __future__ import annotations

from pathlib import Path

from semiseg.evaluate.label_efficiency import Study
from semiseg.evaluate.tables import print_table
from semiseg.files import write_text
from semiseg.report.study import study_markdown, study_rows, write_study_page


def print_study(study: Study) -> None:
    """The table of methods by label budgets."""
    print_table(f"{study['name']}, {study['test_cases']} cases", *study_rows(study), total=False)


def write_study_files(study: Study, output: Path, results: Path) -> Path:
    """Write `output/compare.html`, and `table.md` and `figures.html` into `results`; returns the page.

    What is in `results` holds no picture of a scan, so that it can be published with the numbers.
    """
    write_text(results / "table.md", study_markdown(study))
    write_study_page(study, results / "figures.html")
    return write_study_page(study, output / "compare.html", runs=output)
