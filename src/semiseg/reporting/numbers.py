"""How numbers are written on every page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from semiseg.scoring.statistics import Interval, independent, is_range
from semiseg.scoring.tables import cases_text

NOTHING = "–"


def value(number: float | None, metric: str = "dice") -> str:
    """`0.851` for Dice and NSD, `3.1 mm` for HD95, a dash for None and NaN."""
    if number is None or math.isnan(number):
        return NOTHING
    return f"{distance(number)} mm" if metric == "hd95_mm" else f"{number:.3f}"


def distance(mm: float) -> str:
    """`3.1`, and two digits of what is below a millimetre: `0.014`."""
    return f"{mm:.2g}" if 0 < mm < 1 else f"{mm:.1f}"


def interval(found: Interval, metric: str = "dice") -> str:
    """The interval's ends, `0.842–0.859`, or a dash."""
    if found["low"] is None or found["high"] is None:
        return NOTHING
    if metric == "hd95_mm":
        return f"{distance(found['low'])}–{distance(found['high'])} mm"
    return f"{found['low']:.3f}–{found['high']:.3f}"


def ends(found: Interval, metric: str = "dice") -> str:
    """What stands beside a mean in a table: the interval, `range 0.7–0.9` below six cases, nothing below two."""
    if found["low"] is None:
        return ""
    return f"range {interval(found, metric)}" if is_range(found) else interval(found, metric)


def spread(found: Interval) -> str:
    """What stands below a mean by itself: `95 % interval 0.842–0.859, 8 cases`, `range 0.7–0.9 of 4 cases`."""
    cases = cases_text(found["count"], independent(found))
    if found["low"] is None:
        return cases
    if is_range(found):
        return f"range {interval(found)} of {cases}, too few for an interval"
    return f"95\u202f% interval {interval(found)}, {cases}"


def duration(seconds: float) -> str:
    """`45 s`, `9 min 58 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(number: int) -> str:
    """A whole number with narrow spaces between thousands."""
    return f"{number:,}".replace(",", "\u202f")


def lengths(found_mm: Sequence[float]) -> str:
    """`5 mm`, or `2.5–10 mm` where they differ."""
    low, high = (f"{mm:.3g}" for mm in (min(found_mm), max(found_mm)))
    return f"{low} mm" if low == high else f"{low}–{high} mm"
