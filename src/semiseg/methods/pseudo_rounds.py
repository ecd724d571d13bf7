"""Pseudo-labelling in rounds, filtered by agreement between rounds (what FLARE22's winner, Huang et al., did by hand).

A network learns from labels alone at first. In every round then the network as it is labels some whole unlabelled
scans, and goes on with batches of which a half has true labels and the other half these. Where it and an earlier state
of it label scans too differently, nothing is learnt from the round. A step costs as much as one on labels alone, and
the learning rate falls once over the whole run, so such a round is training on labels alone. So is the last fifth of
every run. Shapes: B batch, C channels, K classes, D H W voxels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from semiseg.losses import marginal_loss
from semiseg.methods.base import HIDDEN, Batch, Judged, UnlabelledBatch
from semiseg.methods.phases import Phases
from semiseg.methods.pretraining import PretrainedMethod
from semiseg.methods.settings import PseudoRoundsSettings
from semiseg.models.layers import Network
from semiseg.randomness import Draw
from semiseg.world import mean, size

SNAPSHOT = 0.8
"""Share of the warm-up after which the network is remembered, to be held against the one that labels first."""
LABELS_AT_THE_END = 0.2
"""Share of the run, at its end, in which it learns from true labels alone: pseudo-labels were made by networks that had
learnt less, and hold it back (docs/lab/first_hour.md)."""


@lru_cache(maxsize=2)
def round_starts(phases: Phases, rounds: int, shortest: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The first steps of the rounds, and the others at which the network is remembered while nothing is learnt from
    unlabelled scans, to be held against the one that labels next.

    Rounds are of one length; one that would begin too few steps after the one before, or after the run's beginning,
    goes on with what is there.
    """
    begin, end = phases.shares[0], _end(phases)
    cuts = {phases.timeline.step_at(begin + (end - begin) * i / rounds) for i in range(rounds)}
    possible = sorted(step for step in cuts if step <= max(phases.warmup_stop, phases.timeline.step_at(end) - 1))
    starts: list[int] = []
    for step in possible:
        if step - (starts[-1] if starts else 0) >= shortest:
            starts.append(step)
    starts = starts or possible[-1:]
    snapshots = [phases.timeline.step_at(phases.pretrain + SNAPSHOT * (begin - phases.pretrain)), *possible]
    return tuple(starts), tuple(step for step in snapshots if step not in starts)


def first_true(step: int, batch: int) -> int:
    """Every second patch of a batch, that of all ranks, has its true label: which is the first. It changes every other
    step, not every step: organs and accepted labels are drawn for every so many samples, and would fall on others."""
    return step // 2 % 2 if batch > 1 else 0


def _end(phases: Phases) -> float:
    """The share of the run from which on it learns from true labels alone; the end of training where the warm-up takes
    so long that it would learn from nothing else."""
    begin, end = phases.shares
    return min(end, 1 - LABELS_AT_THE_END) if begin < 1 - LABELS_AT_THE_END else end


class PseudoRounds(PretrainedMethod[PseudoRoundsSettings]):
    """A student, the state of it that labels in this round, and the one before."""

    pseudo_loss: ClassVar[str] = "pseudo_loss"

    def set_up(self, networks: Mapping[str, Network]) -> None:
        """As `StudentMethod.set_up`."""
        super().set_up(networks)
        states = ("teacher", "teacher_before")
        self._teachers = {name: copy.deepcopy(networks["student"]).requires_grad_(False) for name in states}
        self.networks |= self._teachers
        self.doubter = "teacher"
        self.scans_to_label = self.settings.label_scans

    @property
    def _starts(self) -> tuple[int, ...]:
        """The first steps of the rounds."""
        return self._cuts[0]

    @property
    def _cuts(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """`round_starts` of this run."""
        return round_starts(self.phases, self.settings.rounds, self.shortest_round)

    def learns_from_unlabelled(self, step: int) -> bool:
        """As `PretrainedMethod.learns_from_unlabelled`."""
        return super().learns_from_unlabelled(step) and self._starts[0] <= step < self.turns[1]

    def judged(self, step: int) -> Judged:
        """As `PretrainedMethod.judged`; by the loss that rounds have, trusted or not."""
        judged = super().judged(step)
        return judged if self.is_pretraining(step) else Judged(judged.network, "labelled_loss")

    @property
    def turns(self) -> Sequence[int]:
        """As `Method.turns`."""
        return (self._starts[0], self.phases.timeline.step_at(_end(self.phases)))

    @property
    def labelling_steps(self) -> Sequence[int]:
        """As `Method.labelling_steps`."""
        return self._starts

    def scan_labellers(self, step: int) -> Sequence[str]:
        """As `Method.scan_labellers`: none while it is pre-trained; before the first step of a round the student is not
        its teacher yet."""
        if self.is_pretraining(step):
            return ()
        return (self.evaluated, "teacher") if step in self._starts else ("teacher", "teacher_before")

    def learn(self, labelled: Batch, unlabelled: UnlabelledBatch | None, draw: Draw) -> dict[str, Tensor]:
        """As `PretrainedMethod.learn`."""
        starts, snapshots = self._cuts
        if draw.step in starts:
            self._teachers["teacher_before"].load_state_dict(self._teachers["teacher"].state_dict())
        if draw.step in starts or (draw.step in snapshots and unlabelled is None):
            self._remember()
        if unlabelled is None or unlabelled.labels is None:
            return self.labelled_step(labelled)
        first = (first_true(draw.step, len(labelled.images) * size()) - draw.sample) % 2
        true, strong = Batch(labelled.images[first::2], labelled.labels[first::2]), unlabelled.strong[first::2]
        count, labels = len(true.images), unlabelled.labels[first::2]
        logits = self.student.logits(torch.cat([true.images, strong]))
        loss = self.losses.labelled(true.labels, logits[:count], self.ignore)
        pseudo = self._pseudo_loss(labels, logits[count:])
        norm = self.student.step((loss + pseudo) / 2, self.learning_rate_factor)
        return {
            "labelled_loss": loss.detach(),
            "pseudo_loss": pseudo.detach(),
            "counted": mean((labels != HIDDEN).float()),
            "gradient_norm": norm,
        }

    def _pseudo_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """The loss on pseudo-labels, which where some organs are unknown say of a voxel what else it is, or nothing."""
        if not self.unknown:
            return self.losses.labelled(labels, logits, HIDDEN)
        is_open = torch.stack([labels == value for value in (0, *self.unknown)]).any(0)
        return marginal_loss(labels.masked_fill(is_open, HIDDEN + 1), logits, HIDDEN, self.unknown)

    def _remember(self) -> None:
        self._teachers["teacher"].load_state_dict(self.student.settled.state_dict())
