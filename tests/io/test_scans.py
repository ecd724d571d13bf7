"""Scans and label maps of every orientation, header and state of repair, in and out."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from semiseg.errors import DataError
from semiseg.io.scans import read_grid, read_label, read_volume, values_in, write_label, write_map

ORIENTATIONS = [
    (axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1.0, -1.0), repeat=3)
]
SPACING_XYZ = np.array([0.5, 2.0, 3.0])
HEADER_FIELDS = (
    "sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units",
)  # fmt: skip


def stored_scan(axes: tuple[int, ...], signs: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A stored array and its affine; the value of a voxel is a code of its place in the body, x + 10 y + 100 z."""
    shape_xyz = np.array([3, 4, 5])
    affine = np.eye(4)
    affine[:3, :3] = 0
    stored_shape = []
    for stored_axis, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, stored_axis] = sign * SPACING_XYZ[axis]
        affine[axis, 3] = 0.0 if sign > 0 else (shape_xyz[axis] - 1) * SPACING_XYZ[axis]
        stored_shape.append(int(shape_xyz[axis]))
    indices = np.stack([*np.indices(stored_shape), np.ones(stored_shape)])
    world = np.tensordot(affine, indices, axes=1)[:3]
    place = np.rint(world / SPACING_XYZ[:, None, None, None]).astype(np.int16)
    return place[0] + 10 * place[1] + 100 * place[2], affine


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None, kind: type = nib.Nifti1Image) -> Path:
    """Write an array with sform and qform alike, code 1."""
    image = kind(array, np.eye(4) if affine is None else affine)
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    nib.save(image, path)
    return path


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_every_orientation_reads_to_the_same_canonical_array_and_back(
    tmp_path: Path, axes: tuple[int, ...], signs: tuple[float, ...]
) -> None:
    stored, affine = stored_scan(axes, signs)
    file = save(tmp_path / "scan.nii", stored, affine)
    volume = read_volume([file])
    z, y, x = np.indices((5, 4, 3))
    assert np.array_equal(volume.array[0], x + 10 * y + 100 * z)
    assert volume.grid.shape_zyx == (5, 4, 3)
    assert volume.grid.spacing_mm == pytest.approx((3.0, 2.0, 0.5))

    label, grid = read_label(file)
    write_label(tmp_path / "out.nii.gz", label, grid)
    written = nib.load(tmp_path / "out.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), stored)
    assert np.array_equal(written.affine, affine)
    assert written.header.get_zooms() == nib.load(file).header.get_zooms()
    assert written.header.get_xyzt_units()[0] == "mm"
    assert read_grid(tmp_path / "out.nii.gz").doubts == ()


def test_the_same_grid_stored_in_two_orientations_does_not_differ(tmp_path: Path) -> None:
    grids = [read_grid(save(tmp_path / f"{i}.nii", *stored_scan(*o))) for i, o in enumerate(ORIENTATIONS)]
    assert all(grids[0].difference(grid) is None for grid in grids)


@pytest.mark.parametrize("voxel_mm", [0.005, 0.7, 5.0])
def test_grids_may_differ_by_what_rounding_leaves_and_by_no_voxel(tmp_path: Path, voxel_mm: float) -> None:
    array = np.zeros((64, 64, 40), np.uint8)
    for voxels, words in (0.03, None), (0.1, "their corners lie up to"), (1.0, "their corners lie up to"):
        affine = np.diag([voxel_mm, voxel_mm, 2 * voxel_mm, 1])
        one = read_grid(save(tmp_path / "one.nii", array, affine))
        affine[0, 3] += voxels * voxel_mm
        other = read_grid(save(tmp_path / "other.nii", array, affine))
        said = one.misfit(other, "Resample it.")
        assert (said is None) == (words is None), (voxels, said)
        assert said is None or words in said
        assert said is None or said.endswith("give both files one affine; otherwise resample it.")


def test_an_oblique_scan_keeps_its_affine(tmp_path: Path) -> None:
    angle = np.deg2rad(20)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-0.7, 0.7, 2.5])
    affine[:3, 3] = (12.5, -80.25, 33.0)
    file = save(tmp_path / "scan.nii.gz", np.arange(60, dtype=np.uint8).reshape(3, 4, 5), affine)
    label, grid = read_label(file)
    assert grid.orientation == "LAS"
    assert grid.spacing_mm == pytest.approx((2.5, 0.7, 0.7), rel=1e-6)  # the header stores float32
    write_label(tmp_path / "out.nii.gz", label, grid, file)
    assert_same_header(file, tmp_path / "out.nii.gz")


