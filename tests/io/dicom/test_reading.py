"""Voxels and geometry of DICOM, against SimpleITK and dcm2niix."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest

pydicom = pytest.importorskip("pydicom")
sitk = pytest.importorskip("SimpleITK")

from pydicom.uid import (  # noqa: E402
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicom_series import (  # noqa: E402
    AXIAL,
    axis_orientations,
    compress,
    oblique_orientations,
    positions_along,
    random_voxels,
    write_enhanced,
    write_series,
)
from made_series import tool  # noqa: E402
from semiseg.errors import DataError  # noqa: E402
from semiseg.io.dicom.decoding import held_bytes  # noqa: E402
from semiseg.io.dicom.places import path_of, series_of  # noqa: E402
from semiseg.io.dicom.reading import BY_GDCM, _planes, read_grid, read_voxels  # noqa: E402
from semiseg.io.dicom.series import find_series  # noqa: E402
from semiseg.io.dicom.values import form_of  # noqa: E402

ALL = [*axis_orientations(), *((direction, 1) for direction in oblique_orientations(20))]


def by_semiseg(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Values `(columns, rows, slices)` as everything else has them, and the affine."""
    voxels = read_voxels(path)
    values = voxels.stored.astype(np.float32)
    if (voxels.slope, voxels.inter) != (1.0, 0.0):
        values = values * np.float32(voxels.slope) + np.float32(voxels.inter)
    return values, voxels.grid.affine


