"""The parts of a run: pre-training without labels, warm-up on labels, training, fine-tuning on labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from semiseg.errors import ConfigError
from semiseg.methods.settings import MethodSettings
from semiseg.methods.timeline import Timeline

PhaseName = Literal["pretrain", "warmup", "train", "finetune"]


@dataclass(frozen=True)
class Phases:
    """Pre-training is steps [0, pretrain_stop), warm-up [pretrain_stop, warmup_stop), training [warmup_stop,
    train_stop), fine-tuning [train_stop, total).

    shares: of the run at which training begins and ends. timeline: which step comes at which share. pretrain: the share
    of the run that pre-training takes.
    """

    warmup_stop: int
    train_stop: int
    total: int
    shares: tuple[float, float]
    timeline: Timeline
    pretrain: float = 0.0

    @staticmethod
    def of(settings: MethodSettings, timeline: Timeline) -> Phases:
        """The phases of a run.

        Raises `ConfigError` where the warm-up leaves the student no step.
        """
        parts = settings.parts
        before, after = (
            settings.pretrained,
            1 - settings.pretrained,
        )  # of which the others are shares
        warmup, stop = before + after * parts.warmup, 1 - after * parts.finetune
        if stop <= warmup:
            raise ConfigError(
                f"method.phases: warmup = {warmup} and finetune = {parts.finetune} leave no step to learn from "
                "unlabelled scans in. Lower one of them."
            )
        phases = replace(Phases.at(timeline, warmup, stop), pretrain=before)
        if phases.warmup_stop >= phases.total:
            raise ConfigError(
                f"method.phases.warmup = {warmup} takes all of the {phases.total} steps: none is left to train the "
                "student. Lower it, or give more steps or minutes."
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

    @property
    def pretrain_stop(self) -> int:
        """The first step after the pre-training."""
        return self.timeline.step_at(self.pretrain)

    def name(self, step: int) -> PhaseName:
        if step < self.pretrain_stop:
            return "pretrain"
        if step < self.warmup_stop:
            return "warmup"
        return "train" if step < self.train_stop else "finetune"