def assert_same_header(source: Path, written: Path) -> None:
    before, after = nib.load(source).header, nib.load(written).header
    for field in HEADER_FIELDS:
        assert before[field].tobytes() == after[field].tobytes(), field
    # Sizes beyond the third axis mean nothing in a 3D file, and nibabel sets them to 1.
    assert before["pixdim"][:4].tobytes() == after["pixdim"][:4].tobytes()


@pytest.mark.parametrize("codes", [(1, 1), (2, 1), (4, 2), (0, 1), (2, 0), (0, 0)])
def test_sform_and_qform_that_disagree_are_written_back_as_they_are(tmp_path: Path, codes: tuple[int, int]) -> None:
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), None)
    image.set_sform(np.diag([-2.0, 1.5, 3.0, 1.0]) + np.array([[0, 0, 0, 7.0]] + [[0.0] * 4] * 3), codes[0])
    image.set_qform(np.diag([2.0, 1.5, 3.5, 1.0]), codes[1])
    image.header.set_xyzt_units("mm", "sec")
    file = tmp_path / "scan.nii"
    nib.save(image, file)
    label, grid = read_label(file)
    write_label(tmp_path / "out.nii", label, grid, file)
    write_map(tmp_path / "map.nii", label.astype(np.float32), grid, file)
    assert_same_header(file, tmp_path / "out.nii")
    assert_same_header(file, tmp_path / "map.nii")
    assert np.array_equal(np.asarray(nib.load(tmp_path / "out.nii").dataobj), np.asarray(image.dataobj))
    said = {True: "disagree by up to 7", False: "left and right are a guess" if codes == (0, 0) else ""}[0 not in codes]
    assert [said in doubt for doubt in grid.doubts] == ([True] if said else [])


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1e3), ("micron", 1e-3), ("mm", 1.0), ("unknown", 1.0)])
def test_metres_and_micrometres_of_a_header_are_read_as_millimetres_and_written_back(
    tmp_path: Path, unit: str, mm: float
) -> None:
    image = nib.Nifti1Image(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.diag([-2 / mm, 1.5 / mm, 3 / mm, 1]))
    image.header.set_xyzt_units(unit)
    file = tmp_path / "scan.nii.gz"
    nib.save(image, file)
    grid = read_grid(file)
    assert (*grid.spacing_mm, *grid.stored_mm) == pytest.approx((3.0, 1.5, 2.0, 2.0, 1.5, 3.0))
    write_label(tmp_path / "out.nii.gz", np.ones((4, 3, 2), np.uint8), grid, file)
    assert_same_header(file, tmp_path / "out.nii.gz")
    write_label(tmp_path / "alone.nii.gz", np.ones((4, 3, 2), np.uint8), grid)
    assert read_grid(tmp_path / "alone.nii.gz").difference(grid) is None


