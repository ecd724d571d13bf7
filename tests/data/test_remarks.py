"""What is said of a dataset before preparation."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from permissions import nobody_in
from semiseg.data.remarks import print_remarks
from semiseg.io.dataset import Case, Dataset, LabelScheme

BYTES_READ = Path("/proc/self/io")


def scan(path: Path, seed: int, *, only_end: bool = False) -> Path:
    """A file of 300 kB that is not packed and begins with air; only_end: ends with it otherwise, too."""
    values = np.zeros((50, 50, 60), dtype=np.int16)
    values[..., 30:50] = np.random.default_rng(0 if only_end else seed).integers(0, 1000, (50, 50, 20))
    values[-1, -1, -1] = seed
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    return path


def dataset(root: Path, tests: list[Path], training: list[Path]) -> Dataset:
    cases = [Case(id=file.stem, images=(file,), label=None, split="test") for file in tests]
    cases += [Case(id=file.stem, images=(file,), label=None) for file in training]
    labels = LabelScheme(names={0: "background", 1: "organ"})
    return Dataset(root=root, name="made up", layout="plain", channels=("CT",), labels=labels, cases=tuple(cases))


def test_a_test_scan_that_is_trained_on_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And none that differs in a single voxel."""
    tests = [scan(tmp_path / f"test{n}.nii", n) for n in (1, 2)]
    training = [scan(tmp_path / f"train{n}.nii", n) for n in (2, 3)]
    training += [scan(tmp_path / f"end{n}.nii", n, only_end=True) for n in (4, 5)]
    tests.append(scan(tmp_path / "end.nii", 6, only_end=True))
    print_remarks(dataset(tmp_path, tests, training), "")
    same = [line for line in capsys.readouterr().err.splitlines() if "the same file as" in line]
    assert same == [
        f"warning: {tests[1]}: the same file as unlabelled case train2: a test scan is trained on. Remove one."
    ]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of POSIX")
def test_scans_that_may_not_be_read_end_no_preparation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are set aside later, by name; the others are compared."""
    files = [scan(tmp_path / name, 1) for name in ("test.nii", "closed.nii", "train.nii", "locked.nii")]
    test, closed, train, locked = (file.relative_to(tmp_path) for file in files)
    for file in (closed, locked):
        (tmp_path / file).chmod(0)
    with nobody_in(tmp_path):
        for file in (closed, locked):
            with pytest.raises(PermissionError):
                file.read_bytes()
        print_remarks(dataset(tmp_path, [test, closed], [train, locked]), "")
    (said,) = capsys.readouterr().err.splitlines()
    assert said == f"warning: {test}: the same file as unlabelled case train: a test scan is trained on. Remove one."


@pytest.mark.skipif(not BYTES_READ.is_file(), reason="the system does not count what is read")
def test_tests_are_not_compared_with_every_training_scan(tmp_path: Path) -> None:
    """Less is read than all files, though all are of one size and alike for a third."""
    tests = [scan(tmp_path / f"test{n}.nii", n) for n in range(10)]
    training = [scan(tmp_path / f"train{n}.nii", n) for n in range(10, 40)]
    made = dataset(tmp_path, tests, training)

    def read() -> int:
        return int(BYTES_READ.read_text().split("rchar:")[1].split()[0])

    before = read()
    print_remarks(made, "")
    assert read() - before < sum(file.stat().st_size for file in (*tests, *training))
