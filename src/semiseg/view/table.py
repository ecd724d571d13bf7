"""The list of cases: what is known of each, sorted and filtered. From memory alone, so that 2,000 are no wait."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from typing_extensions import TypedDict

from semiseg.decisions import Decision, DecisionLog, Key, of_organ, standing
from semiseg.view.measures import Measurer, Measures, Usual, usual_among
from semiseg.view.source import Contents, Source, doubt_of

Sort = Literal["id", "score", "doubt", "volume", "fragments", "decision"]
Filter = Literal["missing", "outlier", "fragments", "undecided", "accept", "set_aside", "label", "unsure", "stale"]
SORTS: tuple[Sort, ...] = ("id", "score", "doubt", "volume", "fragments", "decision")
FILTERS: tuple[Filter, ...] = (
    "missing", "outlier", "fragments", "undecided", "accept", "set_aside", "label", "unsure", "stale",
)  # fmt: skip
MIXED = "mixed"
"""What a case's decision is called where its organs have different ones."""
_STEADY_SECONDS = 2.0
"""While labels are being measured, what is usual among them is worked out anew so often."""


class Row(TypedDict):
    """A case in the list. score, volume_ml, fragments: of one organ, or their mean, sum and sum. missing: organs that
    it lacks and most cases have. outliers: organs of an unusual volume. torn: organs in more pieces than usual."""

    id: str
    role: str
    score: float | None
    doubt: float | None
    volume_ml: float | None
    fragments: int | None
    missing: list[str]
    outliers: list[str]
    torn: list[str]
    decision: str | None
    stale: bool
    corrected: bool


class Found(TypedDict):
    """What of a case's label is out of the ordinary, by organ."""

    missing: list[str]
    outliers: list[str]
    torn: list[str]


_NOTHING = Found(missing=[], outliers=[], torn=[])


class Table:
    """The rows of a source's cases. They are made anew where something changed that they show."""

    def __init__(self, source: Source, measurer: Measurer, log: DecisionLog) -> None:
        self._source, self._measurer, self._log = source, measurer, log
        self._lock = threading.Lock()
        self._usual: tuple[float, int, Usual] | None = None
        self._found: dict[str, tuple[Measures, Usual, Contents, Found]] = {}
        self._stand: tuple[int, dict[Key, Decision]] = (-1, {})
        self._rows: dict[str, tuple[tuple[object, ...], list[Row]]] = {}

    def stand(self) -> dict[Key, Decision]:
        """The decisions that stand."""
        count = len(self._log.lines)
        kept = self._stand
        if kept[0] != count:
            kept = self._stand = (count, standing(self._log.lines[:count]))
        return kept[1]

    def rows(self, organ: str = "") -> list[Row]:
        """All cases, to be left as they are. organ: the one whose score, volume and decision are wanted."""
        with self._lock:
            contents, corrected, stand = self._source.contents(), self._source.corrected(), self.stand()
            now = (contents, self._measurer.version, self._what_is_usual(), stand, *self._source.listings(), corrected)
            kept = self._rows.get(organ)
            if kept is None or not all(map(_same, kept[0], now)):
                kept = self._rows[organ] = (now, self._made(contents, organ, corrected, stand))
            return kept[1]

    def _made(
        self, contents: Contents, organ: str, corrected: Mapping[str, object], stand: Mapping[Key, Decision]
    ) -> list[Row]:
        measured, reviewed = self._measurer.all(), self._source.all_reviewed()
        decided: dict[str, dict[Key, Decision]] = {}
        for key, line in stand.items():
            decided.setdefault(key[0], {})[key] = line
        values = contents.values
        names = [organ] if organ else list(values)
        rows = []
        for id, case in contents.cases.items():
            known = measured.get(id)
            found = self.found(id, known)
            if organ:
                found = Found(**{key: [organ] if organ in had else [] for key, had in found.items()})  # type: ignore[typeddict-item, operator]
            scores = contents.scores.get(id, {})
            defined = [score for name in names if (score := scores.get(name)) is not None]
            organs = known["organs"] if known else {}
            here = [organs[value] for name in names if (value := values[name]) in organs] if organs else []
            lines = decided.get(id)
            digest = self._measurer.seen_hash(reviewed[id]) if lines and id in reviewed else None
            rows.append(
                Row(
                    id=id,
                    role=case.role,
                    score=sum(defined) / len(defined) if defined else None,
                    doubt=doubt_of(contents.doubts.get(id)),
                    volume_ml=round(sum(one["volume_ml"] for one in here), 4) if known else None,
                    fragments=sum(one["fragments"] for one in here) if known else None,
                    missing=found["missing"],
                    outliers=found["outliers"],
                    torn=found["torn"],
                    decision=decision_of(lines, id, names) if lines else None,
                    stale=is_stale(lines, id, names, digest) if lines else False,
                    corrected=id in corrected,
                )
            )
        return rows

    def found(self, id: str, known: Measures | None) -> Found:
        """What is unusual in a case's label."""
        if known is None:
            return _NOTHING
        usual, contents = self._what_is_usual(), self._source.contents()
        kept = self._found.get(id)
        if kept is None or kept[0] is not known or kept[1] is not usual or kept[2] is not contents:
            kept = self._found[id] = (known, usual, contents, _odd(known, usual, contents))
        return kept[3]

    def _what_is_usual(self) -> Usual:
        version, now = self._measurer.version, time.monotonic()
        kept = self._usual
        if kept is None or (kept[1] != version and now - kept[0] > _STEADY_SECONDS):
            kept = self._usual = (now, version, usual_among(self._measurer.all().values()))
        return kept[2]

    def chosen(self, query: Mapping[str, str]) -> dict[str, Any]:
        """The part of the list that a page asks for."""
        organ = query.get("organ", "")
        rows = self.rows(organ)
        if role := query.get("role"):
            rows = [row for row in rows if row["role"] == role]
        if text := query.get("search", "").casefold():
            rows = [row for row in rows if text in row["id"].casefold()]
        if wanted := query.get("filter"):
            stand, names = self.stand(), [organ] if organ else list(self._source.contents().values)
            reviewed = self._source.all_reviewed()
            rows = [row for row in rows if _passes(row, wanted, stand, names, row["id"] in reviewed)]
        rows = sorted(rows, key=lambda row: row["id"])
        descending = query.get("descending", "0") == "1"
        key = {"volume": "volume_ml"}.get(query.get("sort", "id"), query.get("sort", "id"))
        with_value = [row for row in rows if row.get(key) is not None]
        with_value.sort(key=lambda row: row[key], reverse=descending)  # type: ignore[literal-required]
        rows = with_value + [row for row in rows if row.get(key) is None]
        offset, limit = (max(0, int(query.get(name, usual))) for name, usual in (("offset", "0"), ("limit", "60")))
        return {"total": len(rows), "measured": self._measurer.share, "rows": rows[offset : offset + limit]}


