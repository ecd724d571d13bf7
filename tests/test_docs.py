"""The pages that show code are run."""

from __future__ import annotations

import doctest
from pathlib import Path


def test_the_python_page_runs_as_printed() -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "python.md"
    results = doctest.testfile(str(page), module_relative=False)
    assert results.attempted > 15
    assert results.failed == 0
