"""The phantom: repeatable, anatomically in order, varied, and complete on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from semiseg.demo.dataset import write_phantom_dataset
from semiseg.demo.patient import PHASES, draw_patient
from semiseg.demo.phantom import draw_grid, phantom_case
from semiseg.errors import ConfigError, DataError
from semiseg.files import read_json
from semiseg.io.flare22_labels import FLARE22_ORGANS
from semiseg.io.layouts import read_dataset
from semiseg.io.scans import read_grid, read_label, read_volume
from semiseg.randomness import Draw
from semiseg.types import DoubleArray, FloatArray, LabelArray

TINY = (24, 32, 32)
NUMBER = {name: value for value, name in FLARE22_ORGANS.items()}


def make(seed: int, sample: int) -> tuple[FloatArray, LabelArray, DoubleArray]:
    """Image, label and spacing (Z, Y, X) in mm of one case at the demo's resolution."""
    draw = Draw(seed=seed, sample=sample)
    shape, spacing = draw_grid(draw, spacing_mm=(8, 8, 8))
    image, label = phantom_case(draw, shape_zyx=shape, spacing_mm=spacing)
    return image, label, np.array(spacing)


@pytest.fixture(scope="module")
def cases() -> list[tuple[FloatArray, LabelArray, DoubleArray]]:
    return [make(0, sample) for sample in range(8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "set"
    return write_phantom_dataset(root, seed=0, labelled=2, unlabelled=2, test=1, shape_zyx=TINY)


def centre_mm(label: LabelArray, organ: str, spacing: DoubleArray) -> DoubleArray:
    return np.argwhere(label == NUMBER[organ]).mean(axis=0) * spacing


def test_the_same_key_gives_the_same_bits() -> None:
    draw = Draw(seed=3, sample=7)
    first = phantom_case(draw, shape_zyx=TINY, spacing_mm=(10, 9, 12))
    again = phantom_case(draw, shape_zyx=TINY, spacing_mm=(10, 9, 12))
    other = phantom_case(draw.at(sample=8), shape_zyx=TINY, spacing_mm=(10, 9, 12))
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1].tobytes() == again[1].tobytes()
    assert (first[1] != other[1]).mean() > 0.02


def test_a_finer_grid_shows_the_same_patient() -> None:
    draw = Draw(seed=1, sample=2)
    _, coarse = phantom_case(draw, shape_zyx=(20, 26, 32), spacing_mm=(11.7, 11.1, 11.4))
    _, fine = phantom_case(draw, shape_zyx=(60, 78, 96), spacing_mm=(3.9, 3.7, 3.8))
    assert not {1, 2, 5, 13} - set(np.unique(coarse))
    seen = fine[1::3, 1::3, 1::3]  # the voxel centres of the coarse grid
    both = ((coarse == 1) & (seen == 1)).sum() * 2 / ((coarse == 1).sum() + (seen == 1).sum())
    # Not 1: the radii of the smooth blends do not change with the grid, but the lattice of the bend may by rounding.
    assert both > 0.95


def test_all_organs_occur_and_large_ones_in_every_case(
    cases: list[tuple[FloatArray, LabelArray, DoubleArray]],
) -> None:
    seen = {int(value) for _, label, _ in cases for value in np.unique(label)}
    assert seen == set(range(14))
    for _, label, _ in cases:
        assert {1, 2, 3, 4, 5, 6, 11, 13} <= set(np.unique(label).tolist())
    # Enough voxels to learn from: adrenal glands are enlarged for this.
    for organ in ("left_adrenal_gland", "right_adrenal_gland", "oesophagus", "gallbladder"):
        assert np.median([(label == NUMBER[organ]).sum() for _, label, _ in cases]) >= 30


def test_organs_lie_where_they_belong(cases: list[tuple[FloatArray, LabelArray, DoubleArray]]) -> None:
    """Canonical x grows to the patient's right, y to the front, z to the head."""
    for _, label, spacing in cases:
        right, left = (centre_mm(label, f"{side}_kidney", spacing) for side in ("right", "left"))
        aorta, cava = centre_mm(label, "aorta", spacing), centre_mm(label, "inferior_vena_cava", spacing)
        liver, spleen = centre_mm(label, "liver", spacing), centre_mm(label, "spleen", spacing)
        assert right[2] > cava[2] > aorta[2] > left[2]
        assert liver[2] > spleen[2]
        assert centre_mm(label, "stomach", spacing)[1] > aorta[1]
        assert centre_mm(label, "liver", spacing)[0] > right[0]
        for side, kidney in (("right", right), ("left", left)):
            adrenal = f"{side}_adrenal_gland"
            if (label == NUMBER[adrenal]).any():
                assert centre_mm(label, adrenal, spacing)[0] > kidney[0]


def test_volumes_are_those_of_adults(cases: list[tuple[FloatArray, LabelArray, DoubleArray]]) -> None:
    whole = [(label, spacing) for _, label, spacing in cases if len(label) * spacing[0] > 190]

    def median_ml(organ: str) -> float:
        return float(np.median([(lab == NUMBER[organ]).sum() * np.prod(mm) / 1000 for lab, mm in whole]))

    assert 1000 < median_ml("liver") < 2000
    assert 100 < median_ml("spleen") < 350
    for kidney in ("right_kidney", "left_kidney"):
        assert 110 < median_ml(kidney) < 270
    assert 50 < median_ml("pancreas") < 130


def test_hounsfield_units(cases: list[tuple[FloatArray, LabelArray, DoubleArray]]) -> None:
    for image, label, _ in cases:
        assert image.dtype == np.float32
        assert label.dtype == np.uint8
        assert image.min() >= -1024
        assert image.max() <= 1500
        np.testing.assert_array_equal(image, np.rint(image))
        assert np.median(image[:, -1, 0]) < -950  # air in the front corner
        assert -10 < np.median(image[label == 1]) < 160
        assert (image < -700).mean() > 0.1
        assert (image > 250).any()


def test_paired_kidneys_look_alike_and_phases_differ() -> None:
    by_phase: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for sample in range(40):
        patient = draw_patient(Draw(seed=5, sample=sample))
        by_phase[patient.phase].append(patient.hu["aorta"])
    means = {phase: np.mean(values) for phase, values in by_phase.items()}
    assert means["arterial"] > means["portal"] > means["delayed"] > means["native"]
    for sample in (0, 1, 2):
        image, label, _ = make(0, sample)
        right, left = np.median(image[label == 2]), np.median(image[label == 13])
        # The share of medulla and cortex that a scan's range covers may differ, but not the tissue.
        assert abs(right - left) < 30


def test_the_field_of_view_varies(cases: list[tuple[FloatArray, LabelArray, DoubleArray]]) -> None:
    lengths = [len(label) * spacing[0] for _, label, spacing in cases]
    assert max(lengths) / min(lengths) > 1.3
    kidney_cut = [bool((label[0] == 2).any()) for _, label, _ in cases]
    liver_cut = [bool((label[-1] == 1).any()) for _, label, _ in cases]
    assert any(kidney_cut) or any(liver_cut)
    assert not all(kidney_cut)
    assert len({image.shape for image, _, _ in cases}) > 5


def test_too_small_a_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs 8 voxels"):
        phantom_case(Draw(seed=0), shape_zyx=(4, 32, 32), spacing_mm=(6, 6, 6))
    with pytest.raises(ConfigError, match="positive spacings"):
        phantom_case(Draw(seed=0), shape_zyx=TINY, spacing_mm=(6, 0, 6))


def test_the_folder_reads_as_nnunet(folder: Path) -> None:
    found = read_dataset(folder)
    assert found.layout == "nnunet"
    assert found.problems == ()
    assert found.channels == ("CT",)
    assert found.labels.names == {0: "background", **FLARE22_ORGANS}
    assert {frozenset(pair) for pair in found.labels.mirror_pairs} == {frozenset({2, 13}), frozenset({7, 8})}
    roles = [(case.id, case.split, case.label is not None) for case in sorted(found.cases, key=lambda c: c.id)]
    assert roles == [
        ("phantom_000", "train", True),
        ("phantom_001", "train", True),
        ("phantom_002", "train", False),
        ("phantom_003", "train", False),
        ("phantom_004", "test", True),
    ]


def test_files_hold_what_was_made_in_either_orientation(folder: Path) -> None:
    orientations = set()
    for index in (0, 1):
        draw = Draw(seed=0, sample=index)
        shape, spacing = draw_grid(draw, spacing_mm=(6, 6, 6), shape_zyx=TINY)
        image, label = phantom_case(draw, shape_zyx=shape, spacing_mm=spacing)
        volume = read_volume([folder / f"imagesTr/phantom_{index:03d}_0000.nii.gz"])
        stored, grid = read_label(folder / f"labelsTr/phantom_{index:03d}.nii.gz")
        np.testing.assert_array_equal(volume.array[0], image)
        np.testing.assert_array_equal(stored, label)
        np.testing.assert_allclose(volume.grid.spacing_mm, spacing, rtol=1e-6)  # NIfTI stores float32
        assert volume.grid.difference(grid) is None
        orientations.add(grid.orientation)
    assert orientations == {"RAS", "LPS"}


def test_hidden_labels(folder: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    full = write_phantom_dataset(
        tmp_path / "full",
        seed=0,
        labelled=2,
        unlabelled=2,
        test=1,
        shape_zyx=TINY,
        hidden_labels=True,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(count, 5) for count in range(1, 6)]
    found = read_dataset(full)
    assert all(case.label is not None for case in found.cases)
    assert found.train_order == ("phantom_000", "phantom_001", "phantom_002", "phantom_003")
    hidden = full / "imagesTr/phantom_003_0000.nii.gz"
    assert hidden.read_bytes() == (folder / "imagesUn/phantom_003_0000.nii.gz").read_bytes()
    assert not list(folder.rglob("labels*/phantom_003.nii.gz"))
    assert read_json(full / "dataset.json")["numTraining"] == 4


def test_done_cases_are_not_made_again(tmp_path: Path) -> None:
    def write(seed: int = 0) -> None:
        write_phantom_dataset(tmp_path / "set", seed=seed, labelled=1, unlabelled=1, test=0, shape_zyx=TINY)

    write()
    kept = tmp_path / "set/imagesTr/phantom_000_0000.nii.gz"
    lost = tmp_path / "set/imagesUn/phantom_001_0000.nii.gz"
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    write()
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == content
    with pytest.raises(DataError, match="another seed"):
        write(seed=1)


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other files"):
        write_phantom_dataset(tmp_path, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ConfigError, match="labelled >= 1"):
        write_phantom_dataset(tmp_path / "set", seed=0, labelled=0)


def test_origins_differ_as_on_a_scanner(folder: Path) -> None:
    origins = [read_grid(path).affine[:3, 3] for path in sorted(folder.rglob("*_0000.nii.gz"))]
    assert len({tuple(origin) for origin in origins}) == len(origins)
