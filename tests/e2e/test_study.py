"""`semiseg study STUDY.toml` on a phantom set: all methods in one house, resumed run by run, and its files."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from semiseg.config import load_settings
from semiseg.errors import DataError
from semiseg.files import read_toml, write_toml
from semiseg.run_folder import alone_in, wait_for
from semiseg.scoring.study_results import name_of, read_study
from semiseg.settings import read_settings, write_settings
from semiseg.study import run_process
from semiseg.study.known_results import KnownResults, row_of_run
from semiseg.study.settings import load_study, planned_runs
from semiseg.training.settled import read_settled

Command = Callable[..., Any]
STEPS = 8
PATIENCE_SECONDS = 120.0
"""Longer than a run takes to begin on a busy machine."""
METHODS = ["supervised", "mpl", "cross_pseudo"]
"""Three that differ in what they leave behind; `tests/methods` has them all."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """A study file of methods with two labels. It sets their steps: nothing is timed here."""
    folder = tmp_path_factory.mktemp("study")
    flags = [flag for flag in tiny if "=" in flag and not flag.startswith("data.labelled")]
    # By torch: which engine is the fastest is not found out again for each run.
    write_settings(folder / "recipe.toml", load_settings(None, [*flags, "predict.engine=torch"]))
    recipe = read_toml(folder / "recipe.toml")
    write_toml(folder / "recipe.toml", {name: table for name, table in recipe.items() if name != "method"})
    methods = "\n".join(f'{name} = {{ "method.name" = "{name}" }}' for name in METHODS)
    (folder / "small.toml").write_text(
        f'recipe = "recipe.toml"\n[common]\n"train.steps" = {STEPS}\n[methods]\n{methods}\n[[budgets]]\nlabelled = 2\n'
        '[reference]\nmethod = "another program"\nlabelled = 3\n'
    )
    return folder / "small.toml"


@pytest.fixture(scope="module")
def compared(study: Path, phantoms: Path, semiseg_command: Command) -> Any:
    """What the command answers; it leaves `runs` and `results` beside the study file."""
    return semiseg_command("study", study, "--data", phantoms, "--output", study.parent / "runs", "--results",
                           study.parent / "results")  # fmt: skip


def test_every_method_is_trained_scored_and_compared(study: Path, compared: Any) -> None:
    assert compared.code == 0, compared
    assert f"[{len(METHODS)}/{len(METHODS)}] cross_pseudo, 2 labels (the first), seed 0: Dice" in compared.out
    known = read_study(study.parent / "results" / "results.json")
    assert [run["method"] for run in known["runs"]] == METHODS
    assert all(run["steps"] == STEPS and run["peak_memory_mb"] > 50 for run in known["runs"])
    assert {organ for run in known["runs"] for case in run["cases"].values() for organ in case} == set(known["organs"])
    page = (study.parent / "runs" / "compare.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == len(METHODS)  # one test case, a slice for each method
    published = (study.parent / "results" / "figures.html").read_text(encoding="utf-8")
    assert "data:image/png" not in published  # no picture of a scan leaves the runs' folder
    assert "<svg" in published
    table = (study.parent / "results" / "table.md").read_text(encoding="utf-8")
    assert all(f"| 2 | {method} |" in table for method in METHODS)
    assert "reference: no run of another program with 3 labels is known yet" in compared.out
    assert "Against another program" not in table + page
    short = f"{STEPS} training steps were made"
    assert compared.out.count(f"  2 labels, supervised, 1 of 1 runs: {short}") == 1
    assert table.count(short) == page.count(short) == published.count(short) == len(METHODS)


def test_runs_that_are_known_are_not_made_again(
    study: Path, compared: Any, phantoms: Path, semiseg_command: Command, tmp_path: Path
) -> None:
    """The results are enough: run folders may be deleted, and the steps are those of before."""
    shutil.copytree(study.parent / "results", tmp_path / "results")
    known = read_study(tmp_path / "results" / "results.json")
    lost = known["runs"].pop(1)
    known["runs"].append(known["runs"][0] | {"method": "another program", "labelled": 3, "key": "another"})
    del known["runs"][-1]["asked"]
    (tmp_path / "results" / "results.json").write_text(json.dumps(known))
    answer = semiseg_command("study", study, "--data", phantoms, "--output", tmp_path / "runs", "--results",
                             tmp_path / "results")  # fmt: skip
    assert answer.code == 0, answer
    assert f"{len(METHODS)} runs, {len(METHODS) - 1} of them finished before." in answer.out
    assert "[1/1] mpl" in answer.out
    assert [model.parent.name.split("-")[0] for model in (tmp_path / "runs").glob("*/model")] == ["mpl"]
    again = {name_of(run): run["cases"] for run in read_study(tmp_path / "results" / "results.json")["runs"]}
    table = (tmp_path / "results" / "table.md").read_text(encoding="utf-8")
    assert "| 3 | another program |" in table
    assert "Against another program with 3 labels:" in table
    assert "| 2 | supervised | 1 | +0.0000 |  |" in table  # one case; it has the other program's scores
    assert "Against another program with 3 labels" in answer.out
    assert "Fewer than 6 cases are too few for intervals, a p and a verdict." in answer.out
    assert "Against another program with 3 labels" in (tmp_path / "results" / "figures.html").read_text("utf-8")
    assert again[name_of(lost)] == lost["cases"]  # the same seed on the same machine: the same scores
    page = (tmp_path / "runs" / "compare.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 1  # of the run that was made here; the other folders are gone


def test_what_is_known_is_shown_without_any_run(
    study: Path, compared: Any, phantoms: Path, semiseg_command: Command, tmp_path: Path
) -> None:
    shutil.copytree(study.parent / "results", tmp_path / "results")
    known = read_study(tmp_path / "results" / "results.json")
    del known["runs"][1]
    (tmp_path / "results" / "results.json").write_text(json.dumps(known))
    (tmp_path / "results" / "table.md").unlink()
    flags = ["--output", tmp_path / "runs", "--results", tmp_path / "results", "--known"]
    answer = semiseg_command("study", study, "--data", phantoms.name, *flags)
    assert answer.code == 0, answer
    assert "cross_pseudo" in answer.out
    assert "Mean DSC by organ, and minus supervised on the runs of both" in answer.out
    table = (tmp_path / "results" / "table.md").read_text(encoding="utf-8")
    assert "cross_pseudo" in table
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["compare.html"]
    assert read_study(tmp_path / "results" / "results.json") == known
    answer = semiseg_command("study", study, "--data", phantoms.name, *flags, "--baseline", "cross_pseudo")
    assert answer.code == 0, answer
    assert "DSC - cross_pseudo [95 %]" in answer.out
    assert (tmp_path / "results" / "table.md").read_text(encoding="utf-8") == table  # it keeps the study's baseline
    answer = semiseg_command("study", study, "--data", phantoms.name, *flags, "--baseline", "nobody")
    assert (answer.code, "baseline = 'nobody': name one of [methods]: supervised" in answer.err) == (2, True)
    edited = study.with_name("edited.toml")  # by name: with which settings they were made is not looked at
    edited.write_text(study.read_text("utf-8").replace("[common]", '[common]\n"train.a_setting_that_is_gone" = 1'))
    answer = semiseg_command("study", edited, *flags)
    assert answer.code == 0, answer
    assert (tmp_path / "results" / "table.md").read_text(encoding="utf-8").count("| 2 | ") == table.count("| 2 | ")
    longer = study.with_name("longer.toml")  # these would stand beside runs of another budget
    longer.write_text(study.read_text("utf-8").replace(f"= {STEPS}", f"= {2 * STEPS}"))
    answer = semiseg_command("study", longer, *flags)
    assert (answer.code, "has no run of" in answer.err) == (2, True)
    assert "other steps or minutes now: supervised-2-first-seed0, cross_pseudo-2-first-seed0." in answer.out
    gone = study.with_name("gone.toml")  # another program's row would stay
    gone.write_text("\n".join(line for line in study.read_text("utf-8").splitlines() if "cross_pseudo" not in line))
    answer = semiseg_command("study", gone, *flags)
    assert (answer.code, "cross_pseudo" in answer.out) == (0, False)
    others = study.with_name("others.toml")
    others.write_text(study.read_text(encoding="utf-8").replace("labelled = 2", "labelled = 1"))
    answer = semiseg_command("study", others, *flags)
    assert (answer.code, "has no run of" in answer.err) == (2, True)


def test_a_run_that_fails_is_named_and_the_others_are_kept(
    study: Path, compared: Any, phantoms: Path, semiseg_command: Command, tmp_path: Path
) -> None:
    file = tmp_path / "bad.toml"
    text = study.read_text().replace('recipe = "recipe.toml"', f'recipe = "{study.parent}/recipe.toml"')
    alone = "methods = ['supervised']"
    file.write_text(text.replace("labelled = 2", f"labelled = 2\n{alone}\n[[budgets]]\nlabelled = 99\n{alone}"))
    answer = semiseg_command("study", file, "--data", phantoms, "--output", tmp_path / "runs")
    assert answer.code == 2
    assert re.search(r"supervised-99-first-seed0-\w{8}: the run failed: .*labelled = 99.* All of it is in", answer.err)
    assert "1 of 2 runs failed; finished runs are kept." in answer.err
    assert len(read_study(tmp_path / "runs" / "results.json")["runs"]) == 1
    # A study that stops early has been shown as far as it got.
    assert "| 2 | supervised |" in (tmp_path / "runs" / "table.md").read_text(encoding="utf-8")
    assert (tmp_path / "runs" / "compare.html").exists()


@pytest.mark.parametrize("end", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.thorough)])
def test_a_study_that_is_ended_leaves_no_run_behind(
    study: Path, phantoms: Path, tmp_path: Path, end: signal.Signals
) -> None:
    """As a batch system ends it, or a full memory: its run is stopped too, and goes on with the study."""
    runs = tmp_path / "runs"
    shutil.copytree(study.parent, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("results", "*-2-*"))
    file = tmp_path / study.name
    file.write_text(file.read_text().replace(f'"train.steps" = {STEPS}', '"train.steps" = 100000'))
    command = [sys.executable, "-m", "semiseg", "study", file, "--data", phantoms, "--output", runs]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        began = time.monotonic()
        while not list(runs.glob("*/metrics.jsonl")):
            assert process.poll() is None
            assert time.monotonic() - began < PATIENCE_SECONDS
            time.sleep(0.05)
        (run,) = (log.parent for log in runs.glob("*/metrics.jsonl"))
        process.send_signal(end)
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    if end == signal.SIGTERM:
        assert process.returncode == 130
        assert errors.endswith("semiseg: stopped. The same command goes on from the last checkpoint.\n")
    wait_for(run)
    with alone_in(run):  # refused while another process works there
        pass


def test_a_study_without_a_dataset_is_refused_before_anything_is_made(
    study: Path, semiseg_command: Command, tmp_path: Path
) -> None:
    answer = semiseg_command("study", study, "--output", tmp_path / "runs")
    assert answer.code == 2
    assert "methods.supervised: no dataset. Name its folder with --data FOLDER." in answer.err
    assert not (tmp_path / "runs").exists()


def test_a_table_of_somebody_else_is_not_written_over(
    study: Path, phantoms: Path, semiseg_command: Command, tmp_path: Path
) -> None:
    (tmp_path / "table.md").write_text("# Scores of my thesis\n")
    answer = semiseg_command("study", study, "--data", phantoms, "--output", tmp_path / "runs", "--results", tmp_path)
    assert (answer.code, "table.md: is not ours, and would be written over" in answer.err) == (2, True)
    assert not (tmp_path / "runs").exists()


def test_a_study_that_could_not_score_is_refused_before_anything_is_made(
    study: Path, semiseg_command: Command, phantoms: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(phantoms, data, ignore=shutil.ignore_patterns("labelsTs"))
    for flags in ([], ["--list"]):
        answer = semiseg_command("study", study, "--data", data, "--output", tmp_path / "runs", *flags)
        assert answer.code == 2
        assert "no test case has a label, so no run would have scores" in answer.err
        assert '"data.development" = 10' in answer.err
        assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("log", "code", "reason"),
    [
        ("step 3\nsemiseg: error: a: damaged.\n  b\nMend it.\n", 2, "a: damaged.\n  b\nMend it."),
        ("semiseg: error: of a sitting before\nstep 3\n", -9, "it was ended by SIGKILL, as the system does where"),
        ("Traceback\nKeyError: 3\n", 1, "KeyError: 3"),
        ("", 1, "no output"),
    ],
)
def test_why_a_run_failed_is_told_whole(log: str, code: int, reason: str) -> None:
    assert run_process._reason(log, code).startswith(reason)


def test_results_of_other_scans_are_refused(
    study: Path, compared: Any, phantoms: Path, semiseg_command: Command, tmp_path: Path
) -> None:
    """The folder has the same name, and one test case another."""
    shutil.copytree(phantoms, other := tmp_path / phantoms.name)
    for file in [*other.glob("imagesTs/*"), *other.glob("labelsTs/*")]:
        file.rename(file.with_name(file.name.replace("phantom", "patient")))
    where = ("--data", other, "--output", tmp_path / "runs", "--results", study.parent / "results")
    for flags in ([], ["--collect"]):
        answer = semiseg_command("study", study, *where, *flags)
        assert answer.code == 2
        assert "was scored on phantom_004, which" in answer.err
        assert "name another folder with --results" in answer.err


def test_two_processes_add_to_one_file(compared: Any, study: Path, tmp_path: Path) -> None:
    """Each begins with what was there, and adds one run."""
    file, planned = load_study(study), list(planned_runs(load_study(study)))[:2]
    both = [KnownResults(tmp_path / "results.json", file, study) for _ in planned]
    for known, run in zip(both, planned, strict=True):
        folder = made(study, run.method)
        known.add(row_of_run(file.asked(run), run, folder, run.method), folder)
    assert [run["method"] for run in read_study(tmp_path / "results.json")["runs"]] == METHODS[:2]
    # A row of another program that lacks an organ is named.
    broken = json.loads((tmp_path / "results.json").read_text("utf-8"))
    del next(iter(broken["runs"][1]["cases"].values()))[broken["organs"][0]]
    (tmp_path / "results.json").write_text(json.dumps(broken))
    with pytest.raises(DataError, match=r"results.json: mpl-2-first-seed0: phantom_004 has not dice and nsd"):
        KnownResults(tmp_path / "results.json", file, study).study(METHODS[:2])


def test_one_run_alone_is_no_comparison(semiseg_command: Command, tmp_path: Path) -> None:
    answer = semiseg_command("compare", tmp_path)
    assert answer.code == 2
    assert "one run alone. Name two runs or more." in answer.err


def made(study: Path, method: str) -> Path:
    """The folder of a method's run."""
    (model,) = (study.parent / "runs").glob(f"{method}-2-first-seed0-*/model")
    return model.parent


