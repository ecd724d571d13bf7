"""The list of cases: what is known of each, sorted and filtered. From memory alone, so that 2,000 are no wait."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal

from typing_extensions import TypedDict

from semiseg.decisions import Decision, DecisionLog, Key, of_organ, standing
from semiseg.view.contents import Contents, doubt_of
from semiseg.view.measures import Measurer, Measures, Usual, usual_among
from semiseg.view.source import Source

Sort = Literal["id", "score", "doubt", "volume", "fragments", "decision"]
Filter = Literal["missing", "outlier", "fragments", "undecided", "accept", "set_aside", "label", "unsure", "stale"]
SORTS: tuple[Sort, ...] = ("id", "score", "doubt", "volume", "fragments", "decision")
FILTERS: tuple[Filter, ...] = (
    "missing", "outlier", "fragments", "undecided", "accept", "set_aside", "label", "unsure", "stale",
)  # fmt: skip
MIXED = "mixed"
"""What a case's decision is called where its organs have different ones."""
_STEADY_SECONDS = 5.0
"""While labels are being measured, what is usual among them is worked out anew so often; and once all are."""
ByCase = dict[str, dict[Key, Decision]]


class Row(TypedDict):
    """A case in the list. score, volume_ml, fragments: of one organ, or their mean, sum and sum. missing: organs that
    it lacks and most cases have. outliers: organs of an unusual volume. torn: organs in more pieces than usual.
    misfit: why its label does not lie on its scan, or nothing."""

    id: str
    role: str
    score: float | None
    doubt: float | None
    volume_ml: float | None
    fragments: int | None
    missing: list[str]
    outliers: list[str]
    torn: list[str]
    misfit: str
    decision: str | None
    stale: bool
    corrected: bool


class Found(TypedDict):
    """What of a case's label is out of the ordinary, by organ."""

    missing: list[str]
    outliers: list[str]
    torn: list[str]


