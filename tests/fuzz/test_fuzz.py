"""Forty damaged files: `make fuzz` takes ten thousand, and kills."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_damaged_files_are_refused_or_change_nothing() -> None:
    """In a process of its own, whose memory is limited: a header that claims much must not have it."""
    script = Path(__file__).with_name("fuzz.py")
    ended = subprocess.run(
        [sys.executable, script, "--files", "40", "--processes", "1"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1].startswith("all ")
