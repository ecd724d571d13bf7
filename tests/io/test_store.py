from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semiseg.errors import DataError
from semiseg.geometry import Box
from semiseg.io.store import OpenCase, StoredCase, open_case, read_case_meta, write_case

SHAPE = (37, 70, 33)
IMAGE = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
LABEL = np.random.default_rng(1).integers(0, 300, SHAPE).astype(np.uint16)
META = StoredCase(
    id="case",
    shape_zyx=SHAPE,
    spacing_mm=(2.5, 0.8, 0.8),
    source_shape_zyx=(40, 80, 40),
    source_spacing_mm=(2.3125, 0.7, 0.66),
    hash="abc",
    labelled=True,
    channels=2,
    class_voxels={0: 10, 299: 3},
    class_locations={299: ((1, 2, 3), (4, 5, 6))},
    body_locations=((0, 0, 0),),
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> OpenCase:
    folder = tmp_path_factory.mktemp("store") / "case"
    write_case(folder, image=IMAGE, label=LABEL, meta=META)
    return open_case(folder)


def test_what_was_written_is_read(stored: OpenCase) -> None:
    whole = Box((0, 0, 0), SHAPE)
    assert stored.meta == META
    assert stored.read_image(whole).tobytes() == IMAGE.tobytes()
    assert stored.read_label(whole).tobytes() == LABEL.tobytes()
    assert stored.read_label(whole).dtype == np.uint16


@settings(max_examples=40)
@given(
    start=st.tuples(*(st.integers(-20, n - 1) for n in SHAPE)),
    shape=st.tuples(*[st.integers(21, 40)] * 3),
)
def test_a_box_equals_the_padded_array(
    stored: OpenCase, start: tuple[int, int, int], shape: tuple[int, int, int]
) -> None:
    stop = (start[0] + shape[0], start[1] + shape[1], start[2] + shape[2])
    box = Box(start, stop)
    pad, cut = [(50, 50)] * 3, tuple(slice(a + 50, b + 50) for a, b in zip(start, stop, strict=True))
    for channel, read in zip(IMAGE, stored.read_image(box), strict=True):
        np.testing.assert_array_equal(read, np.pad(channel, pad, mode="edge")[cut])
    np.testing.assert_array_equal(stored.read_label(box), np.pad(LABEL, pad, mode="edge")[cut])


def test_an_unlabelled_case_has_no_label_to_read(tmp_path: Path) -> None:
    meta = replace(META, labelled=False, class_voxels={}, class_locations={})
    write_case(tmp_path / "case", image=IMAGE, label=None, meta=meta)
    case = open_case(tmp_path / "case")
    assert case.label is None
    with pytest.raises(DataError, match="no label"):
        case.read_label(Box((0, 0, 0), (1, 1, 1)))


def test_writing_again_replaces_the_case_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_case(tmp_path / "case", image=IMAGE, label=LABEL, meta=META)
    meta = replace(META, labelled=False, hash="def")
    write_case(tmp_path / "case", image=IMAGE, label=None, meta=meta)
    assert read_case_meta(tmp_path / "case").hash == "def"
    assert [p.name for p in tmp_path.iterdir()] == ["case"]
    assert sorted(p.name for p in (tmp_path / "case").iterdir()) == ["case.json", "image.b2nd"]


def test_arrays_of_another_shape_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shape"):
        write_case(tmp_path / "case", image=IMAGE[:, 1:], label=LABEL, meta=META)
    assert not list(tmp_path.iterdir())


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _garble(path: Path) -> None:
    path.write_bytes(b"\x5a" * path.stat().st_size)


def _edit(path: Path, **changes: object) -> None:
    value = json.loads(path.read_text())
    value["case"] |= changes
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("image.b2nd", _truncate),
        ("image.b2nd", _garble),
        ("image.b2nd", Path.unlink),
        ("label.b2nd", _garble),
        ("label.b2nd", Path.unlink),
        ("case.json", lambda path: path.write_text("{}")),
        ("case.json", lambda path: path.write_text('{"format": 99}')),
        ("case.json", lambda path: path.write_text("[]")),
        ("case.json", lambda path: _edit(path, shape_zyx=[1, 2])),
        ("case.json", lambda path: _edit(path, shape_zyx=[37, 70, 34])),
        ("case.json", lambda path: _edit(path, channels=1)),
        ("case.json", lambda path: _edit(path, labelled=False)),
        ("case.json", _truncate),
        ("case.json", Path.unlink),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, damage: object) -> None:
    write_case(tmp_path / "case", image=IMAGE, label=LABEL, meta=META)
    damage(tmp_path / "case" / name)  # type: ignore[operator]
    with pytest.raises(DataError, match=str(tmp_path / "case")) as raised:
        open_case(tmp_path / "case")
    if name != "case.json":
        assert "Delete the folder and prepare again" in str(raised.value)


def test_a_patch_is_read_from_few_chunks(stored: OpenCase) -> None:
    chunks = stored.image.chunks
    assert chunks[0] == 1
    assert all(chunk <= bound for chunk, bound in zip(chunks[1:], (32, 64, 64), strict=True))
