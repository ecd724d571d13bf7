"""The residual-encoder U-Net of nnU-Net's ResEnc presets (Isensee et al., MICCAI 2024: nnU-Net Revisited).

On the way down a stem and residual blocks, more of them on deeper levels, with strided convolutions; on the way up one
convolution a level. Instance norm and leaky ReLU, so that nothing depends on the batch. Shapes as in `unet.py`.
"""

from __future__ import annotations

from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from semiseg.data.plan import NetworkPlan
from semiseg.models.layers import Conv3d, InstanceNorm3d, Network
from semiseg.types import Shape


class ResidualEncoderUNet(Network):
    """3D U-Net whose encoder is a residual network: `(B, C, D, H, W)` image to `(B, K, D, H, W)` logits."""

    def __init__(self, *, channels: int, classes: int, plan: NetworkPlan) -> None:
        super().__init__(channels=channels, classes=classes, plan=plan)
        features, kernels, strides = plan.features, plan.kernels, plan.strides
        self.stem = _normed(channels, features[0], kernels[0])
        self.encoder = nn.ModuleList(
            [
                nn.Sequential(
                    _Block(source, target, kernel, stride),
                    *(_Block(target, target, kernel, (1, 1, 1)) for _ in range(blocks - 1)),
                )
                for source, target, kernel, stride, blocks in zip(
                    (features[0], *features[:-1]), features, kernels, strides, plan.blocks, strict=True
                )
            ]
        )
        self.ups = nn.ModuleList(
            [
                nn.ConvTranspose3d(deep, shallow, stride, stride)
                for shallow, deep, stride in zip(features[:-1], features[1:], strides[1:], strict=True)
            ]
        )
        self.decoder = nn.ModuleList([_normed(2 * f, f, k) for f, k in zip(features[:-1], kernels[:-1], strict=True)])
        self.head = nn.Conv3d(features[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits at the resolution of the image."""
        x = self.stem(x)
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        for index in reversed(range(len(self.decoder))):
            x = self.decoder[index](torch.cat([self.ups[index](x), skips[index]], dim=1))
        return cast(Tensor, self.head(x))


class _Block(nn.Module):
    """Two convolutions beside a short cut, which is pooled and brought to the features where these change."""

    def __init__(self, inputs: int, outputs: int, kernel: Shape, stride: Shape) -> None:
        super().__init__()
        self.first = _normed(inputs, outputs, kernel, stride)
        self.second = nn.Sequential(_convolution(outputs, outputs, kernel), InstanceNorm3d(outputs, affine=True))
        short: list[nn.Module] = [nn.AvgPool3d(stride, stride)] if prod(stride) > 1 else []
        if inputs != outputs:
            short += [nn.Conv3d(inputs, outputs, 1, bias=False), InstanceNorm3d(outputs, affine=True)]
        self.short = nn.Sequential(*short)
        self.activation = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.activation(self.second(self.first(x)) + self.short(x)))


def _normed(inputs: int, outputs: int, kernel: Shape, stride: Shape = (1, 1, 1)) -> nn.Sequential:
    return nn.Sequential(
        _convolution(inputs, outputs, kernel, stride),
        InstanceNorm3d(outputs, affine=True),
        nn.LeakyReLU(0.01, inplace=True),
    )


def _convolution(inputs: int, outputs: int, kernel: Shape, stride: Shape = (1, 1, 1)) -> Conv3d:
    # The bias would be cancelled by the norm that follows.
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return Conv3d(inputs, outputs, kernel, stride, padding, bias=False)
