"""The model folder: weights, plan with labels, and a readable card. It is all that prediction needs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from semiseg.data.plan import NetworkPlan, Plan, read_plan, write_plan
from semiseg.data.poses import Pose, is_in_plane, read_pose
from semiseg.errors import ConfigError, DataError, ModelError
from semiseg.files import atomic_folder, hash_files, read_json, restore_replaced, write_json
from semiseg.types import FloatArray

if TYPE_CHECKING:  # prediction by other engines than torch does not import it
    from semiseg.models.layers import Network

Role = Literal["teacher", "student"]
MODEL_FORMAT = 2
POSTPROCESSING_FILE = "postprocessing.json"
"""What `semiseg postprocess` chose, beside the weights that it was chosen for."""
GRAPH_FILE = "network.onnx"
"""The network as engines other than torch read it, made at the end of training."""
_MADE = ("weights.safetensors", GRAPH_FILE, "plan.toml", "card.json", POSTPROCESSING_FILE)


@dataclass(frozen=True)
class Model:
    """A trained network with the plan that it was trained by. card: what was trained on what. hash: of weights and
    plan."""

    folder: Path
    plan: Plan
    card: dict[str, Any]
    hash: str

    @property
    def sizes(self) -> NetworkPlan:
        """Of the network: the plan's for the teacher or the student, whichever this is."""
        return self.plan.teacher if self.card["role"] == "teacher" else self.plan.student

    def weights(self) -> dict[str, FloatArray]:
        """The network's state by name; raises `ModelError` where the file is none."""
        file = self.folder / "weights.safetensors"
        try:
            weights = load_file(file)
        except SafetensorError as error:
            raise ModelError(f"{file}: cannot be read ({error}). Copy the folder again.") from None
        if bad := [name for name, values in weights.items() if not np.isfinite(values).all()]:
            raise ModelError(f"{file}: {bad[0]} has values that are not finite. Train again, or use another model.")
        return weights

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """The axes (0, 1, 2 for Z, Y, X) along which training mirrored."""
        return tuple(self.card.get("mirror_axes", ()))

    @property
    def poses(self) -> tuple[Pose, ...]:
        """In which, besides that of the labelled scans, training found unlabelled ones."""
        return tuple(dict.fromkeys(map(read_pose, self.card.get("poses", ()))))


def save_model(folder: Path, network: Network, plan: Plan, *, role: Role, card: dict[str, Any]) -> None:
    """Write the folder whole or not at all. role: whose sizes in the plan the network has."""
    from semiseg.models.build import onnx_graph

    with atomic_folder(folder, made=_MADE) as temporary:
        weights = temporary / "weights.safetensors"
        save_file({k: v.detach().cpu().contiguous().numpy() for k, v in network.state_dict().items()}, weights)
        (temporary / GRAPH_FILE).write_bytes(onnx_graph(network, plan.patch))
        write_plan(temporary / "plan.toml", plan)
        facts = {
            "format": MODEL_FORMAT,
            "role": role,
            "classes": {str(value): name for value, name in plan.labels.names.items()},
            "channels": list(plan.channels),
            "parameters": sum(p.numel() for p in network.parameters()),  # an average's need no gradient
            "weights_sha256": hash_files([weights]),
            "graph_sha256": hash_files([temporary / GRAPH_FILE]),
            "plan_sha256": hash_files([temporary / "plan.toml"]),
        }
        write_json(temporary / "card.json", facts | card)
        if _holds_the_same(folder, str(facts["weights_sha256"])):  # trained to its end before: what was chosen stays
            shutil.copy(folder / POSTPROCESSING_FILE, temporary)


def _holds_the_same(folder: Path, weights_sha256: str) -> bool:
    """Whether postprocessing was chosen for these very weights."""
    try:
        card = read_json(folder / "card.json")
    except DataError:
        return False
    return (folder / POSTPROCESSING_FILE).is_file() and card.get("weights_sha256") == weights_sha256


def load_model(folder: str | Path) -> Model:
    """Load a model folder, or the `model` folder of a run; raises `ModelError` that says what is wrong with it."""
    inside = Path(folder) / "model"
    restore_replaced(inside)
    restore_replaced(Path(folder))
    folder = inside if inside.is_dir() else Path(folder)
    if not (folder / "card.json").is_file():
        if (folder / "fold_0" / "model").is_dir():
            raise ModelError(f"{folder}: is a run with folds, which have a model each. Name one: {folder / 'fold_0'}.")
        raise ModelError(f"{folder}: no model here (no card.json). Name a model folder or a run that was trained.")
    try:
        card, plan = read_json(folder / "card.json"), read_plan(folder / "plan.toml")
    except (DataError, ConfigError) as error:
        raise ModelError(f"{error} In a model folder: copy it again.") from None
    if not isinstance(card, dict) or card.get("format") != MODEL_FORMAT:
        raise ModelError(
            f"{folder}/card.json: not a card of format {MODEL_FORMAT}. Use the semiseg version it came from."
        )
    weights = folder / "weights.safetensors"
    for file, key in ((weights, "weights_sha256"), (folder / "plan.toml", "plan_sha256")):
        if not file.is_file() or hash_files([file]) != card.get(key):
            raise ModelError(f"{file}: missing, or not the file that card.json describes. Copy the folder again.")
    role = card.get("role")
    if role not in ("teacher", "student"):
        raise ModelError(f"{folder}/card.json: role is {role!r}, but teacher or student is expected.")
    axes = card.get("mirror_axes", [])
    if not isinstance(axes, list) or not all(axis in (0, 1, 2) and isinstance(axis, int) for axis in axes):
        raise ModelError(f"{folder}/card.json: mirror_axes are {axes!r}, but some of 0, 1 and 2 are expected.")
    try:
        poses = list(map(read_pose, card.get("poses", [])))
    except (TypeError, ValueError) as error:
        raise ModelError(f"{folder}/card.json: poses: {error}. Copy the folder again.") from None
    if not all(is_in_plane(pose, plan) for pose in poses):
        raise ModelError(f"{folder}/card.json: poses are not in the plane of thick slices. Copy the folder again.")
    return Model(folder, plan, card, hash_files([weights, folder / "plan.toml"]))
