"""The sliding window, rolled along one axis: rows of a scan in, rows of blended logits out, as soon as they are done.

Only the rows that the tiles at hand reach are in memory, of the image and of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from semiseg.geometry import Box
from semiseg.ops.tiles import tile_starts
from semiseg.prediction.blending import Rows, open_blend
from semiseg.prediction.engines.base import Engine
from semiseg.prediction.window import BACKGROUND_LOGIT, Window, turned
from semiseg.types import FloatArray, Shape


def sliding_window(image: FloatArray, engine: Engine, window: Window) -> FloatArray:
    """Gaussian-weighted mean of the tiles' logits: `(C, Z, Y, X)` to `(K, Z, Y, X)`, float32; axes canonical.

    A scan smaller than the patch goes on beyond its borders with their values, as in training.
    """
    _, z, y, x = image.shape
    rows = blended_rows(lambda start, stop: image[:, start:stop], (z, y, x), engine, window)
    return np.concatenate([part.copy() for part in rows], axis=1)


def blended_rows(read: Callable[[int, int], FloatArray], shape: Shape, engine: Engine, window: Window) -> Iterator[Any]:
    """Yield the blended logits `(K, rows, ., .)` of a scan from its first row to its last, in the order of `axes`.

    What is yielded is valid until the next is asked for; an array, or a tensor where `window.rows_stay`. read: gives
    rows `[start, stop)` of the image `(C, rows, ., .)`, asked for one after the other. shape: of the image, in the
    order of `axes`.
    """
    patch = turned(window.patch, window.axes)
    image = _PaddedRows(read, shape, patch)
    starts = [
        [low + start for start in tile_starts(high - low, p, window.step)]
        for p, (low, high) in zip(patch, image.region(patch, window.region), strict=True)
    ]
    columns = [(slice(y, y + patch[1]), slice(x, x + patch[2])) for y in starts[1] for x in starts[2]]
    blend = open_blend(engine, window, image.size)
    end = starts[0][-1] + patch[0]
    ready: Rows | None = None  # of the row before, where the blend runs ahead
    inside = slice(0)
    for row, (first, following) in enumerate(zip(starts[0], [*starts[0][1:], end], strict=True)):
        slab = image.rows(first, first + patch[0])
        wanted = [where for where in columns if image.holds_body(first, where, patch, window)]
        if row == 0:  # one tile at least tells the number of classes
            wanted = wanted or columns[:1]
        for begin in range(0, len(wanted), window.tile_batch):
            blend.add(slab, wanted[begin : begin + window.tile_batch])
        if ready:
            yield ready()[:, inside, *image.columns]
        elif row == 0 and first:
            yield image.background(blend.classes, 0, first)
        ready, inside = blend.finish(following - first), image.inside(first, following)
        if not blend.runs_ahead:
            yield ready()[:, inside, *image.columns]
            ready = None
    if ready:
        yield ready()[:, inside, *image.columns]
    if end < image.size[0]:
        yield image.background(blend.classes, end, image.size[0])


class _PaddedRows:
    """Rows of an image that is grown to at least the patch, evenly on both sides, by going on with its borders."""

    def __init__(self, read: Callable[[int, int], FloatArray], shape: Shape, patch: Shape) -> None:
        self._read, self._shape = read, shape
        self._before = [max(0, p - n) // 2 for n, p in zip(shape, patch, strict=True)]
        z, y, x = (max(n, p) for n, p in zip(shape, patch, strict=True))
        self.size: Shape = (z, y, x)
        self.columns = tuple(slice(b, b + n) for b, n in zip(self._before[1:], shape[1:], strict=True))
        """Where the image lies in a padded row."""
        self._held: FloatArray | None = None
        self._held_stop = 0

    def inside(self, first: int, stop: int) -> slice:
        """Which of the padded rows `[first, stop)` are the image's own, counted from `first`."""
        low, high = self._before[0], self._before[0] + self._shape[0]
        return slice(min(max(first, low), stop) - first, max(min(stop, high), first) - first)

    def region(self, patch: Shape, region: Box | None) -> list[tuple[int, int]]:
        """From where to where tiles are laid along each axis of the padded image: a patch at least."""
        if region is None:
            return [(0, n) for n in self.size]
        spans = []
        for before, n, p, low, high in zip(self._before, self.size, patch, region.start, region.stop, strict=True):
            start = min(max(before + low - max(0, p - (high - low)) // 2, 0), n - p)
            spans.append((start, max(before + high, start + p)))
        return spans

    def background(self, classes: int, first: int, stop: int) -> FloatArray:
        """Logits of the image's rows among the padded ones `[first, stop)`, where no tile is."""
        logits = np.zeros((classes, 1, 1, 1), dtype=np.float32)
        logits[0] = BACKGROUND_LOGIT
        rows = self.inside(first, stop)
        return np.broadcast_to(logits, (classes, rows.stop - rows.start, *self._shape[1:]))

    def holds_body(self, first: int, where: tuple[slice, slice], patch: Shape, window: Window) -> bool:
        """Whether a tile at padded rows from `first` on and columns `where` is to be computed."""
        if window.holds_body is None:
            return True
        z, y, x = (a - b for a, b in zip((first, where[0].start, where[1].start), self._before, strict=True))
        return window.holds_body((z, y, x), (z + patch[0], y + patch[1], x + patch[2]))

    def rows(self, first: int, stop: int) -> FloatArray:
        """Padded rows `[first, stop)`; those that the last call gave are not read again. first: never falls."""
        known = max(0, self._held_stop - first)
        own = self.inside(first + known, stop)
        read = self._read(first + known + own.start - self._before[0], first + known + own.stop - self._before[0])
        beyond = [(own.start, stop - first - known - own.stop)]
        beyond += [(c.start, n - c.stop) for c, n in zip(self.columns, self.size[1:], strict=True)]
        if any(map(any, beyond)):
            read = np.pad(read, [(0, 0), *beyond], mode="edge")
        rows = np.empty((len(read), stop - first, *self.size[1:]), dtype=np.float32)
        if self._held is not None and known:
            rows[:, :known] = self._held[:, -known:]
        rows[:, known:] = read
        self._held, self._held_stop = rows, stop
        return rows
