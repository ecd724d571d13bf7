"""Layers of a case as volumes: read once, kept while there is room, and sent as uncompressed NIfTI in the order of the
file's own axes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from semiseg.errors import DataError
from semiseg.geometry import canonical_affine, from_canonical, triple
from semiseg.io.grid import Grid
from semiseg.io.nifti import header_bytes
from semiseg.io.scans import RawChannel, read_grid, read_label, read_scan
from semiseg.io.store import open_labels, read_case_meta
from semiseg.types import AnyArray, DoubleArray, LabelArray, Shape
from semiseg.view.contents import ViewCase, state_of
from semiseg.view.source import Layer, Source

V = TypeVar("V")
CACHE_BYTES = 128 << 20
MISSED, ADDED, OTHER = 1, 2, 3
"""Values of the difference from a reference: an organ is missed, added, or taken for another."""


class ByteCache(Generic[V]):
    """The values that were used last, up to so many bytes in all, and the newest one whatever its size: each slice of a
    large scan would read its file again. Each is made once, by the thread that comes first."""

    def __init__(self, limit: int, size: Callable[[V], int]) -> None:
        self._limit, self._size = limit, size
        self._kept: OrderedDict[Hashable, V] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._making: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """What is kept under a key, or is made now."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._kept:
                    return self._kept[key]
            try:
                value = make()
                self._keep(key, value)
            finally:
                with self._lock:
                    self._making.pop(key, None)
        return value

    def _keep(self, key: Hashable, value: V) -> None:
        with self._lock:
            self._kept[key] = value
            self._bytes += self._size(value)
            while self._bytes > self._limit and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= self._size(dropped)

    @property
    def bytes(self) -> int:
        return self._bytes


@dataclass(frozen=True)
class Volume:
    """A layer in memory: canonical `(Z, Y, X)`, a voxel's value is `stored * slope + inter`. grid: its own. start,
    step: where its first voxel lies on the scan's canonical grid, and how many of the scan's voxels one of its is."""

    raw: RawChannel
    grid: Grid
    start: tuple[float, float, float] = (0.0, 0.0, 0.0)
    step: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def array(self) -> AnyArray:
        return self.raw.stored

    @property
    def is_whole(self) -> bool:
        """Whether its grid is the scan's."""
        return self.start == (0.0, 0.0, 0.0) and self.step == (1.0, 1.0, 1.0)

    def nearest(self, axis: int, count: int) -> AnyArray:
        """For each of `count` voxels of the scan along an axis the nearest voxel of this one, -1 outside."""
        index = np.floor((np.arange(count) + 0.5 - self.start[axis]) / self.step[axis]).astype(np.int64)
        return np.where((index >= 0) & (index < self.array.shape[axis]), index, -1)

    def nifti(self) -> tuple[bytes, memoryview]:
        """The file: header, and voxels in the order of the stored axes."""
        stored = from_canonical(self.array, self.grid.affine)
        voxels = np.ascontiguousarray(stored.transpose())
        header = header_bytes(stored.shape, voxels.dtype, self.grid, slope=self.raw.slope, inter=self.raw.inter)
        return header, memoryview(voxels.reshape(-1).view(np.uint8).data)


