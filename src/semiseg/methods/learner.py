"""A network that learns, with its optimiser and its moving average, and what all methods do with some of these.

Shapes: B batch, C channels, K classes, D H W voxels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from semiseg.losses import CROSS_ENTROPY_DICE, Losses
from semiseg.methods.base import Batch, Judged, UnlabelledBatch
from semiseg.methods.optimiser import (
    Average,
    NamedOptimiser,
    Parameters,
    flatten_state,
    gradients_of,
    restore_state,
)
from semiseg.methods.phases import Phases
from semiseg.methods.settings import MethodSettings, OptimiserSettings
from semiseg.models.layers import Network
from semiseg.randomness import Draw


class Learner:
    """One network of a method."""

    def __init__(
        self,
        name: str,
        network: Network,
        settings: OptimiserSettings,
        *,
        losses: Losses,
        average_decay: float,
        ignore: int | None,
        autocast: torch.dtype | None,
    ) -> None:
        self.name, self.network = name, network.train()
        self._settings, self._losses, self._ignore, self._autocast = settings, losses, ignore, autocast
        self.optimiser = NamedOptimiser(network, settings)
        self.average = Average(network, average_decay) if average_decay else None
        self.forward: Callable[[Tensor], Tensor] = network
        """The network's pass in training; a compiled one may stand in its place. Measuring passes are the network's."""

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The network and its average, if it has one, by name."""
        average: dict[str, nn.Module] = {f"{self.name}_average": self.average.network} if self.average else {}
        return {self.name: self.network} | average

    @property
    def evaluated(self) -> str:
        """The name of the one that is validated and shipped."""
        return f"{self.name}_average" if self.average else self.name

    @property
    def settled(self) -> Network:
        """The one that is validated and shipped."""
        return cast(Network, self.average.network) if self.average else self.network

    def logits(self, images: Tensor) -> Tensor:
        """Float32 logits `(B, K, D, H, W)` in train mode, which moves the running statistics."""
        with torch.autocast(images.device.type, self._autocast, enabled=self._autocast is not None):
            return at_least_float32(self.forward(images))

    def labelled_loss(self, labelled: Batch) -> Tensor:
        """The loss of the labelled batch, with a graph."""
        return self._losses.labelled(labelled.labels, self.logits(labelled.images), self._ignore)

    def gradient(self, loss: Tensor) -> Parameters:
        """d loss / d parameters by name."""
        gradient = gradients_of(loss, self.optimiser.parameters)
        if self.forward is self.network:
            return gradient
        # A compiled pass writes into memory of its own, which the next pass of any network takes again.
        return {name: value.clone() for name, value in gradient.items()}

    def update(self, gradient: Parameters, rate: float) -> Tensor:
        """Take an optimiser step by a gradient, which the average follows; the gradient's norm."""
        norm = self.optimiser.step(gradient, rate)
        if self.average:
            self.average.update(self.network)
        return norm

    def step(self, loss: Tensor, factor: float) -> Tensor:
        """Take an optimiser step at `factor` times the first learning rate; the gradient's norm."""
        return self.update(self.gradient(loss), self._settings.learning_rate * factor)

    def labelled_step(self, labelled: Batch, factor: float) -> dict[str, Tensor]:
        """Take a step on labels alone."""
        loss = self.labelled_loss(labelled)
        norm = self.step(loss, factor)
        return {"labelled_loss": loss.detach(), "gradient_norm": norm}

    def restart(self, weights: nn.Module) -> None:
        """Go on from other weights: momentum and average begin anew."""
        self.network.load_state_dict(weights.state_dict())
        self.optimiser.load_momentum({})
        if self.average:
            self.average.restart(self.network)


def label_images(network: nn.Module, images: Tensor, autocast: torch.dtype | None = None) -> Tensor:
    """A teacher's float32 logits `(B, K, D, H, W)` of images, by its running statistics; changes no state."""
    was_training = network.training
    network.eval()
    with torch.autocast(images.device.type, autocast, enabled=autocast is not None):
        logits: Tensor = network(images)
    network.train(was_training)
    return at_least_float32(logits)