def by_sitk(folder: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The same by SimpleITK's own order of slices."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine


@pytest.mark.parametrize("case", range(len(ALL)))
def test_voxels_and_affine_equal_those_of_simpleitk_in_all_directions(case: int, tmp_path: Path) -> None:
    orientation, along = ALL[case]
    signed, slope = case % 2 == 0, (1.0, 0.5, 2.0)[case % 3]
    stored = random_voxels((6, 9, 12)) if signed else random_voxels((6, 9, 12), np.uint16, 0, 65535)
    places = positions_along(orientation, [along * k * 2.5 for k in range(6)])
    write_series(tmp_path, stored, orientation=orientation, positions=places, slopes=[slope], seed=case)
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    values, affine = by_semiseg(tmp_path)
    (tmp_path / "DICOMDIR").unlink()
    expected, expected_affine = by_sitk(tmp_path)
    assert np.array_equal(values, expected.astype(np.float32))
    assert np.abs(affine - expected_affine).max() < 1e-3
    assert np.array_equal(values, (stored[::along].transpose(2, 1, 0) * slope - 1024).astype(np.float32))


@pytest.mark.parametrize("slopes", [(1.0, 2.0, 3.0), (0.37, 1.9, 0.011), (0.1,)])
@pytest.mark.parametrize("kind", [np.int16, np.uint16])
def test_each_slice_has_its_own_slope(slopes: tuple[float, ...], kind: Any, tmp_path: Path) -> None:
    stored = random_voxels((5, 8, 7), kind, 0, 30000)
    intercepts = [-1024.0, -1000.0] if all(slope.is_integer() for slope in slopes) else [-1024.0, 0.25]
    write_series(tmp_path, stored, slopes=slopes, intercepts=intercepts)
    values, _ = by_semiseg(tmp_path)
    for k, plane in enumerate(stored):
        own = plane.astype(np.float64) * slopes[k % len(slopes)] + intercepts[k % 2]
        assert np.array_equal(values[:, :, k], own.T.astype(np.float32))


def test_a_regular_grid_is_made_within_its_own_volume(tmp_path: Path) -> None:
    """Of slices with offsets of their own, which become whole numbers of 2 bytes."""
    tilt = (1.0, 0.0, 0.0, 0.0, float(np.cos(0.2)), float(np.sin(0.2)))
    places = [(0.0, 0.0, float(k)) for k in range(150)]
    write_series(tmp_path, random_voxels((150, 64, 64)), orientation=tilt, positions=places, intercepts=[0.0, -5.0])
    (found,) = find_series(tmp_path, resample=True)
    path = path_of(tmp_path, found, resample=True)
    read_grid(path)
    tracemalloc.start()
    voxels = read_voxels(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert voxels.stored.dtype == np.int16
    assert peak < 1.3 * voxels.stored.nbytes


def test_slices_that_differ_in_whole_slopes_stay_integers_and_grow_where_they_have_to(tmp_path: Path) -> None:
    small = random_voxels((4, 6, 5), np.int16, -100, 100)
    write_series(tmp_path / "small", small, intercepts=[0.0, -5.0])
    assert read_voxels(tmp_path / "small").stored.dtype == np.int16
    large = random_voxels((4, 6, 5), np.uint16, 60000, 65000)
    write_series(tmp_path / "large", large, intercepts=[0.0, -5.0])
    voxels = read_voxels(tmp_path / "large")
    assert voxels.stored.dtype == np.int32
    assert np.array_equal(voxels.stored[:, :, 1], large[1].T.astype(np.int32) - 5)


def test_a_ct_is_held_as_its_files_store_it(tmp_path: Path) -> None:
    write_series(tmp_path, random_voxels((4, 6, 5), np.uint16, 0, 4095), bits_stored=12)
    voxels = read_voxels(tmp_path)
    assert (voxels.stored.dtype, voxels.slope, voxels.inter) == (np.uint16, 1.0, -1024.0)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("bits", "high"), [(12, 11), (12, 15), (10, 12), (16, 15)])
def test_bits_that_are_no_values_do_not_count(signed: bool, bits: int, high: int, tmp_path: Path) -> None:
    low = -(1 << (bits - 1)) if signed else 0
    values = random_voxels((3, 6, 5), np.int64, low, low + (1 << bits))
    shift = high + 1 - bits
    raw = ((values & ((1 << bits) - 1)) << shift).astype(np.uint16)
    rest = np.uint16(0xFFFF & ~(((1 << bits) - 1) << shift))
    raw |= random_voxels((3, 6, 5), np.uint16, 0, 65535) & rest  # an old overlay
    stored = raw.view(np.int16) if signed else raw
    write_series(tmp_path, stored, bits_stored=bits, high_bit=high, intercepts=[0.0])
    assert np.array_equal(read_voxels(tmp_path).stored, values.transpose(2, 1, 0))


def test_dcm2niix_agrees_on_a_regular_series(tmp_path: Path) -> None:
    dcm2niix = pytest.importorskip("dcm2niix")
    for number, orientation in enumerate([AXIAL, (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1), oblique_orientations(1)[0]]):
        folder = tmp_path / str(number)
        write_series(folder, random_voxels((6, 9, 12)), orientation=orientation, ending=".dcm")
        subprocess.run([dcm2niix.bin, "-z", "n", "-f", "out", "-o", tmp_path, folder], check=True, capture_output=True)
        image: Any = nib.load(tmp_path / "out.nii")
        values, affine = by_semiseg(folder)
        expected = nib.Nifti1Image(values, affine)
        for one in (image, expected):
            one.set_data_dtype(np.float32)
        to_ours = np.linalg.inv(affine) @ image.affine
        assert np.abs(to_ours - np.rint(to_ours)).max() < 1e-3  # the same grid, in another order of axes
        ours, theirs = nib.as_closest_canonical(expected), nib.as_closest_canonical(image)
        assert np.abs(ours.affine - theirs.affine).max() < 1e-3
        assert np.array_equal(ours.get_fdata(), theirs.get_fdata())
        (tmp_path / "out.nii").unlink()


def test_enhanced_multi_frame_equals_single_frames(tmp_path: Path) -> None:
    stored, orientation = random_voxels((7, 9, 12)), oblique_orientations(1)[0]
    given: dict[str, Any] = {"orientation": orientation, "slopes": [1.0, 3.0], "intercepts": [-1000.0, -1024.0]}
    write_series(tmp_path / "single", stored, **given)
    write_enhanced(tmp_path / "multi" / "one", stored, order=[3, 0, 6, 1, 2, 5, 4], **given)
    single, affine = by_semiseg(tmp_path / "single")
    multi, multi_affine = by_semiseg(tmp_path / "multi")
    assert np.array_equal(single, multi)
    assert np.array_equal(affine, multi_affine)
    alone, _ = by_semiseg(tmp_path / "multi" / "one")
    assert np.array_equal(multi, alone)
    series = series_of(tmp_path / "multi")
    assert series.frames == (1, 3, 4, 0, 6, 5, 2)


UNCOMPRESSED = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
]


@pytest.mark.parametrize("syntax", UNCOMPRESSED, ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32])
def test_uncompressed_syntaxes_round_trip(syntax: Any, kind: Any, tmp_path: Path) -> None:
    info = np.iinfo(kind)
    stored = random_voxels((4, 7, 9), kind, info.min, info.max)
    write_series(tmp_path, stored, syntax=syntax, intercepts=[0.0], bits_stored=32)
    voxels = read_voxels(tmp_path)
    assert voxels.stored.dtype == kind
    assert np.array_equal(voxels.stored, stored.transpose(2, 1, 0))


