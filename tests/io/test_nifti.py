"""What is odd in NIfTI headers, where other programs read other voxels or other places."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from permissions import nobody_in
from semiseg.errors import DataError
from semiseg.io.scans import read_grid, read_label, read_some, read_volume, write_label, write_scan


def save(path: Path, array: np.ndarray, kind: type = nib.Nifti1Image) -> Path:
    nib.save(kind(array, np.eye(4)), path)
    return path


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


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd"])
@pytest.mark.parametrize("more", [(1,), (1, 1), (1, 1, 1, 1)])
def test_axes_of_one_after_the_third_are_none(tmp_path: Path, ending: str, more: tuple[int, ...]) -> None:
    """As dcm2niix and FSL may leave them of one frame: a scan alone, a channel among several, a label map."""
    stored = np.arange(-30, 30, dtype=np.int16).reshape(3, 4, 5)
    files = [tmp_path / f"a_000{channel}{ending}" for channel in range(2)]
    for file in files:
        if ending == ".nrrd":
            space = "space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,1) none\n"
            sizes = "type: short\ndimension: 4\nsizes: 3 4 5 1\nkinds: space space space list\nendian: little\n"
            header = f"NRRD0005\n{sizes}encoding: raw\n{space}\n"
            file.write_bytes(header.encode() + stored.tobytes(order="F"))
        else:
            save(file, stored.reshape((3, 4, 5, *more)))
    for paths in (files[:1], files):
        volume = read_volume(paths)
        assert volume.array.shape == (len(paths), 5, 4, 3)
        assert sorted(volume.array[-1].ravel()) == list(range(-30, 30))
    assert read_grid(files[0]).channels == 1
    values, _ = read_some(files[0], 0, 10_000)
    assert sorted(values) == list(range(-30, 30))
    write_scan(tmp_path / "out.nii.gz", files[0])
    write_label(tmp_path / "label.nii.gz", np.ones((5, 4, 3), np.uint8), volume.grid, files[0])
    assert read_label(tmp_path / "label.nii.gz")[1].difference(read_grid(tmp_path / "out.nii.gz")) is None


def test_one_frame_after_another_is_still_told_from_one(tmp_path: Path) -> None:
    file = save(tmp_path / "five.nii", np.ones((3, 4, 5, 1, 2), np.uint8))
    with pytest.raises(DataError, match="5D"):
        read_grid(file)
    file = save(tmp_path / "four.nii", np.arange(120, dtype=np.int16).reshape(3, 4, 5, 2, 1) - 60)
    assert read_volume([file]).array.shape == (2, 5, 4, 3)
    values, _ = read_some(file, 1, 10_000)
    assert sorted(values) == [2 * k + 1 - 60 for k in range(60)]
    with pytest.raises(DataError, match="one 3D file per channel"):
        read_volume([file, file])


@pytest.mark.parametrize("codes", [(1, 1), (1, 2), (2, 1), (3, 1), (4, 4), (2, 0), (0, 1)])
def test_the_sform_counts_and_where_itk_may_take_another_the_grid_says_so(
    tmp_path: Path, codes: tuple[int, int]
) -> None:
    """SimpleITK takes the qform where both are set and the sform's code is not 1."""
    qform = np.diag([1.0, 1.5, 3.0, 1.0])
    sform = qform + np.array([[0, 0, 0, 7.0]] + [[0.0] * 4] * 3)
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
    image.set_qform(qform, codes[1])
    image.set_sform(sform, codes[0])
    nib.save(image, tmp_path / "scan.nii")
    grid = read_grid(tmp_path / "scan.nii")
    by_itk = -SimpleITK.ReadImage(str(tmp_path / "scan.nii")).GetOrigin()[0]
    assert grid.affine[0, 3] == (7 if codes[0] else 0)
    assert by_itk == (7 if codes[0] == 1 or not codes[1] else 0)
    if 0 in codes:
        assert grid.doubts == ()
    else:
        (doubt,) = grid.doubts
        assert "disagree by up to 7; the sform is used, but programs that read by ITK" in doubt
