"""What the page on extending says is done: its file is written and run, as a person would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from semiseg.files import read_jsonl

Command = Callable[..., Any]
PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def from_the_page(folder: Path, number: int, name: str) -> Path:
    """One of the page's pieces of code in a file of its own."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    (folder / name).write_text(code[number], encoding="utf-8")
    return folder / name


@pytest.fixture(scope="module")
def entropy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return from_the_page(tmp_path_factory.mktemp("own"), 0, "entropy.py")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_a_method_of_ones_own_is_trained_predicted_and_scored(
    entropy: Path, phantoms: Path, tiny: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    done = run(
        entropy, "run", folder, "--data", phantoms, "--method", "entropy", *tiny, "--set", "method.entropy_weight=0.3"
    )
    assert done.returncode == 0, done.stderr
    rows = read_jsonl(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(row["entropy"] > 0 for row in rows)
    assert "entropy_weight = 0.3" in (folder / "run.toml").read_text()
    assert (folder / "summary.json").exists()
    assert "entropy minimisation" in (folder / "report.html").read_text(encoding="utf-8")


def test_keys_of_other_methods_are_refused(entropy: Path, phantoms: Path, tmp_path: Path) -> None:
    refused = run(
        entropy, "prepare", tmp_path / "run", "--data", phantoms, "--method=entropy", "--set", "method.rounds=3"
    )
    assert refused.returncode == 2
    assert "unknown key method.rounds: entropy does not use it, pseudo_rounds has it." in refused.stderr


def test_without_its_file_the_method_is_unknown(semiseg_command: Command, phantoms: Path, tmp_path: Path) -> None:
    refused = semiseg_command("prepare", tmp_path / "run", "--data", phantoms, "--method", "entropy")
    assert refused.code == 2
    assert "method.name = 'entropy': choose one of supervised, pseudo_rounds" in refused.err


def test_a_network_of_ones_own_is_trained_and_once_checked_predicts_without_its_file(
    semiseg_command: Command, phantoms: Path, tiny: list[str], tmp_path: Path
) -> None:
    silu, folder = from_the_page(tmp_path, 1, "silu.py"), tmp_path / "run"
    own = ["--set", "plan.network=silu", "--set", "predict.engine=torch"]
    done = run(silu, "run", folder, "--data", phantoms, "--method", "supervised", *tiny, *own)
    assert done.returncode == 0, done.stderr
    assert 'kind = "silu"' in (folder / "plan.toml").read_text()
    scans = phantoms / "imagesTs"
    checked = run(silu, "predict", folder, scans, "--output", tmp_path / "checked", "--engine", "onnx")
    assert checked.returncode == 0, checked.stderr
    # In this process, which has not seen the file.
    alone = semiseg_command("predict", folder, scans, "--output", tmp_path / "alone", "--engine", "onnx")
    assert alone.code == 0, alone.err
    refused = semiseg_command("predict", folder, scans, "--output", tmp_path / "torch", "--engine", "torch")
    assert refused.code == 2
    assert "kind = 'silu' of a network in the plan: known are unet, residual_encoder" in refused.err
