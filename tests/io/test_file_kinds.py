"""Files found by their names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from semiseg.io.file_kinds import scan_named

LISTINGS = """
import sys
from pathlib import Path
from semiseg.io.file_kinds import scan_named

listed = []
sys.addaudithook(lambda event, args: event in ("os.listdir", "os.scandir") and listed.append(event))
found = [scan_named(Path(sys.argv[1]), f"case{n}") for n in range(20)]
print(len(listed), sum(file is not None for file in found))
"""


def empty(*files: Path) -> None:
    for file in files:
        file.touch()


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names of files are in any letter case")
def test_a_scan_is_found_by_its_name_whatever_the_letters_of_its_ending(tmp_path: Path) -> None:
    empty(*(tmp_path / name for name in ("a.NRRD", "a.Nii.gz", "a.txt", "b.c.MHA", "b.Mhd", "d[1].NII", "e.NII")))
    empty(tmp_path / "e.mha")
    (tmp_path / "f.NII").mkdir()
    wanted = {"a": "a.Nii.gz", "b": "b.Mhd", "b.c": "b.c.MHA", "d[1]": "d[1].NII", "e": "e.mha", "f": None, "A": None}
    found = {name: scan_named(tmp_path, name) for name in wanted}
    assert found == {name: file and tmp_path / file for name, file in wanted.items()}


def test_a_scan_that_comes_or_goes_later_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    assert scan_named(folder, "a") is None
    empty(tmp_path / "file")
    assert scan_named(tmp_path / "file", "a") is None
    folder.mkdir()
    before = folder.stat().st_mtime_ns
    assert scan_named(folder, "a") is None
    empty(folder / "a.NII")
    os.utime(folder, ns=(before, before + 1_000_000_000))  # some file systems tell seconds apart
    assert scan_named(folder, "a") == folder / "a.NII"
    (folder / "a.NII").unlink()
    os.utime(folder, ns=(before, before + 1_000_000_000))
    assert scan_named(folder, "a") is None


def test_a_folder_is_listed_once_for_the_names_that_it_lacks(tmp_path: Path) -> None:
    empty(*(tmp_path / f"case{n}.NII.GZ" for n in range(0, 20, 2)))
    command = [sys.executable, "-c", LISTINGS, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["1", "10"]
