"""What a coarser grid keeps of labels, against a computation of its own, and on shapes whose answer is known."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from semiseg.data.round_trip import MOST_CASES, grid_ceilings, round_trip_dice
from semiseg.io.dataset import LabelScheme
from semiseg.types import BoolArray, Spacing

SCHEME = LabelScheme(names={0: "background", 1: "large", 2: "small"})
MM = (1.0, 1.0, 1.0)


def ball(radius: float, edge: int = 40) -> BoolArray:
    middle = (edge - 1) / 2
    z, y, x = np.ogrid[:edge, :edge, :edge]
    inside: BoolArray = (z - middle) ** 2 + (y - middle) ** 2 + (x - middle) ** 2 <= radius**2
    return inside


def linear(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Linear interpolation in double precision between voxel middles, borders going on."""
    axes = [(np.arange(new) + 0.5) * old / new - 0.5 for old, new in zip(values.shape, shape, strict=True)]
    places = np.meshgrid(*axes, indexing="ij")
    return map_coordinates(values.astype(np.float64), places, order=1, mode="nearest")


def expected_dice(mask: BoolArray, shape: tuple[int, ...]) -> float:
    there = linear(mask, shape) > 0.5
    back = linear(there, mask.shape) > 0.5
    return float(2 * np.sum(mask & back) / (mask.sum() + back.sum()))


def mean(kept: Mapping[str, float]) -> float:
    return sum(kept.values()) / len(kept)


def write(path: Path, label: np.ndarray, spacing_mm: Spacing = MM) -> Path:
    nib.save(nib.Nifti1Image(label.astype(np.uint8).transpose(2, 1, 0), np.diag([*spacing_mm[::-1], 1.0])), path)
    return path


@pytest.mark.parametrize("coarse", [(3.0, 1.0, 1.0), (1.3, 1.7, 2.9), (4.0, 4.0, 4.0)])
def test_it_is_the_dice_of_linear_interpolation_there_and_back(coarse: Spacing) -> None:
    mask = ball(9.3, 31)
    mask[3:6, 20:25, 7:19] = True
    shape = tuple(round(31 / mm) for mm in coarse)
    # Where a weight is a half but for rounding, float32 and float64 may part: a few voxels of some thousand.
    assert round_trip_dice(mask, MM, coarse) == pytest.approx(expected_dice(mask, shape), abs=2e-3)


def test_a_grid_that_is_no_coarser_keeps_everything() -> None:
    mask = ball(9.3, 31)
    for grid in (MM, (0.5, 0.9, 1.0), (1.01, 1.01, 1.01)):
        assert round_trip_dice(mask, MM, grid) == 1.0
    assert round_trip_dice(mask, (3.0, 1.0, 1.0), (1.0, 1.0, 1.0)) == 1.0  # along Z the grid is finer: left as it is


def test_of_a_ball_less_is_kept_the_coarser_the_grid() -> None:
    """Mean over places: of one alone it also depends on how its surface lies on the grid."""
    balls = [np.roll(ball(11.0), shift, axis=(0, 1, 2)) for shift in ((0, 0, 0), (1, 2, 3), (3, 1, 2), (2, 3, 1))]
    kept = [np.mean([round_trip_dice(one, MM, (mm, mm, mm)) for one in balls]) for mm in (1, 1.6, 2.5, 4, 6, 10)]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == len(kept)
    assert kept[0] == 1.0
    assert 0.95 < kept[1] < 1.0
    assert kept[-1] < 0.8


def test_of_a_larger_ball_more_is_kept() -> None:
    kept = [round_trip_dice(ball(radius), MM, (4.0, 4.0, 4.0)) for radius in (3.0, 6.0, 12.0, 18.0)]
    assert kept == sorted(kept)


def test_what_is_thin_is_lost_along_its_own_axis_alone() -> None:
    """A sheet of one voxel."""
    sheet = np.zeros((24, 24, 24), dtype=bool)
    sheet[11] = True
    assert round_trip_dice(sheet, MM, (4.0, 1.0, 1.0)) == 0.0
    assert round_trip_dice(sheet, MM, (1.0, 4.0, 4.0)) == 1.0


def test_a_ceiling_is_the_mean_of_an_organ_over_maps(tmp_path: Path) -> None:
    first = ball(12.0).astype(np.uint8)
    first[np.roll(ball(7.0), (-12, -12, -12), axis=(0, 1, 2))] = 2
    second = ball(9.0).astype(np.uint8)
    files = [write(tmp_path / "a.nii.gz", first), write(tmp_path / "b.nii.gz", second)]
    coarse = (4.0, 4.0, 4.0)
    told: list[tuple[int, int, str]] = []
    found = grid_ceilings(files, [MM, coarse], SCHEME, progress=lambda *one: told.append(one))
    assert list(found) == [MM, coarse]
    assert found[MM] == {"large": 1.0, "small": 1.0}
    # A box around each organ is looked at alone, on a grid that begins elsewhere.
    large = np.mean([round_trip_dice(mask, MM, coarse) for mask in (first == 1, second == 1)])
    assert found[coarse]["large"] == pytest.approx(large, abs=0.05)
    assert found[coarse]["small"] == pytest.approx(round_trip_dice(first == 2, MM, coarse), abs=0.05)
    assert told == [(1, 2, "a.nii.gz"), (2, 2, "b.nii.gz")]


