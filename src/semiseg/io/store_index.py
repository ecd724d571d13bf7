"""The index of a store: what training has to know of all cases, in one file that is mapped and not read.

`store/cases.index` is a row of numpy's `.npy` arrays: a checksum of the tables, the tables (a row a case, or a range of
rows), and the voxels of all places, of which each case has a checksum of its own. Ranks share its pages.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, overload
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from semiseg.errors import DataError
from semiseg.files import atomic_file
from semiseg.geometry import triple
from semiseg.io.store import (
    OpenCase,
    StoredCase,
    Written,
    check_sizes,
    open_described,
    read_written,
)
from semiseg.types import AnyArray, Shape

INDEX_FILE = "cases.index"
_TABLES = (
    "ids",  # UTF-8, a line a case
    "hashes",
    "sha256",  # of the case in case.json
    "stamps",  # of case.json: bytes, and nanoseconds of its last change
    "sizes",  # bytes of image.b2nd and label.b2nd, 0 where there is none
    "shapes",  # shape_zyx and source_shape_zyx
    "spacings_mm",  # spacing_mm and source_spacing_mm
    "labelled",
    "channels",
    "quantile_starts",
    "quantiles",  # a row of a channel each
    "voxel_starts",
    "voxels",  # (class, voxels)
    "group_starts",
    "groups",  # (class or `_BODY`, number of places)
    "place_starts",
    "crc32",  # of the case's places
)
_BODY = -1
QUANTILES = 10
"""Of each channel (`semiseg.data.histograms`)."""
_BROKEN = (OSError, ValueError, TypeError, KeyError, IndexError, EOFError, SyntaxError, TokenError)
"""What numpy says of a file that is none of its own."""


class PlaceTable(Sequence[Shape]):
    """Voxels `(z, y, x)` in a table of uint16, as tuples of numbers."""

    __slots__ = ("_table",)

    def __init__(self, table: NDArray[np.uint16]) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, at: int) -> Shape: ...
    @overload
    def __getitem__(self, at: slice) -> PlaceTable: ...
    def __getitem__(self, at: int | slice) -> Shape | PlaceTable:
        return PlaceTable(self._table[at]) if isinstance(at, slice) else triple(self._table[at].tolist())

    def __iter__(self) -> Iterator[Shape]:
        return map(triple, self._table.tolist())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> AnyArray:
        return self._table.astype(np.int64 if dtype is None else dtype)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]


class StoreIndex:
    """What is known of the cases of a store, by row."""

    def __init__(self, tables: dict[str, AnyArray], places: NDArray[np.uint16], store: Path | None = None) -> None:
        """store: that it was mapped from."""
        self._tables, self._places, self._store = tables, places, store
        text = tables["ids"].tobytes().decode()
        self.ids = text.split("\n") if text else []

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the file itself."""
        if self._store is None:
            return StoreIndex, (self._tables, self._places)
        return _the_index, (self._store,)

    @cached_property
    def row_of(self) -> dict[str, int]:
        return {id: row for row, id in enumerate(self.ids)}

    def fits(self, hashes: dict[str, str | None]) -> bool:
        """Whether it has these cases, each with this hash."""
        rows = [self.row_of.get(id, -1) for id in hashes]
        if min(rows, default=0) < 0:
            return False
        wanted = np.array([(text or "").encode() for text in hashes.values()], dtype="S")
        return bool(np.array_equal(self._tables["hashes"][rows], wanted))

    def table(self, name: str) -> AnyArray:
        return self._tables[name]

    def range(self, starts: str, row: int) -> slice:
        first, last = self._tables[starts][row : row + 2].tolist()
        return slice(first, last)

    def case(self, row: int) -> StoredCase:
        """The description of a case, whose places are looked up when they are asked for."""
        table = self._tables
        shapes, spacings = table["shapes"][row].tolist(), table["spacings_mm"][row].tolist()
        groups, at = table["groups"][self.range("group_starts", row)].tolist(), int(table["place_starts"][row])
        places: dict[int, Sequence[Shape]] = {}
        for value, count in groups:
            places[value] = PlaceTable(self._places[at : at + count])
            at += count
        return StoredCase(
            id=self.ids[row],
            shape_zyx=triple(shapes[:3]),
            spacing_mm=triple(spacings[:3]),
            source_shape_zyx=triple(shapes[3:]),
            source_spacing_mm=triple(spacings[3:]),
            hash=table["hashes"][row].decode(),
            labelled=bool(table["labelled"][row]),
            channels=int(table["channels"][row]),
            class_voxels=dict(table["voxels"][self.range("voxel_starts", row)].tolist()),
            body_locations=places.pop(_BODY),
            class_locations=places,
            channel_quantiles=tuple(map(tuple, table["quantiles"][self.range("quantile_starts", row)].tolist())),
        )

    def written(self, row: int) -> Written:
        return Written(self.case(row), self._tables["sha256"][row].tobytes().hex(), self.sizes(row))

    def sizes(self, row: int) -> dict[str, int]:
        """Bytes of the files of a case."""
        pairs = zip(("image.b2nd", "label.b2nd"), self._tables["sizes"][row].tolist(), strict=True)
        return {name: size for name, size in pairs if size}

    def open(self, row: int, folder: Path) -> OpenCase:
        """Open a case, whose `case.json` is read only where it changed since; raises `DataError` where a file is
        damaged or missing, or the case is another one."""
        at = int(self._tables["place_starts"][row])
        count = int(self._tables["groups"][self.range("group_starts", row), 1].sum())
        if crc32(self._places[at : at + count].tobytes()) != self._tables["crc32"][row]:
            raise _unfit(folder, "the index is damaged")
        if _stamp(folder) == tuple(self._tables["stamps"][row].tolist()):
            check_sizes(folder, self.sizes(row))
        elif read_written(folder).sha256 != self._tables["sha256"][row].tobytes().hex():
            raise _unfit(folder, "another case lies here than when the index was made")
        return open_described(folder, self.case(row))


