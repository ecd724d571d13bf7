"""SGD as the paper's protocol sets it, or AdamW, with its state by parameter name; averaged copies of networks."""

from __future__ import annotations

import copy
import math
from typing import cast

import torch
from torch import Tensor, nn

from semiseg.errors import ModelError
from semiseg.methods.settings import MethodSettings

Parameters = dict[str, Tensor]


class NamedOptimiser:
    """SGD with Nesterov momentum, or AdamW, over one network; gradients come and buffers go by name."""

    def __init__(self, network: nn.Module, settings: MethodSettings) -> None:
        self.parameters: Parameters = dict(network.named_parameters())
        self.clip = settings.gradient_clip
        values, rate, decay = self.parameters.values(), settings.first_learning_rate, settings.used_weight_decay
        self.optimiser: torch.optim.Optimizer
        if settings.optimiser == "adamw":
            self.optimiser = torch.optim.AdamW(values, lr=rate, weight_decay=decay)
        else:
            momentum = settings.momentum
            self.optimiser = torch.optim.SGD(
                values, lr=rate, momentum=momentum, weight_decay=decay, nesterov=momentum > 0
            )

    def step(self, gradients: Parameters, learning_rate: float) -> Tensor:
        """One update by the given gradients, clipped to the largest norm; returns the norm before clipping."""
        for name, parameter in self.parameters.items():
            parameter.grad = gradients[name]
        limit = self.clip if self.clip > 0 else float("inf")
        norm = nn.utils.clip_grad_norm_(list(self.parameters.values()), limit)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return norm

    def momentum(self) -> Parameters:
        """Momentum buffers of SGD by parameter name; empty before the first step."""
        return self.buffers().get("momentum", {})

    def buffers(self) -> dict[str, Parameters]:
        """By kind (`momentum`, or AdamW's `exp_avg`, `exp_avg_sq` and `step`) and parameter name; empty before the
        first step."""
        found: dict[str, Parameters] = {}
        for name, parameter in self.parameters.items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    found.setdefault(_KINDS.get(key, key), {})[name] = value
        return found

    def load_buffers(self, buffers: dict[str, Parameters]) -> None:
        """The inverse of `buffers`; without any, the optimiser begins anew."""
        self.optimiser.state.clear()
        keys = {kind: key for key, kind in _KINDS.items()}
        for kind, values in buffers.items():
            for name, value in values.items():
                parameter = self.parameters[name]
                device = value.device if kind == "step" else parameter.device  # AdamW counts its steps on the CPU
                self.optimiser.state[parameter][keys.get(kind, kind)] = value.to(device).clone(
                    memory_format=torch.preserve_format
                )


_KINDS = {"momentum_buffer": "momentum"}
"""Names of torch's buffers in a checkpoint, where they differ."""


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


def flatten_state(networks: dict[str, nn.Module], optimisers: dict[str, NamedOptimiser]) -> dict[str, Tensor]:
    """All tensors of a method by name: `network/NAME/KEY`, and the optimiser's as `KIND/NAME/KEY`."""
    tensors = {f"network/{n}/{k}": v for n, net in networks.items() for k, v in net.state_dict().items()}
    return tensors | {
        f"{kind}/{network}/{name}": value
        for network, optimiser in optimisers.items()
        for kind, values in optimiser.buffers().items()
        for name, value in values.items()
    }


def restore_state(
    tensors: dict[str, Tensor], networks: dict[str, nn.Module], optimisers: dict[str, NamedOptimiser]
) -> None:
    """The inverse of `flatten_state`; raises `ModelError` where the checkpoint is of another network."""
    for name, network in networks.items():
        prefix = f"network/{name}/"
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            network.load_state_dict(own)
        except RuntimeError as error:
            raise ModelError(f"the checkpoint does not fit network {name}: {error}. Use another run folder.") from None
    for name, optimiser in optimisers.items():
        buffers: dict[str, Parameters] = {}
        for path, value in tensors.items():
            kind, network_name, key = path.split("/", 2)
            if network_name == name and kind != "network":
                buffers.setdefault(kind, {})[key] = value
        optimiser.load_buffers(buffers)
