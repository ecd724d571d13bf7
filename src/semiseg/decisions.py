"""What a person decided on labels: `decisions.jsonl`, to which lines are added and in which none is changed.

A line is on the disk before it is acknowledged. An undo is a further line. A last line without its end (its writer was
killed) is dropped, the rest kept. Several reviewers may write to one file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from semiseg.errors import DataError
from semiseg.files import append_jsonl, file_lock, read_jsonl
from semiseg.tables import first_problem

FILE = "decisions.jsonl"
_PATIENCE_SECONDS = 20.0
"""For another who is writing."""
Verdict = Literal["accept", "set_aside", "label", "unsure"]
Key = tuple[str, str | None]
"""A case, and an organ or all of them."""


class Decision(TypedDict):
    """A line. number: from 1 on. time: UTC. organ: None is all organs. undoes: the number of the line that an undo
    takes back, whose case, organ and label it repeats. label_sha256: of the file that was judged. seconds: spent on it.
    audit: an accepted label was shown again, blind."""

    number: int
    time: str
    case: str
    organ: str | None
    decision: Literal["accept", "set_aside", "label", "unsure", "undo"]
    undoes: int | None
    reviewer: str
    label_sha256: str
    seconds: float
    audit: bool


_DECISION: TypeAdapter[Decision] = TypeAdapter(Decision)


def read_decisions(path: Path) -> list[Decision]:
    """The lines in order, none where there is no file; raises `DataError` that names the line."""
    found: list[Decision] = []
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            line = _DECISION.validate_python(row, strict=True)
        except ValidationError as error:
            raise DataError(f"{path}, line {number}: {first_problem(error)} Mend or delete the line.") from None
        if found and line["number"] <= found[-1]["number"]:
            raise DataError(
                f"{path}, line {number}: has number {line['number']} after {found[-1]['number']}. Numbers only grow: "
                "mend or delete the line."
            )
        found.append(line)
    return found


def not_undone(lines: Iterable[Decision]) -> list[Decision]:
    """The decisions without those that an undo took back, and without the undos."""
    lines = list(lines)
    undone = {line["undoes"] for line in lines}
    return [line for line in lines if line["decision"] != "undo" and line["number"] not in undone]


def standing(lines: Iterable[Decision]) -> dict[Key, Decision]:
    """The last decision that was not undone, by case and organ (None: all organs)."""
    return {(line["case"], line["organ"]): line for line in not_undone(lines)}


def of_organ(stand: Mapping[Key, Decision], case: str, organ: str) -> Decision | None:
    """What stands of an organ of a case: the later of its own decision and that of all organs."""
    found = [line for key in ((case, organ), (case, None)) if (line := stand.get(key))]
    return max(found, key=lambda line: line["number"], default=None)


def label_sha256(*paths: Path) -> str:
    """The hash by which a label is judged: SHA-256 of its file, hexadecimal, or of its files one after another. Files
    that semiseg writes are the same where their voxels are."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


class DecisionLog:
    """A file of decisions that lines are added to. Not for several threads at once; for several processes it is."""

    def __init__(self, path: Path) -> None:
        """Raises `DataError` where the file is damaged."""
        self.path = path
        self.lines: list[Decision] = []
        self._lock = file_lock(path.with_name(f".{path.name}.lock"), timeout=_PATIENCE_SECONDS)
        self._seen = (-1, -1)
        self.refresh()

    def refresh(self) -> bool:
        """Read what others have written since; whether there was anything."""
        now = self._state_of_file()
        if now == self._seen:
            return False
        self.lines, self._seen = read_decisions(self.path), now
        return True

    def add(
        self,
        case: str,
        decision: Verdict,
        *,
        organ: str | None = None,
        reviewer: str,
        label_sha256: str,
        seconds: float = 0.0,
        audit: bool = False,
    ) -> Decision:
        """Add a decision; it is on the disk when this returns it."""
        with self._lock:
            self.refresh()
            return self._append(
                Decision(
                    number=self._next,
                    time=_now(),
                    case=case,
                    organ=organ,
                    decision=decision,
                    undoes=None,
                    reviewer=reviewer,
                    label_sha256=label_sha256,
                    seconds=round(seconds, 2),
                    audit=audit,
                )
            )

    def last(self, reviewer: str) -> Decision | None:
        """The last decision of a reviewer that stands."""
        return next((line for line in reversed(not_undone(self.lines)) if line["reviewer"] == reviewer), None)

    def undo(self, reviewer: str) -> Decision | None:
        """Take back the last decision of a reviewer that stands: the line that was undone, or None where there is
        none."""
        with self._lock:
            self.refresh()
            if (undone := self.last(reviewer)) is None:
                return None
            self._append(
                undone
                | {
                    "number": self._next,
                    "time": _now(),
                    "decision": "undo",
                    "undoes": undone["number"],
                    "seconds": 0.0,
                    "audit": False,
                }
            )
            return undone

    @property
    def _next(self) -> int:
        return self.lines[-1]["number"] + 1 if self.lines else 1

    def _append(self, line: Decision) -> Decision:
        append_jsonl(self.path, dict(line), flush=True)
        self.lines.append(line)
        self._seen = self._state_of_file()
        return line

    def _state_of_file(self) -> tuple[int, int]:
        if not self.path.exists():
            return (0, 0)
        stat = self.path.stat()
        return stat.st_size, stat.st_mtime_ns


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
