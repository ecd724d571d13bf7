"""Layers that networks are made of, and what a network has to have.

Shapes: B batch, C channels, K classes, D H W voxels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from semiseg.data.plan import NetworkPlan


class Network(nn.Module):
    """What methods and engines are given: `(B, C, D, H, W)` images to `(B, K, D, H, W)` logits of the same size."""

    def __init__(self, *, channels: int, classes: int, plan: NetworkPlan) -> None:
        super().__init__()
        self.channels, self.classes, self.plan = channels, classes, plan


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