LOSSLESS = ["RLELossless", "JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless"]


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize(("kind", "bits"), [(np.int16, 16), (np.uint16, 12), (np.uint8, 8)])
def test_lossless_syntaxes_round_trip(syntax: str, kind: Any, bits: int, tmp_path: Path) -> None:
    low = -(1 << (bits - 1)) if kind is np.int16 else 0
    stored = random_voxels((4, 32, 24), kind, low, low + (1 << bits))
    files = write_series(tmp_path / "classic", stored, bits_stored=bits)
    compress(files, syntax)
    values, _ = by_semiseg(tmp_path / "classic")
    assert np.array_equal(values, stored.transpose(2, 1, 0) - np.float32(1024))
    if bits == 16:
        file = tmp_path / "multi.dcm"
        write_enhanced(file, stored)
        compress([file], syntax)
        assert np.array_equal(values, by_semiseg(file)[0])
        dataset = pydicom.dcmread(file)
        dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[::-1]
        dataset.save_as(file)
        assert np.array_equal(values[:, :, ::-1], by_semiseg(file)[0])


@pytest.mark.parametrize("syntax", [*LOSSLESS, ""])
@pytest.mark.parametrize("share", [0.6, 0.9, 0.998])
def test_a_slice_that_is_cut_off_is_refused_by_name(syntax: str, share: float, tmp_path: Path) -> None:
    files = write_series(tmp_path, random_voxels((4, 64, 64)))
    if syntax:
        compress(files, syntax)
    content = files[2].read_bytes()
    files[2].write_bytes(content[: int(len(content) * share)])
    said = rf"InstanceNumber 2 \({files[2].name}\) is cut off: voxels are missing\. Restore the file\."
    with pytest.raises(DataError, match=said):
        read_voxels(tmp_path)


@pytest.mark.parametrize(
    ("syntax", "begins", "place", "value"),
    [
        ("JPEGLosslessProcess14_1", b"\xff\xd8", 6, 17),
        ("JPEGLSLossless", b"\xff\xd8", 6, 17),
        ("JPEG2000Lossless", b"\xff\x4f", 42, 255),
    ],
)
def test_what_ends_the_process_of_a_decoder_is_a_sentence(
    syntax: str, begins: bytes, place: int, value: int, tmp_path: Path
) -> None:
    """One byte of a codestream, of which GDCM 3.2.6 dies; other slices are read as before."""
    smooth = np.add.outer(np.arange(2) * 50, np.add.outer(np.arange(24) * 30, np.arange(20) * 20)).astype(np.int16)
    files = write_series(tmp_path / "bad", smooth)
    shutil.copytree(tmp_path / "bad", tmp_path / "good")
    compress(files, syntax)
    content = bytearray(files[1].read_bytes())
    content[content.index(begins, content.index(b"\xe0\x7f\x10\0")) + place] = value
    files[1].write_bytes(content)
    with pytest.raises(DataError, match=rf"bad: the voxels of .*{files[1].name}.* the file is damaged"):
        read_voxels(tmp_path / "bad")
    assert np.array_equal(by_semiseg(tmp_path / "good")[0], smooth.transpose(2, 1, 0) - np.float32(1024))


@pytest.mark.parametrize(("syntax", "kind"), [("JPEGBaselineProcess1", np.uint8), ("JPEG2000", np.uint16)])
def test_lossy_syntaxes_are_decoded(syntax: str, kind: Any, tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(4), np.add.outer(np.arange(32) * 2, np.arange(24) * 3)).astype(kind)
    compress(write_series(tmp_path, smooth, intercepts=[0.0], bits_stored=12), syntax)
    values, _ = by_semiseg(tmp_path)
    assert np.abs(values - smooth.transpose(2, 1, 0)).max() <= 4


