"""The pages of the documentation: links lead somewhere, the navigation is whole, and users' pages are short."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
OUTSIDE_THE_NAVIGATION = ("lab", "decisions", "benchmarks")
"""Folders whose pages may be found through an index in place of the navigation."""
REFERENCES = ("settings.md", "formats.md", "method.md")
"""Pages to look things up on, which may be longer: all keys, all files, all formulas."""
MOST_WORDS = 900

LINK = re.compile(r"!?\[(?:[^\]\\]|\\.)*\]\(\s*<?([^)\s>]+)>?\s*\)")


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


def prose(text: str) -> str:
    """Text without code blocks, fenced or indented, and without tables."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines, blank = [], True
    for line in text.splitlines():
        indented = line.startswith("    ") and (blank or not lines)
        if not line.startswith("|") and not indented:
            lines.append(line)
        blank = not line.strip() or indented
    return "\n".join(lines)


def links(page: Path) -> Iterator[str]:
    """The targets of a page's links, those in code left out; links may go over the end of a line."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for match in LINK.finditer(re.sub(r"`[^`]*`", "`code`", text)):
        yield match[1]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them, and mkdocs by the settings of mkdocs.yml."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = set()
    for title in re.findall(r"^#{1,6} +(.+?) *$", text, flags=re.MULTILINE):
        seen = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        found.add(re.sub(r"[^\w\- ]", "", seen.lower()).strip().replace(" ", "-"))
    return found


def navigation() -> list[str]:
    """The pages that `mkdocs.yml` names, in its order."""
    _, below = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")
    return re.findall(r"^ +- (?:.*: )?(\S+\.md)$", below, flags=re.MULTILINE)


@pytest.mark.parametrize("name", names([*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]))
def test_every_link_leads_to_a_file_and_an_anchor(name: str) -> None:
    page, wrong = ROOT / name, []
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        outside = DOCS in page.parents and DOCS not in file.parents
        missing = anchor and file.suffix == ".md" and file.is_file() and anchor not in anchors(file)
        if not file.exists() or missing or outside:
            wrong.append(target)
    assert not wrong, f"{name}: these links lead nowhere, or out of docs/, which the site does not have"


def test_every_page_of_the_navigation_exists_and_stands_there_once() -> None:
    pages = navigation()
    assert len(pages) > 20
    assert len(set(pages)) == len(pages)
    assert not [page for page in pages if not (DOCS / page).is_file()]


def test_every_page_is_in_the_navigation_or_in_an_index() -> None:
    shown = set(navigation())
    others = [page.relative_to(DOCS) for page in PAGES if str(page.relative_to(DOCS)) not in shown]
    assert not [str(page) for page in others if page.parts[0] not in OUTSIDE_THE_NAVIGATION]
    listed = {
        (index.parent / target.partition("#")[0]).resolve()
        for index in (DOCS / "lab" / "index.md", DOCS / "decisions" / "index.md")
        for target in links(index)
    }
    assert not [str(page) for page in others if DOCS / page not in listed]


@pytest.mark.parametrize("name", [page for page in navigation() if not page.startswith(OUTSIDE_THE_NAVIGATION[:2])])
def test_pages_for_users_are_short(name: str) -> None:
    if name not in REFERENCES:
        words = len(prose((DOCS / name).read_text(encoding="utf-8")).split())
        assert words <= MOST_WORDS, f"{name}: {words} words outside code and tables"


def test_words_are_counted_outside_code_and_tables() -> None:
    text = "one two\n\n| three | four |\n\n    five six\n    seven\n\n```sh\neight\n```\n\n- nine\n    ten\n"
    assert prose(text).split() == ["one", "two", "-", "nine", "ten"]
