"""SGD with its state by parameter name, and averaged copies of networks."""

from __future__ import annotations

import copy
import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from semiseg.errors import ModelError
from semiseg.methods.settings import OptimiserSettings
from semiseg.world import mean_over_ranks

Parameters = dict[str, Tensor]


WEIGHT_DECAY = 3e-5
"""L2 penalty, of the paper's protocol."""
LARGEST_NORM = 12.0
"""Of a network's gradient, which is clipped to it; as in nnU-Net."""


class NamedOptimiser:
    """SGD with Nesterov momentum over one network; gradients come and momentum goes by name.

    By the function in `torch.optim.SGD`: the class itself imports torch's compiler, a second at every start.
    """

    def __init__(self, network: nn.Module, settings: OptimiserSettings) -> None:
        self.parameters: Parameters = dict(network.named_parameters())
        self._momentum = settings.momentum
        self._buffers: list[Tensor | None] = [None] * len(self.parameters)

    def step(self, gradients: Parameters, learning_rate: float) -> Tensor:
        """One update by the given gradients, clipped to the largest norm; returns the norm before clipping."""
        parameters = list(self.parameters.values())
        for name, parameter in self.parameters.items():
            parameter.grad = gradients[name]
        norm = nn.utils.clip_grad_norm_(parameters, LARGEST_NORM)
        with torch.no_grad():
            sgd(
                parameters,
                [cast(Tensor, parameter.grad) for parameter in parameters],
                self._buffers,
                weight_decay=WEIGHT_DECAY,
                momentum=self._momentum,
                lr=learning_rate,
                dampening=0.0,
                nesterov=self._momentum > 0,
                maximize=False,
            )
        for parameter in parameters:
            parameter.grad = None
        return norm

    def momentum(self) -> Parameters:
        """Momentum buffers by parameter name; empty before the first step."""
        return {name: buffer for name, buffer in zip(self.parameters, self._buffers, strict=True) if buffer is not None}

    def load_momentum(self, buffers: Parameters) -> None:
        """The inverse of `momentum`; without any, the optimiser begins anew."""
        self._buffers = [
            buffers[name].to(parameter.device).clone(memory_format=torch.preserve_format) if name in buffers else None
            for name, parameter in self.parameters.items()
        ]


class Average:
    """Exponential moving average of a network, buffers included (the running statistics are averaged too).

    The decay rises with the number of updates n as min(decay, (1+n)/(10+n)), so that an early copy is not stale; where
    the average begins from settled weights (`restart`) it is `decay` from the first.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def restart(self, network: nn.Module) -> None:
        """Begin anew from the network's present state, which is settled."""
        self.network.load_state_dict(network.state_dict())
        self.updates = math.ceil((10 * self.decay - 1) / (1 - self.decay))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        pairs = list(zip(_tensors(self.network), _tensors(network), strict=True))
        averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        # Of all tensors at once: on a GPU a hundred small kernels take longer than the work in them.
        torch._foreach_lerp_([mine for mine, _ in averaged], [theirs for _, theirs in averaged], 1 - decay)
        for mine, theirs in pairs:
            if not mine.is_floating_point():
                mine.copy_(theirs)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def gradients_of(loss: Tensor, parameters: Parameters) -> Parameters:
    """d loss / d parameters by name, the mean over ranks, zeros where the loss does not depend on one; `.grad` stays
    untouched."""
    values = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return mean_over_ranks(
        {
            name: torch.zeros_like(parameter) if value is None else value
            for (name, parameter), value in zip(parameters.items(), values, strict=True)
        }
    )


def global_norm(gradients: Parameters) -> Tensor:
    """The Euclidean norm over all parameters together."""
    return cast(Tensor, torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients.values())))))


def flatten_state(networks: dict[str, nn.Module], optimisers: dict[str, NamedOptimiser]) -> dict[str, Tensor]:
    """All tensors of a method by name: `network/NAME/KEY`, and `momentum/NAME/KEY`."""
    tensors = {f"network/{n}/{k}": v for n, net in networks.items() for k, v in net.state_dict().items()}
    buffers = {f"momentum/{n}/{k}": v for n, one in optimisers.items() for k, v in one.momentum().items()}
    return tensors | buffers


def restore_state(
    tensors: dict[str, Tensor], networks: dict[str, nn.Module], optimisers: dict[str, NamedOptimiser]
) -> None:
    """The inverse of `flatten_state`; raises `ModelError` where the checkpoint is of another network."""
    for name, network in networks.items():
        try:
            network.load_state_dict(_under(f"network/{name}/", tensors))
        except RuntimeError as error:
            raise ModelError(f"the checkpoint does not fit network {name}: {error}. Use another run folder.") from None
    for name, optimiser in optimisers.items():
        optimiser.load_momentum(_under(f"momentum/{name}/", tensors))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
