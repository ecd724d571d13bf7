"""A run is reviewed, and the next one learns from exactly what was decided; other people's labels are learnt from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semiseg.data.plan import read_plan
from semiseg.decisions import DecisionLog, label_sha256
from semiseg.files import read_jsonl
from semiseg.io.scans import read_grid, read_label, write_label
from semiseg.io.store import open_case, read_case_meta

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def first(phantoms: Path, tiny: list[str], semiseg_command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the default method, ranked, with labels of its unlabelled scans."""
    run = tmp_path_factory.mktemp("review") / "first"
    assert semiseg_command("run", run, "--data", phantoms, *tiny, "--set", "predict.engine=torch", "--quiet").code == 0
    ranked = semiseg_command("rank", run, "--workers", 1)
    assert ranked.code == 0
    assert f"semiseg predict {run} --unlabelled" in ranked.out
    answer = semiseg_command("predict", run, "--unlabelled", "--engine", "torch")
    assert answer.code == 0, answer
    assert f"semiseg view {run}" in answer.out
    assert f"Next: semiseg view {run}" in semiseg_command("rank", run, "--workers", 1).out
    return run


def test_unlabelled_scans_are_labelled_into_the_run_and_not_twice(first: Path, semiseg_command: Command) -> None:
    assert {file.name for file in (first / "pseudo_labels").iterdir()} == {
        "phantom_002.nii.gz",
        "phantom_003.nii.gz",
        "predictions.jsonl",
    }
    assert "2 of them from before" in semiseg_command("predict", first, "--unlabelled", "--engine", "torch").out
    for name in ("phantom_002", "phantom_003"):
        doubt = json.loads((first / "doubt" / f"{name}.json").read_text())
        shape = read_case_meta(first / "store" / name).source_shape_zyx
        assert [len(doubt[plane]) for plane in ("axial", "coronal", "sagittal")] == list(shape)


@pytest.mark.parametrize("more", [[], ["scan.nii.gz", "--unlabelled"], ["--unlabelled", "--output", "x"]])
def test_predict_says_what_it_needs(first: Path, more: list[str], semiseg_command: Command) -> None:
    answer = semiseg_command("predict", first, *more)
    assert answer.code == 2
    assert "--unlabelled" in answer.err


def test_the_next_run_learns_from_exactly_what_was_decided(
    first: Path, phantoms: Path, tiny: list[str], semiseg_command: Command
) -> None:
    # Labels that a better model would have made: those of the labelled phantoms, on the grids of the others.
    for name, source in (("phantom_002", "phantom_000"), ("phantom_003", "phantom_001")):
        image = phantoms / "imagesUn" / f"{name}_0000.nii.gz"
        label, _ = read_label(phantoms / "labelsTr" / f"{source}.nii.gz")
        write_label(first / "pseudo_labels" / f"{name}.nii.gz", label, read_grid(image), image)
    log = DecisionLog(first / "decisions.jsonl")
    judged = {case: label_sha256(first / "pseudo_labels" / f"{case}.nii.gz") for case in ("phantom_002", "phantom_003")}
    log.add("phantom_002", "accept", reviewer="r", label_sha256=judged["phantom_002"])
    log.add("phantom_002", "set_aside", organ="liver", reviewer="r", label_sha256=judged["phantom_002"])
    log.add("phantom_003", "set_aside", reviewer="r", label_sha256=judged["phantom_003"])
    second = first.parent / "second"
    flags = ["--data", phantoms, *tiny, "--set", "predict.engine=torch", "--set", f"data.decisions={first}"]
    answer = semiseg_command("run", second, *flags)
    assert answer.code == 0, answer
    assert "Scans: 2 labelled, 1 accepted; 1 set aside." in answer.out
    assert {row["id"]: row["role"] for row in read_jsonl(second / "cases.jsonl")} == {
        "phantom_000": "labelled",
        "phantom_001": "labelled",
        "phantom_002": "accepted",
        "phantom_003": "set_aside",
        "phantom_004": "test",
    }
    ignore = read_plan(second / "plan.toml").labels.ignore
    assert ignore == 14
    stored = np.asarray(open_case(second / "store" / "phantom_002").label[:])
    values = {value: name for value, name in read_plan(second / "plan.toml").labels.organs.items() if name == "liver"}
    liver = next(iter(values))
    assert liver not in stored
    assert (stored == ignore).any()
    assert not (second / "store" / "phantom_003").exists()
    page = (second / "report.html").read_text(encoding="utf-8")
    assert "Trained on 2 labelled and 1 accepted scans, with 1 set aside" in page
    assert semiseg_command("run", second, *flags, "--set", "evaluate.rules=flare22", "--quiet").code == 0
    # What is decided after the run was begun is for the next one.
    log.undo("r")
    assert semiseg_command("prepare", second, *flags).code == 0
    refused = semiseg_command("run", second, "--data", phantoms, *tiny, "--set", "data.decisions=elsewhere")
    assert refused.code == 2
    assert "data.decisions" in refused.err


def test_a_run_that_was_not_reviewed_is_said_to_be(
    first: Path, phantoms: Path, tiny: list[str], semiseg_command: Command, tmp_path: Path
) -> None:
    shutil.copy(first / "plan.toml", tmp_path / "plan.toml")
    answer = semiseg_command("run", tmp_path / "run", "--data", phantoms, *tiny, "--set", f"data.decisions={tmp_path}")
    assert answer.code == 2
    assert "nothing was decided or corrected there" in answer.err


def test_other_peoples_labels_are_learnt_from_where_they_know_something(
    first: Path, phantoms: Path, tiny: list[str], semiseg_command: Command, tmp_path: Path
) -> None:
    masks = tmp_path / "segmentations" / "phantom_003"
    label, _ = read_label(phantoms / "labelsTr" / "phantom_001.nii.gz")
    grid = read_grid(phantoms / "imagesUn" / "phantom_003_0000.nii.gz")
    for name, value in (("liver", 1), ("spleen", 3)):
        write_label(masks / f"{name}.nii.gz", (label == value).astype(np.uint8), grid)
    flags = [
        *tiny,
        "--set",
        "predict.engine=torch",
        "--set",
        f"data.teacher_labels={masks.parent}",
        "--method",
        "supervised",
    ]
    answer = semiseg_command("run", tmp_path / "run", "--data", phantoms, *flags)
    assert answer.code == 0, answer
    assert "do not know" in answer.out
    assert "Scans: 2 labelled, 1 taught, 1 unlabelled." in answer.out
    stored = np.asarray(open_case(tmp_path / "run" / "store" / "phantom_003").label[:])
    assert set(np.unique(stored)) == {1, 3, 15}  # open: background, or an organ that is unknown there
    assert (tmp_path / "run" / "teacher_labels" / "phantom_003.nii.gz").is_file()
