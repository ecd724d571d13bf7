"""How much memory training a 3D U-Net takes: the model behind the planner's budget."""

from __future__ import annotations

from math import prod

from semiseg.data.plan import NetworkPlan
from semiseg.types import Shape

GB = 1e9
_ENCODER_MAPS = 4
"""Feature maps that a level keeps for its backward pass: the output of two convolutions and of their ReLUs."""
_DECODER_MAPS = 6
"""The same for the way up, and the concatenation of twice the features."""
_BLOCK_MAPS, _BLOCK_DECODER_MAPS = 6, 5
"""The same of a residual block: two convolutions, two norms, the sum and its short cut; and of one convolution with its
norm on the way up beside the concatenation."""
_LOSS_MAPS = 4
"""Maps of all classes in float32: logits, log-probabilities, probabilities, and the target or a gradient."""
_WEIGHT_BYTES = 16
"""Per parameter, float32: weight, gradient, momentum, moving average."""


def training_gb(
    network: NetworkPlan, *, patch: Shape, batch: int, channels: int, classes: int, activation_bytes: int
) -> float:
    """Memory in GB of one forward and backward pass of one network and of its optimiser.

    activation_bytes: of one number in a feature map, 4 in float32, 2 in mixed precision. Workspaces of the
    convolution library are not counted.
    """
    voxels = [prod(patch) / prod(map(prod, network.strides[1 : level + 1])) for level in range(len(network.strides))]
    sample = 4.0 * voxels[0] * (channels + _LOSS_MAPS * classes)
    for level, (features, count) in enumerate(zip(network.features, voxels, strict=True)):
        bottleneck = level == len(voxels) - 1
        down = _BLOCK_MAPS * network.blocks[level] if network.blocks else _ENCODER_MAPS
        maps = down + (0 if bottleneck else _BLOCK_DECODER_MAPS if network.blocks else _DECODER_MAPS)
        sample += activation_bytes * maps * features * count
        if not bottleneck:  # max pooling keeps its output and a 64-bit index for each
            sample += (activation_bytes + 8) * features * voxels[level + 1]
    return (batch * sample + _WEIGHT_BYTES * _parameters(network, channels, classes)) / GB


def _parameters(network: NetworkPlan, channels: int, classes: int) -> int:
    """Weights of the convolutions; norms and biases are too few to matter."""
    features, kernels, strides = network.features, network.kernels, network.strides
    inputs = (channels, *features[:-1])
    blocks = network.blocks or (1,) * len(features)
    encoder = sum(
        prod(k) * (i * f + (2 * n - 1) * f * f) for i, f, k, n in zip(inputs, features, kernels, blocks, strict=True)
    )
    on_the_way_up = 2 if network.blocks else 3
    decoder = sum(prod(k) * on_the_way_up * f * f for f, k in zip(features[:-1], kernels[:-1], strict=True))
    ups = sum(prod(s) * f * g for f, g, s in zip(features[:-1], features[1:], strides[1:], strict=True))
    return encoder + decoder + ups + features[0] * classes
