"""SGD as the paper's protocol sets it, with its state by parameter name, and averaged copies of networks."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from semiseg.errors import ModelError
from semiseg.methods.settings import MethodSettings

Parameters = dict[str, Tensor]


class NamedSgd:
    """`torch.optim.SGD` with Nesterov momentum over one network; gradients come and buffers go by name."""

    def __init__(self, network: nn.Module, settings: MethodSettings) -> None:
        self.parameters: Parameters = dict(network.named_parameters())
        self.clip = settings.gradient_clip
        self.sgd = torch.optim.SGD(
            self.parameters.values(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.momentum > 0,
        )

    def step(self, gradients: Parameters, learning_rate: float) -> Tensor:
        """One update by the given gradients, clipped to the largest norm; returns the norm before clipping."""
        for name, parameter in self.parameters.items():
            parameter.grad = gradients[name]
        limit = self.clip if self.clip > 0 else float("inf")
        norm = nn.utils.clip_grad_norm_(list(self.parameters.values()), limit)
        for group in self.sgd.param_groups:
            group["lr"] = learning_rate
        self.sgd.step()
        self.sgd.zero_grad(set_to_none=True)
        return norm

    def buffers(self) -> Parameters:
        """Momentum buffers by parameter name; empty before the first step."""
        state = self.sgd.state
        return {
            name: state[parameter]["momentum_buffer"]
            for name, parameter in self.parameters.items()
            if state.get(parameter, {}).get("momentum_buffer") is not None
        }

    def load_buffers(self, buffers: Parameters) -> None:
        self.sgd.state.clear()
        for name, buffer in buffers.items():
            parameter = self.parameters[name]
            self.sgd.state[parameter]["momentum_buffer"] = buffer.to(parameter.device).clone(
                memory_format=torch.preserve_format
            )


class Average:
    """Exponential moving average of a network, buffers included (the running statistics are averaged too).

    The decay rises with the number of updates n as min(decay, (1+n)/(10+n)), so that an early copy is not stale.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def restart(self, network: nn.Module) -> None:
        """Begin anew from the network's present state."""
        self.network.load_state_dict(network.state_dict())
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for mine, theirs in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - decay)
            else:
                mine.copy_(theirs)


def gradients_of(loss: Tensor, parameters: Parameters) -> Parameters:
    """d loss / d parameters by name, zeros where the loss does not depend on one; `.grad` stays untouched."""
    values = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if value is None else value
        for (name, parameter), value in zip(parameters.items(), values, strict=True)
    }


def global_norm(gradients: Parameters) -> Tensor:
    """The Euclidean norm over all parameters together."""
    norms = [torch.linalg.vector_norm(g) for g in gradients.values()]
    return cast(Tensor, torch.linalg.vector_norm(torch.stack(norms)))


def flatten_state(networks: dict[str, nn.Module], optimisers: dict[str, NamedSgd]) -> dict[str, Tensor]:
    """All tensors of a method by name: `network/NAME/KEY` and `momentum/NAME/KEY`."""
    tensors = {f"network/{n}/{k}": v for n, net in networks.items() for k, v in net.state_dict().items()}
    return tensors | {f"momentum/{n}/{k}": v for n, sgd in optimisers.items() for k, v in sgd.buffers().items()}


def restore_state(tensors: dict[str, Tensor], networks: dict[str, nn.Module], optimisers: dict[str, NamedSgd]) -> None:
    """The inverse of `flatten_state`; raises `ModelError` where the checkpoint is of another network."""
    for name, network in networks.items():
        prefix = f"network/{name}/"
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            network.load_state_dict(own)
        except RuntimeError as error:
            raise ModelError(f"the checkpoint does not fit network {name}: {error}. Use another run folder.") from None
    for name, sgd in optimisers.items():
        prefix = f"momentum/{name}/"
        sgd.load_buffers({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
