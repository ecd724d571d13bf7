"""A session's scratch runs: what is taken in a rehearsal, and what is said when memory does not suffice."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from semiseg.augment.settings import TURNED_PROBABILITY, Augmentation, AugmentSettings
from semiseg.data.batches import BatchSource
from semiseg.data.plan import Plan
from semiseg.data.roles import Role, RunCase
from semiseg.data.sampling import SamplingSettings
from semiseg.errors import TrainingError
from semiseg.methods.base import Batch, Method, UnlabelledBatch
from semiseg.methods.phases import Phases
from semiseg.methods.settings import method_names, method_settings
from semiseg.randomness import Draw
from semiseg.training.inputs import TrainingData
from semiseg.training.session import Session, rehearse
from semiseg.training.settings import TrainSettings

pytestmark = pytest.mark.usefixtures("one_thread")
Store = Callable[..., Path]


@dataclass(frozen=True)
class Watched(Session):
    """A session on two cases that notes phase and metrics of each step; fails in `failing`."""

    data: TrainingData = field(kw_only=True)
    failing: str = ""
    steps: list[tuple[str, set[str]]] = field(default_factory=list)

    def open_data(self) -> TrainingData:
        return self.data

    def build(self, phases: Phases) -> Method:
        method = super().build(phases)
        step = method.step

        def watched(labelled: Batch, unlabelled: UnlabelledBatch | None, draw: Draw) -> dict[str, Tensor]:
            if method.phases.name(draw.step) == self.failing:
                raise torch.OutOfMemoryError("CUDA out of memory")
            metrics = step(labelled, unlabelled, draw)
            self.steps.append((method.phases.name(draw.step), set(metrics)))
            return metrics

        method.step = watched  # type: ignore[method-assign]
        return method


@pytest.fixture
def session(store: Store, plan: Plan, tmp_path: Path) -> Callable[..., Watched]:
    shown = np.zeros((6, 6, 6))
    shown[2:4] = 1
    labelled, unlabelled = store("a", shown, shown), store("b", shown)

    def made(failing: str = "", name: str = "pseudo_rounds", **method: object) -> Watched:
        return Watched(
            run=tmp_path / "run",
            cases=[],
            plan=plan,
            sampling=SamplingSettings(),
            augment=AugmentSettings(enabled=False),
            method=method_settings(name, **method),
            train=TrainSettings(steps=1000, refresh_steps=100),
            device=torch.device("cpu"),
            data=TrainingData(
                BatchSource([labelled], [unlabelled], patch=(4, 4, 4), batch=2, seed=0), (labelled,), (unlabelled,), ()
            ),
            failing=failing,
        )

    return made


def test_a_rehearsal_takes_every_kind_of_step(session: Callable[..., Watched], tmp_path: Path) -> None:
    """Of training steps one in which the teacher moves by feedback, and one in which it does not."""
    mpl = session(name="mpl", feedback="dense", teacher_every=16)
    rehearse(mpl)
    assert [phase for phase, _ in mpl.steps] == ["warmup", "train", "train", "finetune"]
    assert ["feedback" in metrics for _, metrics in mpl.steps] == [False, True, False, False]
    supervised = session(name="supervised")
    rehearse(supervised)
    assert len(supervised.steps) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", sorted(method_names()))
def test_every_method_can_be_rehearsed(session: Callable[..., Watched], name: str) -> None:
    """More rounds than the rehearsal has steps are no reason to refuse."""
    rehearsed = session(name=name, **({"rounds": 9} if name == "pseudo_rounds" else {}))
    rehearse(rehearsed)
    assert rehearsed.steps


def test_scans_are_mirrored_and_turned_as_the_plan_says(session: Callable[..., Watched]) -> None:
    """Unless the settings say along which axes; along the coarse axis nothing is interpolated."""
    made = session(name="supervised")
    lying = replace(made.plan, mirror_axes=(1, 2), turn_degrees=(180.0, 30.0, 30.0), anisotropic_axis=0)
    found = replace(made, plan=lying, augment=AugmentSettings()).place.augment
    assert (found.mirror_axes, found.coarse_axis, found.rotation_radians[0]) == ((1, 2), 0, math.pi)
    assert found.rotation_probability == TURNED_PROBABILITY > Augmentation().rotation_probability
    asked = replace(made, plan=lying, augment=AugmentSettings(turn_degrees=(9.0, 9.0, 9.0))).place.augment
    assert asked.rotation_radians == pytest.approx(np.radians((9.0, 9.0, 9.0)))
    for turns in ((70.0, 30.0, 30.0), (30.0, 180.0, 30.0)):  # nothing is turned about Y where Z is coarse
        some = replace(made, plan=replace(lying, turn_degrees=turns), augment=AugmentSettings()).place.augment
        assert some.rotation_probability == 0.2
        assert some.rotation_radians == pytest.approx(np.radians(turns))
    assert replace(made, plan=lying, augment=AugmentSettings(mirror_axes=())).place.augment.mirror_axes == ()
    assert replace(made, augment=AugmentSettings()).place.augment.mirror_axes == (2,)


@pytest.mark.parametrize("failing", ["warmup", "train", "finetune"])
def test_memory_that_does_not_suffice_shows_in_the_rehearsal(session: Callable[..., Watched], failing: str) -> None:
    with pytest.raises(
        TrainingError, match=r"no memory left on cpu for a batch of 2 patches of \(4, 4, 4\): lower plan"
    ):
        rehearse(session(failing, name="mpl"))


def test_labels_of_programs_have_a_share_of_their_own_but_not_those_that_are_distilled(
    session: Callable[..., Watched],
) -> None:
    roles: tuple[Role, ...] = ("labelled", "corrected", "accepted", "taught", "unlabelled")
    cases = [RunCase(id=role, images=(), label=None, split="train", role=role) for role in roles]
    every = replace(session(), cases=cases)
    assert every.labelled_by_programs == ["accepted", "taught"]
    assert replace(every, distils=True).labelled_by_programs == ["accepted"]
    assert replace(every, cases=[cases[0], cases[4]]).labelled_by_programs is None  # as without a review
    assert replace(every, cases=cases[:2]).labelled_by_programs == []
