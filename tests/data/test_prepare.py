from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from semiseg.data.body import BodyBoxes, body_locations, body_mask
from semiseg.data.plan import ChannelNormalisation, NetworkPlan, Plan
from semiseg.data.prepare import (
    PreparedCase,
    case_hash,
    prepare_case,
    prepare_cases,
)
from semiseg.data.scan_rows import ScanRows, export_axis, preparation_axis
from semiseg.errors import DataError
from semiseg.files import hash_files
from semiseg.geometry import Box
from semiseg.io.dataset import Case, LabelScheme
from semiseg.io.scans import RawChannel, hash_of
from semiseg.io.store import open_case, read_case_meta

NETWORK = NetworkPlan(features=(4, 8), kernels=((3, 3, 3),) * 2, strides=((1, 1, 1), (2, 2, 2)))
PLAN = Plan(
    dataset="made up",
    channels=("CT",),
    labels=LabelScheme(names={0: "background", 1: "ball", 2: "core"}, ignore=9),
    spacing_mm=(2.0, 1.0, 1.0),
    anisotropic_axis=None,
    patch=(8, 8, 8),
    batch=2,
    normalisation=(ChannelNormalisation(scheme="ct", low=-100, high=200, mean=50, deviation=75),),
    teacher=NETWORK,
    student=NETWORK,
)


def _save(path: Path, array_zyx: np.ndarray, spacing_mm: tuple[float, float, float], *, flip: bool = False) -> Path:
    """Store in RAS+, or with `flip` in LPS+."""
    stored, affine = array_zyx.transpose(2, 1, 0), np.diag([*spacing_mm[::-1], 1.0])
    if flip:
        stored = stored[::-1, ::-1]
        affine = affine @ np.diag([-1.0, -1.0, 1.0, 1.0])
        affine[:2, 3] = [spacing_mm[2] * (stored.shape[0] - 1), spacing_mm[1] * (stored.shape[1] - 1)]
    nib.save(nib.Nifti1Image(np.ascontiguousarray(stored), affine), path)
    return path


