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
from semiseg.world import size, total

_LEFT_BY_ONEDNN = 20_480


class Network(nn.Module):
    """What methods and engines are given: `(B, C, D, H, W)` images to `(B, K, D, H, W)` logits of the same size."""

    def __init__(self, *, channels: int, classes: int, plan: NetworkPlan) -> None:
        super().__init__()
        self.channels, self.classes, self.plan = channels, classes, plan


class BatchNorm3d(nn.BatchNorm3d):
    """Batch norm over the batch of all ranks that can be told to use the batch's own statistics and to leave its
    buffers alone.

    A measuring pass (a probe, the teacher's labelling pass) must not move running statistics, and forward-mode
    differentiation refuses in-place buffer updates; `batch_statistics_only` switches both off.
    """

    measuring = False

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(B, C, D, H, W)`."""
        if size() > 1 and (self.training or self.measuring):
            return self._over_ranks(input)
        if self.measuring:
            return functional.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return super().forward(input)

    def _over_ranks(self, input: Tensor) -> Tensor:
        """By the statistics of the parts of all ranks, in float32 at least."""
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        axes, shape = (0, 2, 3, 4), (1, -1, 1, 1, 1)
        here = x.new_full((1,), x.numel() // x.shape[1])
        sums = total(torch.cat([x.sum(axes), here]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        variance = total(centred.square().sum(axes)) / count
        if not self.measuring and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum or 0.0)
                unbiased = variance * count / (count - 1)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum or 0.0)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(shape) + self.bias.view(shape)).to(input.dtype)


class InstanceNorm3d(nn.InstanceNorm3d):
    """Instance norm that also takes no patch at all, which a rank may have of a step."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(B, C, D, H, W)`."""
        if len(input) == 0:
            return input * self.weight.view(1, -1, 1, 1, 1) + self.bias.view(1, -1, 1, 1, 1)
        return super().forward(input)


class Conv3d(nn.Conv3d):
    """Convolution that is fast for a single patch on a CPU, and whose bfloat16 gradient can be trusted there.

    torch leaves oneDNN for one float32 patch of at most 20,480 channels x depth x height (`use_mkldnn` in its
    Convolution.cpp), and is up to 12 times as slow then. So a single patch is given to oneDNN by name where a network
    predicts, and with a patch of zeros beside it where it learns.

    oneDNN's kernel for the gradient of the weights in bfloat16 leaves part of it unwritten where the map is no deeper
    than the padding on both sides (a 3 x 3 x 3 kernel on a map of depth 2): what comes back is what was in memory, NaN
    at times. Such maps, the smallest of a network, are convolved in float32; see docs/decisions/0014.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve `(B, C, D, H, W)`."""
        if input.is_cpu and 1 < input.shape[2] <= 2 * int(self.padding[0]) and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        if not self._left_by_onednn(input):
            return super().forward(input)
        if self.training or torch.is_grad_enabled():  # the operator below has no forward derivative
            return super().forward(torch.cat([input, torch.zeros_like(input)]))[:1]
        alone: Tensor = torch.ops.aten.mkldnn_convolution(
            input, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )
        return alone

    def _left_by_onednn(self, input: Tensor) -> bool:
        return (
            input.is_cpu
            and len(input) == 1
            and input.shape[1] * input.shape[2] * input.shape[3] <= _LEFT_BY_ONEDNN
            and input.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and not (torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export())
            and torch._C._has_mkldnn
        )


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
