"""How minutes become steps: the pace so far is looked at again at every checkpoint.

What is decided is written down before it is followed, so that a run that is killed and goes on, or is made once more
from its `settled.toml`, takes the same steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from semiseg.methods.timeline import Stretch, Timeline
from semiseg.training.settings import TrainSettings
from semiseg.training.settled import read_settled, rows, write_settled

CHECKPOINTS = 40
"""In all of a run by minutes."""
LONGEST_STRETCH_SECONDS = 300.0
LONGEST_UNSAVED_SECONDS = 60.0
"""Between checkpoints of a run by steps, whose steps may be long."""
LEAST_ROWS = 100
"""Of metrics, of a run that has so many steps."""
FIRST_STEPS = 4
"""Before the pace is looked at for the first time."""
LAST_SHARE = 0.03
"""Of a run whose minutes are over before its learning rate came down: it still gets so much to settle in."""
COLLAPSE = 2.0
"""So many times longer than in the stretch before a step takes where other programs have begun, say."""
_GUESS = 1e-3
"""Of what a step adds to the share, before the first was made."""


class Pace:
    """The timeline of a run, laid down stretch by stretch. A run of given steps has one stretch."""

    def __init__(
        self,
        run: Path,
        settings: TrainSettings,
        *,
        step: int = 0,
        seconds: float = 0.0,
        fastest_threads: Callable[[], int] = lambda: 0,
    ) -> None:
        """step, seconds: where training goes on. fastest_threads: tries, where the pace collapses; 0 leaves them."""
        self._fastest_threads = fastest_threads
        self._run, self._settings = run, settings
        self._seconds = 60 * settings.minutes
        self._before = (step, seconds)
        self._step_seconds = 0.0
        self._known: tuple[Stretch, ...] = ()
        self._whole = False
        if settings.steps is not None:
            self.timeline = Timeline.of_steps(settings.steps)
            return
        settled = read_settled(run)
        if laid_down := settled.laid_down():
            longer = settled.minutes is not None and settled.minutes != settings.minutes
            if longer:  # the run is trained on
                laid_down = laid_down.of_longer((settled.minutes or 0.0) / settings.minutes)
            self._known, self._whole = laid_down.stretches, settled.finished and not longer
        # What was written down for later steps, before a kill, is taken when they come.
        self.timeline = Timeline(tuple(one for one in self._known if one.step <= step) or (Stretch(0, 0.0, _GUESS),))

    @property
    def by_minutes(self) -> bool:
        return self._settings.steps is None

    @property
    def seconds(self) -> float | None:
        """Of the run, where it is by minutes."""
        return self._seconds if self.by_minutes else None

    @property
    def threads(self) -> int:
        """Of the CPU, by which the next steps are computed; 0 is as many as training began with."""
        return next((one.threads for one in reversed(self.timeline.stretches) if one.threads), 0)

    @property
    def rows_every(self) -> int:
        """Steps between rows of metrics: a hundred rows in all at least."""
        return max(1, min(self._settings.log_every, self.timeline.total // LEAST_ROWS))

    def stop_after(self, step: int) -> int:
        """The step before which the loop comes back, to save and to look at the pace."""
        total = self.timeline.total
        if not self.by_minutes:
            often = int(LONGEST_UNSAVED_SECONDS / self._step_seconds) if self._step_seconds else FIRST_STEPS
            # With a row of metrics, so that none is of the steps since a checkpoint alone.
            rows_every, every = self.rows_every, self._settings.checkpoint_every or total
            saved = step + max(1, often)
            return min(total, step - step % every + every, saved + -saved % rows_every)
        if later := [one.step for one in self._known if one.step > step]:
            return min(later)
        if self._whole:
            return total
        if step == 0:
            return min(total, FIRST_STEPS)
        seconds = min(self._seconds / CHECKPOINTS, LONGEST_STRETCH_SECONDS)
        steps = max(1, round(seconds / (self._seconds * self.timeline.stretches[-1].each)))
        return total if total - step < 1.5 * steps else step + steps

    def look(self, step: int, seconds: float, pausing: float) -> bool:
        """Lay the timeline down anew from a step on, before which training took so many seconds. pausing: of them, what
        went into labelling scans since the last look. True if it is another now."""
        (before, then), self._before = self._before, (step, seconds)
        if not self.by_minutes:
            self._step_seconds = max(1e-9, seconds - then - pausing) / max(1, step - before)
            return False
        if known := next((one for one in self._known if one.step == step), None):
            self.timeline = self.timeline.with_stretch(known)
            return True
        if self._whole or step >= self.timeline.total or step <= before:
            return False
        each = max(1e-9, (seconds - then - pausing) / (step - before) / self._seconds)
        # Once it is settling in, it does so to the end, however the clock stands.
        done = min(seconds / self._seconds, max(1 - LAST_SHARE, self.timeline.share(step)))
        threads = 0
        if each > COLLAPSE * self.timeline.stretches[-1].each and len(self.timeline.stretches) > 1:
            threads = self._fastest_threads()
        self.timeline = self.timeline.with_stretch(Stretch(step, done, each, threads))
        self._write(finished=False)
        return True

    def finish(self) -> None:
        """Keep the timeline as one that is whole."""
        self._write(finished=True)

    def _write(self, *, finished: bool) -> None:
        minutes = self._settings.minutes if self.by_minutes else None
        settled = replace(read_settled(self._run), minutes=minutes, timeline=rows(self.timeline), finished=finished)
        write_settled(self._run, settled)
