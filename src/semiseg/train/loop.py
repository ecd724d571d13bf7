"""The training loop: steps, schedule, checkpoints, validation and logs. It knows nothing of teachers.

A run folder is its memory: if it is killed at any moment, the same call goes on from the last checkpoint to the same
weights, bit for bit on a CPU.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from semiseg.errors import ConfigError, TrainingError
from semiseg.files import remove_leftovers
from semiseg.methods.base import Method
from semiseg.methods.phases import Phases
from semiseg.methods.settings import MethodSettings
from semiseg.predict.engines.torch_engine import TorchEngine
from semiseg.randomness import Draw
from semiseg.train.checkpoint import Checkpoint, load_latest, save_checkpoint
from semiseg.train.inputs import Place, TrainingData, step_inputs
from semiseg.train.journal import Journal
from semiseg.train.loop_state import LoopState
from semiseg.train.origin import Origin, changed
from semiseg.train.out_of_memory import named_out_of_memory
from semiseg.train.schedule import Schedule
from semiseg.train.settings import TrainSettings
from semiseg.train.validate import validate


def train_method(
    run: Path,
    method: Method,
    data: TrainingData,
    place: Place,
    *,
    settings: TrainSettings,
    method_settings: MethodSettings,
    origin: Origin,
    quiet: bool = False,
) -> None:
    """Train to the last step, going on from the newest checkpoint in `run/checkpoints` if there is one.

    origin: what the run is made of; a checkpoint of another one is refused with `ConfigError`. Leaves
    checkpoints and `metrics.jsonl`. Raises `TrainingError` where a loss is not finite (the last good checkpoint
    stays) or the device's memory does not suffice.
    """
    phases = Phases.of(method_settings, settings.steps)
    state = LoopState(Schedule(settings, phases, method_settings))
    checkpoints = run / "checkpoints"
    start = _resume(checkpoints, state, method, origin)
    with Journal(run, settings, start=start, quiet=quiet) as journal, named_out_of_memory(place):
        if start:
            journal.note(f"Going on from step {start} of {settings.steps}.")
        inputs = step_inputs(data, method, phases, settings, place, start, state.locations, journal.note)
        for step, labelled, unlabelled in state.clock.timed(inputs):
            if state.schedule.begin(step):
                state.epoch_losses = []
            method.learning_rate_factor = state.schedule.factor(step)
            journal.collect(method.step(labelled, unlabelled, Draw(seed=settings.seed, step=step)))

            done = step + 1
            last, ends_epoch = done == settings.steps, done % settings.epoch_steps == 0
            saves = last or done % settings.checkpoint_every == 0
            row: dict[str, float] = {}
            if done % settings.log_every == 0 or ends_epoch or saves:
                row = _finite(journal.means(), done, checkpoints) | {"input_share": round(state.clock.input_share(), 3)}
            judged = method.judged(step)
            if judged.loss in row:
                state.epoch_losses.append(row[judged.loss])
            if data.validation and (last or (ends_epoch and _validates(done, settings))):
                engine = TorchEngine(method.networks[judged.network], place.device, place.autocast)
                row |= validate(data.validation, engine, place.plan)
            if ends_epoch and _rate_was_reduced(state, row.get("validation_loss")):
                journal.note(f"Step {done}: no better loss; the learning rate is reduced.")
            if row:
                rate = method_settings.first_learning_rate * method.learning_rate_factor
                seconds = round(state.clock.seconds(), 2)
                head = {"step": done, "phase": phases.name(step), "seconds": seconds, "learning_rate": rate}
                journal.write(head | row | _gpu_peak(place.device))
            if saves:
                checkpoint = state.checkpoint(done, method, origin)
                _check_finite_state(checkpoint, checkpoints)
                save_checkpoint(checkpoints, checkpoint)


def _resume(checkpoints: Path, state: LoopState, method: Method, origin: Origin) -> int:
    """The steps that were made before: loop and method are put where the newest checkpoint left them."""
    remove_leftovers(checkpoints)
    checkpoint = load_latest(checkpoints)
    if checkpoint is None:
        return 0
    before = checkpoint.card.get("origin")
    if not isinstance(before, dict):
        raise ConfigError(
            f"{checkpoints}: made by a version of semiseg that did not keep what it was trained with. Go on with that "
            "version, use another run folder, or delete the checkpoints to train anew."
        )
    if lines := changed(before, origin):
        raise ConfigError(
            f"{checkpoints}: trained with another plan, other cases or other settings than the run has now:\n  "
            + "\n  ".join(lines)
            + "\nUndo the change in run.toml or plan.toml, use another run folder, or delete the checkpoints to train "
            "anew."
        )
    wanted, begun = state.schedule.phases.total, checkpoint.card.get("steps")
    if begun not in (None, wanted):
        raise ConfigError(
            f"{checkpoints}: begun as a run of {begun} steps, but train.steps = {wanted} now, and phases and learning "
            "rate go by the number of steps. Set it back, or use another run folder."
        )
    state.restore(checkpoint, method)
    return checkpoint.step


def _gpu_peak(device: torch.device) -> dict[str, int]:
    """What this process has had of a GPU's memory at most, in MB; nothing of a CPU."""
    return {"gpu_peak_mb": round(torch.cuda.max_memory_reserved(device) / 1e6)} if device.type == "cuda" else {}


def _validates(done: int, settings: TrainSettings) -> bool:
    return settings.validation_every > 0 and (done // settings.epoch_steps) % settings.validation_every == 0


def _rate_was_reduced(state: LoopState, validation_loss: float | None) -> bool:
    """Close an epoch: the schedule is told its loss, on validation cases or else the mean of its rows."""
    losses, state.epoch_losses = state.epoch_losses, []
    if validation_loss is None and not losses:
        return False
    return state.schedule.end_epoch(sum(losses) / len(losses) if validation_loss is None else validation_loss)


def _finite(row: dict[str, float], step: int, checkpoints: Path) -> dict[str, float]:
    """The row itself; raises `TrainingError` that names what is not finite in it."""
    bad = [key for key, value in row.items() if not math.isfinite(value)]
    if bad:
        raise TrainingError(_not_finite(step, ", ".join(bad), checkpoints))
    return row


def _check_finite_state(checkpoint: Checkpoint, checkpoints: Path) -> None:
    """A step whose loss was finite may still have spoilt the weights: such a state must not become a checkpoint."""
    for name, tensor in checkpoint.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TrainingError(_not_finite(checkpoint.step, name, checkpoints))


def _not_finite(step: int, what: str, checkpoints: Path) -> str:
    return (
        f"step {step}: {what} is not finite. Lower method.learning_rate, or look for damaged intensities with "
        f"`semiseg check`. The last good checkpoint is in {checkpoints}."
    )
