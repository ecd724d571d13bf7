"""Which images are a volume, what is said of those that are none, and the regular grid that is made of tilted ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from pydicom.uid import generate_uid  # noqa: E402

from dicom_series import AXIAL, TAGS_OF_A_PATIENT, positions_along, random_voxels, write_enhanced, write_series  # noqa: E402
from semiseg.errors import DataError  # noqa: E402
from semiseg.io.dicom.places import choose, path_of, place_of, series_of, stamp_of  # noqa: E402
from semiseg.io.dicom.reading import read_voxels  # noqa: E402
from semiseg.io.dicom.series import Series, Unusable, find_series, hashed  # noqa: E402

SHAPE = (12, 10, 14)


def why(folder: Path) -> str:
    """The one sentence on a folder that holds no volume; no patient is in it."""
    found = find_series(folder)
    assert len(found) == 1
    assert isinstance(found[0], Unusable)
    assert not any(tag in found[0].why for tag in TAGS_OF_A_PATIENT)
    return found[0].why


def series(folder: Path, *, resample: bool = False) -> Series:
    (found,) = find_series(folder, resample=resample)
    assert isinstance(found, Series), found
    return found


def tilted_positions(count: int, degrees: float, step_mm: float = 4.0) -> list[tuple[float, ...]]:
    """Of slices in the plane of a gantry tilted about the left-right axis, while the table moves straight."""
    return [(-100.0, -80.0 + k * step_mm * np.sin(np.radians(degrees)), k * step_mm) for k in range(count)]


def tilted_direction(degrees: float) -> tuple[float, ...]:
    angle = np.radians(degrees)
    return (1.0, 0.0, 0.0, 0.0, float(np.cos(angle)), float(np.sin(angle)))


def straight_table(count: int, step_mm: float) -> list[tuple[float, ...]]:
    return [(-100.0, -80.0, k * step_mm) for k in range(count)]


def test_a_series_lies_in_any_nesting_beside_other_files(tmp_path: Path) -> None:
    uid = generate_uid()
    files = write_series(tmp_path / "a", random_voxels(SHAPE), uid=uid)
    for number, file in enumerate(files[::2]):
        (tmp_path / "b" / str(number)).mkdir(parents=True)
        shutil.move(file, tmp_path / "b" / str(number) / file.name)
    (tmp_path / "notes.txt").write_text("Wolperdinger")
    (tmp_path / "picture").write_bytes(b"\x89PNG" + bytes(300))
    (tmp_path / ".hidden").write_bytes(b"\0" * 128 + b"DICM")
    found = series(tmp_path)
    assert found.grid.shape_zyx == SHAPE
    assert found.id == hashed(uid)
    assert list(found.grid.stored_mm) == pytest.approx([0.7, 0.8, 2.5])


def test_localizers_in_the_series_and_beside_it_are_left_out_and_said(tmp_path: Path) -> None:
    uid = generate_uid()
    write_series(tmp_path, random_voxels(SHAPE), uid=uid)
    scout = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    write_series(
        tmp_path,
        random_voxels((1, 10, 14)),
        uid=uid,
        orientation=scout,
        marks=("ORIGINAL", "PRIMARY", "LOCALIZER"),
        seed=1,
    )
    usable, left_out = sorted(find_series(tmp_path), key=lambda one: isinstance(one, Unusable))
    assert isinstance(usable, Series)
    assert usable.grid.shape_zyx == SHAPE
    assert isinstance(left_out, Unusable)
    assert left_out.why == "Localizer images."
    assert series_of(tmp_path) == usable
    assert usable.id == hashed(uid) != left_out.id


def test_a_scan_keeps_its_id_whatever_comes_into_its_series(tmp_path: Path) -> None:
    """Only another volume that may be meant takes it away: then both are told apart."""
    uid = generate_uid()
    write_series(tmp_path, random_voxels(SHAPE), uid=uid)
    path = path_of(tmp_path, series(tmp_path))
    assert path.name == f"series-{hashed(uid)}"
    scout = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    write_series(tmp_path, random_voxels((1, 10, 14)), uid=uid, orientation=scout, marks=("", "", "LOCALIZER"), seed=1)
    reformat = ("DERIVED", "SECONDARY", "MPR")
    write_series(tmp_path, random_voxels((7, 9, 11)), uid=uid, orientation=scout, marks=reformat, seed=2)
    write_series(tmp_path, random_voxels((1, 40, 40)), uid=uid, seed=3)  # a page of text, or a slice alone
    found = find_series(tmp_path)
    assert len({one.id for one in found}) == len(found) == 4
    assert series_of(path).grid.shape_zyx == SHAPE
    for asked in (uid, hashed(uid)):
        (chosen,) = choose(tmp_path, found, asked).series
        assert chosen.id == hashed(uid)
    (derived,) = (one for one in found if isinstance(one, Unusable) and one.series)
    assert derived.series
    assert choose(tmp_path, found, derived.id).series == (derived.series,)
    assert series_of(path_of(tmp_path, derived)).id == derived.series.id == derived.id
    write_series(tmp_path, random_voxels((9, 20, 28)), uid=uid, spacing=(0.4, 0.35), seed=4)
    found = find_series(tmp_path)
    assert len({one.id for one in found}) == len(found) == 5
    assert hashed(uid) not in {one.id for one in found}
    with pytest.raises(DataError, match="the series is no longer there"):
        series_of(path)


def test_derived_images_are_left_out_unless_they_are_asked_for(tmp_path: Path) -> None:
    write_series(tmp_path, random_voxels(SHAPE), marks=("DERIVED", "SECONDARY", "MPR"), description="Cor MPR")
    assert why(tmp_path) == "Derived images (reformats, projections), which are read where --series names them alone."
    found = find_series(tmp_path)
    assert choose(tmp_path, found).why == f"no series that is a volume. {why(tmp_path)}"
    (chosen,) = choose(tmp_path, found, "cor mpr").series
    assert series_of(path_of(tmp_path, found[0])) == chosen


def test_two_series_in_a_folder_are_refused_with_the_list(tmp_path: Path) -> None:
    first, second = generate_uid(), generate_uid()
    write_series(tmp_path, random_voxels(SHAPE), uid=first, description="Lunge 1.0 Wolperdinger")
    write_series(tmp_path, random_voxels((8, 10, 14)), uid=second, description="Abdomen 5.0", seed=1)
    with pytest.raises(DataError) as refused:
        series_of(tmp_path)
    text = str(refused.value)
    assert "2 series in one folder." in text
    assert f"{hashed(first)} (CT, 14 x 10 x 12, 0.7 x 0.8 x 2.5 mm)" in text
    assert "--series" in text
    assert "Wolperdinger" not in text
    found = find_series(tmp_path)
    for asked in (second, hashed(second), "abdomen"):
        (chosen,) = choose(tmp_path, found, asked).series
        assert chosen.uid == second
    assert len(choose(tmp_path, found, "all").series) == 2
    assert "no series fits --series spine" in choose(tmp_path, found, "spine").why
    assert "2 series" in choose(tmp_path, found, ".0").several[0]


def test_two_series_in_folders_of_their_own_are_two_scans(tmp_path: Path) -> None:
    write_series(tmp_path / "Wolperdinger" / "a", random_voxels(SHAPE))
    write_series(tmp_path / "Wolperdinger" / "b", random_voxels(SHAPE))
    found = find_series(tmp_path)
    assert [one.id for one in choose(tmp_path, found).series] == [one.id for one in found]
    for one in found:
        path = path_of(tmp_path, one)
        assert path.parent == tmp_path
        assert "Wolperdinger" not in path.name
        assert series_of(path) == one
        assert place_of(path) is not None
        assert stamp_of(path)[0] == sum(file.stat().st_size for file in one.files)


def test_one_series_of_two_matrices_is_two_volumes(tmp_path: Path) -> None:
    uid = generate_uid()
    write_series(tmp_path, random_voxels(SHAPE), uid=uid)
    write_series(tmp_path, random_voxels((9, 20, 28)), uid=uid, spacing=(0.4, 0.35), seed=1)
    found = find_series(tmp_path)
    assert sorted(one.grid.shape_zyx for one in found if isinstance(one, Series)) == [(9, 20, 28), SHAPE]
    assert len({one.id for one in found}) == 2


def test_volumes_of_one_series_in_folders_of_their_own_are_read(tmp_path: Path) -> None:
    uid = generate_uid()
    write_series(tmp_path / "a", random_voxels(SHAPE), uid=uid)
    write_series(tmp_path / "b", random_voxels((9, 20, 28)), uid=uid, spacing=(0.4, 0.35), seed=1)
    found = find_series(tmp_path)
    assert len({one.id for one in found}) == 2
    assert [series_of(path_of(tmp_path, one)) for one in found] == found


def test_a_gap_is_refused_with_the_slices_named(tmp_path: Path) -> None:
    files = write_series(tmp_path, random_voxels(SHAPE))
    for k in (5, 6):
        files[k].unlink()
    assert why(tmp_path) == (
        f"A gap of 7.5 mm between InstanceNumber 8 ({files[4].name}) and InstanceNumber 5 ({files[7].name}): 2 slices "
        "are missing. Restore the slices, or add --resample, which makes a regular grid."
    )


def test_uneven_spacing_is_refused_with_the_slice_named(tmp_path: Path) -> None:
    at = [k * 2.5 for k in range(12)]
    at[7] += 0.9
    files = write_series(tmp_path, random_voxels(SHAPE), positions=positions_along(AXIAL, at))
    assert f"InstanceNumber 5 ({files[7].name}) lies 3.4 mm after" in why(tmp_path)
    assert "others 2.5 mm: the spacing is uneven" in why(tmp_path)


def test_positions_that_are_rounded_are_regular(tmp_path: Path) -> None:
    at = [round(k * 0.625, 1) for k in range(12)]
    write_series(tmp_path, random_voxels(SHAPE), positions=positions_along(AXIAL, at))
    assert series(tmp_path).grid.spacing_mm[0] == pytest.approx(6.9 / 11)


def test_duplicates_are_refused_with_the_slice_named(tmp_path: Path) -> None:
    files = write_series(tmp_path, random_voxels(SHAPE))
    shutil.copy(files[3], tmp_path / "copy")
    assert "InstanceNumber 9 (copy) lies where" in why(tmp_path) or "lies where InstanceNumber 9 (copy)" in why(
        tmp_path
    )
    assert "a duplicate" in why(tmp_path)
    assert series(tmp_path, resample=True).grid.shape_zyx == SHAPE


def test_times_are_4d_and_refused(tmp_path: Path) -> None:
    uid = generate_uid()
    for seed in range(3):
        write_series(tmp_path, random_voxels(SHAPE), uid=uid, seed=seed)
    assert why(tmp_path).startswith("4D: 3 slices at each of 12 places")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda d: setattr(d, "SamplesPerPixel", 3), "Colour images are not read"),
        (lambda d: setattr(d, "PhotometricInterpretation", "PALETTE COLOR"), "Colour images are not read"),
        (lambda d: d.pop("ImagePositionPatient"), "no position, orientation or pixel spacing"),
        (lambda d: setattr(d, "Modality", "SEG"), "A segmentation, no scan."),
        (lambda d: setattr(d, "RescaleSlope", "0"), "the rescale slope is 0"),
        (lambda d: setattr(d, "BitsStored", 17), "are not read"),
        (lambda d: setattr(d, "Rows", 0), "pixels are no slice's"),
        (lambda d: setattr(d, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "no pair of perpendicular directions"),
        (lambda d: setattr(d, "PixelSpacing", [0, 0]), "the pixel spacing is no scan's"),
        (lambda d: d.pop("Rows"), "No image."),
    ],
)
def test_what_is_no_volume_is_said(spoil: Callable[[Any], None], said: str, tmp_path: Path) -> None:
    for file in write_series(tmp_path, random_voxels((3, 4, 5))):
        dataset = pydicom.dcmread(file)
        spoil(dataset)
        dataset.save_as(file)
    assert said in why(tmp_path)


def test_one_slice_is_no_volume(tmp_path: Path) -> None:
    write_series(tmp_path, random_voxels((1, 4, 5)))
    assert why(tmp_path) == "One slice alone is no volume. Name the folder that holds all of its series."


def test_frames_without_positions_are_no_volume(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "a.dcm", random_voxels((3, 4, 5)))
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    del dataset.PerFrameFunctionalGroupsSequence
    dataset.save_as(tmp_path / "a.dcm")
    assert "frames without positions of their own" in why(tmp_path)


def test_a_series_without_uids_is_one(tmp_path: Path) -> None:
    write_series(tmp_path, random_voxels(SHAPE), uid=" ", SOPInstanceUID="")
    assert len(series(tmp_path).id) == 12


def test_tilt_is_refused_with_the_angle_and_the_slice(tmp_path: Path) -> None:
    files = write_series(
        tmp_path, random_voxels(SHAPE), orientation=tilted_direction(20), positions=straight_table(12, 4.0)
    )
    assert why(tmp_path).startswith(
        f"Tilted by 20.0 degrees (a gantry tilt): InstanceNumber 1 ({files[-1].name}) lies 15.05 mm beside "
        f"InstanceNumber 12 ({files[0].name}) in its plane."
    )


def ball(points_mm: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Two organs of a phantom at points (LPS, millimetres), smooth at their borders: values of a CT."""
    big = 30.0 - np.linalg.norm(points_mm - np.array([0.0, 0.0, 60.0]), axis=-1)
    small = 14.0 - np.linalg.norm(points_mm - np.array([45.0, 20.0, 80.0]), axis=-1)
    return np.clip(np.maximum(big, small), -1, 1) * 500


