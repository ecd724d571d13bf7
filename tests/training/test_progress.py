"""What a person sees while training runs."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from semiseg.training import progress
from semiseg.training.pace import Pace
from semiseg.training.progress import TrainingProgress, _clock
from semiseg.training.settings import TrainSettings


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=120, force_terminal=terminal)


def text(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def of_steps(steps: int) -> Pace:
    return Pace(Path("nowhere"), TrainSettings(steps=steps))


def row(step: int, **scalars: float) -> dict[str, float | int | str]:
    return {"step": step, "phase": "train", **scalars}


def test_lines_come_from_time_to_time_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = console()
    with TrainingProgress(0, of_steps(100), quiet=False, console=shown) as training:
        for step in range(10, 101, 10):
            now[0] += 8.0
            training.show(row(step, labelled_loss=1 / step))
    lines = text(shown).splitlines()
    # 8 seconds a row, a line where more than 20 have passed, and one for the last step.
    assert [re.findall(r"step (\d+ of \d+) ", line) for line in lines] == [[f"{n} of 100"] for n in (30, 60, 90, 100)]
    assert lines[0].startswith("train")
    assert "loss 0.03333" in lines[0]
    # 24 seconds for 30 steps: 56 for the other 70.
    assert lines[0].endswith("0:56 left")


def test_values_stay_until_there_are_new_ones() -> None:
    shown = console()
    with TrainingProgress(0, of_steps(2), quiet=False, console=shown) as training:
        training.show(row(1, labelled_loss=0.5, validation_dice=0.875, unknown=3.0))
        training.show(row(2, labelled_loss=0.25))
    assert "loss 0.25  Dice 0.875" in text(shown)
    assert "unknown" not in text(shown)


def test_a_resumed_run_counts_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = console()
    with TrainingProgress(90, of_steps(200), quiet=False, console=shown) as training:
        now[0] = 60.0
        training.show(row(100))
    assert "10:00 left" in text(shown)


def test_a_run_by_minutes_says_about_how_many_steps_there_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time left goes by the share of the run, and the number of steps changes with the pace."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown, pace = console(), Pace(tmp_path, TrainSettings(minutes=10))
    with TrainingProgress(0, pace, quiet=False, console=shown) as training:
        now[0] = 25.0  # labelling scans, say: the minutes stay what they are
        training.show(row(0))
        pace.look(4, 30.0, 0.0)  # a twentieth of ten minutes for four steps
        now[0] = 50.0
        training.show(row(4))
        pace.look(8, 90.0, 0.0)  # slower since: three twentieths are done
        now[0] = 90.0
        training.show(row(8))
    lines = text(shown).splitlines()
    assert [line.split("  ")[-1] for line in lines] == ["10:00 left", "9:30 left", "8:30 left"]
    assert ["step 4 of about 80 " in lines[1], "step 8 of about 42 " in lines[2]] == [True, True]


def test_quiet_says_nothing() -> None:
    shown = console(terminal=True)
    with TrainingProgress(0, of_steps(1), quiet=True, console=shown) as training:
        training.note("a sentence")
        training.show(row(1, labelled_loss=1.0))
    assert text(shown) == ""


def test_a_terminal_gets_a_bar_and_notes() -> None:
    shown = console(terminal=True)
    with TrainingProgress(0, of_steps(2), quiet=False, console=shown) as training:
        training.note("a sentence")
        training.show(row(2, labelled_loss=1.0))
    assert "a sentence" in text(shown)
    assert "step 2 of 2" in text(shown)


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
    tell = progress.every_so_often(said.append, "{} of {}", at_end=False)
    tell(1, 1)
    assert said[3:] == []


def test_a_phase_shows_its_own_losses_and_is_explained() -> None:
    shown = console()
    with TrainingProgress(0, of_steps(2), quiet=False, console=shown) as training:
        training.show(row(1, pseudo_loss=0.5, validation_dice=0.75, input_share=0.05))
        training.show(row(2, labelled_loss=0.25, input_share=0.3) | {"phase": "finetune"})
    assert "pseudo" not in text(shown)
    assert "finetune: from the labels alone once more" in text(shown)
    assert "Dice 0.75  loss 0.25  waits for scans 30% of the time" in text(shown)
