"""Files are written whole or not at all, and damage is named."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import psutil
import pytest

from semiseg.errors import DataError
from semiseg.files import (
    append_jsonl,
    atomic_file,
    atomic_folder,
    hash_files,
    read_json,
    read_jsonl,
    read_toml,
    remove_leftovers,
    restore_replaced,
    write_json,
    write_jsonl,
    write_text,
    write_toml,
)

MADE = ("sub", "old.txt", "new.txt")


def interrupted_write(path: Path) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text("half of the new")
        raise KeyboardInterrupt


def interrupted_folder(path: Path) -> None:
    with atomic_folder(path, made=MADE) as temporary:
        (temporary / "new.txt").write_text("half")
        raise KeyboardInterrupt


def test_an_interrupted_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(file)
    assert file.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_a_finished_write_replaces_the_file_and_makes_its_folders(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "text.txt"
    write_text(file, "first")
    write_text(file, "zweitens ü")
    assert file.read_text(encoding="utf-8") == "zweitens ü"
    assert len(list(file.parent.iterdir())) == 1


def test_the_temporary_name_keeps_the_suffixes(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "scan.nii.gz") as temporary:
        assert temporary.name.startswith(".")
        assert temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"x")
    assert (tmp_path / "scan.nii.gz").read_bytes() == b"x"


def test_a_folder_is_replaced_whole_or_kept(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with atomic_folder(folder, made=MADE) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "old.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted_folder(folder)
    assert [entry.name for entry in folder.iterdir()] == ["sub"]
    with atomic_folder(folder, made=MADE) as temporary:
        (temporary / "new.txt").write_text("new")
    assert [entry.name for entry in folder.iterdir()] == ["new.txt"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_cannot_be_replaced_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    with atomic_folder(folder, made=MADE) as temporary:
        (temporary / "old.txt").touch()
    rename = Path.replace

    def fails(self: Path, target: Path) -> Path:
        if target == folder and not self.name.endswith(".replaced"):
            raise OSError("no space")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="no space"), atomic_folder(folder, made=MADE):
        pass
    assert [entry.name for entry in folder.iterdir()] == ["old.txt"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_what_others_put_into_a_folder_stays_when_it_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "mine").mkdir(parents=True)
    for name in ("old.txt", "thesis.txt", "mine/deep.txt"):
        (folder / name).write_text(name)
    (folder / "link").symlink_to("thesis.txt")
    with atomic_folder(folder, made=MADE) as temporary:
        (temporary / "new.txt").write_text("new")
    assert sorted(entry.name for entry in folder.iterdir()) == ["link", "mine", "new.txt", "thesis.txt"]
    assert (folder / "mine" / "deep.txt").read_text() == "mine/deep.txt"
    assert (folder / "link").is_symlink()


def test_a_link_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "model").symlink_to("elsewhere")
    with pytest.raises(DataError, match="model: a link or a file"), atomic_folder(tmp_path / "model", made=MADE):
        pass


def test_a_folder_that_was_moved_aside_comes_back(tmp_path: Path) -> None:
    """As SIGKILL between the two renames leaves it: for who writes it next, and who clears away."""
    gone = psutil.Process().pid + 1
    while psutil.pid_exists(gone):
        gone += 1
    with atomic_folder(tmp_path / "model", made=MADE) as temporary:
        (temporary / "old.txt").touch()
        aside = temporary.name.replace(f"-{psutil.Process().pid}-", f"-{gone}-") + ".replaced"
    for clear in (remove_leftovers, restore_replaced):
        (tmp_path / "model").replace(tmp_path / aside)
        clear(tmp_path if clear is remove_leftovers else tmp_path / "model")
        assert [entry.name for entry in (tmp_path / "model").iterdir()] == ["old.txt"]
        assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_leftovers_of_those_who_still_write_and_files_of_others_stay(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a.txt") as mine:
        mine.touch()
        (tmp_path / ".tmp-notes").touch()
        remove_leftovers(tmp_path, alone=False)
        assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([mine.name, ".tmp-notes"])
        remove_leftovers(tmp_path)
        assert [entry.name for entry in tmp_path.iterdir()] == [".tmp-notes"]
        mine.touch()


def test_a_container_of_the_same_name_removes_nothing(tmp_path: Path) -> None:
    """Process numbers of another namespace are others."""
    alone = ("unshare", "--map-root-user", "--pid", "--fork")
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespace of processes can be made here")
    code = "import sys, pathlib; from semiseg.files import *; remove_leftovers(pathlib.Path(sys.argv[1]), alone=False)"
    with atomic_file(tmp_path / "a.txt") as mine:
        mine.touch()
        subprocess.run([*alone, sys.executable, "-c", code, str(tmp_path)], check=True)
        assert mine.exists()


def test_several_may_remove_the_same_leftovers(tmp_path: Path) -> None:
    gone = psutil.Process().pid + 1
    while psutil.pid_exists(gone):
        gone += 1
    with atomic_file(tmp_path / "a") as mine:
        mine.touch()
        name = mine.name.replace(f"-{psutil.Process().pid}-", f"-{gone}-")
    (tmp_path / "a").unlink()
    for number in range(30):
        (tmp_path / f"{name}{number}").mkdir()
        for file in range(30):
            (tmp_path / f"{name}{number}" / f"{file}.txt").touch()
    together = Barrier(4)

    def remove(_: int) -> None:
        together.wait(60)
        remove_leftovers(tmp_path, alone=False)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(remove, range(4))) == [None] * 4
    assert list(tmp_path.iterdir()) == []


def test_files_in_folders_may_be_read_as_the_umask_says(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "model", made=MADE) as temporary:
        (temporary / "new.txt").touch(mode=0o600)
    assert (tmp_path / "model" / "new.txt").stat().st_mode & 0o777 == (tmp_path / "model").stat().st_mode & 0o666


def test_lines_end_with_a_newline_alone(tmp_path: Path) -> None:
    """Other characters end a line for `str.splitlines`; JSON may hold them."""
    rows = [{"id": "a\u0085b\u2028c"}, {"id": "d"}]
    write_jsonl(tmp_path / "cases.jsonl", rows)
    assert read_jsonl(tmp_path / "cases.jsonl") == rows


def test_json_round_trip_and_no_nan(tmp_path: Path) -> None:
    file = tmp_path / "value.json"
    value = {"name": "Niere ✓", "dice": [0.1, None, 3]}
    write_json(file, value)
    assert read_json(file) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"dice": float("nan")})
    assert read_json(file) == value


@pytest.mark.parametrize("read", [read_json, read_toml])
@pytest.mark.parametrize("content", [b"{ broken = [", b"\xff\xfe\x00"])
def test_damaged_files_are_named(tmp_path: Path, read: object, content: bytes) -> None:
    assert callable(read)
    file = tmp_path / "settings"
    with pytest.raises(DataError, match="settings: there is no such file"):
        read(file)
    file.write_bytes(content)
    with pytest.raises(DataError, match="settings: not valid"):
        read(file)


def test_toml_round_trip(tmp_path: Path) -> None:
    value = {"plan": {"spacing_mm": [1.0, 2.5], "patch": [64, 160, 160]}, "name": "täst"}
    write_toml(tmp_path / "plan.toml", value)
    assert read_toml(tmp_path / "plan.toml") == value


def test_jsonl_drops_a_line_that_a_crash_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert read_jsonl(file) == []
    write_jsonl(file, [{"step": 0}])
    append_jsonl(file, {"step": 1})
    with file.open("a") as stream:
        stream.write('{"step": 2, "lo')
    assert read_jsonl(file) == [{"step": 0}, {"step": 1}]


def test_jsonl_names_a_damaged_line(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 0}\nnonsense\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2"):
        read_jsonl(file)


def test_a_hash_depends_on_contents_order_and_salt_only(tmp_path: Path) -> None:
    for name, content in (("a", b"one"), ("b", b"two"), ("c", b"one")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (tmp_path / name for name in "abc")
    assert hash_files([a, b]) == hash_files([c, b])
    assert hash_files([a, b]) != hash_files([b, a])
    assert hash_files([a], salt="spacing 1") != hash_files([a], salt="spacing 2")
    (tmp_path / "joined").write_bytes(b"onetwo")
    assert hash_files([a, b]) != hash_files([tmp_path / "joined"])


def test_appending_after_a_killed_writer_drops_its_half_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"ste')
    append_jsonl(path, {"step": 2})
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize(
    "write",
    [
        lambda file, name: append_jsonl(file, {"error": f"{name}: damaged"}),
        lambda file, name: write_jsonl(file, [{"id": "a", "images": [name]}]),
        lambda file, name: write_toml(file, {"data": {"root": name}}),
        lambda file, name: write_json(file, {"data": name}),
    ],
)
def test_a_name_in_another_coding_is_refused(tmp_path: Path, write: Callable[[Path, str], None]) -> None:
    """As a disk of an old machine has: nothing is left half-written."""
    with pytest.raises(DataError) as refused:
        write(tmp_path / "file", os.fsdecode(b"/scans/caf\xe9/a.nii.gz"))
    assert str(refused.value).startswith("/scans/caf\\udce9/a.nii.gz")
    assert str(refused.value).endswith(": no UTF-8, which file is written in. Rename that file or folder.")
    assert list(tmp_path.iterdir()) == []