def slice_points(
    position: tuple[float, ...], orientation: tuple[float, ...], rows: int, columns: int, mm: float
) -> Any:
    along = np.array(orientation)
    down, across = np.meshgrid(np.arange(rows) * mm, np.arange(columns) * mm, indexing="ij")
    return np.array(position) + across[..., None] * along[:3] + down[..., None] * along[3:]


@pytest.mark.parametrize("degrees", [-25.0, 12.0])
def test_a_tilted_phantom_is_made_regular_and_its_labels_return_to_its_slices(degrees: float, tmp_path: Path) -> None:
    orientation, positions = tilted_direction(degrees), straight_table(40, 3.0)
    planes = [ball(slice_points(position, orientation, 160, 200, 1.0)) for position in positions]
    write_series(
        tmp_path,
        np.rint(planes).astype(np.int16),
        orientation=orientation,
        positions=positions,
        spacing=(1.0, 1.0),
        intercepts=[0.0],
    )
    found = series(tmp_path, resample=True)
    path = path_of(tmp_path, found, resample=True)
    assert path.name.endswith("-resampled")
    voxels = read_voxels(path)
    columns = voxels.grid.affine[:3, :3]
    assert np.allclose(columns.T @ columns, np.diag(np.square(voxels.grid.stored_mm)))  # nothing is sheared any more
    indices = np.stack(np.meshgrid(*map(np.arange, voxels.stored.shape), indexing="ij"), axis=-1)
    points = (indices @ columns.T + voxels.grid.affine[:3, 3]) * [-1, -1, 1]
    expected = ball(points)
    covered = voxels.stored > voxels.stored.min()
    assert np.abs(voxels.stored - expected)[covered].mean() < 3
    label = (voxels.stored > 0).astype(np.uint8)  # as a perfect network would
    back = series_of(path).on_source(label)
    assert back.shape == (200, 160, 40)
    truth = (np.array(planes) > 0).transpose(2, 1, 0)
    assert dice(truth, back == 1) >= 0.98
    in_seg = np.zeros(truth.shape, dtype=bool)
    for position, plane in frames_of_segmentation(label, found, tmp_path / "seg.dcm"):
        in_seg[:, :, int(np.argmin([np.abs(np.subtract(place, position)).max() for place in positions]))] = plane.T
    assert dice(truth, in_seg) >= 0.98


