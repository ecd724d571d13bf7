"""What the training loop knows of a learning method. Shapes: B batch, C channels, K classes, D H W voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from semiseg.methods.phases import Phases
from semiseg.methods.settings import MethodSettings
from semiseg.randomness import Draw

HIDDEN = -100
"""In a label map: a voxel that a loss does not count (`ignore=HIDDEN`)."""


@dataclass(frozen=True)
class Batch:
    """Labelled patches after augmentation: images `(B, C, D, H, W)` float32, labels `(B, D, H, W)` int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class UnlabelledBatch:
    """Two views `(B, C, D, H, W)` of the same unlabelled patches, in the same geometry.

    weak: for the teacher. strong: for the student. labels: `(B, D, H, W)` int64 that the method's `scan_labellers` gave
    these places when they labelled whole scans, `HIDDEN` where they contradict each other, or None.
    """

    weak: Tensor
    strong: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True)
class Judged:
    """network: the one that is validated. loss: name of the training loss that shows whether it still learns."""

    network: str
    loss: str


class Method(Protocol):
    """A learning method owns its networks, its optimisers and the order of updates."""

    networks: dict[str, nn.Module]
    """All networks by name; a checkpoint keeps them all."""
    evaluated: str
    """Name of the network that is shipped."""
    labeller: str | None
    """Name of the network that labels unlabelled scans, if there is one."""
    doubter: str | None
    """Name of the network that is most independent of the one that is shipped, and may contradict it; None where there
    is no other."""
    scans_to_label: int
    """Where whole scans are labelled: so many at a time; 0 is all."""
    phases: Phases
    """Set by the loop where minutes are laid down anew; steps that are past stay in the phase that they were in."""
    learning_rate_factor: float
    """Set by the loop before a step: the schedule's fraction of the first learning rate."""
    period: int
    """Steps after which the kinds of step of the training phase come round again."""
    shortest_round: float
    """Set by the feed: steps after which labelling unlabelled scans anew takes little beside them."""
    unknown: tuple[int, ...]
    """Set by the feed: organs of which labels of whole scans say nothing. What is none of the others may be one."""

    @property
    def settings(self) -> MethodSettings:
        """What it was told."""
        ...

    def step(self, labelled: Batch, unlabelled: UnlabelledBatch | None, draw: Draw) -> dict[str, Tensor]:
        """Train one step and return detached scalars to log. `draw.step` is the step's number."""
        ...

    def judged(self, step: int) -> Judged:
        """What a step's phase is judged by: it is the same for all steps of a phase."""
        ...

    def needs_unlabelled(self, step: int) -> bool:
        """Whether a step looks at unlabelled patches."""
        ...

    @property
    def turns(self) -> Sequence[int]:
        """Steps within a phase from which on `needs_unlabelled` says otherwise."""
        ...

    @property
    def labelling_steps(self) -> Sequence[int]:
        """Steps before which unlabelled scans are labelled whole, in order; none where patches come without labels."""
        ...

    def scan_labellers(self, step: int) -> Sequence[str]:
        """Names of the network whose labels of whole unlabelled scans the patches of a step come with, and of one that
        may contradict it; none where patches come without. Where the two contradict each other too much, the step gets
        no unlabelled patches."""
        ...

    def feedback_map(self, labelled: Batch, images: Tensor) -> tuple[Tensor, Tensor] | None:
        """For a look at it: the labels `(B, D, H, W)` that unlabelled patches get, and the feedback on each voxel's;
        None where a method has none. No state changes."""
        ...

    def start_from(self, weights: dict[str, Tensor]) -> bool:
        """Give the networks that have these names and shapes these weights; whether any has. Before the first step."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Everything that the next step depends on: tensors and numbers by name."""
        ...

    def load_state(self, tensors: dict[str, Tensor], numbers: dict[str, float]) -> None:
        """The inverse of `state`; raises `ModelError` where names or shapes do not fit."""
        ...
