from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from semiseg.data import sampling
from semiseg.data.batches import Batch, BatchSource, _Cases
from semiseg.data.poses import Pose
from semiseg.data.sampling import SamplingSettings
from semiseg.errors import ConfigError, DataError, TrainingError
from semiseg.io.store import StoredCase, write_case
from semiseg.io.store_index import index_of
from semiseg.types import Shape

PATCH = (8, 8, 8)


def _write(folder: Path, index: int, *, labelled: bool, shape: Shape = (12, 9, 6)) -> Path:
    """A case whose image names its voxels: case * 10,000 + linear index; label 1 in one half, where
    labelled."""
    image = (np.arange(np.prod(shape), dtype=np.float32) + 10_000 * index).reshape(1, *shape)
    label = np.zeros(shape, dtype=np.uint8)
    label[: shape[0] // 2] = 1
    voxels = [(int(z), int(y), int(x)) for z, y, x in np.argwhere(label)[::20]]
    meta = StoredCase(
        id=f"case{index}",
        shape_zyx=shape,
        spacing_mm=(1.0, 1.0, 1.0),
        source_shape_zyx=shape,
        source_spacing_mm=(1.0, 1.0, 1.0),
        hash="0",
        labelled=labelled,
        channels=1,
        class_voxels={0: 1, 1: 1} if labelled else {},
        class_locations={1: tuple(voxels)} if labelled else {},
        body_locations=((6, 4, 3),),
    )
    write_case(folder / meta.id, image=image, label=label if labelled else None, meta=meta)
    return folder / meta.id


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[Path]]:
    """Folders of 2 labelled and 5 unlabelled cases."""
    folder = tmp_path_factory.mktemp("store")
    return (
        [_write(folder, i, labelled=True) for i in (1, 2)],
        [_write(folder, i, labelled=False) for i in range(3, 8)],
    )


def _source(cases: tuple[list[Path], list[Path]], batch: int = 4, **more: object) -> BatchSource:
    options = {"patch": PATCH, "batch": batch, "seed": 3} | more
    return BatchSource(*cases, **options)  # type: ignore[arg-type]


def test_shapes_types_and_that_labels_belong_to_their_images(cases: tuple[list[Path], list[Path]]) -> None:
    images, labels = _source(cases).labelled(0)
    assert images.shape == (4, 1, *PATCH)
    assert labels.shape == (4, *PATCH)
    assert images.dtype == np.float32
    assert labels.dtype == np.int64
    # The first half of a case's 12 * 9 * 6 = 648 voxels is class 1, also where patches reach out of the scan and repeat
    # its border.
    assert np.array_equal(labels == 1, images[:, 0] % 10_000 < 324)
    assert any(len(np.unique(image)) < image.size for image in images)
    assert _source(cases).unlabelled(0)[0].shape == (4, 1, *PATCH)


