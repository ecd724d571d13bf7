"""The queue of labels to be judged, one's own pace, and how good what was accepted is, by a blind second look."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from statistics import median
from typing import Any, Literal, get_args

from semiseg.decisions import Decision, DecisionLog, not_undone, of_organ
from semiseg.view.source import Source
from semiseg.view.table import Row, Table

Order = Literal["doubt", "random", "stratified"]
ORDERS: tuple[Order, ...] = get_args(Order)
AUDIT_SHARE = 0.1
"""Of what was accepted is shown again."""
AUDIT_AFTER = 10
"""So many decisions later at the earliest, so that it is not remembered."""
_STRATA = 5
_PACE = 50
"""Of so many last decisions the pace is the middle one."""
_LONGEST_SECONDS = 900.0
"""Longer is a break."""
_WILSON_Z = 1.959964


def review(source: Source, table: Table, log: DecisionLog, reviewer: str, order: Order, organ: str) -> dict[str, Any]:
    """What is to be judged, in order, with accepted ones among it that are shown again (`audits`)."""
    lines = not_undone(log.lines)
    reviewed = source.all_reviewed()
    rows = [row for row in table.rows(organ) if row["id"] in reviewed]
    waiting = [row for row in rows if (row["decision"] is None or row["stale"]) and not row["corrected"]]
    queue = ordered(waiting, order, reviewer)
    audits = _due(lines, rows, organ, nothing_else=not queue)
    for place, case in enumerate(audits):
        queue.insert(min(len(queue), 3 * place + int(_draw(case, "place") * 8)), case)
    seconds = pace(lines, reviewer)
    return {
        "queue": queue,
        "audits": audits,
        "done": len(rows) - len(waiting),
        "left": len(waiting),
        "seconds_per_case": seconds,
        "minutes_left": None if seconds is None else round(len(waiting) * seconds / 60, 1),
        "audit": audit(lines),
    }


def ordered(rows: Sequence[Row], order: Order, reviewer: str = "") -> list[str]:
    """Ids: the most doubtful first (those of unknown doubt last, the odd ones before others), at random, or of each
    fifth by doubt in turn. What is drawn is drawn by the id, so that the order stays, and by the reviewer, so that two
    do not look at the same."""
    if order == "random":
        return [row["id"] for row in sorted(rows, key=lambda row: _draw(row["id"], reviewer, "order"))]
    by_doubt = sorted(rows, key=_doubt)
    if order == "doubt":
        return [row["id"] for row in by_doubt]
    size = math.ceil(len(by_doubt) / _STRATA) or 1
    strata = [
        sorted(by_doubt[first : first + size], key=lambda row: _draw(row["id"], reviewer, "order"))
        for first in range(0, len(by_doubt), size)
    ]
    return [stratum[place]["id"] for place in range(size) for stratum in strata if place < len(stratum)]


def _doubt(row: Row) -> tuple[bool, float, int, str]:
    odd = len(row["missing"]) + len(row["outliers"]) + len(row["torn"])
    return (row["doubt"] is None, -(row["doubt"] or 0.0), -odd, row["id"])


def _draw(*parts: str) -> float:
    """A number from 0 to 1 that belongs to the parts."""
    return int.from_bytes(hashlib.sha256("\n".join(parts).encode()).digest()[:7], "big") / 2**56


def _due(lines: Sequence[Decision], rows: Sequence[Row], organ: str, *, nothing_else: bool) -> list[str]:
    """The accepted cases that are to be looked at again now."""
    last = lines[-1]["number"] if lines else 0
    found = []
    current = {row["id"] for row in rows if row["decision"] == "accept" and not row["stale"]}
    stand = {(line["case"], line["organ"]): line for line in lines}
    looked_at = {(line["case"], line["organ"], line["label_sha256"]) for line in lines if line["audit"]}
    for case in sorted(current):
        line = of_organ(stand, case, organ) if organ else stand.get((case, None))
        if line is None or line["audit"] or (case, organ or None, line["label_sha256"]) in looked_at:
            continue
        drawn = _draw(case, organ, line["label_sha256"], "audit") < AUDIT_SHARE
        if drawn and (nothing_else or last - line["number"] >= AUDIT_AFTER):
            found.append(case)
    return found


def pace(lines: Sequence[Decision], reviewer: str) -> float | None:
    """Seconds that a reviewer takes for a decision: the middle one of the last."""
    own = [line["seconds"] for line in lines if line["reviewer"] == reviewer and 0 < line["seconds"] < _LONGEST_SECONDS]
    return round(median(own[-_PACE:]), 1) if own else None


def audit(lines: Sequence[Decision]) -> dict[str, Any]:
    """How much of what was accepted was accepted again when it was looked at a second time, with Wilson's interval."""
    last = {(line["case"], line["organ"]): line for line in lines if line["audit"]}
    looked_at = len(last)
    right = sum(line["decision"] == "accept" for line in last.values())
    low, high = wilson(right, looked_at)
    return {"share": AUDIT_SHARE, "looked_at": looked_at, "right": right, "low": low, "high": high}


def wilson(right: int, count: int) -> tuple[float | None, float | None]:
    """The 95 % interval of a share (Wilson 1927), None where nothing was counted."""
    if not count:
        return None, None
    share, z2 = right / count, _WILSON_Z**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _WILSON_Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return round(max(0.0, middle - half), 4), round(min(1.0, middle + half), 4)
