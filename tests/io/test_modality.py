"""CT is told from MR by the values of a few scans."""

from __future__ import annotations

import json
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from semiseg.io.layouts import read_dataset
from semiseg.io.modality import judge, looked_at

SHAPE = (24, 24, 24)


def ct(seed: int = 0, *, air: int = -1000) -> np.ndarray:
    """Air around a body of soft tissue with some bone."""
    rng = np.random.default_rng(seed)
    array = np.full(SHAPE, air) + rng.integers(-20, 20, SHAPE)
    array[4:20, 4:20, 4:20] = rng.integers(-100, 120, (16, 16, 16))
    array[10:12, 10:12, 4:20] = 900
    return array.astype(np.int16)


def mr(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, 200.0, SHAPE).astype(np.float32)


def folder(root: Path, images: list[np.ndarray], channel: str | None = None) -> Path:
    for sub in ("images", "labels"):
        (root / sub).mkdir(parents=True, exist_ok=True)
    for number, array in enumerate(images):
        nib.save(nib.Nifti1Image(array, np.eye(4)), root / "images" / f"s{number}.nii.gz")
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.uint8), np.eye(4)), root / "labels" / "s0.nii.gz")
    (root / "labels.json").write_text('{"a": 1}')
    if channel:
        (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": channel}, "labels": {"b": 0, "a": 1}}))
    return root


def test_hounsfield_units_make_a_channel_ct(tmp_path: Path) -> None:
    dataset = read_dataset(folder(tmp_path, [ct(n, air=air) for n, air in enumerate((-1000, -1024, -2048))]))
    assert dataset.channels == ("CT",)
    ((severity, file, text),) = dataset.remarks
    assert (severity, file) == ("note", tmp_path)
    assert "CT by its values: 3 of 3 scans looked at hold Hounsfield units" in text
    assert "--modality mr" in text
    assert read_dataset(tmp_path, modality="mr").channels == ("MR",)
    assert read_dataset(tmp_path, modality="mr").remarks == ()


def test_what_is_no_ct(tmp_path: Path) -> None:
    images = [mr(0), (mr(1) / 10).astype(np.uint8), mr(2) - 300, ct() + 1024]
    dataset = read_dataset(folder(tmp_path, images))
    assert (dataset.channels, dataset.remarks) == (("image",), ())
    assert read_dataset(tmp_path, modality="ct").channels == ("CT",)


def test_names_count_and_are_doubted(tmp_path: Path) -> None:
    dataset = read_dataset(folder(tmp_path / "a", [ct(), ct(1)], "MRI"))
    assert dataset.channels == ("MRI",)
    assert "called MRI, but 2 of 2 scans looked at look like Hounsfield units" in dataset.remarks[0][2]
    assert read_dataset(tmp_path / "a", modality="ct").channels == ("CT",)
    dataset = read_dataset(folder(tmp_path / "b", [mr(), mr(1)], "CT"))
    assert dataset.channels == ("CT",)
    assert "called CT, but 2 scans looked at have no value below 0" in dataset.remarks[0][2]
    assert read_dataset(tmp_path / "b", modality="mr").channels == ("MR",)


def test_a_mixed_set_is_named(tmp_path: Path) -> None:
    dataset = read_dataset(folder(tmp_path / "mostly_ct", [ct(), ct(1), mr()]))
    assert dataset.channels == ("CT",)
    assert "no Hounsfield units in s2, unlike the other scans" in dataset.remarks[1][2]
    dataset = read_dataset(folder(tmp_path / "mostly_mr", [mr(), mr(1), ct()]))
    assert dataset.channels == ("image",)
    assert "Hounsfield units by the values in s2, unlike the other scans" in dataset.remarks[0][2]


def test_few_scans_are_read(tmp_path: Path) -> None:
    dataset = read_dataset(folder(tmp_path, [ct(n) for n in range(30)]))
    assert len(looked_at(dataset.cases, 0)) == 8


def test_values_that_are_not_finite_do_not_count() -> None:
    array = ct().astype(np.float32)
    array[0, 0, :5] = np.nan
    assert judge(array).hounsfield
    assert not judge(np.full(SHAPE, np.nan)).hounsfield
    assert not judge(np.full(SHAPE, -1000.0)).hounsfield


@pytest.mark.parametrize(
    ("name", "hounsfield"),
    [
        ("Dataset004_Hippocampus", False),
        ("Dataset101_HeadNeckCT", True),
        ("Dataset102_LeftAtriumHalf", False),
        ("Dataset103_ACDC", False),
        ("ct_whole/flare22_ids", True),
    ],
)
def test_real_sets(real_data: Path, name: str, hounsfield: bool) -> None:
    dataset = read_dataset(real_data / name)
    begun = time.perf_counter()
    values = looked_at(dataset.cases, 0)
    assert time.perf_counter() - begun < 10  # seconds; a fraction of one where nothing else runs
    assert {value.hounsfield for value in values.values()} == {hounsfield}


def test_a_real_whole_ct(real_data: Path) -> None:
    array = np.asanyarray(nib.load(real_data / "ct_whole" / "ircad17_0000.nii.gz").dataobj)
    assert judge(array[::8, ::8, ::8]).hounsfield
