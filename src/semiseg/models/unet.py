"""The paper's 3D U-Net. Shapes: B batch, C channels, K classes, D H W voxels.

Each level has two convolution - batch norm - ReLU blocks; levels are joined by max pooling on the way down, transposed
convolution and concatenation on the way up. Sizes come from the plan.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from semiseg.data.plan import NetworkPlan
from semiseg.models.layers import BatchNorm3d, Conv3d, Network
from semiseg.types import Shape


class UNet3d(Network):
    """3D U-Net: `(B, C, D, H, W)` image to `(B, K, D, H, W)` logits."""

    def __init__(self, *, channels: int, classes: int, plan: NetworkPlan) -> None:
        super().__init__(channels=channels, classes=classes, plan=plan)
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
