"""What a person sees while training runs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from semiseg.train import progress
from semiseg.train.progress import TrainingProgress, _clock


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=120, force_terminal=terminal)


def text(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def row(step: int, **scalars: float) -> dict[str, float | int | str]:
    return {"step": step, "phase": "train", **scalars}


def test_lines_come_from_time_to_time_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = console()
    with TrainingProgress(0, 100, quiet=False, console=shown) as training:
        for step in range(10, 101, 10):
            now[0] += 8.0
            training.show(row(step, labelled_loss=1 / step))
    lines = text(shown).splitlines()
    # 8 seconds a row, a line where more than 20 have passed, and one for the last step.
    assert [line.split()[2] for line in lines] == ["30/100", "60/100", "90/100", "100/100"]
    assert lines[0].startswith("train")
    assert "loss 0.03333" in lines[0]
    # 24 seconds for 30 steps: 56 for the other 70.
    assert lines[0].endswith("0:56 left")


def test_values_stay_until_there_are_new_ones() -> None:
    shown = console()
    with TrainingProgress(0, 2, quiet=False, console=shown) as training:
        training.show(row(1, labelled_loss=0.5, validation_dice=0.875, unknown=3.0))
        training.show(row(2, labelled_loss=0.25))
    assert "loss 0.25  Dice 0.875" in text(shown)
    assert "unknown" not in text(shown)


def test_a_resumed_run_counts_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = console()
    with TrainingProgress(90, 200, quiet=False, console=shown) as training:
        now[0] = 60.0
        training.show(row(100))
    assert "10:00 left" in text(shown)


def test_quiet_says_nothing() -> None:
    shown = console(terminal=True)
    with TrainingProgress(0, 1, quiet=True, console=shown) as training:
        training.note("a sentence")
        training.show(row(1, labelled_loss=1.0))
    assert text(shown) == ""


def test_a_terminal_gets_a_bar_and_notes() -> None:
    shown = console(terminal=True)
    with TrainingProgress(0, 2, quiet=False, console=shown) as training:
        training.note("a sentence")
        training.show(row(2, labelled_loss=1.0))
    assert "a sentence" in text(shown)
    assert "step 2/2" in text(shown)


@pytest.mark.parametrize(("seconds", "expected"), [(0.4, "0:00"), (59.6, "1:00"), (61, "1:01"), (3725, "1:02:05")])
def test_clock(seconds: float, expected: str) -> None:
    assert _clock(seconds) == expected


def test_what_takes_long_is_said_now_and_then_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = [0.0], list[str]()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    tell = progress.every_so_often(said.append, "{} of {}")
    for done in range(1, 6):
        now[0] += 0.6 * progress.PLAIN_SECONDS
        tell(done, 5)
    assert said == ["2 of 5", "4 of 5", "5 of 5"]
