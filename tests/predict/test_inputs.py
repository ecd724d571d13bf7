"""Which scans are meant by files and folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from semiseg.errors import DataError
from semiseg.predict.inputs import find_scans


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def found(*inputs: Path) -> dict[str, list[str]]:
    return {scan.id: [image.name for image in scan.images] for scan in find_scans(inputs)}


def test_channels_are_grouped_and_scans_sorted(tmp_path: Path) -> None:
    names = ("b_0001.nii.gz", "b_0000.nii.gz", "a_0000.nii", "c.nii.gz", "notes.txt", ".tmp-c.nii.gz")
    assert found(touch(tmp_path, *names)) == {
        "a": ["a_0000.nii"],
        "b": ["b_0000.nii.gz", "b_0001.nii.gz"],
        "c": ["c.nii.gz"],
    }


def test_files_and_folders_together(tmp_path: Path) -> None:
    first, second = touch(tmp_path / "first", "a.nii.gz"), touch(tmp_path / "second", "b.nii.gz", "c.nii.gz")
    assert list(found(second / "b.nii.gz", first)) == ["a", "b"]


def test_numbers_that_are_names_and_no_channels(tmp_path: Path) -> None:
    """`patient_0007.nii.gz` is a scan of its own: channels would begin with 0000 and leave no gap."""
    names = [f"patient_{number:04d}.nii.gz" for number in (1, 2, 7)]
    expected = {name.removesuffix(".nii.gz"): [name] for name in names}
    assert found(touch(tmp_path, *names)) == expected
    assert found(tmp_path / names[2]) == {"patient_0007": [names[2]]}
    assert found(touch(tmp_path, "FLARETs_0001_0000.nii.gz") / "FLARETs_0001_0000.nii.gz") == {
        "FLARETs_0001": ["FLARETs_0001_0000.nii.gz"]
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a.nii", "a.nii.gz"), r"a\.nii\.gz: .*a\.nii is channel 0 of a too"),
        (("a.nii.gz", "a_0000.nii.gz"), r"is channel 0 of a too"),
        (("a_0003.nii.gz", "a_0003_0000.nii.gz"), r"has the id a_0003 too"),
        (("notes.txt",), r"no \.nii or \.nii\.gz file in this folder"),
    ],
)
def test_what_is_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_scans([touch(tmp_path / "scans", *names)])


def test_a_missing_input(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.nii\.gz: there is no such file or folder"):
        find_scans([tmp_path / "gone.nii.gz"])
