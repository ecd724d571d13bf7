"""Which scan is handed out next."""

from __future__ import annotations

import hashlib
import itertools
import threading
from pathlib import Path
from typing import Literal, get_args

from semiseg.decisions import Decision, DecisionLog, Key, of_organ, standing
from semiseg.serve.work import Work
from semiseg.view.contents import ViewCase, doubt_of
from semiseg.view.measures import Measurer
from semiseg.view.table import decision_of, is_stale

Strategy = Literal["doubt", "random"]


class Queue:
    """The cases that wait for a person. Two who ask at once are given two of them; what was handed out and did not come
    back is handed out again after the others."""

    def __init__(self, work: Work) -> None:
        self._work, self._log = work, DecisionLog(work.source.decisions)
        self._measurer = Measurer(work.source)  # which remembers the hashes of label maps
        self._handed_out: dict[str, int] = {}
        self._count = itertools.count(1)
        self._lock = threading.Lock()

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        """Doubt where it is known of some case."""
        known: tuple[Strategy, ...] = get_args(Strategy)
        return known if self._work.source.contents().doubts else ("random",)

    def next(self, strategy: Strategy) -> ViewCase | None:
        """The next case, None where none waits."""
        with self._lock:
            waiting, asked_for = self._waiting()
            if not waiting:
                return None

            def place(case: ViewCase) -> tuple[int, bool, tuple[float, str]]:
                return self._handed_out.get(case.id, 0), case.id not in asked_for, self._place(case, strategy)

            chosen = min(waiting, key=place)
            self._handed_out[chosen.id] = next(self._count)
            return chosen

    def accept(self, case: ViewCase, label: Path, reviewer: str) -> None:
        """Keep that a person found a label right."""
        with self._lock:
            self._log.add(case.id, "accept", reviewer=reviewer, label_sha256=self._measurer.hash_of(label))

    def counts(self) -> tuple[int, int]:
        """Cases that are or were to be labelled, and how many of them came back or were decided on."""
        with self._lock:
            total = sum(case.role in self._work.to_label for case in self._work.cases.values())
            return total, total - len(self._waiting()[0])

    def _place(self, case: ViewCase, strategy: Strategy) -> tuple[float, str]:
        if strategy == "random":  # by the id, so that it stays
            return 0.0, hashlib.sha256(case.id.encode(errors="surrogatepass")).hexdigest()
        doubt = doubt_of(self._work.source.contents().doubts.get(case.id))
        return (1.0 if doubt is None else -doubt), case.id

    def _waiting(self) -> tuple[list[ViewCase], set[str]]:
        """Cases without a correction or a decision on the label that they have; and those of them that a person wants
        to have labelled, who come first."""
        self._log.refresh()
        decided: dict[str, dict[Key, Decision]] = {}
        for key, line in standing(self._log.lines).items():
            decided.setdefault(key[0], {})[key] = line
        corrected = self._work.source.corrected()
        waiting: list[ViewCase] = []
        asked_for: set[str] = set()
        for case in self._work.cases.values():
            if case.role not in self._work.to_label or case.id in corrected:
                continue
            decision = self._decision(case, decided.get(case.id))
            if decision == "label":
                asked_for.add(case.id)
            if decision in (None, "label"):
                waiting.append(case)
        return waiting, asked_for

    def _decision(self, case: ViewCase, lines: dict[Key, Decision] | None) -> str | None:
        if not lines:
            return None
        label, names = self._work.original(case), list(self._work.scheme.organs.values())
        digest = self._measurer.hash_of(label) if label else None
        own = (line for name in names if (line := of_organ(lines, case.id, name)))
        if any(line["decision"] == "label" and digest in (None, line["label_sha256"]) for line in own):
            return "label"  # of one organ is of the case: a person opens it whole
        return None if is_stale(lines, case.id, names, digest) else decision_of(lines, case.id, names)
