"""A model as a file that other programs read: ONNX, OpenVINO, or an exported torch program."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from semiseg.data.plan import write_plan
from semiseg.errors import ConfigError, DataError
from semiseg.files import atomic_folder, read_json, write_json
from semiseg.prediction.engines.opening import is_installed
from semiseg.prediction.model import Model, load_model

Form = Literal["onnx", "openvino", "torch"]
_FILES = {"onnx": "model.onnx", "openvino": "model.xml", "torch": "model.pt2"}
_MADE = (*_FILES.values(), "model.bin", "plan.toml", "card.json")
_FOR_OTHERS = (
    *("format", "role", "classes", "channels", "parameters", "weights_sha256", "plan_sha256"),
    *("method", "network", "steps", "seed", "mirror_axes", "poses", "dataset", "torch", "intended_use"),
    *("corrected_cases", "accepted_cases", "taught_cases", "unlabelled_cases"),
)
"""Of a model's card; what is not known here stays on this machine."""
_HASHED = re.compile(r"[0-9a-f]{16}")


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
    if output.exists() and not is_export(output, _FILES):
        raise ConfigError(f"{output}: is there already, and is no exported model. Name a new folder.")
    name = _FILES[form]
    with atomic_folder(output, made=_MADE) as temporary:
        _write(model, form, temporary / name)
        write_plan(temporary / "plan.toml", model.plan)
        tiles = {"tiles": ["N", len(model.plan.channels), *model.plan.patch]}
        logits = {"logits": ["N", model.plan.labels.count, *model.plan.patch]}
        facts = {"file": name, "form": form, "inputs": tiles, "outputs": logits, "model_hash": model.hash}
        write_json(temporary / "card.json", card_for_others(model) | facts)
    return output / name


def is_export(folder: Path, forms: Collection[str]) -> bool:
    """Whether an earlier export in one of these forms lies there, to be replaced; a model folder has a card, too."""
    try:
        return read_json(folder / "card.json").get("form") in forms
    except (DataError, TypeError, AttributeError, NotADirectoryError):
        return False


def card_for_others(model: Model) -> dict[str, Any]:
    """What of a model's card leaves this machine with it."""
    card = {key: value for key, value in model.card.items() if key in _FOR_OTHERS}
    return card | {"labelled_cases": hashes_alone(model.card.get("labelled_cases"))}


def hashes_alone(ids: object) -> list[str]:
    """Those of the ids that are hashes, as all of ours are (`semiseg.data.case_hashes`)."""
    return [id for id in ids if isinstance(id, str) and _HASHED.fullmatch(id)] if isinstance(ids, list) else []


def _write(model: Model, form: Form, file: Path) -> None:
    if form == "torch":
        import torch

        from semiseg.prediction.engines.torch_engine import load_network

        tile = torch.zeros(1, len(model.plan.channels), *model.plan.patch)
        program = torch.export.export(load_network(model), (tile,))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        torch.export.save(program, file)
        return
    from semiseg.prediction.engines.onnx_file import onnx_bytes

    data = onnx_bytes(model)
    if form == "onnx":
        file.write_bytes(data)
        return
    import openvino

    openvino.save_model(openvino.Core().read_model(data), file, compress_to_fp16=False)
