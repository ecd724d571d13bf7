"""Colours of organs, the same in pages, reports, pictures and files."""

from __future__ import annotations

from collections.abc import Iterable

ORGAN_COLOURS = (
    "#56b4e9", "#f2a33a", "#3cc8a0", "#f08cc6", "#f0e442", "#f2704f", "#8fa8ff",
    "#b5d35c", "#c9a1f0", "#99e6ff", "#d9b38c", "#ff9da7", "#4fd1d9",
)  # fmt: skip
"""Bright enough for lines on a grey scan; the first seven are told apart by every kind of colour vision."""


def organ_colours(organs: Iterable[str]) -> dict[str, str]:
    """A colour for each organ, the same in every picture of a report; more than 13 organs share colours."""
    return {organ: ORGAN_COLOURS[n % len(ORGAN_COLOURS)] for n, organ in enumerate(organs)}