@pytest.mark.parametrize("cache_gb", [0.0, 2.0])
def test_pseudo_labels_come_with_their_patches(cases: tuple[list[Path], list[Path]], cache_gb: float) -> None:
    """From when they are published on, also beyond the scan's border; images are as they were."""
    source = _source(cases, settings=SamplingSettings(cache_gb=cache_gb))
    with closing(source.iterate(0, 1)) as batches:
        before = next(batches)
    assert before.pseudo_labels is None
    source.publish_labels(lambda case: np.full(case.shape_zyx, int(case.id.removeprefix("case")), dtype=np.uint8))
    with closing(source.iterate(0, 1)) as batches:
        after = next(batches)
    assert before.unlabelled is not None
    assert np.array_equal(after.unlabelled, before.unlabelled)
    assert np.array_equal(after.pseudo_labels, before.unlabelled[:, 0] // 10_000)


def test_patches_come_in_the_poses_of_their_scans(cases: tuple[list[Path], list[Path]]) -> None:
    """With their labels, in the shape of a patch; labels that are the scan's own voxels tell."""
    source = _source(cases)
    exchanged = Pose((0, 2, 1), (1,))

    def own_voxels(case: StoredCase) -> NDArray[np.uint16]:
        return (np.arange(np.prod(case.shape_zyx)).reshape(case.shape_zyx)).astype(np.uint16)

    seen = {}
    for poses in ({}, {"case4": exchanged}):
        source.publish_labels(own_voxels, poses=poses)
        found = [source.unlabelled(step) for step in range(6)]
        images, labels = (np.concatenate(values) for values in zip(*found, strict=True))
        assert images.shape[2:] == labels.shape[1:] == PATCH
        assert np.array_equal(images[:, 0] % 10_000, labels)
        # Along the columns voxels are numbered on by one, where no border goes on.
        steps = np.diff(labels, axis=3).max(axis=(1, 2, 3))
        seen[len(poses)] = {int(image.max() // 10_000): int(step) for image, step in zip(images, steps, strict=True)}
    assert set(seen[0].values()) == {1}
    assert {case for case, step in seen[1].items() if step != 1} == {4}


def test_any_step_can_be_asked_for_and_the_cache_changes_nothing(cases: tuple[list[Path], list[Path]]) -> None:
    straight, cold = _source(cases), _source(cases, settings=SamplingSettings(cache_gb=0.0))
    partly = _source(cases, settings=SamplingSettings(cache_gb=648 * 5 * 2.5e-9))  # room for 2 of 7 cases
    in_order = [(*straight.labelled(step), straight.unlabelled(step)[0]) for step in range(5)]
    for source in (cold, partly, straight):
        for step in (4, 1, 3):
            got = (*source.labelled(step), source.unlabelled(step)[0])
            assert all(np.array_equal(a, b) for a, b in zip(got, in_order[step], strict=True))
    assert not np.array_equal(in_order[0][0], in_order[1][0])


def test_two_ranks_see_the_batch_of_one(cases: tuple[list[Path], list[Path]]) -> None:
    whole = _source(cases)
    ranks = [_source(cases, rank=rank, world=2) for rank in (0, 1)]
    for step in (0, 5):
        images, labels = (np.concatenate(parts) for parts in zip(*(r.labelled(step) for r in ranks), strict=True))
        assert np.array_equal(images, whole.labelled(step)[0])
        assert np.array_equal(labels, whole.labelled(step)[1])
        assert np.array_equal(np.concatenate([r.unlabelled(step)[0] for r in ranks]), whole.unlabelled(step)[0])
    with pytest.raises(ConfigError, match="batch of 4 cannot be divided among 3 ranks: start 1, 2 or 4 with"):
        _source(cases, rank=0, world=3)


def test_iterate_yields_the_steps_and_ends_its_thread(cases: tuple[list[Path], list[Path]]) -> None:
    source, direct = _source(cases), _source(cases)
    threads = threading.active_count()
    batches = list(source.iterate(3, 8))
    assert [b.step for b in batches] == [3, 4, 5, 6, 7]
    for batch in batches:
        assert np.array_equal(batch.images, direct.labelled(batch.step)[0])
        assert batch.unlabelled is not None
        assert np.array_equal(batch.unlabelled, direct.unlabelled(batch.step)[0])
    assert all(b.unlabelled is None for b in source.iterate(0, 2, unlabelled=False))
    with closing(source.iterate(8, 1000)) as endless:
        assert next(endless).step == 8
        assert threading.active_count() == threads + 1
    assert threading.active_count() == threads


def test_an_error_of_the_thread_is_raised_and_names_the_case(tmp_path: Path) -> None:
    folders = [_write(tmp_path, i, labelled=True) for i in range(4)]
    source = BatchSource(folders, patch=PATCH, batch=1, seed=0)
    for folder in folders:
        (folder / "image.b2nd").write_bytes(b"damaged")
    threads = threading.active_count()
    with pytest.raises(DataError, match="case"):
        list(source.iterate(0, 5, unlabelled=False))
    assert threading.active_count() == threads


def test_few_cases_are_open_at_once(cases: tuple[list[Path], list[Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Cases, "open_limit", 2)
    source = _source(cases, settings=SamplingSettings(cache_gb=0.0))
    expected = _source(cases)
    for step in range(4):
        assert np.array_equal(source.unlabelled(step)[0], expected.unlabelled(step)[0])
        assert len(source._unlabelled._recent) == 2


def test_memory_is_filled_as_far_as_it_goes(cases: tuple[list[Path], list[Path]]) -> None:
    """Of 648 voxels each, 5 bytes a voxel with a label or room for one: 2 and 2 cases go into 13 kB."""
    source = _source(cases, settings=SamplingSettings(cache_gb=13e-6))
    for part in (source._labelled, source._unlabelled):
        for index in range(len(part.metas)):
            part.open(index, source._memory)
    assert [sorted(part._kept) for part in (source._labelled, source._unlabelled)] == [[0, 1], [0, 1]]
    assert np.array_equal(source.unlabelled(1)[0], _source(cases).unlabelled(1)[0])


def test_published_predictions_hold_from_their_step_on(
    cases: tuple[list[Path], list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "PREDICTED_FRACTION", 1.0)
    monkeypatch.setattr(sampling, "JITTER", 0.0)
    predicted = {f"case{i}": {1: [(11, 8, 5)]} for i in range(3, 8)}
    source, plain = _source(cases), _source(cases)
    seen = []
    with closing(source.iterate(0, 8)) as batches:
        for batch in batches:
            seen.append(batch.unlabelled)
            if batch.step == 1:
                with pytest.raises(ValueError, match="first free one is 4"):
                    source.publish(predicted, from_step=3)
                source.publish(predicted, from_step=4)
    same = [np.array_equal(images, plain.unlabelled(step)[0]) for step, images in enumerate(seen)]
    assert same == [True] * 4 + [False] * 4
    resumed = _source(cases)
    resumed.publish(predicted, from_step=4)
    assert all(np.array_equal(images, resumed.unlabelled(step)[0]) for step, images in enumerate(seen))


def test_unlabelled_patches_are_of_the_cases_that_were_published(cases: tuple[list[Path], list[Path]]) -> None:
    """From the step on, each once a pass."""
    source = _source(cases)
    source.publish({}, from_step=2, among={"case4", "case6"})
    seen = [set(np.unique(source.unlabelled(step)[0][:, 0].max(axis=(1, 2, 3)) // 10_000)) for step in range(6)]
    assert set.union(*seen[:2]) == {3, 4, 5, 6, 7}
    assert seen[2:] == [{4, 6}] * 4


def test_what_cannot_work_is_refused(cases: tuple[list[Path], list[Path]]) -> None:
    with pytest.raises(ConfigError, match="no labelled"):
        BatchSource([], patch=PATCH, batch=1, seed=0)
    with pytest.raises(ConfigError, match="no unlabelled"):
        next(BatchSource(cases[0], patch=PATCH, batch=1, seed=0).iterate(0, 1))


def in_tens(case: StoredCase) -> np.ndarray:
    return np.full(case.shape_zyx, 10 * int(case.id.removeprefix("case")), dtype=np.uint8)


def same(batches: Iterable[Batch], others: Iterable[Batch]) -> bool:
    fields = ("step", "images", "labels", "unlabelled", "pseudo_labels")
    pairs = [(getattr(a, n), getattr(b, n)) for a, b in zip(batches, others, strict=True) for n in fields]
    return all((a is None) == (b is None) and (a is None or np.array_equal(a, b)) for a, b in pairs)


def test_processes_read_the_same_batches(cases: tuple[list[Path], list[Path]]) -> None:
    """Also what was published before they began, and since: from its step on, to the batch."""
    index = index_of([*cases[0], *cases[1]])
    by_thread, by_processes = (_source(cases, index=index, readers=readers) for readers in (0, 2))
    predicted = {f"case{i}": {1: [(11, 8, 5)]} for i in range(3, 8)}
    found: list[list[Batch]] = []
    for source in (by_thread, by_processes):
        source.publish(predicted, from_step=2)
        batches = [*source.iterate(0, 4), *source.iterate(4, 6, unlabelled=False)]
        source.publish_labels(in_tens, among={"case3", "case5"})
        source.publish({}, from_step=8, among={"case3", "case5"})
        with closing(source.iterate(8, 99)) as endless:
            batches += [next(endless) for _ in range(3)]
            source.publish(predicted, from_step=15, among={"case3"})
            batches += [next(endless) for _ in range(5)]
        found.append(batches)
    by_processes.close()
    assert same(*found)
    assert {int(n) for batch in found[1][-6:] for n in np.unique(batch.pseudo_labels)} == {30, 50}
    assert {int(n) for n in np.unique(found[1][-1].pseudo_labels)} == {30}


def test_an_error_of_a_process_is_raised_and_a_killed_one_is_named(tmp_path: Path) -> None:
    folders = [_write(tmp_path, i, labelled=True) for i in range(3)]
    source = BatchSource(folders, patch=PATCH, batch=1, seed=0, readers=1)
    with closing(source.iterate(0, 1000, unlabelled=False)) as batches:
        next(batches)
        (reader,) = readers_of(psutil.Process())
        reader.kill()
        with pytest.raises(TrainingError, match="a process that reads batches was killed"):
            list(batches)
    source.close()
    damaged = BatchSource(folders, patch=PATCH, batch=1, seed=0, readers=1)
    for folder in folders:
        (folder / "image.b2nd").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"case\d: the stored case is damaged"):
        list(damaged.iterate(0, 5, unlabelled=False))
    damaged.close()
    assert readers_of(psutil.Process()) == []


def readers_of(process: psutil.Process) -> list[psutil.Process]:
    """Its children but the one of multiprocessing itself."""
    return [child for child in process.children() if "resource_tracker" not in " ".join(child.cmdline())]


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_readers_end_with_their_parent(cases: tuple[list[Path], list[Path]], ending: signal.Signals) -> None:
    """However it ends; the memory that they share has no name that could be left."""
    code = (
        "import signal, sys; from pathlib import Path; from semiseg.data.batches import BatchSource\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which jobs in a shell's background ignore
        "source = BatchSource([Path(one) for one in sys.argv[1:]], patch=(8, 8, 8), batch=1, seed=0, readers=1)\n"
        "for batch in source.iterate(0, 10**9, unlabelled=False):\n"
        "    if batch.step == 0: print(flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, *map(str, cases[0])], stdout=-1, stderr=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        children = psutil.Process(process.pid).children()
        assert len(readers_of(psutil.Process(process.pid))) == 1
        process.send_signal(ending)
        process.communicate(timeout=60)
    _, left = psutil.wait_procs(children, timeout=60)
    assert left == []
