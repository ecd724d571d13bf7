"""TensorBoard as an optional second place for the metrics; metrics.jsonl is the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from semiseg.errors import ConfigError


class Board:
    """Writes the numbers of a row of metrics.jsonl as scalars."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def write(self, row: dict[str, Any]) -> None:
        for key, value in row.items():
            if isinstance(value, float):
                self._writer.add_scalar(key, value, row["step"])
        self._writer.flush()


def open_tensorboard(folder: Path) -> Board:
    """Raises `ConfigError` where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "train.tensorboard = true needs TensorBoard: `pip install '.[tensorboard]'`, or set it to false."
        ) from None
    return Board(SummaryWriter(str(folder)))
