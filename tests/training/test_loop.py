"""The loop alone, with a method whose losses are known: what it logs, when it validates, how it stops and goes on."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from semiseg.augment.settings import Augmentation
from semiseg.data.batches import BatchSource
from semiseg.data.plan import Plan
from semiseg.errors import ConfigError, TrainingError
from semiseg.files import append_jsonl, read_jsonl
from semiseg.methods.base import Batch, Judged, UnlabelledBatch
from semiseg.methods.phases import Phases
from semiseg.methods.settings import OptimiserSettings, SupervisedSettings
from semiseg.randomness import Draw
from semiseg.training import inputs, loop, schedule
from semiseg.training.inputs import Place, TrainingData
from semiseg.training.loop import train_method
from semiseg.training.loop_state import Clock
from semiseg.training.settings import TrainSettings

Store = Callable[..., Path]
SUPERVISED = SupervisedSettings(optimiser=OptimiserSettings(learning_rate=0.5))


class Told:
    """A method whose loss is told step by step; its one weight counts the steps that it was trained."""

    settings = SUPERVISED
    evaluated = "student"
    labeller: str | None = None
    turns = labelling_steps = ()
    shortest_round = 0.0
    phases = Phases.of_steps(0, 1, 1)

    def __init__(self, loss: Callable[[int], float]) -> None:
        self.loss = loss
        network = nn.Conv3d(1, 3, 1)
        self.networks: dict[str, nn.Module] = {"student": network}
        self.count = nn.Parameter(torch.zeros(()), requires_grad=False)
        network.register_parameter("count", self.count)
        self.learning_rate_factor = 1.0
        self.rates: list[float] = []

    def judged(self, step: int) -> Judged:
        return Judged("student", "labelled_loss")

    def needs_unlabelled(self, step: int) -> bool:
        return False

    def scan_labellers(self, step: int) -> tuple[str, ...]:
        return ()

    def step(self, labelled: Batch, unlabelled: UnlabelledBatch | None, draw: Draw) -> dict[str, Tensor]:
        assert unlabelled is None
        self.count += 1
        self.rates.append(self.learning_rate_factor)
        return {"labelled_loss": torch.tensor(self.loss(draw.step))}

    def state(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        return dict(self.networks["student"].state_dict()), {}

    def load_state(self, tensors: dict[str, Tensor], numbers: dict[str, float]) -> None:
        self.networks["student"].load_state_dict(tensors)


@pytest.fixture
def data(store: Store) -> TrainingData:
    shown = np.zeros((6, 6, 6))
    shown[2:4] = 1
    case, held_out = store("a", shown, shown), store("b", shown, shown)
    return TrainingData(BatchSource([case], patch=(4, 4, 4), batch=2, seed=0), (), (), (held_out,))


Train = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def train(tmp_path: Path, plan: Plan, data: TrainingData, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train in `tmp_path/run`, in epochs of 4 steps, and return the rows of its log."""
    monkeypatch.setattr(loop, "EPOCH_STEPS", 4)
    place = Place(plan, Augmentation.none(), torch.device("cpu"), None)

    def run(method: Told, *, validation: bool = False, seed: int = 0, **settings: Any) -> list[dict[str, Any]]:
        given = data if validation else TrainingData(data.source, (), (), ())
        settled = TrainSettings(**{"log_every": 2, "checkpoint_every": 4} | settings)
        folder = tmp_path / "run"
        origin = {"train.seed": seed}
        train_method(folder, method, given, place, settings=settled, origin=origin, quiet=True)
        return read_jsonl(folder / "metrics.jsonl")

    return run


def test_a_row_is_the_mean_since_the_row_before(train: Train) -> None:
    rows = train(Told(float), steps=207)
    assert [row["step"] for row in rows] == [*range(2, 207, 2), 207]
    assert [row["labelled_loss"] for row in rows] == [*(step + 0.5 for step in range(0, 206, 2)), 206.0]
    rates = [0.5 * (1 - (row["step"] - 1) / 207) ** 0.9 for row in rows]
    assert [row["learning_rate"] for row in rows] == pytest.approx(rates, rel=1e-12)
    assert not any("validation_loss" in row for row in rows)


@pytest.mark.parametrize(("steps", "every"), [(7, 1), (199, 1), (250, 2), (350, 3), (2000, 3)])
def test_a_run_of_few_steps_has_a_hundred_rows_if_it_can(
    train: Train, monkeypatch: pytest.MonkeyPatch, steps: int, every: int
) -> None:
    """Asked for is a row every three steps; besides there is one at the end of an epoch, of a stretch and of all."""
    monkeypatch.setattr(loop, "EPOCH_STEPS", 10**6)
    rows = train(Told(float), steps=steps, log_every=3, checkpoint_every=10**6)
    assert [row["step"] for row in rows] == sorted({*range(every, steps + 1, every), steps})


@pytest.mark.parametrize(("every", "steps"), [(0, [10]), (1, [4, 8, 10]), (2, [8, 10])])
def test_validation_every_so_many_epochs_and_at_the_end(train: Train, every: int, steps: list[int]) -> None:
    rows = train(Told(float), validation=True, steps=10, validation_every=every)
    assert [row["step"] for row in rows if "validation_dice" in row] == steps


