"""What one library compresses the other reads, and both refuse what is damaged."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest

from semiseg.errors import DataError
from semiseg.io import gzip_files
from semiseg.io.grid import Grid
from semiseg.io.scans import read_label, write_label

igzip = pytest.importorskip("isal.igzip")
isal_zlib = pytest.importorskip("isal.isal_zlib")
KINDS = {"isal": (igzip.IGzipFile, isal_zlib), "zlib": (gzip.GzipFile, zlib)}
ENDINGS = (".nii.gz", ".nrrd", ".mha")
SHAPE = (20, 30, 40)
GRID = Grid(SHAPE, (2.0, 1.0, 1.0), np.diag([1.0, 1.0, 2.0, 1.0]), stored_mm=(1.0, 1.0, 2.0))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use(request.param, monkeypatch)
    return str(request.param)


def use(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, part in zip(("_kind", "_zlib"), KINDS[kind], strict=True):
        monkeypatch.setattr(gzip_files, name, part)


def labels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 5, SHAPE).astype(np.uint8)


def test_isal_is_used_where_it_is_installed() -> None:
    assert (gzip_files._kind, gzip_files._zlib) == KINDS["isal"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_label_maps_are_read_by_both(kind: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / f"a{ending}"
    write_label(file, labels(), GRID)
    for reader in KINDS:
        use(reader, monkeypatch)
        assert np.array_equal(read_label(file)[0], labels())


def test_a_file_holds_neither_its_name_nor_the_time(kind: str, tmp_path: Path) -> None:
    for name in ("a.nii.gz", "patient.nii.gz"):
        write_label(tmp_path / name, labels(), GRID)
    written = (tmp_path / "patient.nii.gz").read_bytes()
    assert written == (tmp_path / "a.nii.gz").read_bytes()
    assert written[3:8] == bytes(5)  # flags (that of a name among them), seconds


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("damage", ["checksum", "cut off", "middle"])
def test_damage_is_refused(kind: str, damage: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    write_label(path, labels(), GRID)
    content = bytearray(path.read_bytes())
    if damage == "cut off":
        content = content[: len(content) // 2]
    else:
        checksum = -3 if ending == ".mha" else -6  # of gzip the last four bytes are the length
        content[checksum if damage == "checksum" else len(content) // 2] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a{ending}: the voxels cannot be read"):
        read_label(path)
