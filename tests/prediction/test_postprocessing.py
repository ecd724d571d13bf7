"""Cleaning that is chosen on validation cases, and only where it helps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from engines import Engine

from semiseg.data.plan import Plan
from semiseg.errors import ModelError
from semiseg.files import write_json
from semiseg.models.build import build_network
from semiseg.prediction.inputs import find_scans
from semiseg.prediction.model import Model, load_model, save_model
from semiseg.prediction.postprocessing import Pair, choose_steps, read_steps, write_steps
from semiseg.prediction.scans import predict_scans
from semiseg.prediction.settings import PredictSettings

ORGANS = {1: "liver", 2: "lungs", 3: "spleen", 4: "never there"}


def pairs() -> list[Pair]:
    """The liver has stray voxels, the lungs are two pieces by nature, the spleen is predicted with a hole."""
    reference = np.zeros((10, 10, 30), np.uint8)
    reference[2:8, 2:8, 2:8] = 1
    reference[2:8, 2:4, 12:16] = 2
    reference[2:8, 6:8, 12:16] = 2
    reference[2:8, 2:8, 20:26] = 3
    labels = reference.copy()
    labels[0, 0, 28:30] = 1
    labels[4:6, 4:6, 22:24] = 0
    return [Pair("a", reference, labels), Pair("b", reference, labels)]


def test_each_organ_gets_the_steps_that_help_it() -> None:
    chosen = choose_steps(pairs(), ORGANS)
    assert chosen["steps"] == {"liver": ["largest_component"], "spleen": ["fill_holes"]}
    assert chosen["cases"] == ["a", "b"]
    assert set(chosen["dice"]) == {"liver", "lungs", "spleen"}
    assert chosen["dice"]["lungs"]["as predicted"] == 1
    assert chosen["dice"]["lungs"]["largest_component"] == pytest.approx(2 / 3, abs=1e-6)
    assert chosen["dice"]["liver"]["largest_component"] == 1


def test_a_gain_that_is_next_to_nothing_is_left_alone() -> None:
    reference = np.ones((20, 20, 20), np.uint8)
    labels = reference.copy()
    labels[10, 10, 10] = 0  # one voxel of 8,000
    assert choose_steps([Pair("a", reference, labels)], {1: "liver"})["steps"] == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "not the steps of this model's organs"),
        ({"steps": {"heart": ["fill_holes"]}}, "not the steps of this model's organs"),
        ({"steps": {"liver": ["erode"]}}, r"unknown steps \['erode'\]"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path: Path, content: object, message: str) -> None:
    write_json(tmp_path / "postprocessing.json", content)
    with pytest.raises(ModelError, match=message):
        read_steps(tmp_path, ORGANS)


class Spotted(Engine):
    """Class 1 wherever it is bright, so also in a stray voxel."""

    def logits(self, tiles: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros_like(tiles), tiles, np.full_like(tiles, -9)], axis=1)


def test_prediction_ends_with_the_chosen_steps(model_folder: Path, tmp_path: Path) -> None:
    array = np.full((12, 12, 12), -100, np.int16)
    array[2:6, 2:6, 2:6] = 200
    array[10, 10, 10] = 200
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / "in" / "a.nii.gz")
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))

    def voxels(model: Model, **settings: Any) -> tuple[int, bool]:
        given = PredictSettings(device="cpu", mirror=False, **settings)
        (outcome,) = predict_scans(find_scans([tmp_path / "in"]), model, Spotted(), tmp_path / "out", given)
        return int(np.count_nonzero(np.asarray(nib.load(outcome.output).dataobj) == 1)), outcome.reused

    assert voxels(load_model(folder)) == (65, False)
    write_steps(folder, {"steps": {"left_x": ["largest_component"]}})
    assert voxels(load_model(folder)) == (64, False)  # other labels: done again
    assert voxels(load_model(folder)) == (64, True)
    assert voxels(load_model(folder), postprocess=False) == (65, False)


def test_it_is_chosen_on_the_validation_cases_of_a_run(
    semiseg_command: Callable[..., Any], phantoms: Path, tiny: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert semiseg_command("prepare", run, "--data", phantoms, "--method", "supervised", *tiny, "--quiet").code == 0
    assert semiseg_command("train", run, "--quiet").code == 0
    answer = semiseg_command("postprocess", run)
    assert answer.code == 2
    assert "no validation cases, and nothing may be chosen on others" in answer.err
    rows = (run / "cases.jsonl").read_text().splitlines()
    held = next(index for index, row in enumerate(rows) if '"labelled"' in row)
    rows[held] = rows[held].replace('"role": "labelled"', '"role": "validation"')
    (run / "cases.jsonl").write_text("\n".join(rows) + "\n")
    answer = semiseg_command("postprocess", run, "--quiet")
    assert answer.code == 0, answer.err
    assert "liver" in answer.out
    assert (run / "model" / "postprocessing.json").is_file()
    assert [file.name for file in (run / "validation").glob("*.nii.gz")] != []


def test_what_was_chosen_lasts_as_long_as_the_weights(plan: Plan, tmp_path: Path) -> None:
    first, second = (build_network(plan.student, channels=1, classes=3, seed=seed) for seed in (0, 1))
    save_model(tmp_path / "model", first, plan, role="student", card={})
    write_steps(tmp_path / "model", {"steps": {"left_x": ["fill_holes"]}})
    save_model(tmp_path / "model", first, plan, role="student", card={})  # `semiseg train` on a finished run
    assert read_steps(tmp_path / "model", plan.labels.organs) == {1: ("fill_holes",)}
    save_model(tmp_path / "model", second, plan, role="student", card={})
    assert read_steps(tmp_path / "model", plan.labels.organs) == {}


def test_voxels_that_nobody_labelled_do_not_count() -> None:
    reference = np.zeros((4, 4, 12), np.uint8)
    reference[:, :, :4] = 1
    reference[:, :, 8:] = 9  # ignore: the second lobe lies there
    labels = np.zeros_like(reference)
    labels[:, :, :4] = labels[:, :, 8:] = 1
    assert choose_steps([Pair("a", reference, labels)], {1: "liver"})["steps"] == {"liver": ["largest_component"]}
    assert choose_steps([Pair("a", reference, labels)], {1: "liver"}, ignore=9)["steps"] == {}