def at_least_float32(x: Tensor) -> Tensor:
    """bfloat16 as float32; others as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def ramp_up(step: int, length: int) -> float:
    """`exp(-5 (1 - t)^2)` with t rising from 0 to 1 over `length` steps (Laine and Aila 2017): weights of what is
    learnt from unlabelled patches rise with the quality of their labels."""
    if length <= 0:
        return 1.0
    t = min(1.0, step / length)
    return math.exp(-5 * (1 - t) ** 2)


Settings = TypeVar("Settings", bound=MethodSettings)


class StudentMethod(Generic[Settings]):
    """What methods have in common: learners by name, of which the student is shipped. A method adds `step`."""

    learner_names: ClassVar[tuple[str, ...]] = ("student",)
    """Each has a network of its own: a "teacher" of the teacher's size, the others of the student's."""
    pseudo_loss: ClassVar[str] = "labelled_loss"
    """Name of the loss that shows whether the training phase still learns."""
    average_decay: ClassVar[float] = 0.99
    """Decay a step of the averaged copy of each network, which labels and is shipped; 0 is no copy."""

    def __init__(
        self,
        networks: Mapping[str, Network],
        settings: Settings,
        phases: Phases,
        *,
        losses: Losses = CROSS_ENTROPY_DICE,
        ignore: int | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        """networks: by the names of `learner_names`. ignore: label value that no loss counts."""
        self.settings, self.phases, self.losses = settings, phases, losses
        self.ignore, self.autocast = ignore, autocast
        self.learners = {
            name: Learner(
                name,
                networks[name],
                settings.optimiser,
                losses=losses,
                average_decay=self.average_decay,
                ignore=ignore,
                autocast=autocast,
            )
            for name in self.learner_names
        }
        self.networks: dict[str, nn.Module] = {
            name: network for learner in self.learners.values() for name, network in learner.networks.items()
        }
        self.evaluated = self.student.evaluated
        self.labeller: str | None = self.evaluated if settings.uses_unlabelled else None
        self.doubter: str | None = self.student.name if self.student.average else None
        self.scans_to_label = 0
        self.period = 1
        self.learning_rate_factor = 1.0
        self.shortest_round = 0.0
        self.unknown: tuple[int, ...] = ()
        self.set_up(networks)

    def set_up(self, networks: Mapping[str, Network]) -> None:
        """Where a method adds what is its own, once the learners are there. networks: those that they learn with."""

    @property
    def student(self) -> Learner:
        """The one whose network is shipped."""
        return self.learners["student"]

    def step(self, labelled: Batch, unlabelled: UnlabelledBatch | None, draw: Draw) -> dict[str, Tensor]:
        """As `Method.step`."""
        raise NotImplementedError

    def judged(self, step: int) -> Judged:
        """As `Method.judged`."""
        return Judged(self.evaluated, self.pseudo_loss if self.needs_unlabelled(step) else "labelled_loss")

    def needs_unlabelled(self, step: int) -> bool:
        """As `Method.needs_unlabelled`."""
        return self.phases.name(step) == "train"

    @property
    def turns(self) -> Sequence[int]:
        """As `Method.turns`."""
        return ()

    @property
    def labelling_steps(self) -> Sequence[int]:
        """As `Method.labelling_steps`."""
        return ()

    def scan_labellers(self, step: int) -> Sequence[str]:
        """As `Method.scan_labellers`."""
        return ()

    def labelled_step(self, labelled: Batch) -> dict[str, Tensor]:
        """A step of every learner on labels alone; metrics are the student's."""
        found = {
            name: self.learners[name].labelled_step(labelled, self.learning_rate_factor) for name in self.learner_names
        }
        return found["student"]

    def ramp(self, step: int) -> float:
        """`ramp_up` over the training phase."""
        return ramp_up(step - self.phases.warmup_stop, self.phases.train_stop - self.phases.warmup_stop)

    def feedback_map(self, labelled: Batch, images: Tensor) -> tuple[Tensor, Tensor] | None:
        """As `Method.feedback_map`."""
        return None

    def start_from(self, weights: dict[str, Tensor]) -> bool:
        """As `Method.start_from`."""
        shapes = {name: value.shape for name, value in weights.items()}
        fitting = [
            one
            for one in (self.learners[name] for name in self.learner_names)
            if {name: value.shape for name, value in one.network.state_dict().items()} == shapes
        ]
        for one in fitting:
            one.network.load_state_dict(weights)
            if one.average:
                one.average.restart(one.network)
        return bool(fitting)

    def state(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """As `Method.state`."""
        updates = {name: float(one.average.updates) for name, one in self.learners.items() if one.average}
        numbers = {f"average_updates/{name}": count for name, count in updates.items()}
        return flatten_state(self.networks, self._optimisers), numbers

    def load_state(self, tensors: dict[str, Tensor], numbers: dict[str, float]) -> None:
        """As `Method.load_state`."""
        restore_state(tensors, self.networks, self._optimisers)
        for name, one in self.learners.items():
            if one.average:
                one.average.updates = int(numbers[f"average_updates/{name}"])

    @property
    def _optimisers(self) -> dict[str, NamedOptimiser]:
        return {name: learner.optimiser for name, learner in self.learners.items()}
