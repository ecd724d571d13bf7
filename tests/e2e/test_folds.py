"""`semiseg run RUN --folds K`: every labelled scan scored by a network that has not seen it, resumed and averaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from semiseg.data.case_hashes import hashed_ids
from semiseg.data.roles import fold_parts
from semiseg.demo.dataset import write_phantom_dataset
from semiseg.files import hash_files, read_json, read_jsonl, write_jsonl
from semiseg.io.scans import read_label
from semiseg.prediction.postprocessing import write_steps
from semiseg.scoring import read_summary

Command = Callable[..., Any]
FOLDS = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folds") / "data"
    return write_phantom_dataset(folder, seed=0, labelled=4, unlabelled=1, test=1, shape_zyx=(24, 32, 32))


@pytest.fixture(scope="module")
def flags(data: Path, tiny: list[str]) -> list[object]:
    # By torch: which engine is the fastest is not found out again for each fold.
    return ["--data", data, "--folds", FOLDS, "--method", "supervised", *tiny, "--set", "predict.engine=torch"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, semiseg_command: Command, flags: list[object]) -> tuple[Path, str]:
    """A finished run and what was printed; tests leave it as it is."""
    run = tmp_path_factory.mktemp("runs") / "run"
    answer = semiseg_command("run", run, *flags)
    assert answer.code == 0, answer
    return run, answer.out


def roles(run: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in read_jsonl(run / "cases.jsonl"):
        found.setdefault(row["role"], []).append(row["id"])
    return found


def weights(run: Path) -> list[str]:
    return [hash_files([run / f"fold_{n}" / "model" / "weights.safetensors"]) for n in range(FOLDS)]


def test_every_labelled_scan_is_scored_once_by_a_network_that_has_not_seen_it(made: tuple[Path, str]) -> None:
    run, said = made
    labelled = [f"phantom_00{n}" for n in range(4)]
    held = [roles(run / f"fold_{n}")["test"] for n in range(FOLDS)]
    assert sorted(case for part in held for case in part) == labelled
    for number, part in enumerate(held):
        assert sorted(roles(run / f"fold_{number}")["labelled"]) == sorted(set(labelled) - set(part))
        assert roles(run / f"fold_{number}")["unlabelled"] == ["phantom_004"]
    summary = read_summary(run / "summary.json")
    assert [case["id"] for case in summary["cases"]] == labelled
    for number, part in enumerate(held):
        own = {case["id"]: case for case in read_summary(run / f"fold_{number}" / "summary.json")["cases"]}
        assert own.keys() == set(part)
        assert all(case == own[case["id"]] for case in summary["cases"] if case["id"] in own)
    assert "Out of fold: every labelled scan" in said
    assert f"of {len(labelled)} labelled scans, out of fold." in said


def test_the_folds_share_plan_and_prepared_scans(made: tuple[Path, str]) -> None:
    run, _ = made
    plans = {hash_files([folder / "plan.toml"]) for folder in (run, *(run / f"fold_{n}" for n in range(FOLDS)))}
    assert len(plans) == 1
    stores = [run / "store", *(run / f"fold_{n}" / "store" for n in range(FOLDS))]
    for case in ("phantom_000", "phantom_004"):
        inodes = {(store / case / "image.b2nd").stat().st_ino for store in stores if (store / case).exists()}
        assert len(inodes) == 1
    # A label of a scan that is held back is not of the fold's prepared scans.
    assert not (run / "fold_0" / "store" / roles(run / "fold_0")["test"][0]).exists()


def test_prediction_averages_the_networks(
    made: tuple[Path, str], data: Path, semiseg_command: Command, tmp_path: Path
) -> None:
    run, _ = made
    assert read_json(run / "tests" / "summary.json")["cases"][0]["id"] == "phantom_005"
    models = [run / f"fold_{n}" / "model" for n in range(FOLDS)]
    scans, same = data / "imagesTs", ["--engine", "torch", "--tile-step", 1, "--quiet"]
    for output, model, more in (("run", run, []), ("named", models[0], ["--ensemble", *models[1:]])):
        answer = semiseg_command("predict", model, scans, "--output", tmp_path / output, *more, *same)
        assert answer.code == 0, answer
    one, other = (read_label(tmp_path / name / "phantom_005.nii.gz")[0] for name in ("run", "named"))
    assert (one == other).all()


def test_the_page_says_what_the_scores_are(made: tuple[Path, str]) -> None:
    page = (made[0] / "report.html").read_text(encoding="utf-8")
    assert f"{FOLDS} networks, each trained without one part of the 4 labelled scans." in page
    assert "labelled scans, each predicted by the network that has not seen it," in page
    assert "fold_0/report.html" in page
    assert "measured on the" in (made[0] / "fold_0" / "report.html").read_text(encoding="utf-8")


def test_what_was_killed_goes_on_to_the_same_bits(
    made: tuple[Path, str], semiseg_command: Command, flags: list[object]
) -> None:
    """As after a kill in the second fold: its training is half-done, and the third has not begun."""
    run = made[0].parent / "killed"
    shutil.copytree(made[0], run)
    shutil.rmtree(run / "fold_2")
    second = run / "fold_1"
    for name in ("model", "predictions"):
        shutil.rmtree(second / name)
    for name in ("summary.json", "summary.csv", "report.html"):
        (second / name).unlink()
    shutil.rmtree(sorted((second / "checkpoints").glob("step-*"))[-1])
    (run / "summary.json").unlink()
    answer = semiseg_command("run", run, *flags, "--quiet")
    assert answer.code == 0, answer
    assert weights(run) == weights(made[0])
    again, before = (json.loads((folder / "summary.json").read_text()) for folder in (run, made[0]))
    assert again["mean"] == before["mean"]


def test_one_fold_at_a_time(
    semiseg_command: Command, flags: list[object], made: tuple[Path, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for fold in (2, 0, 1):
        answer = semiseg_command("run", run, *flags, "--fold", fold)
        assert answer.code == 0, answer
        assert (run / "summary.json").exists() == (fold == 1)
        assert ("still to come" in answer.out) == (fold != 1)
    assert weights(run) == weights(made[0])


def test_cleaning_is_chosen_on_all_labelled_scans(
    semiseg_command: Command, made: tuple[Path, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made[0], run)
    answer = semiseg_command("postprocess", run, "--quiet")
    assert answer.code == 0, answer
    chosen = [read_json(run / f"fold_{n}" / "model" / "postprocessing.json") for n in range(FOLDS)]
    assert chosen[0] == chosen[1] == chosen[2]
    assert chosen[0]["cases"] == hashed_ids(run, [f"phantom_00{n}" for n in range(4)])


def test_the_folds_are_a_teacher_together(
    semiseg_command: Command, made: tuple[Path, str], data: Path, tiny: list[str], tmp_path: Path
) -> None:
    """Unlabelled scans get the labels that `predict` of the run gives them: those of the average."""
    run, student, together = made[0], tmp_path / "student", tmp_path / "together"
    torch = ["--set", "predict.engine=torch"]
    taught = ["--method", "supervised", "--set", f"data.teacher={run}"]
    assert semiseg_command("prepare", student, "--data", data, *tiny, *torch, *taught).code == 0
    assert roles(student)["taught"] == ["phantom_004"]
    scan = next(data.rglob("phantom_004_0000.nii.gz"))
    as_prepared = ["--engine", "torch", "--tile-step", 1]  # the tiles of `tiny`
    assert semiseg_command("predict", run, scan, "--output", together, *as_prepared).code == 0
    given, alike = (read_label(folder / "phantom_004.nii.gz")[0] for folder in (student / "teacher_labels", together))
    assert (given == alike).all()
    (row,) = read_jsonl(student / "teacher_labels" / "predictions.jsonl")
    assert row["model"] == read_jsonl(together / "predictions.jsonl")[0]["model"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--folds", 9], "data.folds = 9, but only 4 cases are labelled. Give fewer folds."),
        (["--folds", 1], "data.folds = 1: give 2 or more"),
        (["--folds", 2, "--fold", 2], "--fold 2: there are the folds 0 to 1."),
        (["--fold", 1], "--fold 1: of how many? Add --folds."),
        (["--folds", 2, "--set", "data.development=1"], "not with data.development"),
        (
            ["--folds", 2, "--set", "data.teacher=runs/base"],
            "data.folds with data.teacher: the model behind it may have learnt",
        ),
        (["--folds", 2, "--set", "train.weights=runs/base"], "data.folds with train.weights"),
    ],
)
def test_what_cannot_be_is_refused(
    semiseg_command: Command, data: Path, tiny: list[str], tmp_path: Path, more: list[object], message: str
) -> None:
    answer = semiseg_command("run", tmp_path / "run", "--data", data, *tiny, *more)
    assert answer.code == 2
    assert message in answer.err


@pytest.mark.parametrize(("count", "folds"), [(4, 3), (10, 5), (7, 2), (5, 5)])
def test_parts_are_of_one_size_and_do_not_depend_on_the_order(count: int, folds: int) -> None:
    ids = [f"case{n}" for n in range(count)]
    parts = fold_parts(ids, folds, "")
    assert parts == fold_parts(ids[::-1], folds, "")
    assert sorted(case for part in parts for case in part) == sorted(ids)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_what_folds_have_in_common_does_not_change_between_them(
    semiseg_command: Command, flags: list[object], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert semiseg_command("run", run, *flags, "--fold", 0, "--quiet").code == 0
    answer = semiseg_command("run", run, *flags, "--fold", 1, "--set", "train.seed=7")
    assert answer.code == 2
    assert "train.seed = 0 in the run, 7 now" in answer.err


def test_a_fold_that_is_missing_or_double_is_not_passed_over(
    semiseg_command: Command, made: tuple[Path, str], flags: list[object], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made[0], run)
    shutil.copytree(run / "fold_0", run / "fold_3")
    answer = semiseg_command("run", run, *flags, "--quiet")
    assert answer.code == 2
    assert "do not have every labelled scan once" in answer.err


def test_scores_of_the_test_cases_do_not_take_the_place_of_those_out_of_fold(
    semiseg_command: Command, made: tuple[Path, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made[0], run)
    before = (run / "summary.json").read_bytes()
    answer = semiseg_command("evaluate", run)
    assert answer.code == 0, answer
    assert (run / "summary.json").read_bytes() == before


def test_cleaning_that_was_chosen_on_the_folds_does_not_change_their_scores(
    semiseg_command: Command, made: tuple[Path, str], flags: list[object], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made[0], run)
    before = read_summary(run / "summary.json")
    for fold in range(FOLDS):
        write_steps(
            run / f"fold_{fold}" / "model", {"steps": {"liver": ["largest_component"]}, "dice": {}, "cases": []}
        )
    assert semiseg_command("run", run, *flags, "--quiet").code == 0
    after = read_summary(run / "summary.json")
    assert [case["organs"] for case in after["cases"]] == [case["organs"] for case in before["cases"]]


@pytest.mark.parametrize("link", ["fold_1/settled.toml", "fold_1/out_of_fold", "fold_1/model"])
def test_links_out_of_a_fold_are_refused(
    semiseg_command: Command, made: tuple[Path, str], flags: list[object], tmp_path: Path, link: str
) -> None:
    run, mine = tmp_path / "run", tmp_path / "mine"
    shutil.copytree(made[0], run)
    mine.mkdir()
    (mine / "precious.txt").write_text("mine")
    place = run / link
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to(mine / "precious.txt" if link.endswith(".toml") else mine)
    for command in (["run", run, *flags], ["postprocess", run]):
        answer = semiseg_command(*command, "--quiet")
        assert answer.code == 2
        assert "a link that leads out of the run" in answer.err
    assert [file.name for file in mine.iterdir()] == ["precious.txt"]
    assert (mine / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train"], "has folds, which `semiseg run"),
        (["rank"], "has folds, each with networks of its own"),
        (["export", "--to", "onnx", "--output", "out"], "is a run with folds, which have a model each"),
    ],
)
def test_commands_of_one_network_say_what_to_name(
    semiseg_command: Command, made: tuple[Path, str], command: list[object], message: str
) -> None:
    answer = semiseg_command(command[0], made[0], *command[1:])
    assert answer.code == 2
    assert message in answer.err


def test_without_labelled_test_cases_the_scores_out_of_fold_are_named(
    made: tuple[Path, str], semiseg_command: Command, tmp_path: Path
) -> None:
    run = shutil.copytree(made[0], tmp_path / "run", ignore=shutil.ignore_patterns("store", "checkpoints"))
    rows = [row | ({"label": None} if row["role"] == "test" else {}) for row in read_jsonl(run / "cases.jsonl")]
    write_jsonl(run / "cases.jsonl", rows)
    answer = semiseg_command("evaluate", run)
    assert answer.code == 2
    assert "no test case has a label" in answer.err
    assert f"out of fold, into {run / 'summary.json'}" in answer.err
