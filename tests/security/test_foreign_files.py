"""Nothing of a person's is deleted or overwritten, and a folder from somebody else writes nothing outside of itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, semiseg_command: Command, phantoms: Path, tiny: list[str]
) -> Path:
    """A finished run, to be copied."""
    run = tmp_path_factory.mktemp("finished") / "run"
    answer = semiseg_command("run", run, "--data", phantoms, *tiny, "--quiet")
    assert answer.code == 0, answer
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    "name", ["model/thesis.txt", "scan_labels/0123456789abcdef/a.txt", "report.html", "summary.csv"]
)
def test_a_new_run_is_not_made_among_other_files(
    name: str, semiseg_command: Command, phantoms: Path, tiny: list[str], tmp_path: Path
) -> None:
    mine = tmp_path / "p" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    before = contents(tmp_path)
    for command in ("run", "prepare"):
        answer = semiseg_command(command, tmp_path / "p", "--data", phantoms, *tiny)
        assert answer.code == 2
        assert "is no run (it has no run.toml), and not empty" in answer.err
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("name", "text"), [("summary.csv", "case,mine\n"), ("summary.json", '{"rules": "mine"}')])
def test_a_summary_is_not_written_over_a_file_of_another_kind(
    name: str, text: str, semiseg_command: Command, run: Path, phantoms: Path, tmp_path: Path
) -> None:
    output = tmp_path / "scores"
    output.mkdir()
    (output / name).write_text(text)
    command = (
        "evaluate",
        "--predictions",
        run / "predictions",
        "--references",
        phantoms / "labelsTs",
        "--output",
        output,
    )
    answer = semiseg_command(*command)
    assert answer.code == 2
    assert f"{name}: is no summary of ours" in answer.err
    assert contents(output) == {name: text.encode()}
    (output / name).unlink()
    for _ in range(2):  # its own it writes anew
        assert semiseg_command(*command).code == 0


def test_the_demo_does_not_write_over_another_page(semiseg_command: Command, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    answer = semiseg_command("demo", tmp_path)
    assert answer.code == 2
    assert "report.html: no demo made it" in answer.err
    assert contents(tmp_path) == {"report.html": b"mine"}


def test_what_lies_beside_our_files_stays(semiseg_command: Command, run: Path, tmp_path: Path) -> None:
    """Training a finished run again, and exporting into an earlier export."""
    beside = [run / "model" / "notes.txt", run / "checkpoints" / "step-000003 copy" / "a.txt", run / "store" / "b.txt"]
    beside += [run / "scan_labels" / "0123456789abcdef" / "c.txt", run / "checkpoints" / "step-٩" / "d.txt"]
    assert semiseg_command("export", run, "--to", "onnx", "--output", tmp_path / "export").code == 0
    beside.append(tmp_path / "export" / "mine" / "e.txt")
    for file in beside:
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text("mine")
    model = contents(run / "model")
    assert semiseg_command("train", run, "--quiet").code == 0
    assert semiseg_command("export", run, "--to", "onnx", "--output", tmp_path / "export").code == 0
    assert all(file.read_text() == "mine" for file in beside)
    assert contents(run / "model") == model


@pytest.mark.parametrize("name", ["checkpoints", "scan_labels", "store", "model", ".lock", "report.html", "store/link"])
def test_a_link_out_of_a_run_is_refused(name: str, semiseg_command: Command, run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    if (run / name).is_dir():
        shutil.move(run / name, elsewhere)
    else:
        (run / name).unlink(missing_ok=True)
        elsewhere.write_text("mine")
    (run / name).symlink_to(elsewhere)
    before = contents(tmp_path)
    for command in (["train", run], ["run", run], ["report", run], ["rank", run]):
        answer = semiseg_command(*command, "--quiet") if command[0] != "report" else semiseg_command(*command)
        assert answer.code == 2, answer
        assert f"{run / name}: a link that leads out of the run" in answer.err
    assert contents(tmp_path) == before


def test_a_run_may_be_reached_by_a_link(semiseg_command: Command, run: Path, tmp_path: Path) -> None:
    (tmp_path / "by_link").symlink_to(run)
    assert semiseg_command("report", tmp_path / "by_link").code == 0


@pytest.mark.parametrize("id", ["../../victim", "..", "", "a/b", ".hidden", "a\u001bb"])
def test_ids_are_plain_names(id: str, semiseg_command: Command, run: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("mine")
    rows = [json.loads(line) for line in (run / "cases.jsonl").read_text().splitlines()]
    rows[0]["id"] = id
    (run / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer = semiseg_command("train", run, "--quiet")
    assert answer.code == 2
    assert "cases.jsonl, line 1: case" in answer.err
    assert (victim / "thesis.txt").read_text() == "mine"


def test_a_stored_case_of_another_id_is_damaged(semiseg_command: Command, run: Path) -> None:
    """It is found when the case is opened, and this one is labelled."""
    shutil.rmtree(run / "checkpoints")
    shutil.copy(run / "store" / "phantom_002" / "case.json", run / "store" / "phantom_001" / "case.json")
    answer = semiseg_command("train", run, "--quiet")
    assert answer.code == 2
    assert "case.json is of the case 'phantom_002'" in answer.err


def test_predictions_are_not_written_behind_a_link(
    semiseg_command: Command, run: Path, phantoms: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "out" / "predictions.jsonl").symlink_to(tmp_path / "thesis.txt")
    answer = semiseg_command("predict", run, phantoms / "imagesTs", "--output", tmp_path / "out", "--device", "cpu")
    assert (answer.code, "predictions.jsonl: a link" in answer.err) == (2, True)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