@pytest.mark.parametrize(
    ("command", "uid", "bits", "most_off"),
    [
        (("dcmcjpeg", "+ee", "+q", "100"), "51", 12, 4),
        (("dcmcjpeg", "+ee", "+q", "100"), "51", 8, 2),
        *[(("dcmcjpeg", "+el", "+sv", str(selection)), "57", 16, 0) for selection in range(1, 8)],
        (("dcmcjpls", "+en", "+md", "1"), "81", 16, 1),
        (("dcmcjpls", "+en", "+md", "3"), "81", 12, 3),
    ],
)
def test_what_dcmtk_compresses_round_trips(
    command: tuple[str, ...], uid: str, bits: int, most_off: int, tmp_path: Path
) -> None:
    """JPEG extended, JPEG lossless of all predictors, and JPEG-LS that may be so far off: GDCM writes none of them."""
    kind = np.uint8 if bits == 8 else np.uint16
    smooth = np.add.outer(np.arange(3) * 7, np.add.outer(np.arange(32) * 2, np.arange(24) * 3))
    stored = (smooth * (1 << bits) // 256 + random_voxels((3, 32, 24), np.int64, 0, 3)).astype(kind)
    for file in write_series(tmp_path / "plain", stored, bits_stored=bits):
        (tmp_path / "packed").mkdir(exist_ok=True)
        packed = tmp_path / "packed" / file.name
        subprocess.run([tool(command[0]), *command[1:], file, packed], check=True, capture_output=True)
        assert pydicom.dcmread(packed).file_meta.TransferSyntaxUID == f"1.2.840.10008.1.2.4.{uid}"
    values, _ = by_semiseg(tmp_path / "packed")
    off = np.abs(values + 1024 - stored.transpose(2, 1, 0)).max()
    assert off <= most_off
    assert (off > 0) == (most_off > 0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="what a process held is known on Linux alone")
@pytest.mark.parametrize("syntax", ["RLELossless", "JPEG2000Lossless"])
def test_the_process_of_a_decoder_holds_what_is_counted(syntax: str, tmp_path: Path) -> None:
    files = write_series(tmp_path, random_voxels((2, 1024, 1024), np.int16, 0, 300))
    (native,) = find_series(tmp_path)
    assert held_bytes(native.slices[0].pixels) == 0
    compress(files, syntax)
    (found,) = find_series(tmp_path)
    held, of_other_tests = [], set(psutil.Process().children())  # a fork server stays beside its pool
    for _ in _planes(tmp_path, found.slices, form_of(found.slices)):
        for child in set(psutil.Process().children()) - of_other_tests:
            status = Path(f"/proc/{child.pid}/status").read_text()
            held += [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")]
    assert held
    assert max(held) <= held_bytes(found.slices[0].pixels)


def test_the_list_of_syntaxes_is_what_gdcm_decodes() -> None:
    from pydicom.pixels import get_decoder

    assert all("gdcm" in get_decoder(uid).available_plugins for uid in BY_GDCM)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("pydicom", r"DICOM needs pydicom: pip install '.\[dicom\]'"),
        ("gdcm", r"JPEG-LS lossless needs python-gdcm"),
    ],
)
def test_a_library_that_is_missing_is_named(missing: str, said: str, tmp_path: Path) -> None:
    """In a process of its own, since what is imported once stays."""
    compress(write_series(tmp_path, random_voxels((3, 16, 16))), "JPEGLSLossless")
    script = (
        "import sys; from pathlib import Path\n"
        f"sys.modules[{missing!r}] = None\n"
        "from semiseg.io.dicom.reading import read_voxels\n"
        f"read_voxels(Path({str(tmp_path)!r}))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert re.search(f"ConfigError: {said}", ended.stderr), ended.stderr


def test_a_zip_equals_its_folder_and_nothing_is_unpacked(tmp_path: Path) -> None:
    stored = random_voxels((5, 9, 12))
    files = write_series(tmp_path / "deep" / "er", stored)
    with zipfile.ZipFile(tmp_path / "scan.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        for file in files:
            zipped.write(file, f"study/one/{file.name}")
        zipped.writestr("study/readme.txt", "no DICOM")
        zipped.writestr("DICOMDIR", b"\0" * 128 + b"DICM")
    before = sorted(tmp_path.rglob("*"))
    values, affine = by_semiseg(tmp_path / "scan.zip")
    expected, expected_affine = by_semiseg(tmp_path / "deep")
    assert np.array_equal(values, expected)
    assert np.array_equal(affine, expected_affine)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("before", ["study\\one\\", "./", "./study/.\\one//"])
def test_zips_of_windows_and_of_a_folder_itself_are_read(before: str, tmp_path: Path) -> None:
    """`zip -r all.zip ./` and old programs of Windows write such names."""
    files = write_series(tmp_path / "deep", random_voxels((5, 9, 12)))
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as zipped:
        zipped.writestr(before, b"")
        for file in files:
            zipped.writestr(f"{before}{file.name}", file.read_bytes())
            zipped.writestr(f"{before}.hidden\\{file.name}", b"")
    values, affine = by_semiseg(tmp_path / "scan.zip")
    expected, expected_affine = by_semiseg(tmp_path / "deep")
    assert np.array_equal(values, expected)
    assert np.array_equal(affine, expected_affine)


@pytest.mark.parametrize(
    "name", ["../outside", "/outside", "a/../../outside", "..\\outside", "\\outside", "a\\..\\outside", "./../outside"]
)
def test_a_zip_whose_members_lead_out_is_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as zipped:
        zipped.writestr(name, b"\0" * 128 + b"DICM")
    with pytest.raises(DataError, match="leads out of the zip"):
        read_voxels(tmp_path / "bad.zip")


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        for number in range(5):
            zipped.writestr(f"{number}", b"\0" * (1 << 26))
    with pytest.raises(DataError, match="claim to inflate to 335,544,320"):
        read_voxels(tmp_path / "bomb.zip")


def test_the_real_series_reads_as_simpleitk_does(real_data: Path) -> None:
    folder = real_data / "ct_whole" / "dicom_series"
    values, affine = by_semiseg(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in series_of(folder).files])
    image = reader.Execute()
    assert np.array_equal(values, sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    assert np.allclose(affine[:3, 3], np.array(image.GetOrigin()) * [-1, -1, 1], atol=1e-3)
