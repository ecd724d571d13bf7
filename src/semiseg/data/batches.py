"""Batches of patches from the case store, computed for any step and read ahead by a thread, or by processes.

B samples of this rank, C channels, `(Z, Y, X)` the patch.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.data.histograms import with_other_histogram
from semiseg.data.poses import ALL_ALIKE, AS_IT_LIES, Poses
from semiseg.data.readers import Readers
from semiseg.data.sampling import (
    PredictedLocations,
    SamplingSettings,
    labelled_patch,
    reviewed_cases,
    unlabelled_patch,
)
from semiseg.errors import ConfigError
from semiseg.geometry import Box
from semiseg.io.store import OpenCase, StoredCase
from semiseg.io.store_index import IndexedCases, StoreIndex, index_of
from semiseg.randomness import Draw
from semiseg.types import FloatArray, Shape


@dataclass(frozen=True)
class Batch:
    """One step's samples of this rank.

    images: (B, C, Z, Y, X) float32. labels: (B, Z, Y, X) int64. unlabelled: images of unlabelled cases, or None
    where they were not asked for. pseudo_labels: (B, Z, Y, X) int64 of these, or None where none are published.
    """

    step: int
    images: FloatArray
    labels: NDArray[np.int64]
    unlabelled: FloatArray | None = None
    pseudo_labels: NDArray[np.int64] | None = None


class BatchSource:
    """The batches of a run. A batch depends on seed, step and rank only, never on the batches read before.

    labelled, unlabelled: folders of stored cases (opened when needed: thousands cannot be open at once); the second may
    be empty. patch: size in voxels. batch: samples of a step over all ranks, labelled ones and as many unlabelled
    ones, of which rank r of `world` reads the r-th part. histograms: with which probability, and in which channels,
    labelled patches get the histogram of another scan. accepted: ids of the labelled cases that a review accepted; None
    where a person labelled them all. index: of the store that the cases lie in, by which they are described when they
    are drawn; without one each is read here. readers: processes that read ahead, 0 for a thread; they share what
    `settings` allows of memory.

    Raises `ConfigError` if there is no labelled case or a batch cannot be divided by `world`, and `DataError` for a
    damaged case, here or when it is read.
    """

    def __init__(
        self,
        labelled: Sequence[Path],
        unlabelled: Sequence[Path] = (),
        *,
        patch: Shape,
        batch: int,
        seed: int,
        settings: SamplingSettings | None = None,
        histograms: tuple[float, Sequence[int]] | None = None,
        accepted: Collection[str] | None = None,
        rank: int = 0,
        world: int = 1,
        index: StoreIndex | None = None,
        readers: int = 0,
    ) -> None:
        if not labelled:
            raise ConfigError("There is no labelled training case. Add one, or raise the label budget.")
        refuse_indivisible(batch, world)
        self._rank, self._share = rank, batch // world
        self._patch, self._batch, self._seed = patch, batch, seed
        self._settings = SamplingSettings() if settings is None else settings
        index = index_of([*labelled, *unlabelled]) if index is None else index
        self._labelled = _Cases(IndexedCases(index, labelled))
        self._unlabelled = _Cases(IndexedCases(index, unlabelled))
        self._holders = self._labelled.metas.holders()
        self._reviewed = None
        if accepted is not None:
            self._reviewed = reviewed_cases(self._labelled.metas, accepted, self._settings)
        self._every, self._histograms = self._labelled.metas + self._unlabelled.metas, histograms
        self._memory = _Memory(int(self._settings.cache_gb * 1e9))
        self._reading = threading.Lock()  # one open case is not to be read by two threads at once
        self._published = [_Published(0, {}, None)]
        self._asked = -1
        self.depth = max(2, readers + 1)
        """Batches that are read ahead."""
        self._count = readers
        self._make = partial(
            BatchSource,
            labelled,
            unlabelled,
            patch=patch,
            batch=batch,
            seed=seed,
            settings=replace(self._settings, cache_gb=self._settings.cache_gb / max(1, readers)),
            histograms=histograms,
            accepted=accepted,
            rank=rank,
            world=world,
            index=index,
        )
        self._readers: Readers | None = None

    @property
    def labelled_cases(self) -> IndexedCases:
        return self._labelled.metas

    def labelled(self, step: int) -> tuple[FloatArray, NDArray[np.int64]]:
        """Images (B, C, Z, Y, X) float32 and labels (B, Z, Y, X) int64 of a step."""
        images, labels = [], []
        with self._reading:
            for draw in self._draws(step):
                found = labelled_patch(
                    self._labelled.metas,
                    self._holders,
                    self._patch,
                    draw,
                    self._batch,
                    self._settings,
                    self._reviewed,
                )
                case = self._labelled.open(found.case, self._memory)
                image = case.read_image(found.box)
                if self._histograms:
                    image = with_other_histogram(image, case.meta, self._every, draw, *self._histograms)
                images.append(image)
                labels.append(case.read_label(found.box))
        return np.stack(images), np.stack(labels).astype(np.int64)

    def unlabelled(self, step: int) -> tuple[FloatArray, NDArray[np.int64] | None]:
        """Images (B, C, Z, Y, X) float32 of unlabelled cases of a step, and their pseudo-labels if any are published,
        (B, Z, Y, X) int64."""
        published = next(one for one in reversed(self._published) if one.from_step <= step)
        metas = self._unlabelled.part(published.among)
        images, labels = [], []
        with self._reading:
            for draw in self._draws(step):
                patch = unlabelled_patch(
                    metas, published.predicted, self._patch, draw, self._batch, self._unlabelled.poses
                )
                position = patch.case if published.among is None else published.among[patch.case]
                case = self._unlabelled.open(position, self._memory)
                pose = self._unlabelled.poses.get(case.meta.id, AS_IT_LIES)
                images.append(pose.of(case.read_image(patch.box)))
                if self._unlabelled.labels_of is not None:
                    labels.append(pose.of(case.read_label(patch.box)))
        return np.stack(images), np.stack(labels).astype(np.int64) if labels else None

    def publish(self, predicted: PredictedLocations, *, from_step: int, among: Collection[str] | None = None) -> None:
        """Place unlabelled patches on what the teacher predicts, from a step on; earlier steps stay as they were.

        among: ids of the cases that are read from then on; None is all. from_step: must not have been read yet; while
        `iterate` is running, at least the current step + 1 + `depth`. To resume exactly, keep what was published with
        the checkpoint. Raises `ValueError` for a step that is too early.
        """
        first = max(self._asked + 1, self._published[-1].from_step)
        if from_step < first:
            raise ValueError(f"Step {from_step} was read or published already; the first free one is {first}.")
        drawn = None
        if among is not None:
            folders = enumerate(self._unlabelled.metas.folders)
            drawn = tuple(position for position, folder in folders if folder.name in among)
        self._published.append(_Published(from_step, predicted, drawn))
        self._tell()

    def publish_labels(
        self,
        labels_of: Callable[[StoredCase], Any],
        *,
        among: Collection[str] | None = None,
        poses: Poses = ALL_ALIKE,
    ) -> None:
        """Give unlabelled cases pseudo-labels, which come with their patches from the next batch on. Not while
        `iterate` is running.

        labels_of: an array, or what is sliced as one, `(Z, Y, X)` of the case's shape. among: ids of the cases that get
        some; None is all. poses: in which patches of some cases come, with their labels.
        """
        with self._reading:
            self._unlabelled.label(labels_of, among, poses)
        self._tell()

    def _tell(self) -> None:
        """Have the readers know what was published, for batches that are asked for from now on."""
        if self._readers:
            cases = self._unlabelled
            self._readers.publish((self._published, cases.labels_of, cases.among, cases.poses))

    def take(self, published: Any) -> None:
        """In a reader: what another one of the same parts was told."""
        self._published, labels_of, among, poses = published
        if labels_of is not None:
            self._unlabelled.label(labels_of, among, poses)

    def iterate(self, start_step: int, stop_step: int, *, unlabelled: bool = True) -> Generator[Batch, None, None]:
        """The batches of the steps in `[start_step, stop_step)`, read ahead.

        unlabelled: whether to read unlabelled images too. An error of reading is raised here, at its step, and
        `TrainingError` where a reader was killed. Closing the generator (or leaving the loop) waits for the batches in
        the making and drops the others.
        """
        if unlabelled and not self._unlabelled.metas:
            raise ConfigError("There is no unlabelled case to train on. Add some, or choose `supervised`.")
        with self._ahead(unlabelled) as (submit, fetch):
            waiting: deque[Future[Any]] = deque()
            ahead = start_step
            try:
                for step in range(start_step, stop_step):
                    while ahead < min(stop_step, step + 1 + self.depth):
                        if unlabelled:
                            self._asked = max(self._asked, ahead)
                        waiting.append(submit(ahead))
                        ahead += 1
                    yield Batch(step, **fetch(step, waiting.popleft()))
            finally:
                wait([one for one in waiting if not one.cancel()])

    @contextmanager
    def _ahead(self, unlabelled: bool) -> Iterator[tuple[_Submit, _Fetch]]:
        """Within: how a step is given to whoever reads, and how its arrays are had. Processes stay, a thread ends."""
        if self._count:
            if self._readers is None:
                self._readers = Readers(self._make, self._count, slots=self.depth + 1, slot_bytes=self._most_bytes())
                self._tell()
            readers = self._readers
            readers.tidy()
            yield lambda step: readers.submit(step, unlabelled), readers.fetch
            return
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="semiseg-batches") as pool:
            yield lambda step: pool.submit(self.arrays, step, unlabelled), lambda _, batch: batch.result()

    def close(self) -> None:
        """End the readers, where there are some."""
        if self._readers:
            self._readers.close()
            self._readers = None

    def arrays(self, step: int, unlabelled: bool) -> dict[str, Any]:
        """The fields of a step's `Batch`."""
        images, labels = self.labelled(step)
        found: dict[str, Any] = {"images": images, "labels": labels}
        if unlabelled:
            found["unlabelled"], pseudo_labels = self.unlabelled(step)
            if pseudo_labels is not None:
                found["pseudo_labels"] = pseudo_labels
        return found

    def _most_bytes(self) -> int:
        """Of a batch of this rank."""
        channels = self._labelled.metas[0].channels
        return 2 * self._share * prod(self._patch) * (4 * channels + 8)

    def _draws(self, step: int) -> list[Draw]:
        """The keys of this rank's samples."""
        return [Draw(self._seed, step, self._rank * self._share + i) for i in range(self._share)]


