"""How a training is going on, by what it leaves in the run folder: rows of metrics, the timeline, and its lock."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from semiseg.methods.timeline import Timeline
from semiseg.notices import read_notices
from semiseg.rows import read_metrics, read_rounds
from semiseg.run_folder import fold_runs
from semiseg.settings import read_settings
from semiseg.training.progress import SHOWN
from semiseg.training.settled import read_settled
from semiseg.view.contents import Fresh

State = Literal["running", "stopped", "finished", "not_begun"]
_LOG_LINES = 20
_MOST_ROWS = 5000


class Training:
    """What the page of a run shows."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._rows: dict[Path, Fresh[list[dict[str, Any]]]] = {}

    def now(self, after: int) -> dict[str, Any]:
        """The state, and the rows of steps after one. Of a run with folds: of the fold that is trained, or was last."""
        folds = fold_runs(self._run) or [self._run]
        run = next((fold for fold in reversed(folds) if (fold / "metrics.jsonl").is_file()), folds[0])
        rows = self._metrics(run)
        settings = read_settings(run / "run.toml").train
        settled = read_settled(run)
        timeline = settled.laid_down() if settings.steps is None else Timeline.of_steps(settings.steps)
        step = int(rows[-1]["step"]) if rows else 0
        seconds = float(rows[-1].get("seconds", 0.0)) if rows else 0.0
        share = timeline.share(step) if timeline else 0.0
        total = timeline.total if timeline else None
        ended = (run / "model").is_dir() and (
            step == settings.steps if settings.steps is not None else settled.finished
        )
        running = is_locked(self._run) or is_locked(run)
        state: State = "finished" if ended else "running" if running else "stopped" if rows else "not_begun"
        return {
            "state": state,
            "fold": run.name if run != self._run else None,
            "step": step,
            "total": total,
            "seconds": seconds,
            "seconds_left": 0.0
            if ended
            else _left(seconds, share, settings.minutes if settings.steps is None else None),
            "rows": [row for row in rows if row["step"] > after][-_MOST_ROWS:],
            "rounds": read_rounds(run),
            "notices": read_notices(self._run) if run == self._run else [*read_notices(self._run), *read_notices(run)],
            "log": log_lines(rows, total),
            "report": (self._run / "report.html").is_file(),
        }

    def _metrics(self, run: Path) -> list[dict[str, Any]]:
        if run not in self._rows:
            self._rows[run] = Fresh(lambda: read_metrics(run), run / "metrics.jsonl")
        return self._rows[run]()


def _left(seconds: float, share: float, minutes: float | None) -> float | None:
    if minutes is not None:
        return round(60 * minutes * (1 - share), 1)
    return round(seconds / share * (1 - share), 1) if share > 0 else None


def log_lines(rows: Sequence[dict[str, Any]], total: int | None) -> list[str]:
    """The last rows as the terminal shows them."""
    lines = []
    for row in rows[-_LOG_LINES:]:
        values = "  ".join(f"{name} {row[key]:.4g}" for key, name in SHOWN.items() if key in row)
        lines.append(f"{row.get('phase', ''):8} step {row['step']} of {total or '?'}  {values}")
    return lines


def is_locked(run: Path) -> bool:
    """Whether a process of semiseg works on a run, by the lock that it holds."""
    path = run / ".lock"
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        # Shared, and let go at once: who begins a run in these microseconds is told that the run is in use.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
