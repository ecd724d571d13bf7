"""The U-Net as an ONNX graph, made from its weights and sizes alone: no tracing, and no torch.

Batch norm is folded into the convolution before it: `w' = w γ / sqrt(σ² + ε)`, `b' = β - μ γ / sqrt(σ² + ε)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from semiseg.data.plan import NetworkPlan
from semiseg.types import FloatArray, Shape

_EPSILON = 1e-5
"""Of batch norm: torch's default, which the networks use."""
_OPSET, _IR_VERSION = 17, 9
"""Of 2022: every runtime of today reads it."""


def unet_graph(weights: Mapping[str, FloatArray], sizes: NetworkPlan, *, patch: Shape) -> Any:
    """An `onnx.ModelProto`: `tiles (N, C, D, H, W)` to `logits (N, K, D, H, W)`, float32; `D, H, W` are the patch's.

    weights: the network's state by the names of `UNet3d`.
    """
    graph = _Graph(weights)
    channels, classes = weights["encoder.0.0.weight"].shape[1], len(weights["head.bias"])
    x = "tiles"
    skips = []
    for level, kernel in enumerate(sizes.kernels):
        if level:
            x = graph.add("MaxPool", x, kernel_shape=sizes.strides[level], strides=sizes.strides[level])
        x = graph.convolutions(f"encoder.{level}", x, kernel)
        skips.append(x)
    for level in reversed(range(len(sizes.kernels) - 1)):
        stride = sizes.strides[level + 1]
        up = graph.add("ConvTranspose", x, *graph.parameters(f"ups.{level}"), kernel_shape=stride, strides=stride)
        x = graph.add("Concat", up, skips[level], axis=1)
        x = graph.convolutions(f"decoder.{level}", x, sizes.kernels[level])
    graph.add("Conv", x, *graph.parameters("head"), kernel_shape=(1, 1, 1))
    graph.nodes[-1].output[0] = "logits"

    def value(name: str, features: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tiles_in_batch", features, *patch])

    proto = helper.make_graph(
        graph.nodes, "unet", [value("tiles", channels)], [value("logits", classes)], graph.initialisers
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="semiseg")
    model.ir_version = _IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """Nodes and constants in the making."""

    def __init__(self, weights: Mapping[str, FloatArray]) -> None:
        self._weights = weights
        self.nodes: list[Any] = []
        self.initialisers: list[Any] = []

    def add(self, operation: str, *inputs: str, **attributes: Any) -> str:
        """A node; returns the name of what it gives."""
        name = f"{operation}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, list(inputs), [name], name=name, **attributes))
        return name

    def convolutions(self, name: str, x: str, kernel: Shape) -> str:
        """The two blocks of convolution, batch norm and ReLU of a level."""
        padding = [size // 2 for size in kernel]
        for convolution, norm in (("0", "1"), ("3", "4")):
            weight, bias = self._folded(f"{name}.{convolution}", f"{name}.{norm}")
            x = self.add("Conv", x, weight, bias, kernel_shape=kernel, pads=[*padding, *padding])
            x = self.add("Relu", x)
        return x

    def parameters(self, name: str) -> tuple[str, str]:
        """Weight and bias of a layer as they are."""
        return self._constant(f"{name}.weight", self._weights[f"{name}.weight"]), self._constant(
            f"{name}.bias", self._weights[f"{name}.bias"]
        )

    def _folded(self, convolution: str, norm: str) -> tuple[str, str]:
        weight = self._weights[f"{convolution}.weight"].astype(np.float64)
        gamma, beta, mean, variance = (
            self._weights[f"{norm}.{part}"].astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(variance + _EPSILON)
        return (
            self._constant(f"{convolution}.weight", weight * scale[:, None, None, None, None]),
            self._constant(f"{convolution}.bias", beta - mean * scale),
        )

    def _constant(self, name: str, value: Any) -> str:
        self.initialisers.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype=np.float32), name))
        return name
