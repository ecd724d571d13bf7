"""The sliding window, rolled along one axis: rows of a scan in, rows of blended logits out, as soon as they are done.

Only the rows that the tiles at hand reach are in memory, of the image and of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from semiseg.geometry import CANONICAL_AXES, Box
from semiseg.io.dataset import LabelScheme
from semiseg.ops.tiles import gaussian_importance, tile_starts
from semiseg.predict.engines.base import Engine
from semiseg.types import FloatArray, Shape

_BACKGROUND_LOGIT = 10.0
"""Of background where no tile is computed, all others being 0: a probability of nearly 1."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """How tiles are laid and what is done with each.

    mirror_axes: the mean over flips along all their combinations (canonical axes) is taken; where left and right
    change places, the classes of the mirror pairs of `labels` are exchanged back.
    axes: the order of axes that the work is done in, the one that is rolled along first.
    region: tiles are laid over this part of the image's grid, in the order of `axes`; all of it by default.
    holds_body: told where a tile starts and stops on that grid; says whether it is computed.
    Voxels that no computed tile holds are background.
    """

    patch: Shape
    """Of a tile, canonical."""
    step: float = 0.5
    tile_batch: int = 1
    mirror_axes: Sequence[int] = ()
    labels: LabelScheme | None = None
    axes: Shape = CANONICAL_AXES
    region: Box | None = None
    holds_body: Callable[[Shape, Shape], bool] | None = field(default=None, repr=False)
    progress: Callable[[int, int], None] | None = field(default=None, repr=False)
    """Called with tiles done and tiles in all."""


def turned(values: Shape, axes: Shape) -> Shape:
    """Three numbers of the canonical axes in the order of `axes`."""
    return (values[axes[0]], values[axes[1]], values[axes[2]])


def cheapest_axes(shape: Shape, patch: Shape) -> Shape:
    """The order of axes to work in: the one first whose rolling window, a patch thick, holds the fewest voxels."""
    size = [max(n, p) for n, p in zip(shape, patch, strict=True)]
    first = min(range(3), key=lambda axis: patch[axis] * prod(size) // size[axis])
    others = [axis for axis in range(3) if axis != first]
    return (first, others[0], others[1])


def sliding_window(image: FloatArray, engine: Engine, window: Window) -> FloatArray:
    """Gaussian-weighted mean of the tiles' logits: `(C, Z, Y, X)` to `(K, Z, Y, X)`, float32; axes canonical.

    A scan smaller than the patch is padded with each channel's smallest value, as in training.
    """
    channels, z, y, x = image.shape
    minimum = image.reshape(channels, -1).min(axis=1)
    rows = blended_rows(lambda start, stop: image[:, start:stop], (z, y, x), lambda: minimum, engine, window)
    return np.concatenate([part.copy() for part in rows], axis=1)


def blended_rows(
    read: Callable[[int, int], FloatArray],
    shape: Shape,
    minimum: Callable[[], FloatArray],
    engine: Engine,
    window: Window,
) -> Iterator[FloatArray]:
    """Yield the blended logits `(K, rows, ., .)` of a scan from its first row to its last, in the order of `axes`.

    What is yielded is valid until the next is asked for. read: gives rows `[start, stop)` of the image `(C, rows, .,
    .)`, asked for one after the other. shape: of the image, in the order of `axes`. minimum: gives each channel's
    smallest value, to pad with where the scan is smaller than the patch.
    """
    patch = turned(window.patch, window.axes)
    image = _PaddedRows(read, shape, patch, minimum)
    starts = [
        [low + start for start in tile_starts(high - low, p, window.step)]
        for p, (low, high) in zip(patch, image.region(patch, window.region), strict=True)
    ]
    columns = [(slice(y, y + patch[1]), slice(x, x + patch[2])) for y in starts[1] for x in starts[2]]
    importance = gaussian_importance(window.patch).transpose(window.axes)
    total: FloatArray | None = None
    weights = np.zeros((patch[0], *image.size[1:]), dtype=np.float32)
    end = starts[0][-1] + patch[0]
    for row, (first, following) in enumerate(zip(starts[0], [*starts[0][1:], end], strict=True)):
        slab = image.rows(first, first + patch[0])
        wanted = [where for where in columns if image.holds_body(first, where, patch, window)]
        if total is None:  # one tile at least tells the number of classes
            wanted = wanted or columns[:1]
        for begin in range(0, len(wanted), window.tile_batch):
            group = wanted[begin : begin + window.tile_batch]
            logits = _turned_logits(np.stack([slab[:, :, *where] for where in group]), engine, window)
            if total is None:
                total = np.zeros((logits.shape[1], *weights.shape), dtype=np.float32)
            for where, tile in zip(group, logits, strict=True):
                for value, logit in enumerate(tile):  # class by class: no product as large as a tile of all
                    total[value, :, *where] += logit * importance
                weights[:, *where] += importance
            if window.progress:
                window.progress(row * len(columns) + begin + len(group), len(starts[0]) * len(columns))
        if window.progress and len(wanted) < len(columns):
            window.progress((row + 1) * len(columns), len(starts[0]) * len(columns))
        assert total is not None  # there was a tile
        if row == 0 and first:
            yield image.background(len(total), 0, first)
        finished = following - first
        empty = weights[:finished] == 0
        total[0, :finished][empty] = _BACKGROUND_LOGIT
        weights[:finished][empty] = 1
        total[:, :finished] /= weights[:finished]
        yield total[:, image.inside(first, following), *image.columns]
        _roll(total, finished)
        _roll(weights[None], finished)
    assert total is not None  # there was a row
    if end < image.size[0]:
        yield image.background(len(total), end, image.size[0])


class _PaddedRows:
    """Rows of an image that is grown to at least the patch, evenly on both sides, with each channel's minimum."""

    def __init__(
        self, read: Callable[[int, int], FloatArray], shape: Shape, patch: Shape, minimum: Callable[[], FloatArray]
    ) -> None:
        self._read, self._shape = read, shape
        self._before = [max(0, p - n) // 2 for n, p in zip(shape, patch, strict=True)]
        z, y, x = (max(n, p) for n, p in zip(shape, patch, strict=True))
        self.size: Shape = (z, y, x)
        self.columns = tuple(slice(b, b + n) for b, n in zip(self._before[1:], shape[1:], strict=True))
        """Where the image lies in a padded row."""
        self._padding = minimum() if self.size != shape else None
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
        logits[0] = _BACKGROUND_LOGIT
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
        rows = np.empty((len(read), stop - first, *self.size[1:]), dtype=np.float32)
        if self._held is not None and known:
            rows[:, :known] = self._held[:, -known:]
        if self._padding is not None:
            rows[:, known:] = self._padding[:, None, None, None]
        rows[:, known:][:, own, *self.columns] = read
        self._held, self._held_stop = rows, stop
        return rows


def _roll(buffer: FloatArray, finished: int) -> None:
    """Let go of the first rows `(., rows, ., .)`; one row at a time, since numpy would copy what overlaps."""
    kept = buffer.shape[1] - finished
    for row in range(kept):
        buffer[:, row] = buffer[:, row + finished]
    buffer[:, kept:] = 0


def _turned_logits(tiles: FloatArray, engine: Engine, window: Window) -> FloatArray:
    """Logits of tiles whose axes are in the window's order, in that order too."""
    order = (0, 1, *(axis + 2 for axis in window.axes))
    logits = _mirrored_logits(np.ascontiguousarray(tiles.transpose(np.argsort(order))), engine, window)
    return logits.transpose(order)


def _mirrored_logits(tiles: FloatArray, engine: Engine, window: Window) -> FloatArray:
    logits = engine.run(tiles)
    mirror_axes, labels = window.mirror_axes, window.labels
    combinations = [
        tuple(axis for bit, axis in enumerate(mirror_axes) if mask >> bit & 1)
        for mask in range(1, 2 ** len(mirror_axes))
    ]
    if not combinations:
        return logits
    for axes in combinations:
        where = tuple(axis + 2 for axis in axes)
        mirrored = np.flip(engine.run(np.ascontiguousarray(np.flip(tiles, where))), where)
        swapped = labels is not None and labels.mirror_axis in axes
        logits = logits + (mirrored[:, labels.permutation()] if labels and swapped else mirrored)
    return logits / np.float32(len(combinations) + 1)
