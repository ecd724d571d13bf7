"""NRRD and MetaImage: what SimpleITK and pynrrd write is read as they read it, and what we write is read by them."""

from __future__ import annotations

import bz2
import itertools
import tracemalloc
import zlib
from pathlib import Path

import nibabel as nib
import nrrd as pynrrd
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from semiseg.errors import DataError
from semiseg.io import metaimage
from semiseg.io import nrrd as our_nrrd
from semiseg.io.scans import (
    Format,
    files_of,
    read_grid,
    read_label,
    read_some,
    read_volume,
    write_label,
    write_map,
    write_scan,
)

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
FORMATS: dict[str, Format] = {".nrrd": our_nrrd, ".nhdr": our_nrrd, ".mha": metaimage, ".mhd": metaimage}
TYPES = (np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64)


def directions() -> list[np.ndarray]:
    """All 48 orientations, and some oblique ones."""
    found = []
    for axes, signs in itertools.product(itertools.permutations(range(3)), itertools.product((1.0, -1.0), repeat=3)):
        matrix = np.zeros((3, 3))
        matrix[axes, range(3)] = signs
        found.append(matrix)
    rng = np.random.default_rng(0)
    return [*found, *(np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(8))]


def itk_image(array: np.ndarray, direction: np.ndarray) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(array)
    image.SetDirection(direction.ravel().tolist())
    image.SetSpacing((0.7, 1.3, 2.9))
    image.SetOrigin((10.123456789, -20.1, 30.7))
    return image


