"""The pages that show code are run."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_the_python_page_runs_as_printed() -> None:
    page = DOCS / "python.md"
    results = doctest.testfile(str(page), module_relative=False)
    assert results.attempted > 15
    assert results.failed == 0


def test_the_page_of_settings_is_made_from_the_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    import make_settings

    assert make_settings.PAGE.read_text(encoding="utf-8") == make_settings.page(), "python docs/make_settings.py"


def test_the_picture_of_the_house_is_that_of_its_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no room imports one above it: `floors` finds no floor for rooms that import each other in a circle."""
    monkeypatch.syspath_prepend(str(DOCS))
    import make_house

    assert make_house.PICTURE.read_text(encoding="utf-8") == make_house.picture(), "python docs/make_house.py"


def test_there_are_at_most_85_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    from make_settings import all_keys

    assert 40 < len(all_keys()) <= 85


def test_every_setting_says_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    from make_settings import all_keys

    assert not [key for key, meaning in all_keys().items() if len(meaning) < 10]
