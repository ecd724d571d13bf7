"""Warnings of a run that its reader must see: each stage adds its own, and the report shows them at its top."""

from __future__ import annotations

from pathlib import Path

from semiseg.files import append_jsonl
from semiseg.rows import read_notice_rows

NOTICES = "notices.jsonl"


def add_notice(run: Path, topic: str, text: str) -> None:
    """Add a notice to a run folder; it takes the place of the topic's earlier one, and an empty text takes it back.

    topic: what the notice is about, in a word such as `"steps"`; one notice of a topic stands at a time.
    """
    append_jsonl(run / NOTICES, {"topic": topic, "text": text})


def read_notices(run: Path) -> list[str]:
    """The texts that stand, in the order in which their topics first came up; empty where a run has none."""
    return list(notices_by_topic(run).values())


def notices_by_topic(run: Path) -> dict[str, str]:
    """The same, by topic."""
    last = {row["topic"]: row["text"] for row in read_notice_rows(run / NOTICES)}
    return {topic: text for topic, text in last.items() if text}
