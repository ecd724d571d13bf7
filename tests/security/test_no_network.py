"""Nothing leaves the machine: no command opens a socket or looks up a name, and no library keeps an id."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = """
import os
from semiseg.cli import main

def semiseg(line, codes=(0,)):
    try:
        main([word.format_map(os.environ) for word in line.split()])
    except SystemExit as ended:
        assert ended.code in codes, line

semiseg("check {DATA}")
semiseg("run {RUN} --data {DATA} --quiet " + os.environ["TINY"])
predict = "predict {RUN} {DATA}/imagesTs "
for engine in ("torch", "openvino", "onnx"):
    semiseg(predict + f"--output {{OUT}}/{engine} --engine {engine} --precision float32 --device cpu")
semiseg(predict + "--output {OUT}/int8 --engine openvino --precision int8 --device cpu", codes=(0, 2))  # or refused
for form in ("onnx", "openvino", "torch"):
    semiseg(f"export {{RUN}} --to {form} --output {{OUT}}/export_{form}")
"""
STRACE = ("strace", "--follow-forks", "--seccomp-bpf", "--trace=socket,connect,sendto")
"""By seccomp a process stops at these calls alone, and not at every call."""
NAMES_A_HOST = ("AF_INET", "AF_INET6")


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: apt install strace")
def test_no_command_opens_a_socket(phantoms: Path, tiny: list[str], tmp_path: Path) -> None:
    """As the system sees it, threads and processes of all libraries among them. One process gives all commands: its
    start takes longer than most of them."""
    home, trace = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    # No dependency but of tests; pydicom imports it where it is, and it tries whether there is IPv6.
    without = tmp_path / "without" / "requests.py"
    without.parent.mkdir()
    without.write_text("raise ImportError")
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "DATA": str(phantoms),
        "RUN": str(tmp_path / "run"),
        "OUT": str(tmp_path / "out"),
        "TINY": " ".join(flag.replace(" ", "") for flag in [*tiny, "--set", "train.steps=120"]),  # organs are found
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(without.parent), os.environ.get("PYTHONPATH", "")]),
    }
    ended = subprocess.run(
        [*STRACE, "--output", trace, sys.executable, "-c", COMMANDS],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    calls = [line for line in trace.read_text().splitlines() if any(name in line for name in NAMES_A_HOST)]
    assert calls == []
    assert list(home.glob(".cache/semiseg/int8/*/*.xml")), "no int8 network was made"
    kept = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    assert all(name.startswith((".cache/semiseg/", ".cache/matplotlib/", ".config/matplotlib/")) for name in kept), kept
