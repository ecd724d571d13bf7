"""Numbers in sentences."""

from __future__ import annotations

from semiseg.words import counted, shortened


def test_one_is_no_plural() -> None:
    assert [counted(n, "scan") for n in (0, 1, 2)] == ["0 scans", "1 scan", "2 scans"]
    assert [counted(n, "entry", "entries") for n in (1, 2)] == ["1 entry", "2 entries"]


def test_names_are_shortened() -> None:
    assert shortened(list("abc")) == "a, b, c"
    assert shortened(list("abcdefg")) == "a, b, c, d, e and 2 more"
