"""How far a run is at each of its steps, as a share from 0 to 1: of its steps, or of its minutes.

A run by minutes does not know its number of steps beforehand. It is laid down stretch by stretch, each from a
checkpoint on, by the pace so far; what was laid down stays, so a run that is repeated or resumed takes the very same
steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

_ROUNDING = 1e-9
"""Of sums of shares: a step that is so little short of a share has reached it."""


@dataclass(frozen=True)
class Stretch:
    """From `step` on, at which the share `done` is done, each step adds `each`. threads: of the CPU, by which the steps
    are computed; 0 is as many as before."""

    step: int
    done: float
    each: float
    threads: int = 0


@dataclass(frozen=True)
class Timeline:
    """Stretches in order, the first from step 0 on; the last one goes on to the end."""

    stretches: tuple[Stretch, ...]

    @staticmethod
    def of_steps(steps: int) -> Timeline:
        """That of a run whose number of steps is given."""
        return Timeline((Stretch(0, 0.0, 1 / steps),))

    @property
    def total(self) -> int:
        """Steps of the whole run, as it is laid down now."""
        return self.step_at(1.0)

    def share(self, step: int) -> float:
        """What is done before a step."""
        last = next(one for one in reversed(self.stretches) if one.step <= step)
        return min(1.0, last.done + (step - last.step) * last.each)

    def step_at(self, share: float) -> int:
        """The first step before which so much is done. Once such a step is past, later stretches do not change it."""
        for stretch, following in pairwise(self.stretches):
            reached = _steps_to(stretch, share)
            if stretch.step + reached < following.step:
                return stretch.step + reached
            if following.done + _ROUNDING >= share:  # what took time between two steps may count as done, too
                return following.step
        last = self.stretches[-1]
        return last.step + _steps_to(last, share)

    def of_longer(self, share: float) -> Timeline:
        """The timeline of a run of which this one is a share."""
        return Timeline(tuple(replace(one, done=share * one.done, each=share * one.each) for one in self.stretches))

    def with_stretch(self, stretch: Stretch) -> Timeline:
        """The timeline laid down anew from a step on, which lies in the last stretch."""
        kept = tuple(one for one in self.stretches if one.step < stretch.step)
        return Timeline((*kept, stretch))


def _steps_to(stretch: Stretch, share: float) -> int:
    return max(0, math.ceil((share - stretch.done) / stretch.each - _ROUNDING))