class Table:
    """The rows of a source's cases. A row is made anew where what it shows has changed: there may be thousands."""

    def __init__(self, source: Source, measurer: Measurer, log: DecisionLog) -> None:
        self._source, self._measurer, self._log = source, measurer, log
        self._lock = threading.Lock()
        self._usual: tuple[float, int, Usual, bool] | None = None
        self._stand: tuple[list[Decision], int, ByCase] = ([], 0, {})
        self._rows: dict[str, tuple[tuple[object, ...], list[Row]]] = {}
        self._undecided: dict[str, tuple[Contents, Usual, dict[str, tuple[Measures | None, bool, str, Row]]]] = {}
        self._decided: dict[tuple[str, str], tuple[Row, tuple[object, ...], Row]] = {}

    def stand(self) -> ByCase:
        """The decisions that stand, by case."""
        lines = self._log.lines
        count = len(lines)
        if self._stand[0] is not lines or self._stand[1] != count:
            found: ByCase = {}
            for key, line in standing(lines[:count]).items():
                found.setdefault(key[0], {})[key] = line
            self._stand = (lines, count, found)
        return self._stand[2]

    def rows(self, organ: str = "") -> list[Row]:
        """All cases in the order of ids, to be left as they are. organ: the one whose score, volume and decision are
        wanted."""
        with self._lock:
            source, usual, stand = self._source, self._what_is_usual(), self.stand()
            now = (source.contents(), *source.listings(), source.corrected(), self._measurer.version, usual, stand)
            kept = self._rows.get(organ)
            if kept is None or not _same(kept[0], now):
                kept = self._rows[organ] = (now, self._made(organ, usual, stand))
            return kept[1]

    def _made(self, organ: str, usual: Usual, stand: ByCase) -> list[Row]:
        contents, measured = self._source.contents(), self._measurer.all()
        corrected, reviewed = self._source.corrected(), self._source.all_reviewed()
        names = [organ] if organ else list(contents.values)
        of_all = self._undecided.get(organ)
        if of_all is None or of_all[0] is not contents or of_all[1] is not usual:
            of_all = self._undecided[organ] = (contents, usual, {})
        undecided, rows = of_all[2], []
        for id in sorted(contents.cases):
            known, is_corrected, misfit = measured.get(id), id in corrected, self._measurer.last_misfit(id)
            kept = undecided.get(id)
            if kept is None or kept[0] is not known or kept[1:3] != (is_corrected, misfit):
                row = _row(contents, usual, id, names, known, is_corrected, misfit)
                kept = undecided[id] = (known, is_corrected, misfit, row)
            row = kept[3]
            if lines := stand.get(id):
                digest = self._measurer.last_hash(id, reviewed[id]) if id in reviewed else None
                row = self._with_decision(organ, row, lines, names, digest)
            rows.append(row)
        return rows

    def _with_decision(
        self, organ: str, row: Row, lines: Mapping[Key, Decision], names: Sequence[str], digest: str | None
    ) -> Row:
        key, state = (organ, row["id"]), (digest, *[line["number"] for line in lines.values()])
        kept = self._decided.get(key)
        if kept is None or kept[0] is not row or kept[1] != state:
            decided = row.copy()
            decided["decision"] = decision_of(lines, row["id"], names)
            decided["stale"] = is_stale(lines, row["id"], names, digest)
            kept = self._decided[key] = (row, state, decided)
        return kept[2]

    def found(self, known: Measures | None) -> Found:
        """What is unusual in a label."""
        return _odd(known, self._what_is_usual(), self._source.contents())

    def _what_is_usual(self) -> Usual:
        all_measured = self._measurer.share >= 1
        version, now = self._measurer.version, time.monotonic()
        kept = self._usual
        is_due = kept is None or now - kept[0] > _STEADY_SECONDS or (all_measured and not kept[3])
        if kept is None or (is_due and kept[1] != version):
            kept = self._usual = (now, version, usual_among(self._measurer.all().values()), all_measured)
        return kept[2]

    def chosen(self, query: Mapping[str, str]) -> dict[str, Any]:
        """The part of the list that a page asks for; with `ids=1` the ids of all of it."""
        organ = query.get("organ", "")
        rows = self.rows(organ)
        if role := query.get("role"):
            rows = [row for row in rows if row["role"] == role]
        if text := query.get("search", "").casefold():
            rows = [row for row in rows if text in row["id"].casefold()]
        if wanted := query.get("filter"):
            stand, names = self.stand(), [organ] if organ else list(self._source.contents().values)
            reviewed = self._source.all_reviewed()
            rows = [row for row in rows if _passes(row, wanted, stand.get(row["id"], {}), names, row["id"] in reviewed)]
        key = {"volume": "volume_ml"}.get(query.get("sort", "id"), query.get("sort", "id"))
        with_value = [row for row in rows if row.get(key) is not None]
        with_value.sort(key=itemgetter(key), reverse=query.get("descending", "0") == "1")
        rows = with_value + [row for row in rows if row.get(key) is None]
        if query.get("ids", "0") == "1":
            return {"ids": [row["id"] for row in rows]}
        offset, limit = (max(0, int(query.get(name, usual))) for name, usual in (("offset", "0"), ("limit", "60")))
        return {"total": len(rows), "measured": self._measurer.share, "rows": rows[offset : offset + limit]}


def _same(before: tuple[object, ...], now: tuple[object, ...]) -> bool:
    """Whether they are the same objects, or equal numbers and texts."""
    return len(before) == len(now) and all(
        a is b or (isinstance(a, int | str) and a == b) for a, b in zip(before, now, strict=True)
    )


def _row(
    contents: Contents,
    usual: Usual,
    id: str,
    names: Sequence[str],
    known: Measures | None,
    corrected: bool,
    misfit: str,
) -> Row:
    found, scores = _odd(known, usual, contents), contents.scores.get(id, {})
    defined = [score for name in names if (score := scores.get(name)) is not None]
    organs = known["organs"] if known else {}
    here = [organs[value] for name in names if (value := contents.values[name]) in organs]
    return Row(
        id=id,
        role=contents.cases[id].role,
        score=sum(defined) / len(defined) if defined else None,
        doubt=doubt_of(contents.doubts.get(id)),
        volume_ml=sum(one["volume_ml"] for one in here) if known else None,
        fragments=sum(one["fragments"] for one in here) if known else None,
        missing=[name for name in found["missing"] if name in names],
        outliers=[name for name in found["outliers"] if name in names],
        torn=[name for name in found["torn"] if name in names],
        misfit=misfit,
        decision=None,
        stale=False,
        corrected=corrected,
    )


def _odd(known: Measures | None, usual: Usual, contents: Contents) -> Found:
    found = Found(missing=[], outliers=[], torn=[])
    if known is None:
        return found
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
    if not names or len(stand) == 1:
        line = stand.get((case, None))
        if line or not names:
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