class Volumes:
    """The layers of a source's cases."""

    def __init__(self, source: Source, limit: int = CACHE_BYTES) -> None:
        self._source = source
        self._cache: ByteCache[tuple[Volume, ...]] = ByteCache(limit, _bytes)

    def get(self, case: ViewCase, layer: Layer) -> Volume:
        """A layer. Raises `DataError` where its file is damaged, or not on the scan's grid."""
        if layer.form == "scan":
            found = self.channels(case, layer)
            return found[layer.channel if layer.channel < len(found) else 0]
        return self._kept(case, layer, lambda: (self._read(case, layer),))[0]

    def channels(self, case: ViewCase, layer: Layer) -> tuple[Volume, ...]:
        """All channels of the scan that a layer is of, by one reading. Raises as `get`."""
        return self._kept(case, layer, lambda: _read_scan(case))

    def _kept(self, case: ViewCase, layer: Layer, make: Callable[[], tuple[Volume, ...]]) -> tuple[Volume, ...]:
        name = "scan" if layer.form == "scan" else layer.name
        return self._cache.get((case.id, name, layer.paths, state_of(*layer.paths)), make)

    def _read(self, case: ViewCase, layer: Layer) -> Volume:
        if layer.form == "label":
            if case.images and (difference := read_grid(layer.paths[0]).difference(read_grid(case.images[0]))):
                raise DataError(f"{layer.paths[0]}: not on the grid of its scan: {difference}.")
            label, grid = read_label(layer.paths[0])
            return Volume(RawChannel(label), grid)
        if layer.form == "difference":
            return self._difference(case)
        if not case.images:
            raise DataError(f"{case.id}: has no scan, on whose grid this is drawn.")
        scan = read_grid(case.images[0])
        if layer.form == "feedback":
            return self._feedback(case, layer, scan)
        meta = read_case_meta(self._source.folder / "store" / case.id)
        labels = np.asarray(open_labels(layer.paths[0], meta.shape_zyx)[:])
        return on_plan(labels, meta.shape_zyx, scan, (0, 0, 0))

    def _feedback(self, case: ViewCase, layer: Layer, grid: Grid) -> Volume:
        path = layer.paths[0]
        try:
            with np.load(path, allow_pickle=False) as archive:
                values = np.asarray(archive["feedback"], dtype=np.float32)
        except (OSError, KeyError, ValueError, EOFError) as error:
            raise DataError(f"{path}: not a readable feedback map ({error}). Remove the file.") from None
        whole = read_case_meta(self._source.folder / "store" / case.id).shape_zyx
        if values.ndim != 3 or any(part > all for part, all in zip(values.shape, whole, strict=True)):
            raise DataError(f"{path}: not a feedback map of this case. Remove the file.")
        return on_plan(values, whole, grid, triple((n - p) // 2 for n, p in zip(whole, values.shape, strict=True)))

    def _difference(self, case: ViewCase) -> Volume:
        layers = {layer.name: layer for layer in self._source.layers(case)}
        one = self.get(case, layers["reference"])
        other = self.get(case, layers.get("prediction") or layers["pseudo_label"])
        if difference := other.grid.difference(one.grid):
            raise DataError(f"{case.id}: the labels are not on the grid of the reference: {difference}.")
        scheme = self._source.contents().scheme
        found = difference_of(one.array, other.array, ignore=scheme.ignore if scheme else None)
        return Volume(RawChannel(found), one.grid)


def difference_of(reference: LabelArray, found: LabelArray, *, ignore: int | None = None) -> LabelArray:
    """1 where an organ of the reference is missed, 2 where one is added, 3 where it is another; nothing where nobody
    labelled."""
    differs = reference != found
    if ignore is not None:
        differs &= reference != ignore
    out = np.zeros_like(reference, dtype=np.uint8)
    out[differs] = OTHER
    out[differs & (found == 0)] = MISSED
    out[differs & (reference == 0)] = ADDED
    return out


def _bytes(volumes: tuple[Volume, ...]) -> int:
    return sum(volume.array.nbytes for volume in volumes)


def _read_scan(case: ViewCase) -> tuple[Volume, ...]:
    scan = read_scan(case.images)
    grid = replace(scan.grid, channels=1)
    return tuple(Volume(_small(channel), grid) for channel in scan.channels)


def _small(channel: RawChannel) -> RawChannel:
    """The channel as int16 where it fits, else as float32, in the order of its file."""
    stored = channel.stored
    if stored.dtype.kind in "iub":
        if stored.dtype == np.int16 and stored.dtype.isnative:
            return channel
        limits = np.iinfo(np.int16)
        if stored.size and limits.min <= int(stored.min()) and int(stored.max()) <= limits.max:
            return replace(channel, stored=stored.astype(np.int16))
    values = stored.astype(np.float32)
    if channel.slope != 1.0 or channel.inter != 0.0:
        values *= np.float32(channel.slope)
        values += np.float32(channel.inter)
    return RawChannel(values)


def on_plan(values: AnyArray, whole: Shape, scan: Grid, first: Shape) -> Volume:
    """A part of an array on the plan's grid, from voxel `first` on. whole: the shape of a scan on that grid, whose
    cells cover the scan's."""
    step = triple(n / m for n, m in zip(scan.shape_zyx, whole, strict=True))
    start = triple(f * s for f, s in zip(first, step, strict=True))
    affine = _canonical_affine(scan) @ _placed(start, step)
    spacing = triple(mm * s for mm, s in zip(scan.spacing_mm, step, strict=True))
    grid = Grid(triple(values.shape), spacing, affine, stored_mm=triple(spacing[::-1]))
    return Volume(RawChannel(values), grid, start, step)


def _canonical_affine(grid: Grid) -> DoubleArray:
    shape_xyz = from_canonical(np.broadcast_to(np.uint8(0), grid.shape_zyx), grid.affine).shape
    return canonical_affine(grid.affine, triple(shape_xyz))


def _placed(start: tuple[float, float, float], step: tuple[float, float, float]) -> DoubleArray:
    """From indices (X, Y, Z) of cells of `step` voxels, the first of which begins at the edge `start`, to indices of
    the scan."""
    found = np.eye(4)
    for row, axis in enumerate((2, 1, 0)):
        found[row, row] = step[axis]
        found[row, 3] = start[axis] + step[axis] / 2 - 0.5
    return found
