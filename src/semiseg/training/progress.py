"""What a person sees while training runs: one live line at a terminal, plain lines otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from semiseg.training.pace import Pace

SHOWN = {
    "labelled_loss": "loss",
    "reconstruction_loss": "loss of filling in",
    "pseudo_loss": "loss on pseudo-labels",
    "student_labelled_loss": "student's loss",
    "feedback": "feedback",
    "validation_dice": "Dice",
}
PHASES = {
    "pretrain": "pretrain: hidden blocks of scans are filled in, without labels.",
    "warmup": "warmup: from the labels alone, before unlabelled scans are learnt from.",
    "finetune": "finetune: from the labels alone once more, at a low learning rate.",
}
"""What is said once when a phase begins whose name does not say enough."""
_WAITING = "input_share"
_MUCH_WAITING = 0.1
"""A share of the time from which on it is said that training waits for scans to be read."""
PLAIN_SECONDS = 20.0
"""Where there is no terminal, a line is printed this often."""


class TrainingProgress:
    """A context that is told every logged row."""

    def __init__(self, start: int, pace: Pace, *, quiet: bool, console: Console | None = None) -> None:
        """pace: tells how many steps there will be."""
        self.console = console or Console()
        self.start, self.pace, self.quiet = start, pace, quiet
        self._began = self._printed = time.monotonic()
        self._seen: dict[str, float] = {}
        self._phase = ""
        self._bar: Progress | None = None

    def __enter__(self) -> TrainingProgress:
        if not self.quiet and self.console.is_terminal:
            columns = (TextColumn("[bold]{task.fields[phase]:8}"), BarColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self.console, transient=False)
            self._task = self._bar.add_task("", total=self.pace.timeline.total, completed=self.start, phase="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, row: dict[str, float | int | str]) -> None:
        """Show a row of metrics.jsonl."""
        step, phase = int(row["step"]), str(row["phase"])
        if phase != self._phase:  # another phase has other losses
            self._seen = {key: value for key, value in self._seen.items() if key == "validation_dice"}
            self._phase = phase
            if phase in PHASES:
                self.note(PHASES[phase])
        self._seen |= {key: float(row[key]) for key in (*SHOWN, _WAITING) if key in row}
        text = self._line(step)
        if self._bar:
            self._bar.update(self._task, completed=step, total=self.pace.timeline.total, phase=phase, description=text)
        elif not self.quiet and (time.monotonic() - self._printed > PLAIN_SECONDS or step == self.pace.timeline.total):
            self._printed = time.monotonic()
            self.console.print(f"{phase:8} {text}", markup=False, highlight=False)

    def note(self, text: str) -> None:
        """Say one sentence above the bar."""
        if not self.quiet:
            self.console.print(text, markup=False, highlight=False)

    def _line(self, step: int) -> str:
        values = "  ".join(f"{SHOWN[key]} {value:.4g}" for key, value in self._seen.items() if key in SHOWN)
        if (share_waiting := self._seen.get(_WAITING, 0.0)) >= _MUCH_WAITING:
            values += f"  waits for scans {share_waiting:.0%} of the time"
        total, share = self.pace.timeline.total, self.pace.timeline.share
        if self.pace.seconds:  # what labelling scans takes is among them
            left = self.pace.seconds * (1 - share(step))
        else:
            done = max(1e-9, share(step) - share(self.start))
            left = (time.monotonic() - self._began) / done * (1 - share(step))
        about = "about " if self.pace.by_minutes and step < total else ""
        return f"step {step} of {about}{total}  {values}  {_clock(left)} left"


def every_so_often(say: Callable[[str], None], text: str, *, at_end: bool = True) -> Callable[[int, int], None]:
    """A progress callback that says the text of the number done and of all now and then, and at the last.

    text: with two places, as of `str.format`. at_end: whether the last is said however short it took.
    """
    said = time.monotonic()

    def tell(done: int, count: int) -> None:
        nonlocal said
        if (at_end and done == count) or time.monotonic() - said > PLAIN_SECONDS:
            said = time.monotonic()
            say(text.format(done, count))

    return tell


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
