"""A model as an ONNX file, for the engines that read one."""

from __future__ import annotations

from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError

from semiseg.models.onnx_graph import unet_graph
from semiseg.prediction.model import Model


def onnx_bytes(model: Model) -> bytes:
    """The model's network for tiles of its patch, serialised; raises `ModelError` where its weights do not fit its
    plan."""
    try:
        graph = unet_graph(model.weights(), model.sizes, patch=model.plan.patch)
    except (KeyError, ValueError, ValidationError, InferenceError) as error:
        raise model.misfit(error) from None
    return bytes(graph.SerializeToString())
