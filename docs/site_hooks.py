"""What mkdocs does besides: the search has pages for users before laboratory notes, decisions and tables of results."""

from __future__ import annotations

from typing import Any

LATER = ("lab/", "decisions/", "benchmarks/")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    if page.file.src_uri.startswith(LATER):
        page.meta["search"] = {"boost": 0.2}
    return markdown