@pytest.mark.parametrize("method", METHODS)
def test_unlabelled_cases_are_ranked_and_the_worst_excluded(
    study: Path, compared: Any, phantoms: Path, semiseg_command: Command, method: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made(study, method), run)
    answer = semiseg_command("rank", run, "--exclude-worst", 0.5, "--quiet")
    assert answer.code == 0, answer
    assert f"All 2 are in {run}/ranking.csv." in answer.out
    header, *rows = (run / "ranking.csv").read_text().splitlines()
    assert header == "id,entropy,disagreement,organs,organ_voxels"
    assert {row.split(",")[0] for row in rows} == {"phantom_002", "phantom_003"}
    worst = rows[0].split(",")[0]
    assert (run / "exclude.txt").read_text() == f"# the worst 50% by disagreement\n{worst}\n"
    if method != "mpl":
        return
    excluding = tmp_path / "excluding"
    recipe = made(study, method).with_suffix(".toml")
    answer = semiseg_command("prepare", excluding, "--recipe", recipe, "--set", f"data.exclude={run}/exclude.txt")
    assert answer.code == 0, answer
    assert worst not in (excluding / "cases.jsonl").read_text()
    answer = semiseg_command("rank", excluding)
    assert answer.code == 2
    assert "no checkpoint here. Train the run first" in answer.err
    answer = semiseg_command("rank", run, "--against", made(study, "cross_pseudo"), "--top", 1)
    assert answer.code == 0, answer
    assert answer.out.count("disagreement") == 1
    answer = semiseg_command("rank", run, "--by", "entropy", "--against", run)
    assert (answer.code, "leave one of them out" in answer.err) == (2, True)
    answer = semiseg_command("rank", run, "--by", "random", "--exclude-worst", 0.5)
    assert (answer.code, "in random order none is the worst" in answer.err) == (2, True)


