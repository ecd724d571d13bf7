"""Notices: the last of a topic stands, an empty one takes it back."""

from __future__ import annotations

from pathlib import Path

from semiseg.notices import add_notice, read_notices


def test_the_last_notice_of_a_topic_stands_in_the_order_of_first_appearance(tmp_path: Path) -> None:
    add_notice(tmp_path, "steps", "Only 135 training steps.")
    add_notice(tmp_path, "organs", "spleen was never found.")
    add_notice(tmp_path, "steps", "Only 200 training steps.")

    assert read_notices(tmp_path) == ["Only 200 training steps.", "spleen was never found."]


def test_an_empty_text_takes_a_notice_back(tmp_path: Path) -> None:
    add_notice(tmp_path, "steps", "Only 135 training steps.")
    add_notice(tmp_path, "steps", "")

    assert read_notices(tmp_path) == []


def test_a_run_without_notices_has_none(tmp_path: Path) -> None:
    assert read_notices(tmp_path) == []