def refuse_indivisible(batch: int, world: int) -> None:
    """Raise `ConfigError` where so many ranks cannot share a batch."""
    if batch % world == 0:
        return
    fitting = [str(count) for count in range(1, batch + 1) if batch % count == 0]
    raise ConfigError(
        f"A batch of {batch} cannot be divided among {world} ranks: start {', '.join(fitting[:-1])} or {fitting[-1]} "
        "with torchrun --nproc-per-node, or make a run with another plan.batch."
    )


@dataclass(frozen=True)
class _Published:
    """What unlabelled patches are placed on from a step on, and at which positions the cases are that they are cut
    from; None is all."""

    from_step: int
    predicted: PredictedLocations
    among: tuple[int, ...] | None


_Submit = Callable[[int], Future[Any]]
_Fetch = Callable[[int, Future[Any]], dict[str, Any]]


class _Memory:
    """How many bytes of decompressed cases may still be kept."""

    def __init__(self, free_bytes: int) -> None:
        self._free_bytes = free_bytes

    def take(self, size: int) -> bool:
        """Whether so many bytes were free; if so, they are taken."""
        if size > self._free_bytes:
            return False
        self._free_bytes -= size
        return True


class _Cases:
    """Stored cases: their descriptions (`metas`), a few of them open, and decompressed arrays as memory allows.

    Decompressed cases are kept in the order of their first use and none is thrown out: passes over the cases in
    random order would evict a case before its next use, and decompress whole cases for single patches.
    """

    open_limit = 64
    """Cases held open at once: each holds a file descriptor or two, of which many systems grant 1,024."""

    def __init__(self, metas: IndexedCases) -> None:
        self.metas = metas
        self._kept: dict[int, OpenCase] = {}
        self._recent: OrderedDict[int, OpenCase] = OrderedDict()
        self.labels_of: Callable[[StoredCase], Any] | None = None
        """What `label` gave them, and `among` and `poses`."""
        self.among: Collection[str] | None = None
        self.poses = ALL_ALIKE
        self._part: tuple[tuple[int, ...] | None, IndexedCases] = (None, metas)

    def part(self, positions: tuple[int, ...] | None) -> IndexedCases:
        """The descriptions at these positions, of which the last ones are kept."""
        if positions is not self._part[0]:
            self._part = (positions, self.metas if positions is None else self.metas.part(positions))
        return self._part[1]

    def label(self, labels_of: Callable[[StoredCase], Any], among: Collection[str] | None, poses: Poses) -> None:
        """Cases have these labels and poses from now on; those that are not among these have no labels."""
        self.labels_of, self.among, self.poses = labels_of, among, poses
        self._recent.clear()
        self._kept = {
            index: replace(case, label=np.asarray(labels_of(case.meta)[:]) if self._is_labelled(case.meta) else None)
            for index, case in self._kept.items()
        }

    def _is_labelled(self, meta: StoredCase) -> bool:
        return self.among is None or meta.id in self.among

    def open(self, index: int, memory: _Memory) -> OpenCase:
        """The case, with its arrays in memory if they fit."""
        if index in self._kept:
            return self._kept[index]
        case = self._recent.pop(index, None)
        if case is None:
            case = self.metas.open(index)
            if self.labels_of is not None and self._is_labelled(case.meta):
                case = replace(case, label=self.labels_of(case.meta))
        label_bytes = 1 if case.label is None else case.label.dtype.itemsize  # which may come later
        if memory.take(prod(case.meta.shape_zyx) * (4 * case.meta.channels + label_bytes)):
            whole = Box((0, 0, 0), case.meta.shape_zyx)
            label = None if case.label is None else case.read_label(whole)
            self._kept[index] = replace(case, image=case.read_image(whole), label=label)
            return self._kept[index]
        self._recent[index] = case
        if len(self._recent) > self.open_limit:
            self._recent.popitem(last=False)
        return case