class IndexedCases(Sequence[StoredCase]):
    """Some cases of an index, in an order of one's own. Each is described when it is asked for."""

    def __init__(self, index: StoreIndex, folders: Sequence[Path], rows: NDArray[np.int64] | None = None) -> None:
        """folders: of the cases, each named by its id. rows: of the cases in the index, by default found by these ids.

        Raises `DataError` where the index lacks one.
        """
        self._index, self.folders = index, folders
        if rows is None:
            found = [index.row_of.get(folder.name, -1) for folder in folders]
            if min(found, default=0) < 0:
                raise _unfit(folders[found.index(-1)], "the index lacks it")
            rows = np.array(found, dtype=np.int64)
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> StoredCase: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[StoredCase]: ...
    def __getitem__(self, at: int | slice) -> StoredCase | Sequence[StoredCase]:
        if isinstance(at, slice):
            return IndexedCases(self._index, self.folders[at], self._rows[at])
        return self._index.case(int(self._rows[at]))

    def __add__(self, other: IndexedCases) -> IndexedCases:
        """These and those of the same index."""
        rows = np.concatenate([self._rows, other._rows])
        return IndexedCases(self._index, [*self.folders, *other.folders], rows)

    def part(self, positions: Sequence[int]) -> IndexedCases:
        """Those at these positions."""
        return IndexedCases(self._index, [self.folders[at] for at in positions], self._rows[list(positions)])

    def open(self, at: int) -> OpenCase:
        """As `StoreIndex.open`."""
        return self._index.open(int(self._rows[at]), self.folders[at])

    @property
    def volumes(self) -> list[int]:
        """Voxels of each scan."""
        return [int(n) for n in self._index.table("shapes")[self._rows, :3].prod(axis=1, dtype=np.int64)]

    def voxels_of(self, value: int) -> NDArray[np.int64]:
        """Voxels of a class in each case."""
        found = np.zeros(len(self._index.ids), dtype=np.int64)
        values, counts = self._index.table("voxels").T
        found[self._owners("voxel_starts")[values == value]] = counts[values == value]
        return found[self._rows]

    def holders(self) -> dict[int, NDArray[np.int64]]:
        """Positions of the cases that have places of each class, by class in ascending order."""
        values, counts = self._index.table("groups").T
        owners, there = self._owners("group_starts"), (values != _BODY) & (counts > 0)
        holds = np.zeros(len(self._index.ids), dtype=bool)
        found: dict[int, NDArray[np.int64]] = {}
        for value in np.unique(values[there]).tolist():
            holds[:] = False
            holds[owners[there & (values == value)]] = True
            if len(positions := np.flatnonzero(holds[self._rows])):
                found[value] = positions
        return found

    def _owners(self, starts: str) -> NDArray[np.int64]:
        """The case of each row of a table."""
        return np.repeat(np.arange(len(self._index.ids)), np.diff(self._index.table(starts)))


