"""Decisions on labels: added line by line, undone by a further line, none lost where a writer is killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semiseg.decisions import DecisionLog, Verdict, label_sha256, of_organ, read_decisions, standing
from semiseg.errors import DataError
from semiseg.io.grid import Grid
from semiseg.io.scans import write_label

SHA = "a" * 64


def decide(log: DecisionLog, case: str, decision: Verdict, organ: str | None = None, reviewer: str = "ann") -> Any:
    return log.add(case, decision, organ=organ, reviewer=reviewer, label_sha256=SHA, seconds=1.234)


def test_a_decision_is_a_line_of_the_file(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "decisions.jsonl")
    given = decide(log, "case_1", "accept", "liver")
    line = json.loads(log.path.read_text(encoding="utf-8"))
    assert line == given
    assert line | {"time": ""} == {
        "number": 1,
        "time": "",
        "case": "case_1",
        "organ": "liver",
        "decision": "accept",
        "undoes": None,
        "reviewer": "ann",
        "label_sha256": SHA,
        "seconds": 1.23,
        "audit": False,
    }
    assert line["time"][10] == "T"
    assert line["time"].endswith("Z")


def test_undo_restores_what_stood_before_step_by_step(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "decisions.jsonl")
    states = [standing(log.lines)]
    for number in range(24):
        verdict: Verdict = ("accept", "set_aside", "unsure", "label")[number % 4]
        decide(log, f"case_{number % 5}", verdict, ("liver", None)[number % 2])
        states.append(standing(log.lines))
    for before in reversed(states[:-1]):
        assert log.undo("ann") is not None
        assert standing(log.lines) == before == standing(read_decisions(log.path))
    assert log.undo("ann") is None
    assert [line["number"] for line in log.lines] == list(range(1, 49))


def test_undo_takes_back_ones_own_decisions_alone(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "decisions.jsonl")
    decide(log, "a", "accept", reviewer="ann")
    decide(log, "b", "set_aside", reviewer="bob")
    undone = log.undo("ann")
    assert undone is not None
    assert undone["case"] == "a"
    assert list(standing(log.lines)) == [("b", None)]


def test_an_organ_has_the_later_of_its_own_decision_and_that_of_all(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "decisions.jsonl")
    decide(log, "a", "accept")
    decide(log, "a", "set_aside", "liver")
    stand = standing(log.lines)
    assert [(of_organ(stand, "a", organ) or {}).get("decision") for organ in ("liver", "spleen")] == [
        "set_aside",
        "accept",
    ]
    decide(log, "a", "unsure")
    assert (of_organ(standing(log.lines), "a", "liver") or {}).get("decision") == "unsure"
    assert of_organ(stand, "b", "liver") is None


def test_a_torn_last_line_is_dropped_and_its_number_used_again(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "decisions.jsonl")
    decide(log, "a", "accept")
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + whole[:40])
    again = DecisionLog(log.path)
    assert len(again.lines) == 1
    decide(again, "b", "accept")
    assert [(line["number"], line["case"]) for line in read_decisions(log.path)] == [(1, "a"), (2, "b")]


def test_two_writers_take_turns(tmp_path: Path) -> None:
    one, two = DecisionLog(tmp_path / "decisions.jsonl"), DecisionLog(tmp_path / "decisions.jsonl")
    for number in range(6):
        decide((one, two)[number % 2], f"case_{number}", "accept")
    assert [line["number"] for line in read_decisions(one.path)] == [1, 2, 3, 4, 5, 6]
    assert one.refresh()
    assert one.lines == two.lines
    assert not one.refresh()


@pytest.mark.parametrize("wrong", [{"decision": "maybe"}, {"number": "2"}, {"seconds": None}, {"number": 1}])
def test_a_damaged_line_is_named(tmp_path: Path, wrong: dict[str, Any]) -> None:
    log = DecisionLog(tmp_path / "decisions.jsonl")
    line = decide(log, "a", "accept")
    with log.path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line | {"number": 2} | wrong) + "\n")
    with pytest.raises(DataError, match="line 2: "):
        read_decisions(log.path)


def test_a_label_that_is_written_again_keeps_its_hash(tmp_path: Path) -> None:
    grid = Grid((3, 4, 5), (1.0, 1.0, 1.0), np.eye(4), (1.0, 1.0, 1.0))
    label = np.arange(60, dtype=np.uint8).reshape(3, 4, 5) % 3
    for name in ("a.nii.gz", "b.nii.gz"):
        write_label(tmp_path / name, label, grid)
    assert label_sha256(tmp_path / "a.nii.gz") == label_sha256(tmp_path / "b.nii.gz")
    write_label(tmp_path / "b.nii.gz", label.clip(max=1), grid)
    assert label_sha256(tmp_path / "a.nii.gz") != label_sha256(tmp_path / "b.nii.gz")