def test_a_scaled_scan_is_read_in_its_own_units_and_labels_are_written_without_scale(tmp_path: Path) -> None:
    stored = np.arange(-30, 30, dtype=np.int16).reshape(3, 4, 5)
    image = nib.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(0.5, -1000)
    file = tmp_path / "scan.nii.gz"
    nib.save(image, file)
    # nibabel rescales on saving: set the stored integers and slope by hand.
    raw = bytearray(gzip.decompress(file.read_bytes()))
    raw[112:120] = np.array([0.5, -1000], dtype="<f4").tobytes()
    raw[352:] = stored.tobytes(order="F")
    file.write_bytes(gzip.compress(bytes(raw)))
    volume = read_volume([file])
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array[0], (stored * 0.5 - 1000).transpose(2, 1, 0))  # exact in float32
    write_label(tmp_path / "out.nii.gz", np.ones((5, 4, 3), np.uint8), volume.grid)
    written = nib.load(tmp_path / "out.nii.gz")
    assert written.get_data_dtype() == np.uint8
    assert np.asarray(written.dataobj).max() == 1


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_file_that_is_compressed_against_its_ending_is_told_the_right_one(tmp_path: Path, kind: type) -> None:
    array = np.ones((3, 4, 5), np.uint8)
    save(tmp_path / "a.nii.gz", array, kind=kind).rename(tmp_path / "packed.nii")
    save(tmp_path / "a.nii", array, kind=kind).rename(tmp_path / "plain.nii.gz")
    (tmp_path / "broken.nii.gz").write_bytes(b"broken")
    for name, words in (
        ("packed.nii", "call it .nii.gz."),
        ("plain.nii.gz", "call it .nii."),
        ("broken.nii.gz", "Restore"),
    ):
        with pytest.raises(DataError) as raised:
            read_grid(tmp_path / name)
        assert words in str(raised.value)
    (tmp_path / "packed.nii").rename(tmp_path / "right.nii.gz")
    assert read_grid(tmp_path / "right.nii.gz").shape_zyx == (5, 4, 3)


def test_nifti_2_stays_nifti_2(tmp_path: Path) -> None:
    file = save(tmp_path / "scan.nii.gz", np.ones((3, 4, 5), np.float32), kind=nib.Nifti2Image)
    volume = read_volume([file])
    write_label(tmp_path / "out.nii.gz", np.ones((5, 4, 3), np.uint8), volume.grid, file)
    assert isinstance(nib.load(tmp_path / "out.nii.gz"), nib.Nifti2Image)


def test_a_big_endian_scan_is_read_and_its_label_written(tmp_path: Path) -> None:
    stored = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    image = nib.Nifti1Image(stored, np.eye(4), nib.Nifti1Header(endianness=">"))
    nib.save(image, tmp_path / "scan.nii")
    label, grid = read_label(tmp_path / "scan.nii")
    write_label(tmp_path / "out.nii", label, grid, tmp_path / "scan.nii")
    assert np.array_equal(np.asarray(nib.load(tmp_path / "out.nii").dataobj), stored)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_every_numeric_type_is_read(tmp_path: Path, dtype: type) -> None:
    stored = np.arange(60).reshape(3, 4, 5).astype(dtype)
    image = nib.Nifti1Image(stored, np.eye(4), dtype=dtype)
    nib.save(image, tmp_path / "scan.nii")
    assert np.array_equal(read_volume([tmp_path / "scan.nii"]).array[0], stored.transpose(2, 1, 0))


@pytest.mark.parametrize("part", [0.0, 0.02, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_file_that_is_cut_short_is_named(tmp_path: Path, part: float, ending: str) -> None:
    array = np.random.default_rng(0).integers(0, 3, (20, 21, 22)).astype(np.uint8)
    file = save(tmp_path / f"scan{ending}", array)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(DataError, match=r"scan\.nii"):
        read_volume([file])
    with pytest.raises(DataError, match=r"scan\.nii"):
        read_label(file)


@pytest.mark.parametrize("content", [b"", b"not a scan at all", b"\x1f\x8b\x08broken", bytes(400)])
def test_what_is_no_nifti_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "scan.nii.gz"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"scan\.nii\.gz"):
        read_grid(file)
    with pytest.raises(DataError, match="no such file"):
        read_grid(tmp_path / "absent.nii.gz")


def test_damaged_headers_raise_data_errors_and_nothing_else(tmp_path: Path) -> None:
    """Bytes of a valid header are replaced at random: reading succeeds or names the file."""
    rng = np.random.default_rng(5)
    valid = save(tmp_path / "valid.nii", rng.integers(0, 5, (6, 7, 8)).astype(np.int16)).read_bytes()
    file = tmp_path / "damaged.nii"
    messages = []
    for _ in range(300):
        content = bytearray(valid)
        for place in rng.integers(0, 352, size=int(rng.integers(1, 6))):
            content[place] = rng.integers(0, 256)
        file.write_bytes(content)
        try:
            read_label(file)[1]
            read_volume([file])
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 30
    assert all(message.startswith(str(file)) for message in messages)


@pytest.mark.parametrize("dim", [(-3, 4, 5), (0, 4, 5), (30000, 30000, 30000)])
def test_a_hostile_shape_is_refused(tmp_path: Path, dim: tuple[int, int, int]) -> None:
    file = save(tmp_path / "scan.nii", np.zeros((3, 4, 5), np.uint8))
    content = bytearray(file.read_bytes())
    content[42:48] = np.array(dim, "<i2").tobytes()
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"scan\.nii"):
        read_volume([file])


