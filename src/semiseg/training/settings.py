"""Settings of the training loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from semiseg.errors import ConfigError

EPOCH_STEPS = 250
"""Steps of an epoch, nnU-Net's and the paper's: the clock of validation and of the plateau."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Section `[train]` of a run file."""

    minutes: float = 60.0
    """How long training takes: the plan is made for it, and the number of steps follows from the pace of this machine,
    which is looked at again at every checkpoint. Labelling scans, validation and checkpoints are in it; preparing and
    predicting are not."""
    steps: int | None = None
    """So many training steps in all phases together, in the place of minutes: for comparisons, and for tests."""
    seed: int = 0
    """Of weights, patches and augmentation; the same seed on the same machine gives the same weights."""
    weights: str = ""
    """A trained run or model folder to start from, in the place of random weights. Its plan is the run's, so labels and
    channels must be the same. Relative paths as `data.root`."""
    device: str = "auto"
    """auto (CUDA, or the CPU), cpu, cuda, cuda:1, or mps, on which nothing was tested."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of training passes. auto is bfloat16 on CUDA, and on a CPU where a trial shows it faster; probes are float32."""
    threads: int = 0
    """CPU threads; 0 takes the number that a trial of seconds shows to be fastest."""
    deterministic: bool = True
    """Deterministic algorithms where torch has them; on a CPU a resumed run is then equal bit for bit. On a GPU pooling
    and cross-entropy have none; off is some 8 % faster there, after cuDNN's search in the first steps."""

    schedule: Literal["poly", "plateau"] = "poly"
    """Learning rate: (1 - step/steps)^0.9, or reduced when the smoothed loss no longer falls (the paper): that on
    validation cases where some are held out. Where minutes are given the clock says when these are looked at, so that a
    plateau may come elsewhere in a run that went on after it was cut off."""

    validation_fraction: float | None = None
    """Share of the labelled training cases held out for validation. Not set: a fifth where there are 20 or more and no
    test case has a label; otherwise nothing."""
    validation_every: int = 1
    """Epochs of 250 steps between validations; 0 turns validation off and trains on all labelled cases. Where minutes
    are given it waits longer where it would take more than a twentieth of them."""
    refresh_steps: int = 0
    """Every so many steps the teacher predicts unlabelled scans, to place patches on rare classes; 0 is off. Where the
    teacher labels whole scans (method.label_scope) they are placed on what it found there, without this."""

    log_every: int = 10
    """Steps between lines in metrics.jsonl; less where there are few steps in a minute."""
    checkpoint_every: int = 0
    """Where steps are given: most steps between checkpoints, of which the last two are kept; 0 is a checkpoint a
    minute. Where minutes are given there are 40 in all, none of them more than five minutes after the last."""
    tensorboard: bool = False
    """Also write TensorBoard events (needs `pip install '.[tensorboard]'`)."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"train.steps = {self.steps}: give 1 or more, or leave it out and give train.minutes.")
        if not 0 < self.minutes < math.inf:
            raise ConfigError(f"train.minutes = {self.minutes}: give a number above 0.")
        if self.log_every < 1:
            raise ConfigError(f"train.log_every = {self.log_every}: give 1 or more.")
        for name in ("threads", "validation_every", "refresh_steps", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name} = {getattr(self, name)}: give 0 or more.")
        if self.validation_fraction is not None and not 0 <= self.validation_fraction < 1:
            raise ConfigError(
                f"train.validation_fraction = {self.validation_fraction}: give a number from 0 to below 1."
            )
