"""The three stretches of a run: teacher warm-up, training, fine-tuning on labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from semiseg.errors import ConfigError
from semiseg.methods.settings import MethodSettings

PhaseName = Literal["warmup", "train", "finetune"]


@dataclass(frozen=True)
class Phases:
    """Warm-up is steps [0, warmup_stop), training [warmup_stop, train_stop), fine-tuning [train_stop, total)."""

    warmup_stop: int
    train_stop: int
    total: int

    @staticmethod
    def of(settings: MethodSettings, steps: int) -> Phases:
        """The phases of a run of `steps` steps; supervised training has one phase only.

        Raises `ConfigError` where the warm-up leaves the student no step.
        """
        if not settings.uses_unlabelled:
            return Phases(0, steps, steps)
        warmup = round(steps * settings.warmup_share)
        if warmup >= steps:
            raise ConfigError(
                f"method.warmup_fraction = {settings.warmup_share} takes all of the {steps} steps: none is left "
                "to train the student. Lower it, or raise train.steps."
            )
        return Phases(warmup, max(warmup, steps - round(steps * settings.finetune_fraction)), steps)

    def cuts(self, count: int) -> list[int]:
        """The steps at which the training phase is cut into `count + 1` parts of one length."""
        length = self.train_stop - self.warmup_stop
        return [self.warmup_stop + length * i // (count + 1) for i in range(1, count + 1)]

    def name(self, step: int) -> PhaseName:
        if step < self.warmup_stop:
            return "warmup"
        return "train" if step < self.train_stop else "finetune"
