"""What one library compresses the other reads, and both refuse what is damaged."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from semiseg.errors import DataError
from semiseg.io import gzip_files
from semiseg.io.grid import Grid
from semiseg.io.scans import read_label, write_label

igzip = pytest.importorskip("isal.igzip")
KINDS = {"isal": igzip.IGzipFile, "zlib": gzip.GzipFile}
SHAPE = (20, 30, 40)
GRID = Grid(SHAPE, (2.0, 1.0, 1.0), np.diag([1.0, 1.0, 2.0, 1.0]), stored_mm=(1.0, 1.0, 2.0))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(gzip_files, "_kind", KINDS[request.param])
    return str(request.param)


def labels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 5, SHAPE).astype(np.uint8)


def test_isal_is_used_where_it_is_installed() -> None:
    assert gzip_files._kind is igzip.IGzipFile


def test_label_maps_are_read_by_both(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_label(tmp_path / "a.nii.gz", labels(), GRID)
    for reader in KINDS.values():
        monkeypatch.setattr(gzip_files, "_kind", reader)
        assert np.array_equal(read_label(tmp_path / "a.nii.gz")[0], labels())


def test_a_file_holds_neither_its_name_nor_the_time(kind: str, tmp_path: Path) -> None:
    for name in ("a.nii.gz", "patient.nii.gz"):
        write_label(tmp_path / name, labels(), GRID)
    written = (tmp_path / "patient.nii.gz").read_bytes()
    assert written == (tmp_path / "a.nii.gz").read_bytes()
    assert written[3:8] == bytes(5)  # flags (that of a name among them), seconds


@pytest.mark.parametrize("damage", ["checksum", "cut off", "middle"])
def test_damage_is_refused(kind: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    write_label(path, labels(), GRID)
    content = bytearray(path.read_bytes())
    if damage == "cut off":
        content = content[: len(content) // 2]
    else:
        content[-6 if damage == "checksum" else len(content) // 2] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.nii\.gz: the voxels cannot be read"):
        read_label(path)
