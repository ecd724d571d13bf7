"""Checkpoints: `checkpoints/step-000100/`, written whole or not at all, from which a run goes on exactly."""

from __future__ import annotations

import re
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from semiseg.errors import DataError, ModelError, TrainingError
from semiseg.files import atomic_folder, digest_of, hash_files, read_json, remove_made, write_json

CHECKPOINT_FORMAT = 2
KEPT = 2
_MADE = ("state.safetensors", "card.json")
_NAME = re.compile(r"step-([0-9]{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps. tensors: of the method. numbers: of method and loop. card: for a reader."""

    step: int
    tensors: dict[str, Tensor]
    numbers: dict[str, float]
    locations: dict[str, Any]
    card: dict[str, Any]


class CheckpointWriter:
    """A context that writes checkpoints into a folder beside the steps that go on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._written: Future[None] | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()  # waits for what is being written
        if kind is None:
            self.wait()

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the state as it is now. Comes back when it is copied; raises what went wrong with the one before."""
        self.wait()
        with torch.no_grad():
            copies = {
                name: torch.clone(value, memory_format=torch.contiguous_format).cpu()
                for name, value in checkpoint.tensors.items()
            }
        copied = replace(checkpoint, tensors=copies, locations=dict(checkpoint.locations))
        self._written = self._thread.submit(_save_finite, self._folder, copied)

    def wait(self) -> None:
        """Until the last checkpoint is on disk; raises what went wrong, `TrainingError` where a value
        is not finite."""
        written, self._written = self._written, None
        if written:
            written.result()


def _save_finite(folder: Path, checkpoint: Checkpoint) -> None:
    """A step whose loss was finite may still have spoilt the weights: such a state must not become a checkpoint."""
    for name, tensor in checkpoint.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TrainingError(not_finite(checkpoint.step, name, folder))
    save_checkpoint(folder, checkpoint)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `folder/step-N` and remove all but the newest two. Tensors, on a CPU, keep their values bit for bit."""
    with atomic_folder(folder / _folder_name(checkpoint.step), made=_MADE) as temporary:
        weights = temporary / "state.safetensors"
        save_file({k: v.contiguous() for k, v in checkpoint.tensors.items()}, weights)
        card = {
            "format": CHECKPOINT_FORMAT,
            "step": checkpoint.step,
            "state_sha256": hash_files([weights]),
            # JSON has no infinity; repr round-trips every float exactly.
            "numbers": {name: repr(value) for name, value in checkpoint.numbers.items()},
            "locations": checkpoint.locations,
        }
        card |= checkpoint.card
        write_json(temporary / "card.json", card | {"card_sha256": digest_of(card)})
    for old in _steps(folder)[:-KEPT]:
        remove_made(old, _MADE)


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint, or None if there is none. Raises `ModelError` for one that is damaged."""
    steps = _steps(folder)
    if not steps:
        return None
    newest = steps[-1]
    state = newest / "state.safetensors"
    remedy = "Delete this folder to go on from the checkpoint before it."
    try:
        card = read_json(newest / "card.json")
    except DataError as error:
        raise ModelError(f"{error} {remedy}") from None
    form = card.get("format") if isinstance(card, dict) else None
    if form != CHECKPOINT_FORMAT:
        raise ModelError(f"{newest}: a checkpoint of format {form}, not {CHECKPOINT_FORMAT}. {remedy}")
    if card.pop("card_sha256", None) != digest_of(card) or newest.name != _folder_name(card["step"]):
        raise ModelError(f"{newest}/card.json: damaged (it does not fit its checksum). {remedy}")
    if not state.is_file() or hash_files([state]) != card.get("state_sha256"):
        raise ModelError(f"{state}: missing or damaged (its hash is not the card's). {remedy}")
    try:
        tensors = load_file(state)
    except SafetensorError as error:
        raise ModelError(f"{state}: {error}. {remedy}") from None
    numbers = {name: float(value) for name, value in card["numbers"].items()}
    return Checkpoint(int(card["step"]), tensors, numbers, card["locations"], card)


def not_finite(step: int, what: str, checkpoints: Path) -> str:
    """What to say, and to do, where numbers are NaN or infinite after a step."""
    return (
        f"step {step}: {what} is not finite. Lower method.optimiser.learning_rate, or look for damaged intensities "
        f"with `semiseg check`. The last good checkpoint is in {checkpoints}."
    )


def _folder_name(step: int) -> str:
    return f"step-{step:06d}"


def _steps(folder: Path) -> list[Path]:
    """The checkpoints by their steps; copies that a person made under other names are none."""
    found = {path: int(match[1]) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))}
    return sorted(found, key=lambda path: found[path])