def _same(before: object, now: object) -> bool:
    return before is now or (isinstance(before, int) and before == now)


def _odd(known: Measures, usual: Usual, contents: Contents) -> Found:
    found = Found(missing=[], outliers=[], torn=[])
    for name, value in contents.values.items():
        organ = known["organs"].get(value)
        if organ is None:
            if value in usual.common:
                found["missing"].append(name)
            continue
        low, high = usual.volumes_ml.get(value, (0.0, math.inf))
        if not low <= organ["volume_ml"] <= high:
            found["outliers"].append(name)
        if organ["fragments"] > max(1, usual.pieces.get(value, 1)):
            found["torn"].append(name)
    return found


def decision_of(stand: Mapping[Key, Decision], case: str, names: Sequence[str]) -> str | None:
    """The one decision that a case's organs have; `mixed` for several, None where some have none. For a source without
    organs that of the case."""
    if not names:
        line = stand.get((case, None))
        return line["decision"] if line else None
    found = {line["decision"] if (line := of_organ(stand, case, name)) else None for name in names}
    if None in found:
        return None
    return found.pop() if len(found) == 1 else MIXED


def is_stale(stand: Mapping[Key, Decision], case: str, names: Sequence[str], digest: str | None) -> bool:
    """Whether what was decided is of another label than the case has now."""
    lines = [line for name in names if (line := of_organ(stand, case, name))] or [
        line for line in (stand.get((case, None)),) if line
    ]
    return digest is not None and any(line["label_sha256"] != digest for line in lines)


def _passes(row: Row, wanted: str, stand: Mapping[Key, Decision], names: Sequence[str], reviewed: bool) -> bool:
    if wanted in ("missing", "outlier", "fragments"):
        return bool(row[{"missing": "missing", "outlier": "outliers", "fragments": "torn"}[wanted]])  # type: ignore[literal-required]
    if wanted == "stale":
        return row["stale"]
    if wanted == "undecided":
        return reviewed and row["decision"] is None
    if row["decision"] == wanted:
        return True
    lines = [of_organ(stand, row["id"], name) for name in names]
    return any(line is not None and line["decision"] == wanted for line in lines)
