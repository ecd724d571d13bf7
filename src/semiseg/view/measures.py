"""What is measured of label maps: volumes, pieces, places. Once for each label, in a thread of its own, and kept."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat, TypeAdapter, ValidationError
from scipy import ndimage
from typing_extensions import TypedDict

from semiseg.decisions import label_sha256
from semiseg.errors import DataError
from semiseg.files import append_jsonl, read_jsonl
from semiseg.geometry import triple
from semiseg.io.scans import files_of, read_grid, read_label
from semiseg.scoring.metrics import volume_ml
from semiseg.types import BoolArray, LabelArray, Shape, Spacing
from semiseg.view.contents import State, ViewCase, state_of
from semiseg.view.source import Source

FILE = "measures.jsonl"
ODD_DEVIATIONS = 3.5
"""So many deviations (by the median's) from the usual volume an outlier is away, on a scale of ratios."""
LEAST_DEVIATION = 0.1
"""Of volumes on that scale, about 10 %: organs that are all but equal have no outliers for that."""
FEWEST = 8
"""Cases that tell what is usual."""
_PAUSE_SECONDS = 3.0
_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)


class OrganMeasures(TypedDict):
    """Of one organ. centroid, first, stop: canonical (z, y, x), of it and of the box around it. doubtful: for axial,
    coronal and sagittal the slice on which its outline is longest."""

    volume_ml: PositiveFloat
    fragments: int
    centroid: tuple[float, float, float]
    first: tuple[int, int, int]
    stop: tuple[int, int, int]
    doubtful: tuple[int, int, int]


class Measures(TypedDict):
    """Of a label map with this hash: what is in it, by value as text. version: of the form; 1 had volumes of four
    decimals. doubtful: as of an organ, for all of them."""

    version: Literal[2]
    sha256: str
    shape_zyx: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    doubtful: tuple[int, int, int]
    organs: dict[str, OrganMeasures]


_MEASURES: TypeAdapter[Measures] = TypeAdapter(Measures)