def dice(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))


def frames_of_segmentation(label: np.ndarray[Any, Any], of: Series, file: Path) -> list[tuple[Any, Any]]:
    """Positions and planes of a DICOM segmentation of it, each of which lies on a slice of the series."""
    pytest.importorskip("highdicom")
    from semiseg.geometry import to_canonical
    from semiseg.io.dicom.derived import MadeBy, read_source
    from semiseg.io.dicom.segmentation import write_segmentation

    write_segmentation(file, to_canonical(label, of.grid.affine), read_source(of), {1: "liver"}, MadeBy(model="m"))
    dataset = pydicom.dcmread(file)
    places = [[float(v) for v in one.position or ()] for one in of.slices]
    found = []
    for group, plane in zip(dataset.PerFrameFunctionalGroupsSequence, dataset.pixel_array, strict=True):
        position = [float(v) for v in group.PlanePositionSequence[0].ImagePositionPatient]
        assert min(np.abs(np.subtract(place, position)).max() for place in places) < 1e-3
        found.append((position, plane > 0))
    return found


def test_gaps_and_uneven_slices_are_filled_between_their_neighbours(tmp_path: Path) -> None:
    at = [0.0, 2.0, 4.0, 10.0, 12.0, 13.0, 16.0, 18.0]
    ramp = np.array([np.full((4, 5), place * 10) for place in at]).astype(np.int16)
    write_series(tmp_path, ramp, positions=positions_along(AXIAL, at), intercepts=[0.0])
    assert "A gap of 6 mm" in why(tmp_path)
    found = series(tmp_path, resample=True)
    voxels = read_voxels(path_of(tmp_path, found, resample=True))
    assert voxels.stored[0, 0].tolist() == [place * 10 for place in range(0, 20, 2)]
    label = np.zeros(voxels.stored.shape, np.uint8)
    label[..., 5:7] = 1
    assert found.on_source(label)[0, 0].tolist() == [0, 0, 0, 1, 1, 1, 0, 0]


def test_a_regular_series_is_the_same_with_resample(tmp_path: Path) -> None:
    write_series(tmp_path, random_voxels(SHAPE))
    with_it, without = series(tmp_path, resample=True), series(tmp_path)
    assert with_it == without
    assert path_of(tmp_path, with_it, resample=True) == path_of(tmp_path, without)
