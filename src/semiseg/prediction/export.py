"""From rows of logits on the plan's grid to labels and probabilities on the scan's, row by row.

Interpolated logits are a mean of their neighbours' with weights that are not negative. So where all neighbours have
the same largest class, it is the largest of the mean too, and only voxels between different labels need their logits
at all: no volume of all classes is ever made at the scan's size. (Where two classes are equal but for rounding, it may
be the other one.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from semiseg.ops.operators import MIXED, shared_with_next, zoom_taps
from semiseg.types import FloatArray, LabelArray, Shape

_MOST_MIXED = 0.3
"""Where a larger share of a plane than this is mixed, interpolating all of it is faster."""
ROWS_AT_ONCE = 16
"""Rows that are prepared for interpolation together."""


class _Source(NamedTuple):
    """A row of the plan's grid."""

    logits: Any
    """`(K, ., .)`, an array or a tensor."""
    cells: NDArray[np.int32] = np.empty((0, 0), dtype=np.int32)
    """The label that each voxel shares with those that it is interpolated with, or `MIXED`; empty if not asked for."""


class _Between(NamedTuple):
    """A row of the scan's grid, and the two rows of the plan's grid that it lies between; they may be the same."""

    row: int
    low: _Source
    high: _Source


class _Rows:
    """Pairs the rows that come with the rows of the scan's grid that they complete, and interpolates them."""

    def __init__(self, shape_in: Shape, shape_out: Shape, anisotropic_axis: int | None, threads: int) -> None:
        orders = [0 if axis == anisotropic_axis else 1 for axis in range(3)]
        self.z, y, x = map(zoom_taps, shape_in, shape_out, orders)
        self.y = None if shape_in[1] == shape_out[1] else y
        self.x = None if shape_in[2] == shape_out[2] else x
        self.shape = shape_out
        self.threads = threads
        self._come = self._made = 0
        self._last: list[_Source] = []

    def completed(self, sources: list[_Source]) -> Iterator[_Between]:
        """The output rows that the next rows complete, in order."""
        known = [*self._last, *sources]
        before = self._come - len(self._last)
        self._come += len(sources)
        # Of two neighbours the later one is new, so one row from before is all that can be needed.
        last = sources[-1].logits
        self._last = [_Source(last.copy() if isinstance(last, np.ndarray) else last, sources[-1].cells)]
        made, self._made = self._made, int(np.searchsorted(self.z.high, self._come))
        for row in range(made, self._made):
            yield _Between(row, known[self.z.low[row] - before], known[self.z.high[row] - before])

    def last_as(self, make: Callable[[_Source], _Source]) -> None:
        """Have the row that is kept in another form."""
        self._last = [make(last) for last in self._last]

    def blended(self, between: _Between) -> FloatArray:
        """Logits of the row on the plan's columns, `(K, ., .)`."""
        low, high = self.z.low_weight[between.row], self.z.high_weight[between.row]
        if high == 0:
            return np.asarray(between.low.logits)
        return np.asarray(between.low.logits * low + between.high.logits * high)

    def plane(self, between: _Between) -> FloatArray:
        """Logits of the row on the scan's grid, `(K, ., .)`."""
        plane = self.blended(between)
        plane = plane if self.y is None else self.y.apply(plane, 1)
        return plane if self.x is None else self.x.apply(plane, 2)

    def voxels(self, between: _Between, voxels: NDArray[np.intp]) -> FloatArray:
        """Logits `(K, N)` of voxels of the row, numbered along the scan's grid: as `plane`, but of those alone."""
        plane = self.blended(between)
        row, column = np.divmod(voxels, self.shape[2])
        flat = plane.reshape(len(plane), -1)

        def along_y(columns: NDArray[np.intp]) -> FloatArray:
            if self.y is None:
                return flat[:, row * plane.shape[2] + columns]
            low = flat[:, self.y.low[row] * plane.shape[2] + columns] * self.y.low_weight[row]
            high = flat[:, self.y.high[row] * plane.shape[2] + columns] * self.y.high_weight[row]
            return np.asarray(low + high)

        if self.x is None:
            return along_y(column)
        low = along_y(self.x.low[column]) * self.x.low_weight[column]
        return np.asarray(low + along_y(self.x.high[column]) * self.x.high_weight[column])