def _scan(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A ball of 60 HU with a core of 120 in air, off centre, with noise; and its label map."""
    z, y, x = np.indices((12, 24, 30))
    distance = np.sqrt(((z - 5) * 2.0) ** 2 + (y - 10) ** 2 + (x - 16) ** 2)
    label = (distance < 9).astype(np.uint8) + (distance < 4)
    image = np.choose(label, [-1000.0, 60.0, 120.0]) + np.random.default_rng(seed).normal(0, 5, label.shape)
    return image.astype(np.float32), label.astype(np.uint8)


def _prepared(image: np.ndarray, spacing_mm: tuple[float, float, float], plan: Plan) -> np.ndarray:
    """A scan of one channel as the network sees it."""
    scan = ScanRows([RawChannel(image)], spacing_mm, plan)
    return scan.rows(0, scan.shape[0])


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    """Three labelled cases and one unlabelled one, 2 x 0.8 x 0.8 mm."""
    found = []
    for index in range(4):
        image, label = _scan(index)
        file = _save(tmp_path / f"case{index}_0000.nii.gz", image, (2.0, 0.8, 0.8))
        label_file = _save(tmp_path / f"case{index}.nii.gz", label, (2.0, 0.8, 0.8))
        found.append(Case(id=f"case{index}", images=(file,), label=label_file if index < 3 else None))
    return found


def test_prepared_equals_nnunets_order_done_by_scipy() -> None:
    image, _ = _scan()
    prepared = _prepared(image, (2.0, 0.8, 0.8), PLAN)[0]
    normalised = (np.clip(image.astype(np.float64), -100, 200) - 50) / 75
    expected = ndimage.zoom(normalised, (1.0, 19 / 24, 24 / 30), order=3, mode="nearest", grid_mode=True).clip(
        normalised.min(), normalised.max()
    )
    assert prepared.shape == (12, 19, 24)
    # Values are within 2; three float32 operations round by a few eps (1e-7) of that.
    np.testing.assert_allclose(prepared, expected, atol=2e-6)


def test_what_is_stored(cases: list[Case], tmp_path: Path) -> None:
    result = prepare_case(cases[0], PLAN, tmp_path / "store")
    assert result == PreparedCase(id="case0", hash=case_hash(cases[0], PLAN))
    case = open_case(tmp_path / "store" / "case0")
    whole = Box((0, 0, 0), (12, 19, 24))
    image, label = case.read_image(whole), case.read_label(whole)
    np.testing.assert_array_equal(image, _prepared(_scan(0)[0], (2.0, 0.8, 0.8), PLAN))
    meta = case.meta
    assert (meta.source_shape_zyx, meta.spacing_mm) == ((12, 24, 30), PLAN.spacing_mm)
    assert meta.source_spacing_mm == pytest.approx((2.0, 0.8, 0.8), abs=1e-6)  # NIfTI stores spacings in float32
    assert meta.channels == len(image)
    assert meta.class_voxels == {value: int((label == value).sum()) for value in (0, 1, 2)}
    assert set(meta.class_locations) == {1, 2}
    for value, places in meta.class_locations.items():
        assert len(set(places)) == min(512, meta.class_voxels[value])
        assert all(label[place] == value for place in places)
    # Bodies are found at full resolution here: at least the inner part of the ball, never the air.
    assert np.mean([label[place] > 0 for place in meta.body_locations]) > 0.9
    # The volume of the ball is kept by resampling, to the voxels of its surface.
    assert np.mean(label > 0) == pytest.approx(np.mean(_scan(0)[1] > 0), rel=0.05)


def test_prepared_twice_is_reused_and_bit_equal_when_forced(cases: list[Case], tmp_path: Path) -> None:
    first = prepare_cases(cases, PLAN, tmp_path / "a")
    again = prepare_cases(cases, PLAN, tmp_path / "a")
    assert [r.reused for r in first] == [False] * 4
    assert [r.reused for r in again] == [True] * 4
    assert [r.hash for r in first] == [r.hash for r in again]
    steps: list[tuple[int, int, str]] = []
    parallel = prepare_cases(cases, PLAN, tmp_path / "b", workers=2, progress=lambda *step: steps.append(step))
    assert [replace(r, stamps=None) for r in parallel] == [replace(r, stamps=None) for r in first]
    assert sorted(step[0] for step in steps) == [1, 2, 3, 4]
    for case in cases:
        for name in ("image.b2nd", "case.json"):
            assert (tmp_path / "a" / case.id / name).read_bytes() == (tmp_path / "b" / case.id / name).read_bytes()


def test_what_has_its_size_and_time_is_not_read_again(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    first = prepare_cases(cases, PLAN, store)
    hashed: list[Path] = []

    def noted(paths: Sequence[Path], *, salt: str = "") -> str:
        hashed.extend(paths)
        return hash_files(paths, salt=salt)

    def noted_scans(paths: Sequence[Path], *, salt: str) -> str:
        hashed.extend(paths)
        return hash_of(paths, salt=salt)

    monkeypatch.setattr("semiseg.data.prepare.hash_of", noted_scans)
    monkeypatch.setattr("semiseg.io.store.hash_files", noted)
    assert [r.hash for r in prepare_cases(cases, PLAN, store)] == [r.hash for r in first]
    assert hashed == []
    os.utime(cases[0].images[0], (1, 1))
    assert all(r.reused for r in prepare_cases(cases, PLAN, store))
    assert {path.name.split("_")[0].split(".")[0] for path in hashed if path.parent != store / "case0"} == {"case0"}
    # A bit that flips on a disk changes no time: only who asks finds it.
    image = store / "case1" / "image.b2nd"
    kept, damaged = image.stat(), bytearray(image.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    image.write_bytes(damaged)
    os.utime(image, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert [r.reused for r in prepare_cases(cases, PLAN, store)] == [True] * 4
    assert [r.reused for r in prepare_cases(cases, PLAN, store, verify=True)] == [True, False, True, True]
    # Another recipe, and a list of what was seen that is damaged: read anew.
    (store / "seen.jsonl").write_text("no json\n")
    hashed.clear()
    assert all(r.reused for r in prepare_cases(cases, PLAN, store))
    assert len(hashed) > 4
    assert not any(r.reused for r in prepare_cases(cases, replace(PLAN, spacing_mm=(3.0, 1.0, 1.0)), store))


def test_what_matters_is_done_again_and_what_does_not_is_not(cases: list[Case], tmp_path: Path) -> None:
    store = tmp_path / "store"
    prepare_case(cases[0], PLAN, store)
    for change in ({"batch": 4}, {"patch": (16, 16, 16)}, {"dataset": "renamed"}):
        assert prepare_case(cases[0], replace(PLAN, **change), store).reused  # type: ignore[arg-type]
    assert not prepare_case(cases[0], replace(PLAN, spacing_mm=(3.0, 1.0, 1.0)), store).reused
    assert read_case_meta(store / "case0").shape_zyx == (8, 19, 24)
    hidden = replace(cases[0], label=None)
    assert not prepare_case(hidden, PLAN, store).reused
    assert not (store / "case0" / "label.b2nd").exists()
    assert prepare_case(hidden, PLAN, store).reused
    _save(cases[0].images[0], _scan(99)[0], (2.0, 0.8, 0.8))
    assert not prepare_case(hidden, PLAN, store).reused


def test_a_damaged_stored_case_is_done_again(cases: list[Case], tmp_path: Path) -> None:
    prepare_case(cases[0], PLAN, tmp_path)
    (tmp_path / "case0" / "image.b2nd").write_bytes(b"cut")
    assert not prepare_case(cases[0], PLAN, tmp_path).reused
    assert open_case(tmp_path / "case0").read_image(Box((0, 0, 0), (2, 2, 2))).shape == (1, 2, 2, 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_case_is_named_and_stops_no_other(cases: list[Case], tmp_path: Path, workers: int) -> None:
    cases[1].images[0].write_bytes(cases[1].images[0].read_bytes()[:2000])
    assert cases[2].label is not None
    _save(cases[2].label, np.zeros((12, 24, 29), np.uint8), (2.0, 0.8, 0.8))
    missing = Case(id="gone", images=(tmp_path / "gone_0000.nii.gz",), label=None)
    results = prepare_cases([*cases, missing], PLAN, tmp_path / "store", workers=workers)
    assert [r.id for r in results] == ["case0", "case1", "case2", "case3", "gone"]
    assert [r.error is None for r in results] == [True, False, False, True, False]
    assert "case1_0000.nii.gz" in (results[1].error or "")
    assert "(12, 24, 29)" in (results[2].error or "")
    assert "gone_0000.nii.gz" in (results[4].error or "")
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == ["case0", "case3", "seen.jsonl"]


def test_label_values_beyond_the_list_are_refused_with_their_count(cases: list[Case], tmp_path: Path) -> None:
    _, label = _scan()
    label[0, 0, :3] = 14
    assert cases[0].label is not None
    _save(cases[0].label, label, (2.0, 0.8, 0.8))
    with pytest.raises(DataError, match=r"case0\.nii\.gz: 3 voxels have value 14, but the dataset's labels end at 2"):
        prepare_case(cases[0], PLAN, tmp_path / "store")


def test_the_ignore_value_is_kept_but_no_place_to_draw_patches_from(cases: list[Case], tmp_path: Path) -> None:
    _, label = _scan()
    label[:, :6] = 9
    assert cases[0].label is not None
    _save(cases[0].label, label, (2.0, 0.8, 0.8))
    prepare_case(cases[0], PLAN, tmp_path / "store")
    meta = read_case_meta(tmp_path / "store" / "case0")
    assert meta.class_voxels[9] > 0
    assert set(meta.class_locations) == {1, 2}


def test_the_number_of_channels_must_be_the_plans(cases: list[Case], tmp_path: Path) -> None:
    two = replace(cases[0], images=cases[0].images * 2)
    with pytest.raises(DataError, match=r"case0_0000.*2 channels, but the plan expects 1 \(CT\)"):
        prepare_case(two, PLAN, tmp_path / "store")


def test_orientation_on_disk_does_not_matter(cases: list[Case], tmp_path: Path) -> None:
    image, label = _scan(0)
    flipped = Case(
        id="flipped",
        images=(_save(tmp_path / "f_0000.nii.gz", image, (2.0, 0.8, 0.8), flip=True),),
        label=_save(tmp_path / "f.nii.gz", label, (2.0, 0.8, 0.8), flip=True),
    )
    prepare_cases([cases[0], flipped], PLAN, tmp_path / "store")
    whole = Box((0, 0, 0), (12, 19, 24))
    first, second = (open_case(tmp_path / "store" / name) for name in ("case0", "flipped"))
    np.testing.assert_array_equal(first.read_image(whole), second.read_image(whole))
    np.testing.assert_array_equal(first.read_label(whole), second.read_label(whole))


def test_which_axis_is_coarse_on_the_way_in_and_out() -> None:
    coarse = replace(PLAN, spacing_mm=(5.0, 1.0, 1.0), anisotropic_axis=0)
    assert preparation_axis((1.0, 1.0, 1.0), coarse) == export_axis((1.0, 1.0, 1.0), coarse) == 0
    assert preparation_axis((1.0, 1.0, 4.0), coarse) == 2
    assert export_axis((1.0, 1.0, 4.0), coarse) == 0
    assert preparation_axis((1.0, 1.0, 4.0), PLAN) == export_axis((1.0, 1.0, 4.0), PLAN) == 2
    assert preparation_axis((1.0, 1.0, 1.0), PLAN) is export_axis((1.0, 1.0, 1.0), PLAN) is None


def test_zscore_makes_cases_of_any_intensity_alike() -> None:
    plan = replace(PLAN, channels=("MRI",), normalisation=(ChannelNormalisation(scheme="zscore"),))
    image, _ = _scan()
    low = _prepared(image, (2.0, 1.0, 1.0), plan)
    high = _prepared(image * np.float32(4096), (2.0, 1.0, 1.0), plan)
    # A power of two changes exponents only, so nothing but the last division can round differently.
    np.testing.assert_allclose(low, high, atol=1e-6)


def test_the_body_of_a_ct_is_above_air_without_small_pieces() -> None:
    image, label = _scan()
    image[:, :2] = -3000  # padding far below air must not become the background of the threshold
    image[10, 21:, 27:] = 300  # a table, apart from the body
    mask = body_mask(image, ct=True)
    np.testing.assert_array_equal(mask, label > 0)


def test_boxes_that_hold_body() -> None:
    """A body in one corner of a scan that is stored with a slope, told on another grid."""
    stored = np.zeros((200, 100, 60), np.int16)
    stored[100:, 50:, :] = 1000
    boxes = BodyBoxes(RawChannel(stored, slope=1.0, inter=-1000.0), (100, 100, 30))
    assert boxes((50, 50, 0), (60, 60, 10))
    assert boxes((0, 0, 0), (100, 100, 30))
    assert boxes((90, 90, -20), (130, 130, 10))  # partly outside
    assert not boxes((0, 0, 0), (40, 100, 30))
    assert not boxes((0, 0, 0), (100, 40, 30))
    assert boxes((0, 0, 0), (50, 50, 30))  # beside it: the outline is not that exact
    empty = BodyBoxes(RawChannel(np.zeros((20, 20, 20), np.int16)), (20, 20, 20))
    assert empty((0, 0, 0), (5, 5, 5))  # no body was found: nothing is left out
    assert empty.region((1, 1, 1)) == Box((0, 0, 0), (20, 20, 20))


def test_the_region_of_the_body_holds_all_of_it() -> None:
    stored = np.zeros((200, 100, 60), np.int16)
    stored[60:140, 50:, 20:30] = 1000
    boxes = BodyBoxes(RawChannel(stored, slope=1.0, inter=-1000.0), (100, 100, 30))
    region = boxes.region((5, 3, 2))
    assert region is not None
    # On the grid of the boxes the body is at 30 to 70, 50 to 100 and 10 to 15. Every third row and every second column
    # were looked at, and one of those is added on either side.
    wanted = Box((25, 47, 8), (75, 100, 17))
    assert (np.subtract(wanted.start, region.start) >= 0).all()
    assert (np.subtract(region.stop, wanted.stop) >= 0).all()
    assert (np.subtract(region.shape, wanted.shape) <= 8).all()


def test_body_places_lie_in_both_legs_and_not_in_the_air_inside() -> None:
    """Unlabelled patches are drawn around them, and pseudo-labels are made as far as they reach."""
    stored = np.full((40, 60, 90), -1000, np.int16)
    stored[:, 20:40, 10:30] = 40
    stored[:, 22:38, 60:75] = 40  # the other leg
    stored[10:30, 26:34, 16:24] = -850  # lung
    stored[0, :4, :4] = 300  # a piece of the table, less than 1 % of the larger leg
    places = body_locations(RawChannel(stored), (40, 60, 90), ct=True, count=512, generator=np.random.default_rng(0))
    assert {int(stored[place]) for place in places} == {40}
    assert 0.3 < np.mean([x >= 60 for _, _, x in places]) < 0.5  # 0.39 of the legs without the lung


def test_body_places_lie_in_the_grid_even_without_a_body() -> None:
    generator = np.random.default_rng(0)
    empty = np.zeros((3, 200, 150), dtype=np.float32)
    places = body_locations(RawChannel(empty), (7, 10, 400), ct=True, count=512, generator=generator)
    assert len(places) == 512
    assert np.min(places) >= 0
    assert (np.max(places, axis=0) < (7, 10, 400)).all()


def test_real_cases_are_prepared(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "Dataset101_HeadNeckCT"
    image = sorted((root / "imagesTr").glob("*.nii.gz"))[0]
    name = image.name.removesuffix("_0000.nii.gz")
    case = Case(id=name, images=(image,), label=root / "labelsTr" / f"{name}.nii.gz")
    labels = LabelScheme(names={0: "background", 1: "brainstem", 2: "cord", 3: "right", 4: "left"})
    plan = replace(PLAN, labels=labels, spacing_mm=(3.0, 3.0, 3.0))
    prepare_case(case, plan, tmp_path)
    meta = read_case_meta(tmp_path / name)
    assert all(meta.class_locations.get(value) for value in (1, 2, 3, 4))
    before = np.asarray(nib.load(case.label).dataobj)  # type: ignore[arg-type]
    for value in (1, 2, 3, 4):
        ratio = np.prod(meta.spacing_mm) / np.prod(meta.source_spacing_mm)
        volume = meta.class_voxels[value] * ratio
        # Organs of a few hundred voxels lose or gain some of their surface by resampling.
        assert volume == pytest.approx(np.count_nonzero(before == value), rel=0.25)


def test_the_body_is_both_legs_and_the_air_inside() -> None:
    """What a largest component alone would leave out: tiles there must be computed."""
    stored = np.full((40, 60, 90), -1000, np.int16)
    stored[:, 20:40, 10:30] = 40
    stored[:, 22:38, 60:75] = 40  # the other leg
    stored[10:30, 26:34, 16:24] = -850  # lung
    boxes = BodyBoxes(RawChannel(stored), (40, 60, 90))
    assert boxes((5, 25, 62), (15, 35, 70))
    assert boxes((18, 29, 19), (20, 31, 21))
    assert not boxes((0, 0, 80), (40, 10, 90))
    turned = BodyBoxes(RawChannel(stored), (90, 40, 60), (2, 0, 1))
    assert turned((62, 5, 25), (70, 15, 35))
    assert not turned((80, 0, 0), (90, 40, 10))
