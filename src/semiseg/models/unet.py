"""The paper's 3D U-Net. Shapes: B batch, C channels, K classes, D H W voxels.

Each level has two convolution - batch norm - ReLU blocks; levels are joined by max pooling on the way down, transposed
convolution and concatenation on the way up. Sizes come from the plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from semiseg.data.plan import NetworkPlan
from semiseg.types import Shape


class BatchNorm3d(nn.BatchNorm3d):
    """Batch norm that can be told to use the batch's own statistics and to leave its buffers alone.

    A measuring pass (a probe, the teacher's labelling pass) must not move running statistics, and forward-mode
    differentiation refuses in-place buffer updates; `batch_statistics_only` switches both off.
    """

    measuring = False

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(B, C, D, H, W)`."""
        if self.measuring:
            return functional.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return super().forward(input)


class Conv3d(nn.Conv3d):
    """Convolution whose bfloat16 gradient can be trusted on a CPU.

    oneDNN's kernel for the gradient of the weights in bfloat16 leaves part of it unwritten where the map is no deeper
    than the padding on both sides (a 3 x 3 x 3 kernel on a map of depth 2): what comes back is what was in memory, NaN
    at times. Such maps, the smallest of a network, are convolved in float32; see docs/decisions/0014.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve `(B, C, D, H, W)`."""
        if input.is_cpu and 1 < input.shape[2] <= 2 * int(self.padding[0]) and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        return super().forward(input)


@contextmanager
def batch_statistics_only(network: nn.Module) -> Iterator[None]:
    """Within: every batch norm uses the statistics of its batch alone and updates no buffer."""
    layers = [module for module in network.modules() if isinstance(module, BatchNorm3d)]
    before = [layer.measuring for layer in layers]
    for layer in layers:
        layer.measuring = True
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.measuring = value


class UNet3d(nn.Module):
    """3D U-Net: `(B, C, D, H, W)` image to `(B, K, D, H, W)` logits."""

    def __init__(self, *, channels: int, classes: int, plan: NetworkPlan) -> None:
        super().__init__()
        self.channels, self.classes = channels, classes
        features, kernels, strides = plan.features, plan.kernels, plan.strides
        inputs = (channels, *features[:-1])
        self.encoder = nn.ModuleList(map(_level, inputs, features, kernels))
        self.pools = nn.ModuleList([nn.MaxPool3d(stride, stride) for stride in strides[1:]])
        self.ups = nn.ModuleList(
            [
                nn.ConvTranspose3d(deep, shallow, stride, stride)
                for shallow, deep, stride in zip(features[:-1], features[1:], strides[1:], strict=True)
            ]
        )
        self.decoder = nn.ModuleList([_level(2 * f, f, k) for f, k in zip(features[:-1], kernels[:-1], strict=True)])
        self.head = nn.Conv3d(features[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits at the resolution of the image."""
        skips = [self.encoder[0](x)]
        for pool, level in zip(self.pools, self.encoder[1:], strict=True):
            skips.append(level(pool(skips[-1])))
        x = skips.pop()
        for index in reversed(range(len(self.decoder))):
            x = self.decoder[index](torch.cat([self.ups[index](x), skips[index]], dim=1))
        return cast(Tensor, self.head(x))


def _level(inputs: int, outputs: int, kernel: Shape) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    layers: list[nn.Module] = []
    for source in (inputs, outputs):
        # The bias would be cancelled by the batch norm that follows.
        layers.append(Conv3d(source, outputs, kernel, padding=padding, bias=False))
        layers += [BatchNorm3d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def build_unet(plan: NetworkPlan, *, channels: int, classes: int, seed: int) -> UNet3d:
    """A U-Net with He normal weights (He et al. 2015, fan-in, gain of ReLU), zero biases, unit batch norms.

    The weights depend on `seed` alone: a generator of their own is used, never torch's global one.
    """
    with torch.random.fork_rng(devices=[]):  # torch's own initialisation draws too; it is overwritten
        network = UNet3d(channels=channels, classes=classes, plan=plan)
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def count_parameters(network: nn.Module) -> int:
    """Number of trainable numbers."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def in_channels_last(network: UNet3d) -> UNet3d:
    """The network with its weights in channels-last layout, which is faster with batch norm on CPU and GPU."""
    for parameter in network.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return network