class LabelExport:
    """The label map of a scan from logits that come row by row, from the first row of the plan's grid to the last.

    Resampled by order 1, by order 0 along `anisotropic_axis`; then the largest class is taken, the first of equals.
    """

    def __init__(
        self, shape_in: Shape, shape_out: Shape, classes: int, anisotropic_axis: int | None = None, threads: int = 1
    ) -> None:
        """shape_in, shape_out: of the plan's and of the scan's grid, rows first."""
        self.labels: LabelArray = np.empty(shape_out, dtype=np.uint8 if classes <= 256 else np.uint16)
        """The label map; complete when all rows have come."""
        self._rows = _Rows(shape_in, shape_out, anisotropic_axis, threads)

    def add(self, logits: Any) -> None:
        """The next rows of logits, `(K, rows, ., .)` float32, an array or a tensor; neither kept nor changed."""
        if not isinstance(logits, np.ndarray):
            self._add_on_device(logits)
            return
        self._rows.last_as(self._in_main_memory)
        with ThreadPoolExecutor(self._rows.threads) as pool:
            for start in range(0, logits.shape[1], ROWS_AT_ONCE):
                part = logits[:, start : start + ROWS_AT_ONCE]
                sources = list(pool.map(self._source, part.swapaxes(0, 1)))
                list(pool.map(self._make, self._rows.completed(sources)))

    def _in_main_memory(self, last: _Source) -> _Source:
        return last if isinstance(last.logits, np.ndarray) else self._source(last.logits.cpu().numpy())

    def _add_on_device(self, logits: Any) -> None:
        """The same where the tensor is: labels alone come back."""
        from semiseg.ops.resample_torch import labels_between

        def on_device(last: _Source) -> _Source:
            known = isinstance(last.logits, np.ndarray)
            return _Source(logits.new_tensor(last.logits)) if known else _Source(last.logits.to(logits.device))

        rows = self._rows
        rows.last_as(on_device)
        made = [
            (
                between.row,
                labels_between(
                    (between.low.logits, between.high.logits),
                    (float(rows.z.low_weight[between.row]), float(rows.z.high_weight[between.row])),
                    (rows.y, rows.x),
                ),
            )
            for between in rows.completed([_Source(plane) for plane in logits.unbind(1)])
        ]
        for row, labels in made:
            self.labels[row] = labels.cpu().numpy()

    def _source(self, plane: FloatArray) -> _Source:
        cells = largest_class(plane)
        for axis, taps in enumerate((self._rows.y, self._rows.x)):
            if taps is not None and taps.high_weight.any():
                cells = shared_with_next(cells, axis)
        return _Source(plane, cells)

    def _make(self, between: _Between) -> None:
        cells = between.low.cells
        if between.high is not between.low:
            cells = np.where(cells == between.high.cells, cells, MIXED)
        y, x = self._rows.y, self._rows.x
        cells = cells if y is None else cells[y.low]
        cells = cells if x is None else np.take(cells, x.low, axis=1)
        plane = self.labels[between.row]
        plane[...] = cells
        mixed = np.flatnonzero(cells == MIXED)
        if mixed.size > _MOST_MIXED * cells.size:
            plane[...] = largest_class(self._rows.plane(between))
        elif mixed.size:
            plane.reshape(-1)[mixed] = largest_class(self._rows.voxels(between, mixed))


class ProbabilityExport:
    """Class probabilities of a scan, softmax of its resampled logits; used as `LabelExport`."""

    def __init__(
        self, shape_in: Shape, shape_out: Shape, classes: int, anisotropic_axis: int | None = None, threads: int = 1
    ) -> None:
        self.probabilities: FloatArray = np.empty((classes, *shape_out), dtype=np.float32)
        """`(K, rows, ., .)`; complete when all rows have come."""
        self._rows = _Rows(shape_in, shape_out, anisotropic_axis, threads)

    def add(self, logits: FloatArray) -> None:
        """The next rows of logits, `(K, rows, ., .)` float32; neither kept nor changed."""
        sources = [_Source(plane) for plane in logits.swapaxes(0, 1)]
        with ThreadPoolExecutor(self._rows.threads) as pool:
            list(pool.map(self._make, self._rows.completed(sources)))

    def _make(self, between: _Between) -> None:
        plane = self._rows.plane(between)
        plane = np.exp(plane - plane.max(axis=0))
        self.probabilities[:, between.row] = plane / plane.sum(axis=0)


def largest_class(logits: FloatArray) -> NDArray[np.int32]:
    """The index of the largest along the first axis, the first of equals; several times faster than `argmax`."""
    best = logits[0].copy()
    index = np.zeros(best.shape, dtype=np.int32)
    for value, candidate in enumerate(logits[1:], start=1):
        np.copyto(index, value, where=candidate > best)
        np.maximum(best, candidate, out=best)
    return index