def test_flags_that_do_not_belong_together_are_refused(semiseg_command: Command, study: Path, tmp_path: Path) -> None:
    answer = semiseg_command("compare", study, tmp_path)
    assert (answer.code, "If it is a study file: semiseg study" in answer.err) == (2, True)
    answer = semiseg_command("study", tmp_path)
    assert (answer.code, "is no study file (.toml)" in answer.err) == (2, True)
    answer = semiseg_command("study", study, "--baseline", "mpl")
    assert (answer.code, "--baseline mpl: for what is known. Add --known" in answer.err) == (2, True)
    answer = semiseg_command("study", study, "--jobs", 0)
    assert (answer.code, "jobs = 0: give 1 or more" in answer.err) == (2, True)


def test_runs_have_the_minutes_of_the_study_and_are_made_anew_where_they_are_others(
    study: Path, phantoms: Path, semiseg_command: Command, tmp_path: Path
) -> None:
    """A run of other settings has a folder of its own, and takes the place of the former in the results."""
    file = tmp_path / "small.toml"
    recipe = (study.parent / "recipe.toml").read_text()
    (tmp_path / "recipe.toml").write_text(re.sub(r"^steps = \d+\n", "", recipe, flags=re.MULTILINE))
    text = study.read_text().replace("labelled = 2", "labelled = 2\nmethods = ['supervised']")
    timed = text.replace(f'"train.steps" = {STEPS}', "")
    flags = ["--data", phantoms, "--output", tmp_path / "runs"]
    for minutes in (0.004, 0.002):
        file.write_text(f"minutes = {minutes}\n{timed}")
        answer = semiseg_command("study", file, *flags)
        assert answer.code == 0, answer
    (run,) = read_study(tmp_path / "runs" / "results.json")["runs"]
    made = tmp_path / "runs" / f"supervised-2-first-seed0-{run['key'][:8]}"
    assert read_settings(made / "run.toml").train.minutes == 0.002
    last = (made / "metrics.jsonl").read_text().splitlines()[-1]
    settled = read_settled(made)
    timeline = settled.laid_down()
    assert timeline is not None
    assert json.loads(last)["step"] == run["steps"] == timeline.total
    assert settled.finished
    assert len(list((tmp_path / "runs").glob("supervised-2-*/model"))) == 2  # of other settings: kept


