"""From the sizes of a plan to a network, and what is done with networks of any kind."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from semiseg.data.plan import NetworkPlan
from semiseg.errors import ConfigError
from semiseg.models.layers import Network
from semiseg.models.residual_encoder import ResidualEncoderUNet
from semiseg.models.unet import UNet3d
from semiseg.types import Shape

_KINDS: dict[str, type[Network]] = {"unet": UNet3d, "residual_encoder": ResidualEncoderUNet}


def add_network(kind: str, network: type[Network]) -> None:
    """Make a network of one's own known by a name, for `plan.network` (docs/extending.md)."""
    _KINDS[kind] = network


def refuse_unknown_kind(kind: str) -> None:
    """Raise `ConfigError` for a kind of network that is not known here."""
    if kind not in _KINDS:
        raise ConfigError(f"kind = {kind!r} of a network in the plan: known are {', '.join(_KINDS)}.")


def build_network(plan: NetworkPlan, *, channels: int, classes: int, seed: int) -> Network:
    """A network of the plan's kind with He normal weights (He et al. 2015, fan-in, gain of ReLU), zero biases, unit
    norms. Raises `ConfigError` for a kind that is not known.

    The weights depend on `seed` alone: a generator of their own is used, never torch's global one.
    """
    refuse_unknown_kind(plan.kind)
    with torch.random.fork_rng(devices=[]):  # torch's own initialisation draws, too
        torch.manual_seed(seed)
        network = _KINDS[plan.kind](channels=channels, classes=classes, plan=plan)
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def shapes_of(plan: NetworkPlan, *, channels: int, classes: int) -> dict[str, tuple[int, ...]]:
    """The shape of every part of a network's state, by name, without memory for them; raises `ConfigError` for a kind
    that is not known."""
    refuse_unknown_kind(plan.kind)
    with torch.device("meta"):
        state = _KINDS[plan.kind](channels=channels, classes=classes, plan=plan).state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}


def count_parameters(network: nn.Module) -> int:
    """Number of trainable numbers."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def in_channels_last(network: Network) -> Network:
    """The network with its weights in channels-last layout, which is faster with batch norm on CPU and GPU."""
    for parameter in network.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return network


def compiled_passes(network: Network, backend: str = "") -> Callable[[Tensor], Tensor]:
    """The network's forward pass, which `torch.compile` makes when it is first called; its weights are the network's.

    With CUDA graphs on a GPU, where small networks wait for their kernels to be launched. backend: another one.
    """
    if backend:
        return torch.compile(network, dynamic=False, backend=backend)
    return torch.compile(network, dynamic=False, mode="reduce-overhead")


def onnx_graph(network: Network, patch: Shape) -> bytes:
    """The network as an ONNX graph with its weights, for any number of tiles of the patch: `tiles (N, C, D, H, W)` to
    `logits (N, K, D, H, W)`, float32. Norms by running statistics are folded into the convolutions."""
    file = io.BytesIO()
    was_training = network.training
    free = {"tiles": {0: "tiles_in_batch"}, "logits": {0: "tiles_in_batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of this exporter, which needs no further package, and of a test of devices
        tile = torch.zeros(1, network.channels, *patch, device=next(network.parameters()).device)
        torch.onnx.export(
            network.eval(),
            (tile,),
            file,  # type: ignore[arg-type]  # what this exporter takes besides paths
            dynamo=False,
            input_names=["tiles"],
            output_names=["logits"],
            dynamic_axes=free,
            opset_version=17,  # of 2022: every runtime of today reads it
        )
    network.train(was_training)
    return file.getvalue()
