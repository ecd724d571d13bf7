from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydantic import TypeAdapter

from semiseg.data.fingerprint import Fingerprint, compute_fingerprint, write_fingerprint
from semiseg.errors import DataError
from semiseg.io.dataset import Case, Dataset, LabelScheme

LABELS = LabelScheme(names={0: "background", 1: "a", 2: "b"}, ignore=9)


def _save(path: Path, array_zyx: np.ndarray, spacing_mm: tuple[float, float, float]) -> Path:
    affine = np.diag([*spacing_mm[::-1], 1.0])
    nib.save(nib.Nifti1Image(np.ascontiguousarray(array_zyx.transpose(2, 1, 0)), affine), path)
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two labelled cases and one unlabelled one, intensities known in the foreground and absurd outside of
    it.
    """
    cases = []
    for index in range(3):
        shape = (6 + index, 8, 10)
        label = np.zeros(shape, dtype=np.uint8)
        label[1:3, 2:6, 2:8] = 1
        label[4, 2:6, 2:8] = 2
        label[5, 0, 0] = 9
        image = np.full(shape, 1e6, dtype=np.float32)
        image[label == 1] = 100 * (index + 1)
        image[label == 2] = -50
        name = f"case{index}"
        file = _save(tmp_path / f"{name}.nii.gz", image, (2.0, 1.0, 0.5))
        label_file = _save(tmp_path / f"{name}_label.nii.gz", label, (2.0, 1.0, 0.5))
        cases.append(Case(id=name, images=(file,), label=label_file if index < 2 else None))
    return Dataset(root=tmp_path, name="made up", layout="plain", channels=("CT",), labels=LABELS, cases=tuple(cases))


def test_what_is_measured(dataset: Dataset) -> None:
    seen: list[tuple[int, int, str]] = []
    fingerprint = compute_fingerprint(dataset, dataset.cases, progress=lambda *step: seen.append(step))
    assert [case.shape_zyx for case in fingerprint.cases] == [(6, 8, 10), (7, 8, 10), (8, 8, 10)]
    assert {case.spacing_mm for case in fingerprint.cases} == {(2.0, 1.0, 0.5)}
    assert [case.labelled for case in fingerprint.cases] == [True, True, False]
    assert fingerprint.class_voxels == {0: 6 * 80 + 7 * 80 - 2 * 73, 1: 2 * 48, 2: 2 * 24}
    intensity = fingerprint.intensities[0]
    # The ignore voxel (1e6) and the background (1e6) are no foreground.
    assert (intensity.minimum, intensity.maximum) == (-50, 200)
    assert (intensity.percentile_00_5, intensity.median, intensity.percentile_99_5) == (-50, 100, 200)
    # 20,000 draws with deviation about 100 have a mean within 0.7; five times that is allowed.
    assert intensity.mean == pytest.approx((48 * 300 - 24 * 100) / 144, abs=3.5)
    assert seen[-1] == (3, 3, "case2")


def test_the_same_seed_gives_the_same_fingerprint_whatever_the_workers(dataset: Dataset) -> None:
    alone = compute_fingerprint(dataset, dataset.cases, seed=5)
    assert alone == compute_fingerprint(dataset, dataset.cases, seed=5, workers=2)
    assert alone != compute_fingerprint(dataset, dataset.cases, seed=6)


def test_hidden_labels_do_not_count(dataset: Dataset) -> None:
    hidden = [dataset.cases[0], *[replace(case, label=None) for case in dataset.cases[1:]]]
    fingerprint = compute_fingerprint(dataset, hidden)
    assert fingerprint.intensities[0].maximum == 100
    assert fingerprint.class_voxels[1] == 48
    assert len(fingerprint.cases) == 3


def test_json_holds_all_of_it(dataset: Dataset, tmp_path: Path) -> None:
    fingerprint = compute_fingerprint(dataset, dataset.cases)
    write_fingerprint(tmp_path / "fingerprint.json", fingerprint)
    read = TypeAdapter(Fingerprint).validate_json((tmp_path / "fingerprint.json").read_text())
    assert read == fingerprint


def test_without_labels_there_is_nothing_to_learn_from(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="no training case has a label"):
        compute_fingerprint(dataset, [replace(case, label=None) for case in dataset.cases])


def test_unreadable_cases_are_left_out_and_named(dataset: Dataset) -> None:
    dataset.cases[1].images[0].write_bytes(b"nothing")
    fingerprint = compute_fingerprint(dataset, dataset.cases)
    assert [case.id for case in fingerprint.cases] == ["case0", "case2"]
    assert fingerprint.problems[0][0] == "case1"
    assert "case1.nii.gz" in fingerprint.problems[0][1]
    dataset.cases[0].images[0].unlink()
    with pytest.raises(DataError, match=r"could be read.*case0"):
        compute_fingerprint(dataset, dataset.cases)


def test_labels_beyond_the_list_are_a_problem_with_the_count(dataset: Dataset) -> None:
    short = replace(dataset, labels=LabelScheme(names={0: "background", 1: "a"}, ignore=9))
    with pytest.raises(DataError, match="24 voxels have value 2, but the dataset's labels end at 1"):
        compute_fingerprint(short, dataset.cases)


def test_real_hippocampus_intensities_span_orders_of_magnitude(real_data: Path) -> None:
    root = real_data / "Dataset004_Hippocampus"
    images = sorted((root / "imagesTr").glob("*.nii.gz"))[:20]
    names = [path.name.removesuffix("_0000.nii.gz") for path in images]
    cases = tuple(
        Case(id=name, images=(path,), label=root / "labelsTr" / f"{name}.nii.gz")
        for name, path in zip(names, images, strict=True)
    )
    scheme = LabelScheme(names={0: "background", 1: "anterior", 2: "posterior"})
    dataset = Dataset(root=root, name="h", layout="nnunet", channels=("MRI",), labels=scheme, cases=cases)
    fingerprint = compute_fingerprint(dataset, cases)
    assert not fingerprint.problems
    assert all(count > 0 for count in fingerprint.class_voxels.values())
    assert all(min(case.shape_zyx) >= 30 for case in fingerprint.cases)
    assert fingerprint.intensities[0].maximum > 3 * fingerprint.intensities[0].median
