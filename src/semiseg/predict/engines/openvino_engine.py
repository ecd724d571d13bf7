"""The OpenVINO engine: the fastest on most CPUs. Neither it nor what it needs imports torch."""

from __future__ import annotations

import numpy as np
import openvino

from semiseg.predict.engines.onnx_file import onnx_bytes
from semiseg.predict.model import Model
from semiseg.processes import usable_cores
from semiseg.types import FloatArray

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoEngine:
    """OpenVINO on the CPU, a tile at a time: batches gain nothing there and cost memory."""

    name = "openvino"

    def __init__(self, model: Model, precision: str = "float32") -> None:
        self.precision = precision
        core = openvino.Core()
        graph = core.read_model(onnx_bytes(model))
        graph.reshape([1, len(model.plan.channels), *model.plan.patch])
        options = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
            "INFERENCE_NUM_THREADS": usable_cores(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._compiled = core.compile_model(graph, "CPU", options)
        self._request = self._compiled.create_infer_request()

    def run(self, tiles: FloatArray) -> FloatArray:
        """As `Engine.run`."""
        logits = [self._request.infer({0: np.ascontiguousarray(tile[None])})[0].copy() for tile in tiles]
        return np.concatenate(logits)


def supported_precisions() -> list[str]:
    """The precisions that this CPU computes in hardware, float32 last."""
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return (["bfloat16"] if "BF16" in capabilities else []) + ["float32"]