@pytest.mark.parametrize("affine", [np.diag([1.0, 0, 1, 1]), np.diag([1.0, np.nan, 1, 1]), np.diag([1.0, 1e30, 1, 1])])
def test_a_singular_or_absurd_affine_is_refused(tmp_path: Path, affine: np.ndarray) -> None:
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), None)
    for row, field in enumerate(("srow_x", "srow_y", "srow_z")):
        image.header[field] = affine[row]
    image.header["sform_code"] = 1
    nib.save(image, tmp_path / "scan.nii")
    with pytest.raises(DataError, match="affine"):
        read_grid(tmp_path / "scan.nii")


def test_a_4d_file_is_read_as_channels_and_refused_as_a_label(tmp_path: Path) -> None:
    array = np.arange(120, dtype=np.float32).reshape(3, 4, 5, 2)
    file = save(tmp_path / "scan.nii.gz", array)
    volume = read_volume([file])
    assert volume.array.shape == (2, 5, 4, 3)
    assert volume.grid.channels == 2
    assert np.array_equal(volume.array[1], array[..., 1].transpose(2, 1, 0))
    with pytest.raises(DataError, match="must be 3D"):
        read_label(file)
    with pytest.raises(DataError, match="one 3D file per channel"):
        read_volume([file, file])


def test_a_fourth_axis_of_one_is_no_hindrance(tmp_path: Path) -> None:
    file = save(tmp_path / "scan.nii.gz", np.ones((3, 4, 5, 1), np.uint8))
    assert read_volume([file]).array.shape == (1, 5, 4, 3)
    assert read_label(file)[0].shape == (5, 4, 3)


