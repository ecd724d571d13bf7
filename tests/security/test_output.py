"""Where nothing can be written: a full disk, a full, closed or poor stdout. One sentence, and what was made is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from semiseg.words import as_text_cell, from_text_cell, printable


def semiseg(*arguments: object, redirect: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of a shell, whose stdout goes where `redirect` says."""
    words = " ".join(f"'{argument}'" for argument in arguments)
    return subprocess.run(
        ["sh", "-c", f"'{sys.executable}' -m semiseg {words} {redirect}"],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def may_mount() -> bool:
    """Whether a small disk can be made here."""
    unshare = shutil.which("unshare")
    return (
        bool(unshare)
        and subprocess.run([str(unshare), "-rm", "true"], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not may_mount(), reason="needs Linux with user namespaces, to mount a small disk")
@pytest.mark.parametrize(
    "kilobytes", [pytest.param(24, marks=pytest.mark.thorough), 80, pytest.param(400, marks=pytest.mark.thorough)]
)
def test_a_full_disk_is_one_sentence_and_what_was_made_is_kept(
    kilobytes: int, phantoms: Path, tiny: list[str], tmp_path: Path
) -> None:
    """The run breaks off in its settings, its store, or its checkpoints, and goes on where there is room."""
    run, kept = tmp_path / "disk" / "run", tmp_path / "kept"
    run.parent.mkdir()
    flags = " ".join(f"'{flag}'" for flag in tiny)
    command = f"'{sys.executable}' -m semiseg run '{run}' --data '{phantoms}' {flags} --quiet"
    script = (
        f"mount -t tmpfs -o size={kilobytes}k tmpfs '{run.parent}'; {command}; code=$?; "
        f"cp -r '{run}' '{kept}'; exit $code"
    )
    ended = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 2, ended
    assert "Traceback" not in ended.stderr
    assert "the disk is full" in ended.stderr
    assert f"{tmp_path / 'disk'}" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert not list(kept.rglob(".tmp-*"))
    again = semiseg("run", kept, "--data", phantoms, *tiny, "--quiet")
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["check", "DATA"]])
def test_a_full_stdout_is_one_sentence(arguments: list[str], phantoms: Path) -> None:
    ended = semiseg(*[phantoms if word == "DATA" else word for word in arguments], redirect=">/dev/full")
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    assert "No space left on device" in ended.stderr


def test_a_closed_or_a_poor_stdout_ends_nothing(phantoms: Path) -> None:
    assert semiseg("check", phantoms, redirect=">&-").returncode == 0
    poor = semiseg("check", phantoms, PYTHONIOENCODING="ascii")
    assert poor.returncode == 0, poor.stderr
    assert poor.stdout.isascii()


def test_what_cannot_be_printed_is_escaped() -> None:
    assert printable("a\x1b[31mb\udce9\n\u2028") == "a\\x1b[31mb\\udce9\n\\u2028"
    assert printable("Magenöffnung, 肝臓") == "Magenöffnung, 肝臓"


@pytest.mark.parametrize("text", ["=1+2", "+1", "-1", "@a", "'=1", "liver", ""])
def test_cells_keep_their_text(text: str) -> None:
    cell = as_text_cell(text)
    assert from_text_cell(cell) == text
    assert not cell.startswith(("=", "+", "-", "@"))
