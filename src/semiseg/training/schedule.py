"""The learning rate's fraction of its first value."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from semiseg.methods.phases import Phases
from semiseg.training.settings import TrainSettings

POLY_POWER = 0.9
PLATEAU_PATIENCE, PLATEAU_FACTOR, PLATEAU_SMOOTHING = 30, 0.2, 0.93
"""Of the paper's schedule: epochs without a better smoothed loss, what the rate is multiplied by then, and the decay an
epoch of the moving average of the loss."""
RISE = 0.05
"""Share of what follows a pre-training, in which the learning rate rises from zero: the new last layer knows nothing,
and would undo what the others have learnt."""
FINETUNE_RATE = 0.1
"""Learning rate at the beginning of the fine-tuning, as a fraction of the first."""


@dataclass
class Schedule:
    """Poly decay by the share of the run that is done, or reduction on a plateau; fine-tuning decays on its own.

    With `method.phases.restart_rate` the warm-up decays on its own too, and training starts anew. A plateau is looked
    for in each phase by itself, since each has another loss. The plateau's memory is in `state`, which a checkpoint
    keeps.
    Pre-training decays on its own, too, and what comes after it begins with a linear rise.
    phases: as they are laid down now; the loop gives others at checkpoints.
    """

    settings: TrainSettings
    phases: Phases
    restart_rate: float = 0.0
    state: dict[str, float] = field(
        default_factory=lambda: {"factor": 1.0, "smoothed": math.inf, "best": math.inf, "waited": 0.0}
    )

    def factor(self, step: int) -> float:
        """Fraction of the first learning rate for a step."""
        done, (warmup, stop) = self.phases.timeline.share(step), self.phases.shares
        begin = self.phases.pretrain
        if step < self.phases.pretrain_stop:
            return _poly(done, 0.0, begin)
        if begin and done < (risen := begin + RISE * (stop - begin)):
            return _poly(risen, begin, stop) * (done - begin) / (risen - begin)
        if step >= self.phases.train_stop:
            return FINETUNE_RATE * _poly(done, stop, 1.0)
        if self.settings.schedule == "plateau":
            return self.state["factor"]
        if not self.restart_rate or not self.phases.warmup_stop:
            return _poly(done, begin, stop)
        if step < self.phases.warmup_stop:
            return _poly(done, begin, warmup)
        return self.restart_rate * _poly(done, warmup, stop)

    def begin(self, step: int) -> bool:
        """To be told before each step; true if a new phase begins, in which nothing that was seen before counts."""
        if step == 0 or step not in (self.phases.pretrain_stop, self.phases.warmup_stop, self.phases.train_stop):
            return False
        self.state |= {"smoothed": math.inf, "best": math.inf, "waited": 0.0}
        if step == self.phases.warmup_stop and self.restart_rate:
            self.state["factor"] = self.restart_rate
        return True

    def end_epoch(self, loss: float) -> bool:
        """Tell the epoch's loss (of validation cases, where some are held out); true if the rate was reduced."""
        state, decay = self.state, PLATEAU_SMOOTHING
        first = math.isinf(state["smoothed"])
        state["smoothed"] = loss if first else decay * state["smoothed"] + (1 - decay) * loss
        if state["smoothed"] < state["best"]:
            state["best"], state["waited"] = state["smoothed"], 0.0
            return False
        state["waited"] += 1
        if self.settings.schedule != "plateau" or state["waited"] < PLATEAU_PATIENCE:
            return False
        state["factor"] *= PLATEAU_FACTOR
        state["waited"] = 0.0
        return True


def _poly(done: float, begin: float, end: float) -> float:
    """Falls from 1 at the share `begin` to 0 at `end`."""
    left = (end - done) / (end - begin) if end > begin else 0.0
    return float(min(1.0, max(0.0, left)) ** POLY_POWER)