def test_runs_are_listed_for_a_batch_system_and_collected(
    study: Path, phantoms: Path, semiseg_command: Command, tmp_path: Path
) -> None:
    where = ("--data", phantoms, "--output", tmp_path / "runs", "--results", tmp_path / "results")
    nothing = semiseg_command("study", study, *where, "--collect")
    assert nothing.code == 2
    assert "no run of" in nothing.err
    listed = semiseg_command("study", study, *where, "--list")
    assert listed.code == 0, listed.err
    commands = listed.out.splitlines()
    assert len(commands) == len(METHODS)
    program, *arguments = shlex.split(commands[0])
    assert program == "semiseg"
    # One that began with other threads is listed with those, which an exact resume needs.
    folder, recipe = Path(arguments[1]), Path(arguments[3])
    settings = read_settings(recipe)
    begun = replace(settings, train=replace(settings.train, threads=2))
    folder.mkdir()
    write_settings(folder / "run.toml", begun)
    assert semiseg_command("study", study, *where, "--list").out.splitlines() == commands
    assert read_settings(recipe) == begun
    assert semiseg_command(*arguments, "--quiet").code == 0
    assert semiseg_command("study", study, *where, "--list").out.splitlines() == commands[1:]
    collected = semiseg_command("study", study, *where, "--collect")
    assert collected.code == 0, collected.err
    assert f"{len(METHODS)} runs, 1 of them have scores." in collected.out
    assert [run["method"] for run in read_study(tmp_path / "results" / "results.json")["runs"]] == METHODS[:1]
    assert semiseg_command("study", study, *where, "--list", "--known").code == 2
