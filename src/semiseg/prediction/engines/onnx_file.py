"""A model as an ONNX graph, for the engines that read one."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from semiseg.errors import ModelError
from semiseg.files import hash_files
from semiseg.prediction.model import GRAPH_FILE, Model


def onnx_bytes(model: Model) -> bytes:
    """The model's network for tiles of its patch, serialised: the graph that was exported at the end of its training,
    or one that is made of its weights, where torch is installed.

    Raises `ModelError` where it is not the graph that the card describes, where it names other files, and where there
    is neither graph nor torch.
    """
    file = model.folder / GRAPH_FILE
    if file.is_file():
        if hash_files([file]) != model.card.get("graph_sha256"):
            raise ModelError(f"{file}: not the file that card.json describes. Copy the folder again, or delete it.")
        graph = file.read_bytes()
        try:
            proto = onnx.load_from_string(graph)
        except DecodeError as error:
            raise ModelError(f"{file}: no ONNX graph ({error}). Copy the folder again, or delete the file.") from None
        if _names_files(proto):  # a graph may take its weights from any file of this machine; ours has them in itself
            raise ModelError(f"{file}: takes weights from other files, which ours do not. Delete the file.")
        return graph
    if find_spec("torch") is None:
        raise ModelError(f"{file}: is not there, and torch, which makes it, is not installed. Copy the folder again.")
    from semiseg.models.build import onnx_graph
    from semiseg.prediction.engines.torch_engine import load_network

    return onnx_graph(load_network(model), model.plan.patch)


def _names_files(message: Any) -> bool:
    """Whether any tensor within a message of protobuf, wherever it is, has its values in a file."""
    for field, value in message.ListFields():
        if field.name == "external_data" or (field.name == "data_location" and value == onnx.TensorProto.EXTERNAL):
            return True
        if field.message_type is not None:
            parts = [value] if hasattr(value, "ListFields") else value
            if any(_names_files(part) for part in parts):
                return True
    return False
