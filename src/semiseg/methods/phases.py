"""The three parts of a run: teacher warm-up, training, fine-tuning on labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from semiseg.errors import ConfigError
from semiseg.methods.settings import MethodSettings
from semiseg.methods.timeline import Timeline

PhaseName = Literal["warmup", "train", "finetune"]


@dataclass(frozen=True)
class Phases:
    """Warm-up is steps [0, warmup_stop), training [warmup_stop, train_stop), fine-tuning [train_stop, total).

    shares: of the run at which training begins and ends. timeline: which step comes at which share.
    """

    warmup_stop: int
    train_stop: int
    total: int
    shares: tuple[float, float]
    timeline: Timeline

    @staticmethod
    def of(settings: MethodSettings, timeline: Timeline) -> Phases:
        """The phases of a run; supervised training has one phase only.

        Raises `ConfigError` where the warm-up leaves the student no step.
        """
        warmup, stop = settings.warmup_share, 1 - settings.finetune_fraction
        if not settings.uses_unlabelled:
            warmup, stop = 0.0, 1.0
        if stop <= warmup:
            raise ConfigError(
                f"method.warmup_fraction = {warmup} and method.finetune_fraction = {settings.finetune_fraction} leave "
                "no step to learn from unlabelled scans in. Lower one of them."
            )
        phases = Phases.at(timeline, warmup, stop)
        if settings.uses_unlabelled and phases.warmup_stop >= phases.total:
            raise ConfigError(
                f"method.warmup_fraction = {settings.warmup_share} takes all of the {phases.total} steps: none is left "
                "to train the student. Lower it, or give more steps or minutes."
            )
        return phases

    @staticmethod
    def at(timeline: Timeline, warmup: float, stop: float) -> Phases:
        """With training from one share of the run to another."""
        start, end = timeline.step_at(warmup), timeline.step_at(stop)
        return Phases(start, max(start, end), timeline.total, (warmup, stop), timeline)

    @staticmethod
    def of_steps(warmup_stop: int, train_stop: int, total: int) -> Phases:
        """With phases of so many steps."""
        return Phases(
            warmup_stop, train_stop, total, (warmup_stop / total, train_stop / total), Timeline.of_steps(total)
        )

    def name(self, step: int) -> PhaseName:
        if step < self.warmup_stop:
            return "warmup"
        return "train" if step < self.train_stop else "finetune"
