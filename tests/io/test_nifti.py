"""What is odd in NIfTI headers, where other programs read other voxels or other places."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from semiseg.errors import DataError
from semiseg.io.scans import read_grid, read_label, read_volume


def save(path: Path, array: np.ndarray, kind: type = nib.Nifti1Image) -> Path:
    nib.save(kind(array, np.eye(4)), path)
    return path


@contextmanager
def nobody_in(folder: Path) -> Iterator[None]:
    """As a user who may not read everything; root is one for as long, who needs the folder as the working one."""
    before = Path.cwd()
    folder.chmod(0o755)
    os.chdir(folder)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        os.chdir(before)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of POSIX")
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.NII.GZ", "scan.nrrd", "scan.mha"])
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, name: str) -> None:
    save(tmp_path / "scan.nii", np.ones((3, 4, 5), np.uint8)).rename(tmp_path / name)
    (tmp_path / name).chmod(0)
    with nobody_in(tmp_path):
        with pytest.raises(PermissionError):
            Path(name).read_bytes()
        with pytest.raises(DataError, match=rf"{name}: .*(You may not read it: change|Permission denied)"):
            read_grid(Path(name))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".NII", ".NII.GZ"])
@pytest.mark.parametrize(("kind", "place", "dtype"), [(nib.Nifti1Image, 108, "<f4"), (nib.Nifti2Image, 168, "<i8")])
def test_voxels_that_begin_in_the_header_are_refused(
    tmp_path: Path, ending: str, kind: type, place: int, dtype: str
) -> None:
    """nibabel takes an offset of 0 as it stands, so that bytes of the header would be voxels; ITK takes 348."""
    packed = ending.lower().endswith(".gz")
    file = save(tmp_path / f"scan{ending.lower()}", np.arange(60, dtype=np.int16).reshape(3, 4, 5), kind)
    content = bytearray(gzip.decompress(file.read_bytes()) if packed else file.read_bytes())
    for magic in (None, b"ni1"):  # that of a pair of files, in a single one
        content[place : place + np.dtype(dtype).itemsize] = np.array(0, dtype).tobytes()
        if magic and kind is nib.Nifti1Image:
            content[344:347] = magic
        file.unlink()
        file = tmp_path / f"scan{ending}"
        file.write_bytes(gzip.compress(content) if packed else content)
        for read in (read_grid, read_label, lambda path: read_volume([path])):
            with pytest.raises(DataError, match=rf"scan\{ending}: .*vox_offset = 0"):
                read(file)
