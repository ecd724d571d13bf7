"""What a person is told of a training that ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from semiseg.data.plan import Plan
from semiseg.files import write_jsonl
from semiseg.methods.build import build_method
from semiseg.methods.phases import Phases
from semiseg.methods.settings import method_settings
from semiseg.notices import read_notices
from semiseg.training.inputs import ROUNDS_FILE
from semiseg.training.judgement import FEW_STEPS, HARDLY_LEARNT, OVERRUN, STILL_FALLING, judge_training
from semiseg.training.settings import TrainSettings

PHASES = Phases.of_steps(50, 100, 100)


def judged(run: Path, train: TrainSettings | None = None, **changes: Any) -> list[str]:
    """Of a training with nothing to complain of, but for the changes."""
    given: dict[str, Any] = {"steps": 5000, "seconds": 600.0, "loss": "labelled_loss", "labelled": 8, "scored": True}
    given |= changes
    return judge_training(run, train or TrainSettings(minutes=10.0), **given)


def write_losses(run: Path, losses: list[float]) -> None:
    write_jsonl(run / "metrics.jsonl", [{"step": n, "labelled_loss": loss} for n, loss in enumerate(losses)])


def test_nothing_is_said_where_all_is_well(tmp_path: Path) -> None:
    write_losses(tmp_path, [0.5] * 100)
    assert judged(tmp_path) == []
    assert read_notices(tmp_path) == []


@pytest.mark.parametrize(
    ("train", "remedy"),
    [(TrainSettings(minutes=10.0), "Give more --minutes"), (TrainSettings(steps=100), "Give more steps.")],
)
def test_few_steps(tmp_path: Path, train: TrainSettings, remedy: str) -> None:
    (said,) = judged(tmp_path, train, steps=FEW_STEPS - 1)
    assert said.startswith(f"{FEW_STEPS - 1} training steps were made, and {FEW_STEPS} or more are usual.")
    assert remedy in said
    assert judged(tmp_path, train, steps=FEW_STEPS) == []


def test_minutes_that_were_not_kept(tmp_path: Path) -> None:
    (said,) = judged(tmp_path, seconds=600 * OVERRUN + 12)
    assert said.startswith("Training took 11.2 minutes, and 10 were asked for")
    assert judged(tmp_path, seconds=600 * OVERRUN) == []
    assert judged(tmp_path, TrainSettings(steps=5000), seconds=1e6) == []  # no minutes were asked for


def test_a_loss_that_still_falls(tmp_path: Path) -> None:
    """The last fifth against the third."""
    last = STILL_FALLING - 0.01
    write_losses(tmp_path, [9.0] * 40 + [0.5] * 20 + [0.45] * 20 + [last / 2] * 20)
    (said,) = judged(tmp_path)
    assert said.startswith(f"Training had not converged: its loss still fell from 0.50 to {last / 2:.2f}")
    write_losses(tmp_path, [9.0] * 40 + [0.5] * 20 + [0.3] * 20 + [STILL_FALLING / 2] * 20)
    assert judged(tmp_path) == []


def test_a_loss_of_a_network_that_finds_nothing(tmp_path: Path) -> None:
    write_losses(tmp_path, [1.9] * 80 + [1.5] * 20)
    (said,) = judged(tmp_path)
    assert said.startswith("Training had hardly begun to learn: its loss was still 1.50 at the end")
    write_losses(tmp_path, [HARDLY_LEARNT] * 100)
    assert judged(tmp_path) == []


def test_a_few_rows_say_nothing_of_convergence(tmp_path: Path) -> None:
    write_losses(tmp_path, [float(n) for n in range(20, 1, -1)])
    assert judged(tmp_path) == []


@pytest.mark.parametrize("name", ["pseudo_label", "mpl"])
def test_a_student_is_judged_by_its_own_loss_and_not_by_that_of_its_teacher(
    tmp_path: Path, name: str, plan: Plan
) -> None:
    """A teacher that had converged, and a student whose loss still falls by a third."""
    method = build_method(plan, method_settings(name), PHASES, seed=0, device=torch.device("cpu"))
    rows = [{"step": n, "labelled_loss": 0.3} for n in range(100)]
    rows[50:] = [row | {"pseudo_loss": 0.6 - 0.005 * (row["step"] - 50)} for row in rows[50:]]
    write_jsonl(tmp_path / "metrics.jsonl", rows)
    (said,) = judged(tmp_path, loss=method.judged(PHASES.total - 1).loss)
    assert said.startswith("Training had not converged: its loss still fell from 0.48 to 0.38")


def test_rows_without_a_loss_on_labels_are_passed_over(tmp_path: Path) -> None:
    rows = [{"step": n, "labelled_loss": 0.5} if n % 2 else {"step": n, "validation_dice": 0.5} for n in range(100)]
    write_jsonl(tmp_path / "metrics.jsonl", rows)
    assert judged(tmp_path) == []


def round_row(number: int, trusted: bool) -> dict[str, object]:
    row = {
        "round": number,
        "step": number,
        "scans": 1,
        "agreement": None,
        "found": {},
        "unknown": [],
        "poses": [],
        "lying": {},
    }
    return row | {"trusted": trusted, "why": f"reason {number}."}


@pytest.mark.parametrize(("trusted", "told"), [([False, False], True), ([False, True], False), ([], False)])
def test_unlabelled_scans_that_nothing_was_learnt_from(tmp_path: Path, trusted: list[bool], told: bool) -> None:
    write_jsonl(tmp_path / ROUNDS_FILE, [round_row(n, one) for n, one in enumerate(trusted)])
    said = judged(tmp_path)
    assert bool(said) == told
    if told:
        assert said[0].startswith("Nothing was learnt from the unlabelled scans")
        assert said[0].endswith("In the last round: reason 1.")


def test_no_validation(tmp_path: Path) -> None:
    (said,) = judged(tmp_path, scored=False)
    assert said.startswith("No validation case was held back")
    assert "nothing tells how good the model is" in said
    assert said.endswith("labelsTs, or use --folds 5.")


@pytest.mark.parametrize(("labelled", "end"), [(3, "labelsTs, or use --folds 3."), (1, "imagesTs and labelsTs.")])
def test_no_more_folds_are_named_than_there_are_labels(tmp_path: Path, labelled: int, end: str) -> None:
    (said,) = judged(tmp_path, labelled=labelled, scored=False)
    assert said.endswith(end)


def test_a_run_that_went_on_takes_back_what_is_no_longer_so(tmp_path: Path) -> None:
    judged(tmp_path, steps=10, scored=False)
    assert len(read_notices(tmp_path)) == 2
    judged(tmp_path, scored=False)
    (standing,) = read_notices(tmp_path)
    assert standing.startswith("No validation case")
