"""Labelled scans are held back from training only where nothing else tells how good the model is."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

import semiseg
from semiseg.config import load_settings
from semiseg.data.roles import FEWEST_TO_VALIDATE, read_run_cases
from semiseg.demo.dataset import write_phantom_dataset

PLAN = ["train.steps=4", "plan.patch=[16,16,16]", "plan.base_features=4", "method.name='supervised'"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """As many labels as are enough for validation, and a test case with its label."""
    return write_phantom_dataset(
        tmp_path / "data", seed=0, labelled=FEWEST_TO_VALIDATE, unlabelled=1, test=1, shape_zyx=(18, 20, 20)
    )


def roles(run: Path, data: Path, *more: str) -> dict[str, int]:
    settings = load_settings(None, [f"data.root='{data}'", *PLAN, *more])
    semiseg.prepare(run, settings, quiet=True)
    return Counter(case.role for case in read_run_cases(run / "cases.jsonl"))


def test_labels_are_held_back_where_no_test_case_has_one(data: Path, tmp_path: Path) -> None:
    enough, fifth = FEWEST_TO_VALIDATE, FEWEST_TO_VALIDATE // 5
    assert roles(tmp_path / "a", data)["labelled"] == enough
    assert roles(tmp_path / "asked", data, "train.validation_fraction=0.2")["validation"] == fifth
    assert roles(tmp_path / "fold", data, "data.folds=5", "data.fold=0") == {"labelled": 16, "test": 4, "unlabelled": 1}
    (kept,) = (data / "labelsTs").iterdir()
    kept.rename(tmp_path / kept.name)
    assert roles(tmp_path / "b", data)["validation"] == fifth
    assert roles(tmp_path / "off", data, "train.validation_every=0")["labelled"] == enough
    shutil.copy(tmp_path / kept.name, kept)
    assert roles(tmp_path / "b", data)["validation"] == fifth, "a test label that comes later changes no run"
    (tmp_path / "b" / "cases.jsonl").write_text("damaged")
    assert roles(tmp_path / "b", data)["labelled"] == enough, "as if it were prepared for the first time"
