"""The published system's recipe, compact students, and real sets take real steps, at reduced sizes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semiseg.data.plan import read_plan
from semiseg.files import hash_files, read_json, read_jsonl, write_json
from semiseg.io.layouts import read_dataset
from semiseg.io.scans import read_label
from semiseg.io.store import read_case_meta
from semiseg.prediction.model import load_model
from semiseg.scoring import read_summary
from semiseg.training.settled import read_settled

Command = Callable[..., Any]
FLARE22 = Path(__file__).resolve().parents[2] / "recipes" / "flare22.toml"
REAL = {"Dataset004_Hippocampus": 2, "Dataset101_HeadNeckCT": 6, "Dataset102_LeftAtriumHalf": 4}
"""Data set, and a spacing in mm at which its scans are small."""
STEPS = ["train.steps=6", "train.log_every=1"]
"""Enough for warm-up and training phase of every run."""


def smaller(tiny: list[str], *settings: str) -> list[str]:
    return [*tiny, *(flag for setting in (*STEPS, *settings) for flag in ("--set", setting)), "--quiet"]


def both_phases_were_taken(run: Path, *, has_feedback: bool = False) -> None:
    rows = read_jsonl(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {"warmup", "train"} <= {row["phase"] for row in rows}
    trained = [row for row in rows if row["phase"] == "train"]
    assert all(np.isfinite(row["pseudo_loss"]) for row in trained)
    assert any("feedback" in row for row in trained) == has_feedback


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Path:
    """A folder like the FLARE22 release, made of phantoms, which carry its label numbers."""
    root = tmp_path_factory.mktemp("flare22")
    training = root / "Training" / "FLARE22_LabeledCase50"
    names = {
        "imagesTr/phantom_000_0000": training / "images" / "FLARE22_Tr_0001_0000",
        "imagesTr/phantom_001_0000": training / "images" / "FLARE22_Tr_0002_0000",
        "labelsTr/phantom_000": training / "labels" / "FLARE22_Tr_0001",
        "labelsTr/phantom_001": training / "labels" / "FLARE22_Tr_0002",
        "imagesUn/phantom_002_0000": root / "Training" / "FLARE22_UnlabeledCase1-1000" / "Case_00001_0000",
        "imagesUn/phantom_003_0000": root / "Training" / "FLARE22_UnlabeledCase1001-2000" / "Case_01001_0000",
        "imagesTs/phantom_004_0000": root / "Tuning" / "images" / "FLARETs_0001_0000",
        "labelsTs/phantom_004": root / "Tuning" / "labels" / "FLARETs_0001",
    }
    for source, target in names.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(phantoms / f"{source}.nii.gz", target.with_name(f"{target.name}.nii.gz"))
    return root


def test_the_flare22_recipe_goes_the_whole_way(
    semiseg_command: Command, release: Path, tiny: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = smaller(tiny, "plan.device=cpu", "plan.max_features=8")
    answer = semiseg_command("run", run, "--recipe", FLARE22, "--data", release, *flags)
    assert answer.code == 0, answer
    both_phases_were_taken(run, has_feedback=True)
    roles = {row["id"]: row["role"] for row in read_jsonl(run / "cases.jsonl")}
    assert roles == {
        "FLARE22_Tr_0001": "labelled",
        "FLARE22_Tr_0002": "labelled",
        "Case_00001": "unlabelled",
        "Case_01001": "unlabelled",
        "FLARETs_0001": "test",
    }
    summary = read_summary(run / "summary.json")
    assert summary["rules"] == "flare22"
    assert len(summary["organs"]) == 13
    assert list(read_json(run / "checkpoints" / "step-000006" / "card.json")["locations"]), "no refresh took place"


@pytest.mark.thorough
def test_the_compact_students_go_the_whole_way_on_phantoms(
    semiseg_command: Command, phantoms: Path, tiny: list[str], tmp_path: Path
) -> None:
    """The small one under its teacher; the coarse one after it, from the labels that it gives."""
    flags = ["--data", phantoms, "--labelled", 2, *smaller(tiny)]
    teacher = tmp_path / "teacher"
    halved = ["--set", "plan.base_features=4", "--set", "plan.student_base_features=2", "--method", "pseudo_label"]
    answer = semiseg_command("run", teacher, *flags, *halved)
    assert answer.code == 0, answer
    plan = read_plan(teacher / "plan.toml")
    assert plan.student.features[0] * 2 == plan.teacher.features[0]
    assert load_model(teacher).sizes == plan.student

    student = tmp_path / "student"
    coarser = [
        "--set",
        "plan.spacing_mm=[24.0, 24.0, 24.0]",
        "--set",
        f"data.teacher={teacher}",
        "--method",
        "supervised",
    ]
    answer = semiseg_command("run", student, *flags, *coarser)
    assert answer.code == 0, answer
    rows = read_jsonl(student / "cases.jsonl")
    taught = [row for row in rows if row["role"] == "taught"]
    assert taught
    assert not [row for row in rows if row["role"] == "unlabelled"]
    card = read_json(student / "model" / "card.json")
    assert card["taught_cases"] == len(taught)
    assert len(card["labelled_cases"]) == 2
    for row in taught:
        given, _ = read_label(Path(row["label"]))
        by_teacher, _ = read_label(student / "teacher_labels" / f"{row['id']}.nii.gz")
        np.testing.assert_array_equal(given, by_teacher)
        assert read_case_meta(student / "store" / row["id"]).labelled
    assert f"{len(taught)} labelled by its teacher" in (student / "report.html").read_text()
    again = semiseg_command("run", student, *flags, *coarser)
    assert again.code == 0, again
    assert len(read_jsonl(student / "teacher_labels" / "predictions.jsonl")) == len(taught)  # not labelled twice

    plan_file = teacher / "model" / "plan.toml"
    plan_file.write_text(plan_file.read_text().replace("liver", "heart"))
    card = read_json(teacher / "model" / "card.json") | {"plan_sha256": hash_files([plan_file])}
    write_json(teacher / "model" / "card.json", card)
    answer = semiseg_command("prepare", tmp_path / "other", *flags, *coarser)
    assert answer.code != 0
    assert f"data.teacher = {teacher}: knows" in answer.err.replace("\n", " ")
    assert "heart" in answer.err


def some_cases(source: Path, target: Path) -> Path:
    """Three training cases and one test case of a set, and its description."""
    dataset = read_dataset(source)
    training = [*dataset.train_order[:3]]
    chosen = [case for case in dataset.cases if case.id in training]
    chosen.append(next(case for case in dataset.cases if case.split == "test"))
    for case in chosen:
        for file in (*case.images, case.label):
            assert file is not None
            link = target / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    shutil.copy(source / "dataset.json", target)
    write_json(target / "splits.json", {"train_order": training})
    return target


@pytest.mark.parametrize("folder", REAL)
def test_a_real_set_goes_the_whole_way(
    folder: str, real_data: Path, semiseg_command: Command, tiny: list[str], tmp_path: Path
) -> None:
    mm = REAL[folder]
    data = some_cases(real_data.resolve() / folder, tmp_path / "data")
    flags = ["--method", "pseudo_label", "--labelled", 2]
    flags += smaller(tiny, f"plan.spacing_mm=[{mm}.0, {mm}.0, {mm}.0]", "plan.patch=[8, 8, 8]")
    answer = semiseg_command("run", tmp_path / "run", "--data", data, *flags)
    assert answer.code == 0, answer
    both_phases_were_taken(tmp_path / "run")
    roles = [row["role"] for row in read_jsonl(tmp_path / "run" / "cases.jsonl")]
    assert sorted(roles) == ["labelled", "labelled", "test", "unlabelled"]


def test_training_may_start_from_a_model_whose_plan_it_takes(
    phantoms: Path, tiny: list[str], semiseg_command: Command, tmp_path: Path
) -> None:
    def made(name: str, *more: object) -> Any:
        flags = [flag for flag in tiny if "plan." not in flag and flag != "--set"]
        settings = [part for flag in flags for part in ("--set", flag)]
        return semiseg_command("run", tmp_path / name, "--data", phantoms, *settings, *more, "--quiet")

    first = semiseg_command("run", tmp_path / "first", "--data", phantoms, "--method", "supervised", *tiny, "--quiet")
    assert first.code == 0, first
    still = ["--set", "train.steps=2", "--set", "method.optimiser.learning_rate=1e-9"]
    for method in ("supervised", "pseudo_label", "pseudo_rounds"):
        answer = made(method, "--method", method, "--set", f"train.weights={tmp_path / 'first'}", *still)
        assert answer.code == 0, answer
        before, after = (load_model(tmp_path / name).weights() for name in ("first", method))
        for name, value in before.items():
            if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
                assert np.allclose(after[name], value, atol=1e-5), name  # two steps of a rate of 1e-9
        assert load_model(tmp_path / method).plan.patch == load_model(tmp_path / "first").plan.patch
    card = read_json(next((tmp_path / "supervised" / "checkpoints").iterdir()) / "card.json")
    assert card["origin"]["train.weights"] == load_model(tmp_path / "first").hash


def test_a_model_of_other_labels_is_no_beginning(
    phantoms: Path, tiny: list[str], semiseg_command: Command, tmp_path: Path
) -> None:
    assert semiseg_command("run", tmp_path / "first", "--data", phantoms, "--method", "supervised", *tiny).code == 0
    other = tmp_path / "other"
    shutil.copytree(phantoms, other)
    description = read_json(other / "dataset.json")
    description["labels"] = {("hepar" if name == "liver" else name): n for name, n in description["labels"].items()}
    write_json(other / "dataset.json", description)
    weights = ["--set", f"train.weights={tmp_path / 'first'}"]
    answer = semiseg_command("run", tmp_path / "second", "--data", other, *tiny, *weights)
    assert (answer.code, "brings its plan along" in answer.err) == (2, True)
    answer = semiseg_command("run", tmp_path / "third", "--data", other, *weights)
    assert answer.code == 2
    assert "train.weights = " in answer.err
    assert "has the labels" in answer.err


def test_a_run_that_has_ended_is_trained_on(
    phantoms: Path, tiny: list[str], semiseg_command: Command, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    refused = semiseg_command("run", run, "--continue", 4)
    assert refused.code == 2
    assert semiseg_command("run", run, "--data", phantoms, "--method", "supervised", *tiny, "--quiet").code == 0
    before = hash_files([run / "model" / "weights.safetensors"])
    first = read_jsonl(run / "metrics.jsonl")
    answer = semiseg_command("run", run, "--continue", 4)
    assert answer.code == 0, answer
    rows = read_jsonl(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [*range(1, 11)]
    assert rows[:6] == first
    rates = [row["learning_rate"] for row in rows]
    assert rates[6:] == pytest.approx([0.1 * (1 - step / 10) ** 0.9 for step in range(6, 10)])
    assert hash_files([run / "model" / "weights.safetensors"]) != before
    assert "steps = 10" in (run / "run.toml").read_text()
    assert semiseg_command("run", run, "--continue", 0).code == 2
    refused = semiseg_command("run", run, "--continue", 2, "--set", "train.seed=3")
    assert (refused.code, "leave the other flags out" in refused.err) == (2, True)
    assert "steps = 10" in (run / "run.toml").read_text()
    asked, settled = (run / "run.toml").read_text(), read_settled(run)
    edited = re.sub(r"(\[train\][^\[]*\nseed = )\d+", r"\g<1>3", asked)
    (run / "run.toml").write_text(edited)
    refused = semiseg_command("run", run, "--continue", 2)
    assert (refused.code, "train.seed = " in refused.err) == (2, True), refused
    assert (run / "run.toml").read_text() == edited, "what was refused is not asked for"
    assert read_settled(run) == settled
    (run / "run.toml").write_text(asked)
    again = semiseg_command("run", run, "--quiet")
    assert again.code == 0
    assert len(read_jsonl(run / "metrics.jsonl")) == 10
    assert read_settled(run).lengthened == (6.0,)


def test_a_run_that_has_not_ended_is_not_made_longer(
    phantoms: Path, tiny: list[str], semiseg_command: Command, tmp_path: Path
) -> None:
    """As after a kill while it was trained on: its model is that of before."""
    run = tmp_path / "run"
    assert semiseg_command("run", run, "--data", phantoms, "--method", "supervised", *tiny, "--quiet").code == 0
    text = (run / "run.toml").read_text()
    (run / "run.toml").write_text(text.replace("\nsteps = 6\n", "\nsteps = 9\n"))
    answer = semiseg_command("run", run, "--continue", 4)
    assert (answer.code, "training has not ended" in answer.err) == (2, True)
    assert semiseg_command("run", run, "--quiet").code == 0
    assert read_jsonl(run / "metrics.jsonl")[-1]["step"] == 9


@pytest.mark.parametrize(
    ("method", "first_part"),
    [("pseudo_label", "warm-up"), pytest.param("masked", "pre-training", marks=pytest.mark.thorough)],
)
def test_a_run_does_not_fall_back_into_its_first_part(
    phantoms: Path, tiny: list[str], semiseg_command: Command, tmp_path: Path, method: str, first_part: str
) -> None:
    """After its pre-training a student is replaced, and all that it learnt from labels with it."""
    run = tmp_path / "run"
    assert semiseg_command("run", run, "--data", phantoms, "--method", method, *tiny, "--quiet").code == 0
    for more in (6, 5.6):  # that is six steps, too
        answer = semiseg_command("run", run, "--continue", more)
        assert answer.code == 2
        assert f"would fall back into its {first_part}, the first 0.5 of it. Give less than 6" in answer.err
    assert semiseg_command("run", run, "--continue", 3, "--quiet").code == 0
