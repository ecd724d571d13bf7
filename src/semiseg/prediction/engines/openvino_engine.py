"""The OpenVINO engine: the fastest on most CPUs. Neither it nor what it needs imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino

from semiseg.errors import ConfigError
from semiseg.files import cache_folder
from semiseg.prediction.engines.onnx_file import onnx_bytes
from semiseg.prediction.model import Model
from semiseg.processes import usable_cores
from semiseg.types import FloatArray

_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
"""OpenVINO's names; of int8 that of what is not quantised, which bfloat16 would make no faster to speak of."""


def int8_file(model: Model) -> Path:
    """Where the int8 network of a model is kept on this machine; `semiseg.prediction.int8` makes it."""
    return cache_folder() / "int8" / f"{model.hash[:16]}-openvino-{openvino.__version__.split('-')[0]}" / "network.xml"


def read_network(model: Model) -> Any:
    """The model's network in float32, for one tile of its patch."""
    graph = openvino.Core().read_model(onnx_bytes(model))
    graph.reshape([1, len(model.plan.channels), *model.plan.patch])
    return graph


def compiled(network: Any, precision: str) -> Any:
    """A network ready to run on the CPU; precision: what is not quantised is in float32 where it is int8."""
    options = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "INFERENCE_NUM_THREADS": usable_cores(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    return openvino.Core().compile_model(network, "CPU", options)


class OpenVinoEngine:
    """OpenVINO on the CPU, a tile at a time: batches gain nothing there and cost memory."""

    name = "openvino"

    def __init__(self, model: Model, precision: str = "float32") -> None:
        """Raises `ConfigError` where the int8 network of the model was not made yet."""
        self.precision, self._model = precision, model
        if precision == "int8" and not int8_file(model).is_file():
            raise ConfigError(
                "precision = 'int8': this model has no int8 network on this machine yet. "
                "semiseg predict --engine openvino --precision int8 makes it from the scans that it is given."
            )
        graph = openvino.Core().read_model(int8_file(model)) if precision == "int8" else read_network(model)
        self._compiled = compiled(graph, precision)
        self._request = self._compiled.create_infer_request()

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process it is opened anew."""
        return OpenVinoEngine, (self._model, self.precision)

    def run(self, tiles: FloatArray) -> FloatArray:
        """As `Engine.run`."""
        logits = [self._request.infer({0: np.ascontiguousarray(tile[None])})[0].copy() for tile in tiles]
        return logits[0] if len(logits) == 1 else np.concatenate(logits)


def supported_precisions() -> list[str]:
    """The precisions that this CPU computes in hardware, float32 last."""
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return (["bfloat16"] if "BF16" in capabilities else []) + ["float32"]
