"""The ONNX Runtime engine: where OpenVINO is not to be had, Arm machines for one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime

from semiseg.prediction.engines.onnx_file import onnx_bytes
from semiseg.prediction.model import Model
from semiseg.processes import usable_cores
from semiseg.types import FloatArray


class OnnxEngine:
    """ONNX Runtime on the CPU, a tile at a time."""

    name, precision = "onnx", "float32"

    def __init__(self, model: Model) -> None:
        self._model = model
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = usable_cores()
        self._session = onnxruntime.InferenceSession(onnx_bytes(model), options, providers=["CPUExecutionProvider"])

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process it is opened anew."""
        return OnnxEngine, (self._model,)

    def run(self, tiles: FloatArray) -> FloatArray:
        """As `Engine.run`."""
        logits = [self._session.run(["logits"], {"tiles": np.ascontiguousarray(tile[None])})[0] for tile in tiles]
        return np.concatenate(logits)
