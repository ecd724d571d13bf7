"""Which engines this machine has, and how one is opened. An engine's libraries are imported when it is."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from semiseg.errors import ConfigError
from semiseg.prediction.engines.base import Engine
from semiseg.prediction.model import Model

_PRECISIONS = {"torch": ("float32", "bfloat16"), "openvino": ("float32", "bfloat16", "int8"), "onnx": ("float32",)}
_NEEDS = {"torch": ("torch",), "openvino": ("openvino", "onnx"), "onnx": ("onnxruntime", "onnx")}


def is_installed(name: str) -> bool:
    """Whether an engine is known, and its libraries are there."""
    return name in _NEEDS and all(find_spec(library) is not None for library in _NEEDS[name])


def precisions(name: str) -> list[str]:
    """The precisions that an engine has on this CPU without further ado; one that is not installed, float32, so that
    opening it says so."""
    if name == "openvino" and is_installed(name):
        from semiseg.prediction.engines.openvino_engine import supported_precisions

        return supported_precisions()
    return ["float32"]


def open_engine(
    model: Model,
    name: str = "torch",
    *,
    precision: str = "float32",
    device: str = "auto",
    max_gpu_memory: str = "",
    compiled: bool = False,
    say: Callable[[str], None] | None = None,
) -> Engine:
    """An engine for a model. device, max_gpu_memory, compiled: for torch; the others compute on the CPU.

    say: told what the user should know.

    Raises `ConfigError` for an engine that is not installed, or a precision that it does not have.
    """
    if name not in _NEEDS:
        raise ConfigError(f"engine = {name!r}: choose {', '.join(_NEEDS)}.")
    if not is_installed(name):
        missing = [library for library in _NEEDS[name] if find_spec(library) is None]
        raise ConfigError(
            f"engine = {name!r}, but {' and '.join(missing)} cannot be imported: pip install '.[{name}]'."
        )
    if precision not in _PRECISIONS[name]:
        raise ConfigError(f"precision = {precision!r}: {name} computes in {' or '.join(_PRECISIONS[name])} here.")
    if name == "openvino":
        from semiseg.prediction.engines.openvino_engine import OpenVinoEngine

        return OpenVinoEngine(model, precision)
    if name == "onnx":
        from semiseg.prediction.engines.onnx_engine import OnnxEngine

        return OnnxEngine(model)
    import torch

    from semiseg.prediction.device import choose_device, require_bfloat16
    from semiseg.prediction.engines.torch_engine import torch_engine

    chosen = choose_device(device)
    if precision == "bfloat16":
        require_bfloat16(chosen, "predict.precision")
    return torch_engine(
        model,
        chosen,
        autocast=torch.bfloat16 if precision == "bfloat16" else None,
        max_gpu_memory=max_gpu_memory,
        compiled=compiled,
        say=say,
    )