def test_a_plateau_of_the_training_loss_lowers_the_rate(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of 4 steps, patience 2: the loss stops falling after the first, so two more must pass."""
    monkeypatch.setattr(schedule, "PLATEAU_PATIENCE", 2)
    monkeypatch.setattr(schedule, "PLATEAU_SMOOTHING", 0.0)
    method = Told(lambda step: max(1.0, 4.0 - step))
    train(method, steps=20, schedule="plateau")
    assert method.rates == pytest.approx([1.0] * 16 + [0.2] * 4)


def test_a_plateau_of_the_validation_loss_has_nothing_to_do_with_the_training_loss(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second epoch is validated, with one loss each time; no other counts, however low training was in it."""
    monkeypatch.setattr(schedule, "PLATEAU_PATIENCE", 2)
    monkeypatch.setattr(schedule, "PLATEAU_SMOOTHING", 0.0)
    method = Told(lambda step: -1.0)
    train(method, validation=True, steps=28, validation_every=2, schedule="plateau")
    assert method.rates == pytest.approx([1.0] * 24 + [0.2] * 4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_the_last_good_checkpoint_stays(
    train: Train, tmp_path: Path, value: float
) -> None:
    with pytest.raises(TrainingError, match=r"step 6: labelled_loss is not finite.*learning_rate.*checkpoints"):
        train(Told(lambda step: value if step == 5 else 1.0), steps=12)
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000004"]
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 5  # of few steps each has a row


def test_weights_that_are_not_finite_never_become_a_checkpoint(train: Train, tmp_path: Path) -> None:
    method = Told(float)
    method.count.fill_(math.nan)
    with pytest.raises(TrainingError, match="step 4: count is not finite"):
        train(method, steps=12)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_memory_that_does_not_suffice_names_the_settings_to_lower(train: Train) -> None:
    def exhausted(step: int) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(TrainingError, match=r"batch of 2 patches of \(4, 4, 4\): lower plan.batch or plan.patch"):
        train(Told(exhausted), steps=4)


def test_memory_that_does_not_suffice_for_augmentation_is_named_too(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(inputs, "labelled_view", exhausted)
    with pytest.raises(TrainingError, match=r"no memory left on cpu for a batch of 2"):
        train(Told(float), steps=4)


def test_a_checkpoint_of_another_run_is_refused(train: Train, tmp_path: Path) -> None:
    train(Told(float), steps=4)
    with pytest.raises(
        ConfigError, match=r"checkpoints: trained with another plan(.|\n)*train.seed = 0 then, 1 now"
    ) as it:
        train(Told(float), steps=4, seed=1)
    assert "Undo the change in run.toml or plan.toml, use" in str(it.value)
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000004"]


def test_a_run_goes_on_from_its_last_checkpoint(train: Train, tmp_path: Path) -> None:
    def fails_at_seven(step: int) -> float:
        return math.nan if step == 7 else float(step)

    with pytest.raises(TrainingError):
        train(Told(fails_at_seven), steps=12)
    log = tmp_path / "run" / "metrics.jsonl"
    append_jsonl(log, {"step": 6, "phase": "train", "labelled_loss": -1.0})
    method = Told(float)
    rows = train(method, steps=12)
    assert len(method.rates) == 8  # steps 4 to 11
    assert float(method.count) == 12  # the first four came with the checkpoint
    assert [row["step"] for row in rows] == [*range(1, 13)]
    assert [row["labelled_loss"] for row in rows] == [*map(float, range(12))]
    train(untouched := Told(float), steps=12)
    assert untouched.rates == []


def test_rounds_that_are_not_made_yet_are_forgotten(train: Train, tmp_path: Path) -> None:
    """Their poses would go into the model's card, and the report would show them."""
    rounds = tmp_path / "run" / "rounds.jsonl"
    with pytest.raises(TrainingError):
        train(Told(lambda step: math.nan if step == 7 else 1.0), steps=12)
    for number, step in enumerate((2, 4, 6), start=1):  # there is a checkpoint of 4 steps
        row = {"round": number, "step": step, "scans": 0, "agreement": None, "found": {}, "trusted": False, "why": ""}
        append_jsonl(rounds, row | {"unknown": [], "poses": [], "lying": {}})
    train(Told(float), steps=12)
    assert [row["step"] for row in read_jsonl(rounds)] == [2], "the round that began with step 4 is made anew"
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    train(Told(float), steps=12)
    assert read_jsonl(rounds) == []


def test_the_share_of_time_that_steps_wait_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What went into labelling scans is no waiting."""
    now, paused = [0.0], [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def batches() -> Iterator[Any]:
        for step in range(4):
            now[0] += 1.0  # what reading and augmenting takes
            if step == 3:
                now[0] += 8.0
                paused[0] += 8.0
            yield step, None, None

    clock = Clock(began=0.0)
    shares = []
    for step, *_ in clock.timed(batches(), lambda: paused[0]):
        now[0] += 3.0  # what the step takes
        if step % 2:
            shares.append(clock.input_share())
    assert shares == [0.25, 0.125]