def test_other_dimensions_and_colours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="5D"):
        read_grid(save(tmp_path / "five.nii", np.ones((3, 4, 5, 2, 2), np.uint8)))
    with pytest.raises(DataError, match="2D"):
        read_grid(save(tmp_path / "two.nii", np.ones((3, 4), np.uint8)))
    colours = np.zeros((3, 4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(DataError, match="not numbers"):
        read_volume([save(tmp_path / "rgb.nii", colours)])


@pytest.mark.parametrize(
    ("value", "words"),
    [(1.5, "whole numbers, but 1.5"), (-1.0, "from -1 to"), (70000.0, "to 70000"), (np.nan, "NaN"), (np.inf, "NaN")],
)
def test_label_values_that_are_no_classes_are_refused(tmp_path: Path, value: float, words: str) -> None:
    array = np.zeros((3, 4, 5), np.float32)
    array[1, 1, 1] = value
    with pytest.raises(DataError, match=words):
        read_label(save(tmp_path / "label.nii.gz", array))


@pytest.mark.parametrize(("high", "refused"), [(4, False), (13, False), (200, True)])
def test_labels_that_a_slope_spreads_over_a_byte_are_rounded(tmp_path: Path, high: int, refused: bool) -> None:
    """As nibabel stores floats in bytes: 255 is the highest label, and the others miss their number."""
    values = np.arange(60).reshape(3, 4, 5) % (high + 1)
    values[-1, -1, -1] = high
    image = nib.Nifti1Image(values.astype(np.float64), np.eye(4))
    image.set_data_dtype(np.uint8)
    nib.save(image, tmp_path / "label.nii.gz")
    assert nib.load(tmp_path / "label.nii.gz").dataobj.slope == pytest.approx(high / 255)
    if refused:  # half a step is more than a tenth: then 3.6 may be 3 or 4
        with pytest.raises(DataError, match="must be whole numbers"):
            read_label(tmp_path / "label.nii.gz")
        return
    label, _ = read_label(tmp_path / "label.nii.gz")
    assert np.array_equal(label, values.transpose(2, 1, 0))


def test_values_between_labels_are_refused_however_they_are_stored(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.linspace(0, 4, 60).reshape(3, 4, 5), np.eye(4))
    image.set_data_dtype(np.uint8)
    nib.save(image, tmp_path / "label.nii.gz")
    with pytest.raises(DataError, match="must be whole numbers"):
        read_label(tmp_path / "label.nii.gz")


def test_labels_above_255_are_16_bit(tmp_path: Path) -> None:
    array = np.zeros((3, 4, 5), np.int32)
    array[0, 0, 0] = 300
    label, grid = read_label(save(tmp_path / "label.nii.gz", array))
    assert label.dtype == np.uint16
    write_label(tmp_path / "out.nii.gz", label, grid)
    assert np.asarray(nib.load(tmp_path / "out.nii.gz").dataobj)[0, 0, 0] == 300


def test_nan_and_infinite_voxels_are_counted(tmp_path: Path) -> None:
    array = np.zeros((3, 4, 5))
    array[0, 0, 0], array[1, 1, 1], array[2, 2, 2] = np.nan, -np.inf, 1e300  # the last is beyond float32
    image = nib.Nifti1Image(array, np.eye(4))
    nib.save(image, tmp_path / "scan.nii.gz")
    with pytest.raises(DataError, match="3 voxels are NaN or infinite"):
        read_volume([tmp_path / "scan.nii.gz"])


def test_channels_on_different_grids_are_refused_with_the_numbers(tmp_path: Path) -> None:
    first = save(tmp_path / "a_0000.nii", np.ones((3, 4, 5), np.float32))
    shifted = np.eye(4)
    shifted[0, 3] = 0.5
    with pytest.raises(DataError, match=r"a_0001.*geometries differ.*\(0, 0, 0\) and \(0.5, 0, 0\)"):
        read_volume([first, save(tmp_path / "a_0001.nii", np.ones((3, 4, 5), np.float32), shifted)])
    with pytest.raises(DataError, match=r"shapes differ.*\(5, 4, 3\) and \(6, 4, 3\)"):
        read_volume([first, save(tmp_path / "a_0002.nii", np.ones((3, 4, 6), np.float32))])
    shifted[0, 3] = 0.0005  # below the tolerance of 0.001 mm
    assert (
        read_volume([first, save(tmp_path / "a_0003.nii", np.ones((3, 4, 5), np.float32), shifted)]).array.shape[0] == 2
    )


def test_maps_of_several_channels_are_written_as_4d(tmp_path: Path) -> None:
    stored, affine = stored_scan((2, 0, 1), (1.0, -1.0, 1.0))
    volume = read_volume([save(tmp_path / "scan.nii.gz", stored, affine)])
    write_map(tmp_path / "maps.nii.gz", np.concatenate([volume.array, 2 * volume.array]), volume.grid)
    written = np.asarray(nib.load(tmp_path / "maps.nii.gz").dataobj)
    assert np.array_equal(written, np.stack([stored, 2 * stored], axis=-1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 1, 1), (0, 5, 6)])
def test_values_are_those_that_sorting_finds(dtype: type[np.generic], shape: tuple[int, int, int]) -> None:
    label = np.random.default_rng(0).choice([0, 3, 7, np.iinfo(dtype).max], shape).astype(dtype)
    assert values_in(label) == np.unique(label).tolist()


def test_real_scans_come_back_with_their_own_header(real_data: Path, tmp_path: Path) -> None:
    """A real LPS scan; the generated twin is the test of every orientation above."""
    file = real_data / "ct_whole" / "ircad17_label.nii.gz"
    label, grid = read_label(file)
    assert grid.orientation == "LPS"
    assert label.shape == (119, 512, 512)
    write_label(tmp_path / "out.nii.gz", label, grid, file)
    assert_same_header(file, tmp_path / "out.nii.gz")
    assert np.array_equal(np.asarray(nib.load(tmp_path / "out.nii.gz").dataobj), np.asarray(nib.load(file).dataobj))