def measure(label: LabelArray, spacing_mm: Spacing) -> tuple[dict[str, OrganMeasures], Shape]:
    """The values of a label map `(Z, Y, X)` that are in it, by value as text; and for each axis the slice on which
    their outlines are longest together, the middle one where there is nothing."""
    found: dict[str, OrganMeasures] = {}
    together = [np.zeros(n, dtype=np.int64) for n in label.shape]
    for value, box in enumerate(ndimage.find_objects(label), start=1):
        if box is None:
            continue
        mask = label[box] == value
        first = triple(part.start for part in box)
        z, y, x = (float(at + start) for at, start in zip(_centroid(mask), first, strict=True))
        outlines = _outlines(mask)
        for whole, part, inside in zip(together, outlines, box, strict=True):
            whole[inside] += part
        found[str(value)] = OrganMeasures(
            volume_ml=volume_ml(mask, spacing_mm),
            fragments=_pieces(mask),
            centroid=(round(z, 2), round(y, 2), round(x, 2)),
            first=first,
            stop=triple(part.stop for part in box),
            doubtful=triple(start + int(part.argmax()) for start, part in zip(first, outlines, strict=True)),
        )
    return found, triple(int(part.argmax()) if part.any() else len(part) // 2 for part in together)


def _pieces(mask: BoolArray) -> int:
    """Connected components, by faces, edges and corners."""
    try:
        return int(ndimage.label(mask, structure=_NEIGHBOURS, output=np.empty(mask.shape, np.uint16)))
    except RuntimeError:  # more than 65,535: noise
        return int(ndimage.label(mask, structure=_NEIGHBOURS)[1])


def _outlines(mask: BoolArray) -> list[NDArray[np.int64]]:
    """For each axis the length of the outlines on its slices, in edges of pixels."""
    padded = np.pad(mask, 1)
    lengths = [np.zeros(n, dtype=np.int64) for n in padded.shape]
    for axis in range(3):
        ahead, behind = ([slice(None)] * 3 for _ in range(2))
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        edges = padded[tuple(ahead)] ^ padded[tuple(behind)]
        for other in range(3):
            if other != axis:
                lengths[other] += np.count_nonzero(edges, axis=tuple(a for a in range(3) if a != other))
    return [part[1:-1] for part in lengths]


def _centroid(mask: BoolArray) -> tuple[float, float, float]:
    total = float(np.count_nonzero(mask))
    z, y, x = (
        float(np.dot(mask.sum(axis=axes, dtype=np.int64), np.arange(mask.shape[axis]))) / total
        for axis, axes in enumerate(((1, 2), (0, 2), (0, 1)))
    )
    return z, y, x


@dataclass(frozen=True, eq=False)
class Usual:
    """What is usual among the cases, by value as text. volumes_ml: between which an organ is no outlier, where enough
    cases have it. common: organs that at least half of the cases have. pieces: the middle number of them."""

    volumes_ml: Mapping[str, tuple[float, float]]
    common: frozenset[str]
    pieces: Mapping[str, int]


def usual_among(measured: Collection[Measures]) -> Usual:
    """What is usual among these cases; volumes are compared by their ratios."""
    logs: dict[str, list[float]] = {}
    pieces: dict[str, list[int]] = {}
    for one in measured:
        for value, organ in one["organs"].items():
            logs.setdefault(value, []).append(math.log(organ["volume_ml"]))
            pieces.setdefault(value, []).append(organ["fragments"])
    volumes = {}
    for value, found in logs.items():
        if len(found) >= FEWEST:
            middle = float(np.median(found))
            deviation = max(1.4826 * float(np.median(np.abs(np.array(found) - middle))), LEAST_DEVIATION)
            far = ODD_DEVIATIONS * deviation
            volumes[value] = (math.exp(middle - far), math.exp(middle + far))
    common = frozenset(value for value, found in logs.items() if 2 * len(found) >= len(measured))
    return Usual(volumes, common, {value: int(np.median(found)) for value, found in pieces.items()})


class Measurer:
    """Measures the label maps of a source in a thread; what is known is there at once. version: grows with each."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._path = source.cache / FILE
        self._by_hash: dict[str, Measures] = {}
        self._hashes: dict[Path, tuple[State, str]] = {}
        self._digests: dict[str, str] = {}
        self._failed: dict[Path, State] = {}
        self._by_case: dict[str, Measures] = {}
        self._misfits: dict[str, tuple[State, str]] = {}
        self._making: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.version = 0
        self.share = 0.0
        self._read_kept()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="semiseg-measures", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def of_case(self, id: str) -> Measures | None:
        """What is known of a case's label; it may be of the label before."""
        return self._by_case.get(id)

    def all(self) -> dict[str, Measures]:
        with self._lock:
            return dict(self._by_case)

    def hash_of(self, path: Path) -> str:
        """The hash of a label map; the file is read again where it has changed."""
        state = state_of(path)
        known = self._hashes.get(path)
        if known is None or known[0] != state:
            known = (state, label_sha256(*files_of([path])))
            with self._lock:
                self._hashes[path] = known
                self.version += 1
        return known[1]

    def last_hash(self, id: str, path: Path) -> str | None:
        """The hash of a case's label map as it was last seen: the file is looked at where it has not been yet."""
        if id not in self._digests:
            try:
                self._digests[id] = self.hash_of(path)
            except OSError:  # gone since
                return None
        return self._digests[id]

    def misfit(self, case: ViewCase) -> str:
        """What a case's label and its scan differ in, by their headers, which are read again where a file has changed;
        nothing where the label lies on its scan. Raises `DataError` where one cannot be read."""
        path = self._source.measured(case)
        if path is None or not case.images:
            return ""
        scan = case.images[0]
        state = state_of(path, *([scan] if scan.is_file() else []))  # a series of DICOM has thousands of files
        kept = self._misfits.get(case.id)
        if kept is None or kept[0] != state:
            found = (state, read_grid(path).difference(read_grid(scan)) or "")
            with self._lock:
                self._misfits[case.id] = found
                self.version += found[1] != (kept[1] if kept else "")
            return found[1]
        return kept[1]

    def last_misfit(self, id: str) -> str:
        """The same as it was last seen."""
        kept = self._misfits.get(id)
        return kept[1] if kept else ""

    def now(self, case: ViewCase) -> Measures | None:
        """Of a case's label as it is now, measured where it has not been; None where it has none.

        Raises `DataError` where it cannot be read.
        """
        path = self._source.measured(case)
        if path is None:
            with self._lock:
                if self._by_case.pop(case.id, None):
                    self.version += 1
            return None
        digest = self._digests[case.id] = self.hash_of(path)
        found = self._by_hash.get(digest)
        if found is None:
            found = self._measured(path, digest)
        if self._by_case.get(case.id) is not found:
            with self._lock:
                self._by_case[case.id] = found
                self.version += 1
        return found

    def _measured(self, path: Path, digest: str) -> Measures:
        with self._lock:
            making = self._making.setdefault(digest, threading.Lock())
        with making:  # who opens a case that is just being measured waits for that
            if found := self._by_hash.get(digest):
                return found
            label, grid = read_label(path)
            organs, doubtful = measure(label, grid.spacing_mm)
            found = Measures(
                version=2,
                sha256=digest,
                shape_zyx=grid.shape_zyx,
                spacing_mm=grid.spacing_mm,
                doubtful=doubtful,
                organs=organs,
            )
            with self._writing, suppress(OSError):  # a folder that cannot be written: then it is measured each time
                self._by_hash[digest] = found
                self._path.parent.mkdir(parents=True, exist_ok=True)
                append_jsonl(self._path, dict(found))
        with self._lock:
            self._making.pop(digest, None)
        return found

    def _read_kept(self) -> None:
        try:
            rows = read_jsonl(self._path)
            for row in rows:
                one = _MEASURES.validate_python(row)
                self._by_hash[one["sha256"]] = one
        except (DataError, ValidationError, OSError):  # of another version, or damaged: it is made again
            self._by_hash = {}
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _work(self) -> None:
        """Go round the cases for as long as the server runs: labels come, and change."""
        while not self._stop.is_set():
            try:
                cases = list(self._source.contents().cases.values())
            except Exception:  # noqa: BLE001 - a file that is being edited: what is wrong is said where it is asked for
                cases = []
            for number, case in enumerate(cases):
                if self._stop.is_set():
                    return
                self._try(case)
                self.share = max(self.share, (number + 1) / len(cases))
            self._stop.wait(_PAUSE_SECONDS)

    def _try(self, case: ViewCase) -> None:
        path = self._source.measured(case)
        if path is not None and self._failed.get(path) == state_of(path):
            return
        try:
            self.misfit(case)
            self.now(case)
        except (DataError, OSError):  # which is said where the case is opened
            if path is not None:
                self._failed[path] = state_of(path)


def centre(shape: Shape, organ: OrganMeasures | None, others: Mapping[str, OrganMeasures]) -> Shape:
    """The voxel that a strip goes through: an organ's centroid, or that of all organs by volume, or the middle."""
    chosen = [organ] if organ else list(others.values())
    weights = [one["volume_ml"] for one in chosen]
    if not chosen or not sum(weights) > 0:
        z, y, x = (n // 2 for n in shape)
        return (z, y, x)
    places = np.average([one["centroid"] for one in chosen], axis=0, weights=weights)
    z, y, x = (min(n - 1, max(0, round(float(place)))) for place, n in zip(places, shape, strict=True))
    return (z, y, x)
