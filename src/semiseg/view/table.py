"""The list of cases: what is known of each, sorted and filtered. From memory alone, so that 2,000 are no wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from typing_extensions import TypedDict

from semiseg.decisions import Decision, DecisionLog, Key, of_organ, standing
from semiseg.view.measures import Measurer, Measures, Usual, usual_volumes
from semiseg.view.source import Source, doubt_of

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
    """What of a case's label is out of the ordinary."""

    missing: list[str]
    outliers: list[str]
    torn: list[str]


class Table:
    """The rows of a source's cases."""

    def __init__(self, source: Source, measurer: Measurer, log: DecisionLog) -> None:
        self._source, self._measurer, self._log = source, measurer, log
        self._lock = threading.Lock()
        self._usual: tuple[float, int, tuple[dict[str, Usual], set[str], dict[str, int]]] | None = None
        self._stand: tuple[int, dict[Key, Decision]] = (-1, {})

    def stand(self) -> dict[Key, Decision]:
        """The decisions that stand."""
        count = len(self._log.lines)
        if self._stand[0] != count:
            self._stand = (count, standing(list(self._log.lines)))
        return self._stand[1]

    def rows(self, organ: str = "") -> list[Row]:
        """All cases. organ: the one whose score, volume and decision are wanted."""
        contents = self._source.contents()
        measured = self._measurer.all()
        reviewed = self._source.all_reviewed()
        corrected = self._source.corrected()
        decided: dict[str, dict[Key, Decision]] = {}
        for key, line in self.stand().items():
            decided.setdefault(key[0], {})[key] = line
        values = {name: str(value) for value, name in contents.organs.items()}
        names = [organ] if organ else list(values)
        rows = []
        for case in contents.cases.values():
            known = measured.get(case.id)
            found = self.found(known, names)
            scores = contents.scores.get(case.id, {})
            defined = [score for name in names if (score := scores.get(name)) is not None]
            organs = known["organs"] if known else {}
            here = [organs[value] for name in names if (value := values.get(name)) in organs]
            lines = decided.get(case.id)
            digest = self._measurer.seen_hash(reviewed[case.id]) if lines and case.id in reviewed else None
            rows.append(
                Row(
                    id=case.id,
                    role=case.role,
                    score=sum(defined) / len(defined) if defined else None,
                    doubt=doubt_of(contents.doubts.get(case.id)),
                    volume_ml=round(sum(one["volume_ml"] for one in here), 4) if known else None,
                    fragments=sum(one["fragments"] for one in here) if known else None,
                    missing=found["missing"],
                    outliers=found["outliers"],
                    torn=found["torn"],
                    decision=decision_of(lines, case.id, names) if lines else None,
                    stale=is_stale(lines, case.id, names, digest) if lines else False,
                    corrected=case.id in corrected,
                )
            )
        return rows

    def found(self, known: Measures | None, names: Sequence[str]) -> Found:
        """What is unusual of these organs in a label."""
        out = Found(missing=[], outliers=[], torn=[])
        if known is None:
            return out
        usual, common, pieces = self._what_is_usual()
        values = self._values()
        for name in names:
            value = values.get(name, "")
            organ = known["organs"].get(value)
            if organ is None:
                if value in common:
                    out["missing"].append(name)
                continue
            if value in usual and usual[value].is_outlier(max(organ["volume_ml"], 1e-6)):
                out["outliers"].append(name)
            if organ["fragments"] > max(1, pieces.get(value, 1)):
                out["torn"].append(name)
        return out

    def _values(self) -> dict[str, str]:
        return {name: str(value) for value, name in self._source.contents().organs.items()}

    def _what_is_usual(self) -> tuple[dict[str, Usual], set[str], dict[str, int]]:
        with self._lock:
            version, now = self._measurer.version, time.monotonic()
            kept = self._usual
            if kept is None or (kept[1] != version and now - kept[0] > _STEADY_SECONDS):
                kept = self._usual = (now, version, usual_volumes(self._measurer.all().values()))
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
            stand, names = self.stand(), [organ] if organ else list(self._values())
            reviewed = self._source.all_reviewed()
            rows = [row for row in rows if _passes(row, wanted, stand, names, row["id"] in reviewed)]
        rows.sort(key=lambda row: row["id"])
        descending = query.get("descending", "0") == "1"
        key = {"volume": "volume_ml"}.get(query.get("sort", "id"), query.get("sort", "id"))
        with_value = [row for row in rows if row.get(key) is not None]
        with_value.sort(key=lambda row: row[key], reverse=descending)  # type: ignore[literal-required]
        rows = with_value + [row for row in rows if row.get(key) is None]
        offset, limit = (max(0, int(query.get(name, usual))) for name, usual in (("offset", "0"), ("limit", "60")))
        return {"total": len(rows), "measured": self._measurer.share, "rows": rows[offset : offset + limit]}


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