@pytest.mark.parametrize("radius", [2.3, 3.3])
@pytest.mark.parametrize("coarse", [(2.0, 2.0, 2.0), (2.5, 2.5, 2.5), (3.0, 3.0, 3.0), (1.0, 3.0, 3.0)])
def test_a_small_organ_lies_anywhere_on_the_grid(tmp_path: Path, radius: float, coarse: Spacing) -> None:
    """Against whole maps in which it lies at random. Means over 30 places and over nine others: a place alone deviates
    by 0.2, so they differ by less than 0.15. The box alone was off by up to 0.5."""
    organ, random = ball(radius, 30), np.random.default_rng(0)
    shifts = random.integers(-10, 10, (30, 3))
    whole = [round_trip_dice(np.roll(organ, tuple(shift), axis=(0, 1, 2)), MM, coarse) for shift in shifts]
    found = grid_ceilings([write(tmp_path / "a.nii.gz", organ)], [coarse], SCHEME)[coarse]
    assert mean(found) == pytest.approx(np.mean(whole), abs=0.15)


def test_nodules_all_over_a_large_scan_are_looked_at_one_by_one(tmp_path: Path) -> None:
    """Their box is the scan, of which every second voxel or fewer is looked at: on such a mask a grid of 3 mm is hardly
    coarser. Each by itself keeps what it does alone."""
    coarse, alone = (3.0, 3.0, 3.0), ball(3.3, 16).astype(np.uint8)
    scan = np.zeros((96, 96, 96), dtype=np.uint8)
    for corner in ((0, 0, 0), (78, 3, 40), (33, 79, 77)):
        scan[tuple(slice(at, at + 16) for at in corner)] = alone
    files = [write(tmp_path / "one.nii.gz", alone), write(tmp_path / "many.nii.gz", scan)]
    one, many = (grid_ceilings([file], [coarse], SCHEME)[coarse]["large"] for file in files)
    assert many == pytest.approx(one, abs=1e-6)
    assert one < 0.8


def test_looking_for_parts_takes_little_more_memory_than_numbering_them(tmp_path: Path) -> None:
    """That is 4 bytes a voxel; counting them at once took 8 more. And the map and its mask, of one each."""
    scan = np.zeros((160, 160, 160), dtype=np.uint8)
    scan[2:8, 2:8, 2:8] = scan[-8:-2, -8:-2, -8:-2] = 1
    file = write(tmp_path / "scan.nii.gz", scan)
    tracemalloc.start()
    try:
        grid_ceilings([file], [(3.0, 3.0, 3.0)], SCHEME)
        assert tracemalloc.get_traced_memory()[1] < 8 * scan.size
    finally:
        tracemalloc.stop()


def test_the_spacing_of_a_map_is_its_own(tmp_path: Path) -> None:
    thick, thin = (tmp_path / "thick.nii.gz", tmp_path / "thin.nii.gz")
    write(thick, ball(10.0), (4.0, 4.0, 4.0)), write(thin, ball(10.0), MM)
    grid = (4.0, 4.0, 4.0)
    assert mean(grid_ceilings([thick], [grid], SCHEME)[grid]) == 1.0
    assert mean(grid_ceilings([thin], [grid], SCHEME)[grid]) < 1.0


def test_a_few_maps_are_looked_at_and_damaged_ones_are_passed_over(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.nii.gz", ball(5.0, 16)) for n in range(3 * MOST_CASES)]
    told: list[str] = []
    grid_ceilings(files, [MM], SCHEME, progress=lambda done, count, name: told.append(name))
    assert told == [f"{3 * n}.nii.gz" for n in range(MOST_CASES)]
    (tmp_path / "bad.nii.gz").write_bytes(b"no label")
    empty = write(tmp_path / "empty.nii.gz", np.zeros((8, 8, 8)))
    coarse = (4.0, 4.0, 4.0)
    alone = grid_ceilings(files[:1], [coarse], SCHEME)
    assert grid_ceilings([tmp_path / "bad.nii.gz", empty, files[0]], [coarse], SCHEME) == alone
    assert grid_ceilings([empty], [coarse], SCHEME) == {coarse: {}}
    assert grid_ceilings([], [coarse], SCHEME) == {coarse: {}}