def itk_read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels in `(X, Y, Z)`, and the affine to RAS."""
    image = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    array = SimpleITK.GetArrayFromImage(image)
    return array.transpose(2, 1, 0, 3) if array.ndim == 4 else array.transpose(2, 1, 0), LPS @ affine


@pytest.mark.parametrize("ending", list(FORMATS))
def test_what_simpleitk_writes_is_read_as_it_reads_it(tmp_path: Path, ending: str) -> None:
    rng = np.random.default_rng(1)
    for number, direction in enumerate(directions()):
        file = tmp_path / f"{number}{ending}"
        array = rng.integers(-2000, 2000, (3, 4, 5)).astype(np.int16)
        SimpleITK.WriteImage(itk_image(array, direction), str(file), number % 2 == 0)
        voxels, affine = itk_read(file)
        found = FORMATS[ending].read_voxels(file)
        assert np.array_equal(found.stored, voxels)
        assert found.stored.dtype == np.int16
        # SimpleITK gives directions and spacings apart: their product is theirs but for the last bit.
        np.testing.assert_allclose(found.grid.affine, affine, rtol=1e-15, atol=1e-14)
        assert read_grid(file).difference(found.grid) is None
        assert found.grid.doubts == ()


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_what_is_written_is_read_by_simpleitk_in_all_orientations(tmp_path: Path, ending: str) -> None:
    rng = np.random.default_rng(2)
    for number, direction in enumerate(directions()):
        source, file = tmp_path / f"{number}.nii.gz", tmp_path / f"{number}{ending}"
        SimpleITK.WriteImage(itk_image(rng.integers(0, 14, (3, 4, 5)).astype(np.uint8), direction), str(source))
        label, grid = read_label(source)
        write_label(file, label, grid)
        voxels, affine = itk_read(file)
        again, grid_again = read_label(file)
        assert np.array_equal(voxels, np.asarray(nib.load(source).dataobj))
        np.testing.assert_allclose(affine, grid.affine, rtol=1e-14, atol=1e-12)
        assert np.array_equal(again, label)
        assert grid.difference(grid_again) is None
        # Our own numbers come back to the last bit, but for MetaImage's, which are directions and spacings.
        np.testing.assert_allclose(grid_again.affine, grid.affine, rtol=0 if ending == ".nrrd" else 1e-14, atol=1e-13)


@pytest.mark.parametrize("ending", list(FORMATS))
@pytest.mark.parametrize("dtype", TYPES)
def test_every_numeric_type_is_read_and_written(tmp_path: Path, ending: str, dtype: type) -> None:
    array = np.arange(60).reshape(3, 4, 5).astype(dtype)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(tmp_path / f"scan{ending}"), True)
    found = FORMATS[ending].read_voxels(tmp_path / f"scan{ending}")
    assert found.stored.dtype == dtype
    assert np.array_equal(found.stored, array.T)
    copy = tmp_path / f"copy{ending.replace('hd', 'ha').replace('nhar', 'nrrd')}"
    write_scan(copy, tmp_path / f"scan{ending}")
    assert np.array_equal(itk_read(copy)[0], array.T)
    assert itk_read(copy)[0].dtype == dtype


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
@pytest.mark.parametrize(
    ("space", "detached", "order"),
    [
        ("left-posterior-superior", False, ">"),
        ("LPS", True, "<"),
        ("right-anterior-superior", True, ">"),
        ("RAS", False, "<"),
        ("LAS", True, ">"),
    ],
)
def test_pynrrds_encodings_and_spaces(tmp_path: Path, space: str, detached: bool, encoding: str, order: str) -> None:
    array = np.arange(-30, 30).reshape(5, 4, 3).astype(f"{order}i2")
    header = {
        "space": space,
        "space directions": np.array([[0.5, 0.1, 0.0], [-0.2, 2.0, 0.0], [0.0, 0.3, 3.0]]),
        "space origin": np.array([1.25, -2.0, 3.0]),
        "encoding": encoding,
    }
    file = tmp_path / ("scan.nhdr" if detached else "scan.nrrd")
    pynrrd.write(str(file), array, header)
    found = our_nrrd.read_voxels(file)
    assert np.array_equal(found.stored, array)
    if encoding in ("raw", "gzip"):  # SimpleITK reads no others
        voxels, affine = itk_read(file)
        assert np.array_equal(found.stored, voxels)
        np.testing.assert_allclose(found.grid.affine, affine, rtol=1e-15, atol=1e-14)
    assert len(files_of([file])) == 1 + detached


def text_nrrd(path: Path, *lines: str, data: bytes | None = None, sizes: str = "2 3 4") -> Path:
    dimension = len(sizes.split())
    head = ["NRRD0004", "type: short", f"dimension: {dimension}", f"sizes: {sizes}", "endian: little", *lines]
    if not any(line.startswith("encoding") for line in lines):
        head.append("encoding: raw")
    voxels = np.arange(24, dtype="<i2").tobytes() if data is None else data
    path.write_bytes("\n".join(head).encode() + b"\n\n" + voxels)
    return path


def text_mha(path: Path, *lines: str, data: bytes | None = None, dims: str = "2 3 4", kind: str = "MET_SHORT") -> Path:
    head = ["ObjectType = Image", f"NDims = {len(dims.split())}", *lines, f"DimSize = {dims}", f"ElementType = {kind}"]
    if not any(line.startswith("ElementDataFile") for line in lines):
        head.append("ElementDataFile = LOCAL")
    head = [line for line in head if not line.startswith("ElementDataFile")] + [
        line for line in head if line.startswith("ElementDataFile")
    ]
    voxels = np.arange(24, dtype="<i2").tobytes() if data is None else data
    path.write_bytes("\n".join(head).encode() + b"\n" + voxels)
    return path


AXES = "space directions: (0.5,0,0) (0,2,0) (0,0,3)"
STORED = np.arange(24, dtype=np.int16).reshape(2, 3, 4, order="F")


@pytest.mark.parametrize(
    "lines",
    [
        ("SPACE: LPS", "Space Directions: ( 0.5 , 0.1,0) (0,2,0)   (0,0,3)", "# a comment", "key:=space: RAS"),
        ("space: right-anterior-superior", AXES, "spaceorigin: (1,2,3)", "measurement frame: (1,0,0) (0,1,0) (0,0,1)"),
        ("space: LPS", AXES, "byte skip: -1", "space units: \"mm\" \"mm\" \"mm\""),
        ("space: LPS", AXES, "kinds: domain domain domain", "centerings: cell cell cell", "thicknesses: nan nan 3"),
    ],
)  # fmt: skip
def test_ways_to_write_a_nrrd_header(tmp_path: Path, lines: tuple[str, ...]) -> None:
    file = text_nrrd(tmp_path / "scan.nrrd", *lines)
    found, (voxels, affine) = our_nrrd.read_voxels(file), itk_read(file)
    assert np.array_equal(found.stored, voxels)
    np.testing.assert_allclose(found.grid.affine, affine, rtol=1e-15, atol=1e-15)
    assert found.grid.doubts == ()


@pytest.mark.parametrize("lines", [("spacings: 0.5 2 3",), ("space dimension: 3", AXES), ("space: scanner-xyz", AXES)])
def test_a_nrrd_file_without_a_patients_space_is_read_as_itk_does_and_doubted(
    tmp_path: Path, lines: tuple[str, ...]
) -> None:
    file = text_nrrd(tmp_path / "scan.nrrd", *lines)
    np.testing.assert_array_equal(read_grid(file).affine, itk_read(file)[1])
    assert "left and right are a guess" in read_grid(file).doubts[0]


def test_units_that_are_not_millimetres_are_doubted(tmp_path: Path) -> None:
    file = text_nrrd(tmp_path / "scan.nrrd", "space: LPS", AXES, 'space units: "um" "um" "um"')
    assert "units are 'um'; they are taken for mm" in read_grid(file).doubts[0]


@pytest.mark.parametrize(
    "lines",
    [
        ("TransformMatrix = 0 1 0 0 0 1 -1 0 0", "Offset = 1 2 3",
         "CenterOfRotation = 5 6 7", "ElementSpacing = 1 2 3"),
        ("Rotation = 0 1 0 1 0 0 0 0 1", "Position = 1 2 3", "ElementSize = 2 2 2", "ElementSpacing = 1 2 3"),
        ("Orientation = 0 1 0 1 0 0 0 0 1", "Origin = 3 2 1", "ElementSize = 2 2 2"),
        ("AnatomicalOrientation = ???", "Comment = a: b = c", "comment = d", "dim[0] = 3", "a line", "HeaderSize = -1"),
        ("BinaryDataByteOrderMSB = False", "ElementByteOrderMSB = True"),
        ("BinaryDataByteOrderMSB = True",),
    ],
)  # fmt: skip
def test_ways_to_write_a_metaimage_header(tmp_path: Path, lines: tuple[str, ...]) -> None:
    file = text_mha(tmp_path / "scan.mha", *lines)
    found, (voxels, affine) = metaimage.read_voxels(file), itk_read(file)
    assert np.array_equal(found.stored, voxels)
    np.testing.assert_array_equal(found.grid.affine, affine)
    assert found.grid.doubts == ()


def test_numbers_in_text_after_a_metaimage_header(tmp_path: Path) -> None:
    file = text_mha(tmp_path / "scan.mha", "BinaryData = False", data=b" ".join(b"%d" % n for n in range(24)))
    assert np.array_equal(metaimage.read_voxels(file).stored, STORED)
    file = text_mha(tmp_path / "scan.mha", "BinaryData = False", data=b"0.5\n" * 24, kind="MET_FLOAT")
    assert np.array_equal(metaimage.read_voxels(file).stored, np.full((2, 3, 4), 0.5, np.float32))


def test_numbers_in_text_of_many_blocks(tmp_path: Path) -> None:
    """The blocks end in the midst of numbers."""
    values = np.arange(300_000, dtype=np.int32)
    text = "\r\n".join(map(str, values)).encode()
    file = text_nrrd(tmp_path / "scan.nrrd", "space: LPS", AXES, "encoding: txt", data=text, sizes="100 100 30")
    file.write_bytes(file.read_bytes().replace(b"type: short", b"type: int"))
    assert np.array_equal(our_nrrd.read_voxels(file).stored.ravel("F"), values)
    assert np.array_equal(read_some(file, 0, 40_000)[0], values[:10_000])


def test_an_orientation_in_words_that_is_not_the_matrixs_is_doubted(tmp_path: Path) -> None:
    for said, doubted in (("RAI", False), ("LPI", True)):
        grid = read_grid(text_mha(tmp_path / "scan.mha", f"AnatomicalOrientation = {said}"))
        assert bool(grid.doubts) == doubted
    assert grid.doubts[0].startswith("AnatomicalOrientation is LPI, but the TransformMatrix says RAI, which is used")


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_channels_are_read_and_written(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"scan{ending}"
    array = np.arange(120, dtype=np.float32).reshape(3, 4, 5, 2)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array, isVector=True), str(file), True)
    volume = read_volume([file])
    assert volume.grid.channels == 2
    assert volume.array.shape == (2, 3, 4, 5)  # LPS is turned by canonical axes
    voxels = FORMATS[ending].read_voxels(file).stored
    assert np.array_equal(voxels, itk_read(file)[0])
    write_map(tmp_path / f"maps{ending}", volume.array, volume.grid)
    assert np.array_equal(itk_read(tmp_path / f"maps{ending}")[0], itk_read(file)[0])
    assert np.array_equal(read_volume([tmp_path / f"maps{ending}"]).array, volume.array)
    with pytest.raises(DataError, match="must be 3D"):
        read_label(file)


@pytest.mark.parametrize("place", [0, 1, 3])
def test_an_axis_of_channels_may_stand_anywhere(tmp_path: Path, place: int) -> None:
    vectors, kinds, sizes = ["(0.5,0,0)", "(0,2,0)", "(0,0,3)"], ["domain"] * 3, ["2", "3", "2"]
    vectors.insert(place, "none")
    kinds.insert(place, "list")
    sizes.insert(place, "2")
    lines = ("space: LPS", f"space directions: {' '.join(vectors)}", f"kinds: {' '.join(kinds)}")
    file = text_nrrd(tmp_path / "scan.nrrd", *lines, sizes=" ".join(sizes))
    voxels, affine = itk_read(file)
    found = our_nrrd.read_voxels(file)
    assert np.array_equal(found.stored, voxels)
    np.testing.assert_array_equal(found.grid.affine, affine)
    for channel in (0, 1):
        some, size = read_some(file, channel, 10**6)
        assert np.array_equal(some.reshape(2, 3, 2, order="F"), voxels[..., channel])
        assert size == (24 if place == 3 else 48)


@pytest.mark.parametrize("ending", list(FORMATS))
@pytest.mark.parametrize("compressed", [False, True])
def test_some_voxels_are_the_first_slices(tmp_path: Path, ending: str, compressed: bool) -> None:
    array = np.random.default_rng(0).integers(-9, 9, (6, 7, 8)).astype(np.int16)
    file = tmp_path / f"scan{ending}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(file), compressed)
    some, size = read_some(file, 0, 3 * 7 * 8 * 2 + 1)
    assert np.array_equal(some, array[:3].ravel())
    assert size == 3 * 7 * 8 * 2
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array.astype(np.uint16)), str(file), compressed)
    assert read_some(file, 0, 1000)[1] == 0


def test_a_file_of_the_same_format_keeps_its_words_for_the_geometry(tmp_path: Path) -> None:
    like = text_nrrd(tmp_path / "like.nrrd", "space: RAS", "space directions: (0.50,0,0) (0,2e0,0) (0,0,3.000)",
                     "space origin: (+1,2,3)")  # fmt: skip
    grid = read_grid(like)
    write_label(tmp_path / "label.nrrd", np.ones((4, 3, 2), np.uint8), grid, like)
    text = (tmp_path / "label.nrrd").read_bytes().split(b"\n\n")[0].decode()
    for line in ("space: RAS", "space directions: (0.50,0,0) (0,2e0,0) (0,0,3.000)", "space origin: (+1,2,3)"):
        assert line in text.splitlines()
    like = text_mha(tmp_path / "like.mha", "Position = 1.0 2 3", "ElementSize = 0.50 2 3", "CenterOfRotation = 1 0 0")
    write_label(tmp_path / "label.mha", np.ones((4, 3, 2), np.uint8), read_grid(like), like)
    text = (tmp_path / "label.mha").read_bytes().split(b"LOCAL")[0].decode()
    for line in ("Offset = 1.0 2 3", "ElementSpacing = 0.50 2 3", "CenterOfRotation = 1 0 0"):
        assert line in text.splitlines()
    for name in ("label.nrrd", "label.mha"):
        assert np.array_equal(itk_read(tmp_path / name)[0], np.ones((2, 3, 4)))


def test_formats_are_written_beside_each_other(tmp_path: Path) -> None:
    """A label map on the grid of a scan of another format."""
    source = tmp_path / "scan.mha"
    SimpleITK.WriteImage(itk_image(np.zeros((3, 4, 5), np.int16), directions()[30]), str(source))
    grid, label = read_grid(source), np.arange(60, dtype=np.uint8).reshape(read_grid(source).shape_zyx) % 3
    for name in ("a.nii.gz", "a.nii", "a.nrrd", "a.mha"):
        write_label(tmp_path / name, label, grid, source)
        found, there = read_label(tmp_path / name)
        assert np.array_equal(found, label)
        assert grid.difference(there) is None
    for name in ("a.nhdr", "a.mhd", "a.mgz"):
        with pytest.raises(DataError, match=r"Name it \.nii\.gz, \.nrrd or \.mha"):
            write_label(tmp_path / name, label, grid, source)


def test_reading_takes_no_more_memory_than_the_voxels(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(-1000, 1000, (128, 256, 256)).astype(np.int16)  # 16 MB
    for ending, compressed in itertools.product(FORMATS, (False, True)):
        file = tmp_path / f"scan{ending}"
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(file), compressed)
        FORMATS[ending].read_grid(file)
        tracemalloc.start()
        found = FORMATS[ending].read_voxels(file)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert np.array_equal(found.stored, array.T)
        assert peak < array.nbytes + (10 << 20), (ending, compressed, peak)


REFUSED_NRRD = {
    "2D": (("space dimension: 2", "spacings: 1 1"), "12 2", "2D"),
    "4D": (("space: LPS", AXES + " (0,0,1)"), "2 3 2 2", "4D"),
    "two lists": (("space: LPS", "space directions: none none (1,0,0) (0,1,0) (0,0,1)"), "1 2 3 2 2", "5D"),
    "time": (("space: LPS", AXES + " none", "kinds: domain domain domain time"), "2 3 2 2", "a series in time"),
    "space and time": (("space: right-anterior-superior-time", AXES), "2 3 4", "a series in time"),
    "colours": (("space: LPS", "space directions: none (1,0,0) (0,1,0) (0,0,1)",
                 "kinds: RGB-color domain domain domain"), "3 2 2 2", "a picture in colours"),
    "a matrix": (("space: LPS", "space directions: none (1,0,0) (0,1,0) (0,0,1)",
                  "kinds: 3D-symmetric-matrix domain domain domain"), "6 2 2 1", "is no channel"),
    "list of files": (("space: LPS", AXES, "data file: LIST"), "2 3 4", "in several files"),
    "pattern": (("space: LPS", AXES, "data file: a%03d.raw 1 4 1"), "2 3 4", "in several files"),
    "above": (("space: LPS", AXES, "data file: ../outside.raw"), "2 3 4", "outside of its own folder"),
    "within and above": (("space: LPS", AXES, "data file: x/../../outside.raw"), "2 3 4", "outside of its own folder"),
    "absolute": (("space: LPS", AXES, "data file: /etc/passwd"), "2 3 4", "outside of its own folder"),
    "absent": (("space: LPS", AXES, "data file: absent.raw"), "2 3 4", "'absent.raw', which is not there"),
    "itself a folder": (("space: LPS", AXES, "data file: ."), "2 3 4", "which is not there"),
    "long name": (("space: LPS", AXES, f"data file: {'x' * 5000}"), "2 3 4", "which is not there"),
    "terminal": (("space: LPS", AXES, "data file: \x1b[31m"), "2 3 4", r"'\\x1b\[31m', which is not there"),
    "line skip": (("space: LPS", AXES, "line skip: 99999999999"), "2 3 4", "line skip"),
    "byte skip": (("space: LPS", AXES, "byte skip: -7"), "2 3 4", "byte skip '-7'"),
    "skips all": (("space: LPS", AXES, "byte skip: 99999999999"), "2 3 4", "damaged or cut off"),
    "hex": (("space: LPS", AXES, "encoding: hex"), "2 3 4", "the encoding 'hex' is not read"),
    "huge": (("space: LPS", AXES), "999999999999999 999999999999999 999999999999999", "damaged or cut off"),
    "huge, compressed": (("space: LPS", AXES, "encoding: gzip"), "100000 100000 100000", "damaged or cut off"),
    "huge, in text": (("space: LPS", AXES, "encoding: ascii"), "100000 100000 100000", "damaged or cut off"),
    "no number": (("space: LPS", AXES), "2 3 x", "dimension and sizes"),
    "nothing": (("space: LPS", AXES), "2 0 4", "hold no voxels"),
    "twice": (("space: LPS", AXES, AXES), "2 3 4", "twice"),
    "no field": (("space: LPS", AXES, "nonsense"), "2 3 4", "line 8 of the header is no field"),
    "singular": (("space: LPS", "space directions: (1,0,0) (1,0,0) (0,0,1)"), "2 3 4", "affine is singular"),
    "not finite": (("space: LPS", "space directions: (nan,0,0) (0,1,0) (0,0,1)"), "2 3 4", "not three vectors"),
    "words between": (("space: LPS", "space directions: (1,0,0) (0,1,0) by me (0,0,1)"), "2 3 4", "0 space directions"),
    "far": (("space: LPS", AXES, "space origin: (1e300,0,0)"), "2 3 4", "affine is singular or not finite"),
    "two origins": (("space: LPS", AXES, "space origin: (1,2,3) (me)"), "2 3 4", "space origin is not three numbers"),
    "unknown space": (("space: up-down-strange", AXES), "2 3 4", "the space 'up-down-strange' is not known"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED_NRRD))
def test_nrrd_files_that_are_refused(tmp_path: Path, name: str) -> None:
    lines, sizes, words = REFUSED_NRRD[name]
    (tmp_path / "inner").mkdir()
    (tmp_path / "outside.raw").write_bytes(bytes(48))
    file = text_nrrd(tmp_path / "inner" / "scan.nrrd", *lines, sizes=sizes)
    assert_refused(file, words)


REFUSED_META = {
    "2D": ((), {"dims": "12 2"}, "2D"),
    "4D": ((), {"dims": "2 3 2 2"}, "4D.*one 3D file for each"),
    "colours": (("ElementNumberOfChannels = 3",), {"kind": "MET_UCHAR", "dims": "2 2 2"}, "a picture in colours"),
    "list of files": (("ElementDataFile = LIST",), {}, "in several files"),
    "pattern": (("ElementDataFile = a%03d.raw 1 4 1",), {}, "in several files"),
    "above": (("ElementDataFile = ../outside.raw",), {}, "outside of its own folder"),
    "absolute": (("ElementDataFile = /etc/passwd",), {}, "outside of its own folder"),
    "absent": (("ElementDataFile = absent.raw",), {}, "which is not there"),
    "no name": (("ElementDataFile =",), {}, "which is not there"),
    "huge": ((), {"dims": "999999999999999 999999999999999 2"}, "damaged or cut off"),
    "huge, compressed": (("CompressedData = True",), {"dims": "100000 100000 100000"}, "damaged or cut off"),
    "many channels": (("ElementNumberOfChannels = 999999999999",), {}, "damaged or cut off"),
    "no channels": (("ElementNumberOfChannels = 0",), {}, "ElementNumberOfChannels"),
    "type": ((), {"kind": "MET_STRING"}, "'MET_STRING' are not numbers"),
    "not compressed": (("CompressedData = True",), {}, "damaged or truncated"),
    "header size": (("HeaderSize = -7",), {}, "HeaderSize '-7'"),
    "behind the end": (("HeaderSize = 999999999999",), {}, "damaged or cut off"),
    "singular": (("TransformMatrix = 1 0 0 1 0 0 0 0 1",), {}, "affine is singular"),
    "no direction": (("TransformMatrix = 1 0 0 0 0 0 0 0 1",), {}, "affine is singular"),
    "few numbers": (("Offset = 1 2",), {}, "Offset is not 3 numbers"),
    "twice": (("Offset = 1 2 3", "Offset = 1 2 3"), {}, "twice"),
    "endless": (("x" * (1 << 20),), {}, "the header does not end"),
}


@pytest.mark.parametrize("name", list(REFUSED_META))
def test_metaimages_that_are_refused(tmp_path: Path, name: str) -> None:
    lines, changes, words = REFUSED_META[name]
    (tmp_path / "inner").mkdir()
    (tmp_path / "outside.raw").write_bytes(bytes(48))
    assert_refused(text_mha(tmp_path / "inner" / "scan.mha", *lines, **changes), words)


def assert_refused(file: Path, words: str) -> None:
    tracemalloc.start()
    with pytest.raises(DataError, match=rf"(?s)^{file}: .*{words}"):
        read_volume([file])
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("ending", list(FORMATS))
@pytest.mark.parametrize("content", [b"", b"NRRD", b"no scan at all", b"\x1f\x8b\x08broken", bytes(400), b"NRRD0004\n"])
def test_what_is_no_such_file_is_refused(tmp_path: Path, ending: str, content: bytes) -> None:
    file = tmp_path / f"scan{ending}"
    file.write_bytes(content)
    for read in (read_grid, read_label):
        with pytest.raises(DataError, match=rf"^{file}: "):
            read(file)
    with pytest.raises(DataError, match="no such file"):
        read_grid(tmp_path / f"absent{ending}")


def test_more_voxels_than_the_header_claims_are_refused_without_inflating_them(tmp_path: Path) -> None:
    """A small file that would become 256 MB."""
    zeros = zlib.compressobj(9)
    bomb = b"".join(zeros.compress(bytes(1 << 20)) for _ in range(256)) + zeros.flush()
    assert_refused(text_mha(tmp_path / "a.mha", "CompressedData = True", data=bomb), "more than the header claims")
    packer = bz2.BZ2Compressor()
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    lines = ("space: LPS", AXES, "encoding: bzip2")
    assert_refused(text_nrrd(tmp_path / "a.nrrd", *lines, data=bomb), "more than the header claims")


@pytest.mark.parametrize("ending", list(FORMATS))
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.99])
def test_a_file_that_is_cut_short_is_named(tmp_path: Path, ending: str, part: float) -> None:
    array = np.random.default_rng(0).integers(0, 3, (20, 21, 22)).astype(np.uint8)
    file = tmp_path / f"scan{ending}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(file), True)
    cut = files_of([file])[-1]
    whole = cut.read_bytes()
    cut.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(DataError, match=rf"^{file}: "):
        read_label(file)


FIELDS = ("type", "dimension", "sizes", "endian", "encoding", "space", "space directions", "space origin", "kinds",
          "data file", "byte skip", "line skip", "spacings", "space dimension", "space units", "NDims", "DimSize",
          "ElementType", "ElementDataFile", "TransformMatrix", "Offset", "ElementSpacing", "HeaderSize", "BinaryData",
          "CompressedData", "ElementNumberOfChannels", "BinaryDataByteOrderMSB")  # fmt: skip
VALUES = ("", "short", "MET_SHORT", "MET_FLOAT", "float", "3", "4", "-1", "2 3 4", "2 2 3 2", "1e400 nan 3", "gzip",
          "raw", "ascii", "bzip2", "LOCAL", "LIST", "../x", "True", "False", "none (1,0,0) (0,1,0) (0,0,1)",
          "(1,0,0) (0,1,0) (0,0,1)", "((((", "(1,2,3", "domain domain domain", "list domain domain domain", "LPS",
          "1 0 0 0 1 0 0 0 1", "9" * 5000, "1 1 1", "little", "big", "\x00", "é" * 99, '"um" "')  # fmt: skip


@settings(max_examples=300, derandomize=True)
@given(
    ending=st.sampled_from([".nrrd", ".mha"]),
    changed=st.lists(st.tuples(st.sampled_from(FIELDS), st.sampled_from(VALUES) | st.text(max_size=20)), max_size=3),
    data=st.binary(max_size=80),
)
def test_strange_headers_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, ending: str, changed: list[tuple[str, str]], data: bytes
) -> None:
    fields = {
        ".nrrd": {"type": "short", "dimension": "3", "sizes": "2 3 4", "endian": "little", "encoding": "raw",
                  "space": "LPS", "space directions": "(1,0,0) (0,1,0) (0,0,1)"},
        ".mha": {"NDims": "3", "DimSize": "2 3 4", "ElementType": "MET_SHORT"},
    }[ending]  # fmt: skip
    fields |= dict(changed)
    if ending == ".mha":
        fields["ElementDataFile"] = fields.pop("ElementDataFile", "LOCAL")
    lines = [f"{name}{': ' if ending == '.nrrd' else ' = '}{value}" for name, value in fields.items()]
    text = "\n".join([*(["NRRD0004"] if ending == ".nrrd" else []), *lines]) + ("\n\n" if ending == ".nrrd" else "\n")
    file = tmp_path_factory.mktemp("strange") / f"scan{ending}"
    file.write_bytes(text.encode("utf-8", "surrogatepass") + np.arange(24, dtype="<i2").tobytes() + data)
    said = []
    for read in (lambda: read_volume([file]), lambda: read_label(file), lambda: read_some(file, 0, 1000)):
        try:
            read()
        except DataError as error:
            said.append(str(error))
    assert all(text.startswith(f"{file}: ") for text in said)
