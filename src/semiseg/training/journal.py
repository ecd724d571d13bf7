"""Where the numbers of a training run go: metrics.jsonl, the console and, on request, TensorBoard."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from semiseg.files import append_jsonl, write_jsonl
from semiseg.rows import read_metrics, read_rounds
from semiseg.training.inputs import ROUNDS_FILE
from semiseg.training.pace import Pace
from semiseg.training.progress import TrainingProgress
from semiseg.training.settings import TrainSettings
from semiseg.training.tensorboard import open_tensorboard
from semiseg.world import first_alone, is_first, mean


class Journal:
    """A context that collects the metrics of steps and writes rows.

    start: the step that training goes on from; rows of later steps and rounds, from before a kill or of a training that
    is made anew, are removed. pace: tells how many steps there will be.
    """

    def __init__(self, run: Path, settings: TrainSettings, *, start: int, pace: Pace, quiet: bool) -> None:
        self._pace = pace
        self._log = run / "metrics.jsonl"
        first_alone(partial(_forget_from, run, start))
        self._board = open_tensorboard(run / "tensorboard") if settings.tensorboard and is_first() else None
        quiet = quiet or not is_first()
        self._progress = TrainingProgress(start, pace, quiet=quiet)
        self._pending: list[dict[str, Tensor]] = []
        self.note = self._progress.note

    def __enter__(self) -> Journal:
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)

    def is_due(self, done: int) -> bool:
        """Whether a row is due after so many steps."""
        return done % self._pace.rows_every == 0

    def collect(self, metrics: dict[str, Tensor]) -> None:
        self._pending.append(metrics)

    def means(self) -> dict[str, float]:
        """The mean of each scalar since the last call, over ranks, too; this is where the device is waited for."""
        scalars: dict[str, list[Tensor]] = {}
        for metrics in self._pending:
            for key, value in metrics.items():
                scalars.setdefault(key, []).append(value.float())
        self._pending = []
        return {key: float(mean(torch.stack(values))) for key, values in scalars.items()}

    def write(self, row: dict[str, Any]) -> None:
        """Keep a row, by the first rank."""
        if not is_first():
            return
        append_jsonl(self._log, row)
        self._progress.show(row)
        if self._board:
            self._board.write(row)


def _forget_from(run: Path, start: int) -> None:
    """Remove what rows say of a step and of what comes after it: it is done again."""
    write_jsonl(run / "metrics.jsonl", [row for row in read_metrics(run) if row["step"] <= start] if start else [])
    if rounds := read_rounds(run):  # which name the first of their steps, and not how many were done
        write_jsonl(run / ROUNDS_FILE, [dict(row) for row in rounds if row["step"] < start])
