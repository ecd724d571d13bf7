"""Label maps of other programs become labels of the dataset, and what they do not know is ignored."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from semiseg.data.roles import RunCase
from semiseg.data.teachers import open_teacher, taught_by_others
from semiseg.errors import ConfigError, DataError
from semiseg.io.dataset import LabelScheme
from semiseg.io.scans import read_label, write_scan

LABELS = LabelScheme(names={0: "background", 1: "liver", 2: "left_kidney", 3: "spleen"})
SHAPE = (4, 5, 6)


def save(path: Path, array_zyx: np.ndarray, spacing: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(np.ascontiguousarray(array_zyx.T), np.diag((spacing, 1.0, 1.0, 1.0)))
    nibabel.save(image, path)


def striped(*values: int) -> np.ndarray:
    label = np.zeros(SHAPE, dtype=np.uint8)
    for row, value in enumerate(values):
        label[row] = value
    return label


@pytest.fixture
def cases(tmp_path: Path) -> list[RunCase]:
    """A labelled and two unlabelled ones."""
    found = []
    for name, role in (("a", "labelled"), ("b", "unlabelled"), ("c", "unlabelled")):
        file = tmp_path / "images" / f"{name}.nii.gz"
        save(file, np.zeros(SHAPE, dtype=np.int16))
        found.append(RunCase(id=name, images=(str(file),), label=None, split="train", role=role))  # type: ignore[arg-type]
    return found


def rows(case: RunCase) -> list[int]:
    assert case.label is not None
    label = read_label(Path(case.label))[0]
    assert (label == label[:, :1, :1]).all()
    return [int(value) for value in label[:, 0, 0]]


def taught(cases: list[RunCase], folder: Path, names: Path | None = None) -> list[RunCase]:
    return taught_by_others(cases, open_teacher(folder, names, LABELS), folder.parent / "teacher_labels")


def test_predictions_of_nnunet_by_the_names_that_it_writes(cases: list[RunCase], tmp_path: Path) -> None:
    folder = tmp_path / "predicted"
    for name in "ab":
        save(folder / f"{name}.nii.gz", striped(1, 2, 3, 0))
    names = {"background": 0, "spleen": 1, "Liver": 2, "left kidney": 3}
    (folder / "dataset.json").write_text(json.dumps({"labels": names}))
    found = taught(cases, folder)
    assert [case.role for case in found] == ["labelled", "taught", "unlabelled"]  # a has its own label
    assert rows(found[1]) == [3, 1, 2, 0]  # all organs are known, and so is the background


def test_labels_in_any_letter_case_and_those_in_small_letters_first(cases: list[RunCase], tmp_path: Path) -> None:
    folder = tmp_path / "other"
    for name in "bc":
        save(folder / f"{name}.nii.gz", striped(1, 0, 1, 0))
        (folder / f"{name}.nii.gz").rename(folder / f"{name}.NII.GZ")
    save(folder / "c.nii.gz", striped(0, 1, 0, 1))
    (folder / "names.toml").write_text("liver = 1")
    found = taught(cases, folder)
    assert [case.role for case in found] == ["labelled", "taught", "taught"]
    assert [[value == 1 for value in rows(case)] for case in found[1:]] == [
        [True, False, True, False],
        [False, True, False, True],
    ]


def test_labels_of_other_formats(cases: list[RunCase], tmp_path: Path) -> None:
    folder = tmp_path / "other"
    for name in ("b.nii.gz", "c/liver.nii.gz", "c/spleen.nii.gz"):
        save(tmp_path / "nifti" / name, striped(1, 0, 3, 0))
        target = folder / name.replace(".nii.gz", ".mha" if name.startswith("b") else ".nrrd")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_scan(target, tmp_path / "nifti" / name)
    (folder / "names.toml").write_text("liver = 1\nspleen = 3")
    assert rows(taught(cases[:2], folder)[1]) == [1, 5, 3, 5]
    (folder / "names.toml").write_text('liver = "liver"')
    assert rows(taught([cases[2]], folder)[0]) == [1, 5, 1, 5]


def test_totalsegmentators_folders_by_a_map_of_names(cases: list[RunCase], tmp_path: Path) -> None:
    folder = tmp_path / "segmentations"
    masks = {"liver": striped(1), "kidney_left": striped(0, 1), "cyst": striped(0, 0, 1), "spleen": striped(1, 0, 0, 1)}
    for name, mask in masks.items():
        save(folder / "b" / f"{name}.nii.gz", mask)
    (folder / "names.toml").write_text('liver = "liver"\nleft_kidney = ["kidney_left", "cyst"]\nspleen = "spleen"\n')
    found = taught(cases, folder)
    assert rows(found[1]) == [4, 2, 2, 3]  # two masks claim the first row


def test_what_a_map_does_not_know_may_be_background(cases: list[RunCase], tmp_path: Path) -> None:
    folder, names = tmp_path / "total", tmp_path / "names.json"
    save(folder / "c.nii.gz", striped(5, 90, 2, 0))
    names.write_text(json.dumps({"liver": [5, 6], "left_kidney": 2}))
    teacher = open_teacher(folder, names, LABELS)
    assert teacher.unknown == {3: "spleen"}
    found = taught(cases, folder, names)
    assert found[1].role == "unlabelled"
    assert rows(found[2]) == [1, 5, 2, 5]  # open: what has another name may be the spleen, as background may


def test_what_was_taken_over_is_not_written_again(cases: list[RunCase], tmp_path: Path) -> None:
    folder = tmp_path / "predicted"
    save(folder / "b.nii.gz", striped(1, 2, 3))
    (folder / "names.toml").write_text("liver = 1\nleft_kidney = 2\nspleen = 3\n")
    first = Path(taught(cases, folder)[1].label or "").stat()
    assert Path(taught(cases, folder)[1].label or "").stat().st_mtime_ns == first.st_mtime_ns
    save(folder / "b.nii.gz", striped(2, 1, 3))
    assert rows(taught(cases, folder)[1])[:3] == [2, 1, 3]


def test_a_label_on_another_grid_is_refused_by_name(cases: list[RunCase], tmp_path: Path) -> None:
    folder = tmp_path / "predicted"
    save(folder / "b.nii.gz", striped(1), spacing=2.0)
    save(folder / "c.nii.gz", striped(1))
    (folder / "names.toml").write_text("liver = 1\n")
    with pytest.raises(DataError, match=r"(?s)1 label of data.teacher_labels.*b\.nii\.gz: not on the grid"):
        taught(cases, folder)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "nothing says which organ is which"),
        ("lever = 1\n", "lever is no organ of the dataset"),
        ("liver = 0\n", "give a value above 0"),
        ('liver = "liver"\n', "a map of values, but the names say liver"),
        ("", "names no organ"),
    ],
)
def test_names_that_cannot_be_meant_are_refused(
    cases: list[RunCase], tmp_path: Path, text: str | None, match: str
) -> None:
    folder = tmp_path / "predicted"
    save(folder / "b.nii.gz", striped(1))
    if text is not None:
        (folder / "names.toml").write_text(text)
    with pytest.raises((ConfigError, DataError), match=match):
        taught(cases, folder)


def test_a_folder_of_other_cases_is_refused(cases: list[RunCase], tmp_path: Path) -> None:
    save(tmp_path / "predicted" / "a.nii.gz", striped(1))
    (tmp_path / "predicted" / "names.toml").write_text("liver = 1\n")
    with pytest.raises(ConfigError, match="no label of an unlabelled case"):
        taught(cases, tmp_path / "predicted")
