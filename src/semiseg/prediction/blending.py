"""Tiles blended into a rolling window of rows. C channels, K classes; all in the window's order of axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from semiseg.ops.tiles import gaussian_importance
from semiseg.prediction.engines.base import Engine
from semiseg.prediction.window import BACKGROUND_LOGIT, Columns, Window, mirrored_logits, roll, turned
from semiseg.types import FloatArray, Shape

Rows = Callable[[], Any]
"""Gives blended rows `(K, rows, ., .)`, valid until the blend is told of more tiles: an array, or a tensor where
`Window.rows_stay`."""


class Blend(Protocol):
    """The Gaussian-weighted mean of the tiles' logits over the rows that the tiles at hand reach."""

    runs_ahead: bool
    """Whether tiles are still being computed when `add` returns: rows are best asked for after the next were added."""

    @property
    def classes(self) -> int:
        """K, known once there was a tile."""
        ...

    def add(self, slab: FloatArray, columns: Sequence[Columns]) -> None:
        """Compute the tiles of `slab` `(C, rows of a patch, ., .)` at these columns together, and add them."""
        ...

    def finish(self, rows: int) -> Rows:
        """The first so many rows, which no further tile reaches; the window rolls on. Where no tile was, they are
        background."""
        ...


@runtime_checkable
class BlendsItself(Protocol):
    """An engine that can blend where it computes."""

    def blend(self, window: Window, size: Shape) -> Blend | None:
        """A blend for a padded image of this size, in the order of `window.axes`; None where it is better done here."""
        ...


def open_blend(engine: Engine, window: Window, size: Shape) -> Blend:
    """Where the tiles of an engine are blended: on its device if that can, otherwise in main memory."""
    blend = engine.blend(window, size) if isinstance(engine, BlendsItself) else None
    return blend or HostBlend(engine, window, size)


class HostBlend:
    """Blends in main memory."""

    runs_ahead = False

    def __init__(self, engine: Engine, window: Window, size: Shape) -> None:
        self._engine, self._window = engine, window
        self._importance = gaussian_importance(window.patch).transpose(window.axes)
        self._total: FloatArray | None = None
        self._weights = np.zeros((turned(window.patch, window.axes)[0], *size[1:]), dtype=np.float32)
        self._finished = 0

    @property
    def classes(self) -> int:
        """As `Blend.classes`."""
        assert self._total is not None  # there was a tile
        return len(self._total)

    def add(self, slab: FloatArray, columns: Sequence[Columns]) -> None:
        """As `Blend.add`."""
        self._roll()
        logits = self._logits(np.stack([slab[:, :, *where] for where in columns]))
        if self._total is None:
            self._total = np.zeros((logits.shape[1], *self._weights.shape), dtype=np.float32)
        for where, tile in zip(columns, logits, strict=True):
            for value, logit in enumerate(tile):  # class by class: no product as large as a tile of all
                self._total[value, :, *where] += logit * self._importance
            self._weights[:, *where] += self._importance

    def finish(self, rows: int) -> Rows:
        """As `Blend.finish`."""
        self._roll()
        assert self._total is not None  # there was a tile
        total, weights = self._total[:, :rows], self._weights[:rows]
        empty = weights == 0
        total[0][empty] = BACKGROUND_LOGIT
        weights[empty] = 1
        total /= weights
        self._finished = rows
        return lambda: total

    def _roll(self) -> None:
        """Let go of finished rows, once their reader asks for more."""
        if self._finished:
            roll(self._total, self._finished)
            roll(self._weights[None], self._finished)
            self._finished = 0

    def _logits(self, tiles: FloatArray) -> FloatArray:
        """Logits of tiles whose axes are in the window's order, in that order too."""
        order = (0, 1, *(axis + 2 for axis in self._window.axes))
        return mirrored_logits(tiles.transpose(np.argsort(order)), self._run, np.flip, self._window).transpose(order)

    def _run(self, tiles: FloatArray) -> FloatArray:
        return self._engine.run(np.ascontiguousarray(tiles))
