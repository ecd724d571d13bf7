"""The index of a store serves what `case.json` says, exactly, and refuses what does not fit it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from semiseg.errors import DataError
from semiseg.geometry import Box
from semiseg.io import store_index
from semiseg.io.store import StoredCase, read_case_meta, write_case
from semiseg.io.store_index import INDEX_FILE, IndexedCases, index_of, read_index, write_index

SHAPE = (5, 6, 7)
QUANTILES = tuple(float(n) / 3 for n in range(10))
META = StoredCase(
    id="",
    shape_zyx=SHAPE,
    spacing_mm=(2.5, 0.8, 0.1 + 0.2),
    source_shape_zyx=(40, 80, 40),
    source_spacing_mm=(2.3125, 0.7, 0.66),
    hash="f" * 64,
    labelled=True,
    channels=1,
    class_voxels={0: 10, 255: 3, 2: 5_000_000_000, 1: 7},
    class_locations={2: ((1, 2, 3), (4, 5, 6)), 1: ((0, 0, 0),), 7: ()},
    body_locations=((4, 0, 1), (0, 5, 6)),
    channel_quantiles=(QUANTILES,),
)
CASES = (
    replace(META, id="liver 1"),
    replace(META, id="ünlabelled", labelled=False, class_voxels={}, class_locations={}, channel_quantiles=()),
    replace(META, id="other", hash="0", class_locations={1: ((65535, 0, 3),)}, class_voxels={1: 1}, body_locations=()),
)
IDS = [case.id for case in CASES]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for number, meta in enumerate(CASES):
        image = np.full((1, *SHAPE), number, dtype=np.float32)
        label = np.zeros(SHAPE, dtype=np.uint8) if meta.labelled else None
        write_case(tmp_path / meta.id, image=image, label=label, meta=meta)
    return tmp_path


def cases_of(store: Path) -> IndexedCases:
    index = read_index(store)
    assert index is not None
    return IndexedCases(index, [store / id for id in IDS])


def test_it_serves_what_was_written(store: Path) -> None:
    write_index(store, IDS[::-1])
    for cases in (cases_of(store), IndexedCases(index_of(folders := [store / id for id in IDS]), folders)):
        assert list(cases) == list(CASES) == [read_case_meta(store / id) for id in IDS]
        assert cases[2].class_locations[1][0] == (65535, 0, 3)
        assert {type(n) for n in cases[0].body_locations[1]} == {int}  # of which differences are taken
        assert np.asarray(cases[0].body_locations).tolist() == [[4, 0, 1], [0, 5, 6]]
        assert list(cases.part([2]) + cases[:1]) == [CASES[2], CASES[0]]  # type: ignore[operator]
        assert cases.volumes == [5 * 6 * 7] * 3
        assert [cases.voxels_of(value).tolist() for value in (2, 1, 9)] == [[5_000_000_000, 0, 0], [7, 0, 1], [0] * 3]
        assert {value: found.tolist() for value, found in cases.holders().items()} == {1: [0, 2], 2: [0]}
        assert {value: found.tolist() for value, found in cases.part([1, 2]).holders().items()} == {1: [1]}
        opened = cases.open(2)
        assert opened.meta == CASES[2]
        assert (opened.read_image(Box((0, 0, 0), SHAPE)) == 2).all()


def test_only_what_changed_is_read_again(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = store_index.read_written
    monkeypatch.setattr(store_index, "read_written", lambda folder: read.append(folder.name) or original(folder))
    write_index(store, IDS[:2])
    write_index(store, IDS)
    assert read == IDS
    written = (store / INDEX_FILE).stat().st_mtime_ns
    read.clear()
    write_index(store, IDS)
    assert (read, (store / INDEX_FILE).stat().st_mtime_ns) == ([], written)
    write_case(store / "other", image=np.zeros((1, *SHAPE), np.float32), label=None, meta=replace(CASES[1], id="other"))
    assert write_index(store, IDS).case(2).labelled is False
    assert read == ["other"]
    assert cases_of(store).open(0).meta == CASES[0]
    assert read == ["other"], "an index that fits needs no case.json"
    write_index(store, IDS, anew=True)
    assert read == ["other", *IDS]


def test_it_says_whether_it_fits(store: Path) -> None:
    index = write_index(store, IDS)
    hashes: dict[str, str | None] = {case.id: case.hash for case in CASES}
    assert index.fits(hashes)
    assert index.fits({"other": "0"})
    assert not index.fits(hashes | {"other": "1"})
    assert not index.fits(hashes | {"other": None})
    assert not index.fits(hashes | {"another": "0"})


@pytest.mark.parametrize("at", [0, 100, 0.1, 0.5])
def test_a_damaged_table_is_no_index(store: Path, at: float) -> None:
    write_index(store, IDS)
    content = bytearray((store / INDEX_FILE).read_bytes())
    content[int(at if at >= 1 or not at else at * len(content))] ^= 1
    (store / INDEX_FILE).write_bytes(content)
    assert read_index(store) is None
    write_index(store, IDS)
    assert list(cases_of(store)) == list(CASES)
    for length in (0, len(content) // 2, len(content) - 1):
        (store / INDEX_FILE).write_bytes(bytes(content[:length]))
        assert read_index(store) is None


def test_a_damaged_place_is_found_when_its_case_is_opened(store: Path) -> None:
    write_index(store, IDS)
    content = bytearray((store / INDEX_FILE).read_bytes())
    content[-1] ^= 1
    (store / INDEX_FILE).write_bytes(content)
    cases = cases_of(store)
    assert cases.open(0).meta == CASES[0]
    with pytest.raises(DataError, match=r"other: the index is damaged. Run `semiseg prepare` again"):
        cases.open(2)


@pytest.mark.parametrize("name", ["image.b2nd", "label.b2nd", "case.json"])
def test_damaged_files_are_found_when_their_case_is_opened(store: Path, name: str) -> None:
    write_index(store, IDS)
    file = store / "liver 1" / name
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"liver 1.*(damaged|not valid JSON)"):
        cases_of(store).open(0)
    file.unlink()
    with pytest.raises(DataError, match=r"liver 1.*(has 0 bytes instead of|there is no such file)"):
        cases_of(store).open(0)


def test_another_case_in_its_place_is_refused_and_the_same_one_copied_is_not(store: Path) -> None:
    write_index(store, IDS)
    os.utime(store / "other" / "case.json", (1, 1))
    cases = cases_of(store)
    assert cases.open(2).meta == CASES[2]
    write_case(store / "other", image=np.zeros((1, *SHAPE), np.float32), label=None, meta=replace(CASES[1], id="other"))
    with pytest.raises(DataError, match="other: another case lies here than when the index was made"):
        cases.open(2)


def test_a_case_that_it_lacks_is_named(store: Path) -> None:
    with pytest.raises(DataError, match="other: the index lacks it"):
        IndexedCases(write_index(store, IDS[:2]), [store / id for id in IDS])