def index_of(folders: Sequence[Path]) -> StoreIndex:
    """An index in memory, of cases wherever they lie; raises `DataError` where a file of one is damaged or missing."""
    places = io.BytesIO()
    tables = _built(((read_written(folder), _stamp(folder)) for folder in folders), places)
    return StoreIndex(tables, np.frombuffer(places.getvalue(), dtype=np.uint16).reshape(-1, 3))


def read_index(store: Path) -> StoreIndex | None:
    """The index of a store; None where it has none, or one that is damaged."""
    try:
        with (store / INDEX_FILE).open("rb") as file:
            digest, *arrays = (_mapped(file) for _ in range(len(_TABLES) + 2))
            tables = dict(zip(_TABLES, arrays[:-1], strict=True))
            if digest.tobytes() != _digest(tables):
                return None
            return StoreIndex(tables, arrays[-1], store)
    except _BROKEN:
        return None


def _the_index(store: Path) -> StoreIndex:
    index = read_index(store)
    if index is None:
        raise DataError(f"{store / INDEX_FILE}: is not what was written a moment ago. Check the disk.")
    return index


def write_index(store: Path, ids: Sequence[str], *, anew: bool = False) -> StoreIndex:
    """The index of these cases of a store. What it says of a case is read again from `case.json` where size or time of
    that changed, or `anew`; the file is left alone where nothing did.

    Raises `DataError` where a file of a case is damaged or missing.
    """
    before = None if anew else read_index(store)
    rows: list[int | None] = [None] * len(ids)
    stamps = [_stamp(store / id) for id in ids]
    if before is not None:
        known = [tuple(stamp) for stamp in before.table("stamps").tolist()]
        found = [before.row_of.get(id) for id in ids]
        rows = [
            row if row is not None and known[row] == stamp else None for row, stamp in zip(found, stamps, strict=True)
        ]
        if before.ids == list(ids) and None not in rows:
            return before

    def written(at: int) -> Written:
        row = rows[at]
        return read_written(store / ids[at]) if before is None or row is None else before.written(row)

    with tempfile.TemporaryFile(dir=store) as places, atomic_file(store / INDEX_FILE) as temporary:
        tables = _built(((written(at), stamp) for at, stamp in enumerate(stamps)), places)
        with temporary.open("wb") as file:
            np.save(file, np.frombuffer(_digest(tables), dtype=np.uint8))
            for name in _TABLES:
                np.save(file, tables[name])
            shape = (places.tell() // 6, 3)
            np.lib.format.write_array_header_1_0(file, {"descr": "<u2", "fortran_order": False, "shape": shape})
            places.seek(0)
            shutil.copyfileobj(places, file)
    return _the_index(store)


def _built(cases: Iterable[tuple[Written, tuple[int, int]]], places: IO[bytes]) -> dict[str, AnyArray]:
    """The tables of an index; its places go into a file as they come."""
    ids, hashes, digests = list[str](), list[bytes](), list[bytes]()
    stamps, sizes, shapes, groups, voxels, sums = (array("q") for _ in range(6))
    spacings, quantiles = array("d"), array("d")
    labelled, channels = array("b"), array("q")
    starts = {name: array("q", [0]) for name in ("quantile", "voxel", "group", "place")}
    for one, stamp in cases:
        meta = one.meta
        of_classes = {_BODY: meta.body_locations, **meta.class_locations}
        try:
            packed = [np.array(found, dtype=np.uint16).reshape(-1, 3) for found in of_classes.values()]
            stamps.extend(stamp)
            sizes.extend(one.sizes.get(name, 0) for name in ("image.b2nd", "label.b2nd"))
            shapes.extend((*meta.shape_zyx, *meta.source_shape_zyx))
            spacings.extend((*meta.spacing_mm, *meta.source_spacing_mm))
            channels.append(meta.channels)
            quantiles.extend(np.array(meta.channel_quantiles).reshape(-1, QUANTILES).ravel().tolist())
            voxels.extend(number for item in meta.class_voxels.items() for number in item)
            digests.append(bytes.fromhex(one.sha256))
        except (OverflowError, ValueError) as error:
            raise DataError(f"{meta.id}: case.json holds what no scan has ({error}). Prepare it again.") from None
        ids.append(meta.id)
        hashes.append(meta.hash.encode())
        labelled.append(meta.labelled)
        groups.extend(number for value, found in of_classes.items() for number in (value, len(found)))
        content = b"".join(map(bytes, packed))
        places.write(content)
        sums.append(crc32(content))
        for name, length in (
            ("quantile", len(meta.channel_quantiles)),
            ("voxel", len(meta.class_voxels)),
            ("group", len(of_classes)),
            ("place", sum(map(len, packed))),
        ):
            starts[name].append(starts[name][-1] + length)
    made: dict[str, AnyArray] = {
        "ids": np.frombuffer("\n".join(ids).encode(), dtype=np.uint8),
        "hashes": np.array(hashes, dtype="S" if hashes else "S1"),
        "sha256": np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32),
        "stamps": _rows(stamps, 2),
        "sizes": _rows(sizes, 2),
        "shapes": _rows(shapes, 6),
        "spacings_mm": _rows(spacings, 6),
        "labelled": np.array(labelled, dtype=bool),
        "channels": np.array(channels),
        "quantiles": _rows(quantiles, QUANTILES),
        "voxels": _rows(voxels, 2),
        "groups": _rows(groups, 2),
        "crc32": np.array(sums),
    }
    return made | {f"{name}_starts": np.array(values) for name, values in starts.items()}


def _rows(values: array[Any], width: int) -> AnyArray:
    return np.array(values).reshape(-1, width)


def _digest(tables: dict[str, AnyArray]) -> bytes:
    digest = hashlib.sha256()
    for name in _TABLES:
        digest.update(f"{name} {tables[name].dtype.str} {tables[name].shape}".encode())
        digest.update(np.ascontiguousarray(tables[name]).data)
    return digest.digest()


def _mapped(file: IO[bytes]) -> AnyArray:
    """The array that begins here in a file, which is then read past it."""
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("objects")
    if 0 in shape:
        return np.empty(shape, dtype)
    begin = file.tell()
    mapped = np.memmap(file, dtype, "r", begin, shape).view(np.ndarray)
    file.seek(begin + mapped.nbytes)
    return mapped


def _stamp(folder: Path) -> tuple[int, int]:
    """Size and time of a case's description; what no file has where it is missing."""
    try:
        found = (folder / "case.json").stat()
    except OSError:
        return (-1, -1)
    return found.st_size, found.st_mtime_ns


def _unfit(folder: Path, reason: str) -> DataError:
    return DataError(f"{folder}: {reason}. Run `semiseg prepare` again.")
