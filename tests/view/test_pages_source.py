"""What is true of the pages' sources without a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

PAGES = Path(__file__).resolve().parents[2] / "pages"
SOURCES = sorted((PAGES / "src").glob("*.ts"))


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.name)
def test_elements_are_made_from_text_never_from_markup(file: Path) -> None:
    """So that no name of a file becomes part of a page."""
    markup = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|\beval\b")
    assert not markup.search(file.read_text(encoding="utf-8"))


def test_one_file_knows_niivue() -> None:
    assert [file.name for file in SOURCES if "@niivue" in file.read_text(encoding="utf-8")] == ["volume3d.ts"]


def test_the_page_has_no_script_and_no_style_of_its_own() -> None:
    """The server's Content-Security-Policy allows neither."""
    page = (PAGES / "src" / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script[^>]*>(.*?)</script>", page, flags=re.DOTALL) == [""]
    assert not re.search(r"<style|\sstyle=|\son\w+=|https?://", page)


def test_packages_are_pinned_by_hash_and_no_registry_is_named() -> None:
    lock = json.loads((PAGES / "package-lock.json").read_text(encoding="utf-8"))
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert packages
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())
    assert not [name for name, package in packages.items() if "resolved" in package]
    wanted = json.loads((PAGES / "package.json").read_text(encoding="utf-8"))
    versions = (wanted["dependencies"] | wanted["devDependencies"]).values()
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in versions)
