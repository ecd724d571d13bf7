"""A model as a file that other programs read: ONNX, OpenVINO, or an exported torch program."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from semiseg.data.plan import write_plan
from semiseg.errors import ConfigError, DataError
from semiseg.files import atomic_folder, read_json, write_json
from semiseg.prediction.engines.opening import is_installed
from semiseg.prediction.model import Model, load_model

Form = Literal["onnx", "openvino", "torch"]
_FILES = {"onnx": "model.onnx", "openvino": "model.xml", "torch": "model.pt2"}
_MADE = (*_FILES.values(), "model.bin", "plan.toml", "card.json")


def export_model(model: Model | str | Path, form: Form, output: str | Path) -> Path:
    """Write the network for tiles of the plan's patch into the folder `output`, with its card and plan; returns the
    file.

    Input `tiles (N, C, D, H, W)` float32 at the plan's spacing in network units, output `logits (N, K, D, H, W)`;
    `N` is free but for torch, which takes one tile. Raises `ConfigError` where a library is missing, or where
    something else is in the place of `output`.
    """
    model, output = model if isinstance(model, Model) else load_model(model), Path(output)
    if not is_installed(form):
        raise ConfigError(f"--to {form} needs more than is installed: pip install '.[{form}]'.")
    if output.exists() and not _is_export(output):
        raise ConfigError(f"{output}: is there already, and is no exported model. Name a new folder.")
    name = _FILES[form]
    with atomic_folder(output, made=_MADE) as temporary:
        _write(model, form, temporary / name)
        write_plan(temporary / "plan.toml", model.plan)
        tiles = {"tiles": ["N", len(model.plan.channels), *model.plan.patch]}
        logits = {"logits": ["N", model.plan.labels.count, *model.plan.patch]}
        facts = {"file": name, "form": form, "inputs": tiles, "outputs": logits, "model_hash": model.hash}
        write_json(temporary / "card.json", model.card | facts)
    return output / name


def _is_export(folder: Path) -> bool:
    """Whether an earlier export lies there, to be replaced; a model folder has a card too, of another form."""
    try:
        return "form" in read_json(folder / "card.json")
    except (DataError, TypeError, NotADirectoryError):
        return False


def _write(model: Model, form: Form, file: Path) -> None:
    if form == "torch":
        import torch

        from semiseg.prediction.engines.torch_engine import load_network

        tile = torch.zeros(1, len(model.plan.channels), *model.plan.patch)
        torch.export.save(torch.export.export(load_network(model), (tile,)), file)
        return
    from semiseg.prediction.engines.onnx_file import onnx_bytes

    data = onnx_bytes(model)
    if form == "onnx":
        file.write_bytes(data)
        return
    import openvino

    openvino.save_model(openvino.Core().read_model(data), file, compress_to_fp16=False)
