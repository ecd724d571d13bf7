"""A session's scratch runs: what is taken in a rehearsal, and what is said when memory does not suffice."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from semiseg.augment.settings import AugmentSettings
from semiseg.data.batches import BatchSource
from semiseg.data.plan import Plan
from semiseg.data.sampling import SamplingSettings
from semiseg.errors import ConfigError, TrainingError
from semiseg.methods.base import Batch, Method, UnlabelledBatch
from semiseg.methods.phases import Phases
from semiseg.methods.settings import MethodName, MethodSettings
from semiseg.randomness import Draw
from semiseg.train import calibrate
from semiseg.train.calibrate import calibrated
from semiseg.train.inputs import TrainingData
from semiseg.train.session import Session, rehearse
from semiseg.train.settings import TrainSettings
from semiseg.types import Shape

pytestmark = pytest.mark.usefixtures("one_thread")
Store = Callable[..., Path]


@dataclass(frozen=True)
class Watched(Session):
    """A session on two cases that notes phase, metrics and labelled patch of each step; fails in `failing`."""

    data: TrainingData
    failing: str = ""
    steps: list[tuple[str, set[str]]] = field(default_factory=list)
    patches: list[tuple[int, ...]] = field(default_factory=list)

    def open_data(self) -> TrainingData:
        return self.data

    def build(self, phases: Phases) -> Method:
        method = super().build(phases)
        step = method.step

        def watched(labelled: Batch, unlabelled: UnlabelledBatch | None, draw: Draw) -> dict[str, Tensor]:
            if phases.name(draw.step) == self.failing:
                raise torch.OutOfMemoryError("CUDA out of memory")
            metrics = step(labelled, unlabelled, draw)
            self.steps.append((phases.name(draw.step), set(metrics)))
            self.patches.append(tuple(labelled.images.shape[2:]))
            return metrics

        method.step = watched  # type: ignore[method-assign]
        return method


@pytest.fixture
def session(store: Store, plan: Plan, tmp_path: Path) -> Callable[..., Watched]:
    shown = np.zeros((6, 6, 6))
    shown[2:4] = 1
    labelled, unlabelled = store("a", shown, shown), store("b", shown)

    def made(failing: str = "", warmup_patch: Shape | None = None, **method: object) -> Watched:
        return Watched(
            run=tmp_path / "run",
            cases=[],
            plan=plan,
            sampling=SamplingSettings(warmup_patch=warmup_patch),
            augment=AugmentSettings(enabled=False),
            method=MethodSettings(**method),  # type: ignore[arg-type]
            train=TrainSettings(steps=1000, refresh_steps=100),
            device=torch.device("cpu"),
            data=TrainingData(
                BatchSource([labelled], [unlabelled], patch=(4, 4, 4), batch=2, seed=0), (unlabelled,), ()
            ),
            failing=failing,
        )

    return made


def test_a_rehearsal_takes_every_kind_of_step(session: Callable[..., Watched], tmp_path: Path) -> None:
    """Of training steps one in which the teacher moves by feedback, and one in which it does not."""
    mpl = session(name="mpl", feedback="dense", teacher_every=16)
    rehearse(mpl)
    assert [phase for phase, _ in mpl.steps] == ["warmup", "train", "train", "finetune"]
    assert ["feedback" in metrics for _, metrics in mpl.steps] == [False, False, True, False]
    supervised = session(name="supervised")
    rehearse(supervised)
    assert len(supervised.steps) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", sorted(get_args(MethodName)))
def test_every_method_can_be_rehearsed(session: Callable[..., Watched], name: str) -> None:
    """More rounds or renewals than the rehearsal has steps are no reason to refuse."""
    rehearsed = session(name=name, rounds=9, teacher_renewals=9)
    rehearse(rehearsed)
    assert rehearsed.steps


def test_the_warm_up_may_have_patches_of_its_own(session: Callable[..., Watched]) -> None:
    smaller = session(name="pseudo_label", warmup_patch=(2, 4, 4))
    rehearse(smaller)
    assert smaller.patches == [(2, 4, 4), *[(4, 4, 4)] * 3]
    with pytest.raises(ConfigError, match=r"^sampling.warmup_patch\[1\] = 3 must be a multiple of 2"):
        rehearse(session(name="pseudo_label", warmup_patch=(2, 3, 4)))
    with pytest.raises(ConfigError, match=r"^sampling.warmup_patch = \(4, 4, 6\) is larger than the plan's patch"):
        rehearse(session(name="pseudo_label", warmup_patch=(4, 4, 6)))


def test_steps_are_timed_as_they_are_after_the_first(
    session: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cases are in memory before the first step; a refresh has been done before the one that counts."""
    timed = session(name="pseudo_rounds", rounds=40)
    refreshed: list[int] = []
    monkeypatch.setattr(calibrate, "predicted_locations", lambda cases, turn, count, *more: refreshed.append(count))
    monkeypatch.setattr(
        BatchSource, "fill_memory", lambda source, *, unlabelled: timed.steps.append((f"filled {unlabelled}", set()))
    )
    assert calibrated(timed).train.steps == 1
    assert [phase for phase, _ in timed.steps[:2]] == ["filled True", "warmup"]
    assert refreshed == [1, timed.train.refresh_cases]


def test_whole_scans_are_labelled_where_the_budget_has_the_time(session: Callable[..., Watched]) -> None:
    """What labelling takes is taken from the budget; with a share too large it is patches."""
    made = session(name="pseudo_label")

    def settled(minutes: float, session: Session = made) -> Session:
        return calibrated(replace(session, train=replace(session.train, budget_minutes=minutes)))

    assert settled(10.0).method.label_scope == "scan"
    assert settled(1e-9).method.label_scope == "patch"
    assert settled(1e-9, session(name="mpl")).method.label_scope == "auto"
    with pytest.raises(ConfigError, match=r"minutes to label unlabelled scans, more than half of them\."):
        settled(1e-9, session(name="pseudo_label", label_scope="scan"))
    assert not any(made.run.glob("scan_labels/*")), "only timed"


def test_as_many_scans_are_labelled_as_a_quarter_of_the_budget_suffices_for(
    store: Store, session: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = np.zeros((6, 6, 6))
    labelled, unlabelled = store("a", shown, shown), tuple(store(f"u{n}", shown) for n in range(40))
    source = BatchSource([labelled], unlabelled, patch=(4, 4, 4), batch=2, seed=0)

    def settled(minutes: float, name: str = "pseudo_label", **method: object) -> MethodSettings:
        made = replace(session(name=name, **method), data=TrainingData(source, unlabelled, ()))
        return calibrated(replace(made, train=replace(made.train, budget_minutes=minutes))).method

    def timed(session: Session) -> tuple[float, int, int]:
        rounds = session.method.rounds_of(9) if session.method.name == "pseudo_rounds" else 1
        return seconds, rounds, len(session.open_data().unlabelled)

    seconds = 7.5  # a scan: 5 minutes for all 40
    monkeypatch.setattr(calibrate, "_labelling_seconds", timed)
    assert (settled(20.0).label_scope, settled(20.0).label_scans) == ("scan", 0)  # all
    assert (settled(10.0).label_scope, settled(10.0).label_scans) == ("scan", 20)
    assert settled(10.0, label_scope="scan").label_scans == 20
    assert (settled(7.0).label_scope, settled(7.0).label_scans) == ("patch", 0)  # 14 would be too few
    assert settled(12.0, label_scans=30).label_scans == 30, "as it was said"
    assert settled(12.0, label_scans=40).label_scans == 40, "all, in more than a quarter of the minutes"
    with pytest.raises(ConfigError, match=r"would take 5.0 minutes to label unlabelled scans, more than half"):
        settled(7.0, label_scope="scan")
    by_minutes = {
        60.0: (0, None),  # all, three times
        40.0: (26, None),  # 600 s / 7.5 s / 3
        30.0: (30, 2),  # three times would be 20
        20.0: (0, 1),  # twice 20
        9.0: (18, 1),
        7.0: (0, None),
    }
    for minutes, (scans, rounds) in by_minutes.items():
        method = settled(minutes, "pseudo_rounds")
        scope = "patch" if minutes == 7.0 else "scan"
        assert (method.label_scope, method.label_scans, method.rounds) == (scope, scans, rounds), minutes
    assert settled(20.0, "pseudo_rounds", rounds=2).label_scans == 20, "so many were said"
    assert settled(30.0, "pseudo_rounds", label_scans=40).rounds is None, "three times in half of the minutes"
    assert settled(20.0, "pseudo_rounds", label_scans=40).rounds == 2, "as many rounds as there is time for"
    with pytest.raises(ConfigError, match=r"would take 10.0 minutes to label unlabelled scans, more than half"):
        settled(15.0, "pseudo_rounds", rounds=2, label_scans=40)
    seconds, unlabelled = 15.0, unlabelled[:20]  # half of 10 minutes suffices, a quarter only for 10
    assert (settled(10.0).label_scope, settled(10.0).label_scans) == ("scan", 0)


def test_one_scan_alone_is_timed_where_enough_can_never_be_labelled(
    store: Store, session: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many scans the first says little: it finds nothing loaded, and theirs is the number that is labelled."""
    shown = np.zeros((6, 6, 6))
    unlabelled = tuple(store(f"u{n}", shown) for n in range(20))
    source = BatchSource([store("a", shown, shown)], unlabelled, patch=(4, 4, 4), batch=2, seed=0)
    made = replace(session(name="pseudo_label"), data=TrainingData(source, unlabelled, ()))
    timed: list[int] = []
    monkeypatch.setattr(calibrate, "label_scans", lambda cases, *more, **options: timed.append(len(cases)))
    minute = itertools.count()
    monkeypatch.setattr(calibrate.time, "perf_counter", lambda: 60.0 * next(minute))
    assert calibrate._labelling_seconds(replace(made, train=replace(made.train, budget_minutes=3.0))) == (60.0, 1, 20)
    assert timed == [1]  # 16 minutes for 16 scans are more than 4 times 3
    assert calibrate._labelling_seconds(replace(made, train=replace(made.train, budget_minutes=5.0))) == (15.0, 1, 20)
    assert timed == [1, 1, 4]


def test_scans_that_are_labelled_are_drawn_by_the_seed(session: Callable[..., Watched], tmp_path: Path) -> None:
    all_scans = tuple(Path(f"{n}") for n in range(100))

    def drawn(count: int, seed: int = 0, **method: object) -> tuple[Path, ...]:
        made = session(**({"name": "pseudo_label", "label_scans": count} | method))
        return replace(made, train=replace(made.train, seed=seed)).learnt_from(all_scans)

    assert drawn(10) == drawn(10)
    assert len(set(drawn(10))) == 10
    assert set(drawn(10)) <= set(all_scans)
    assert drawn(10) != drawn(10, seed=1)
    some = tuple(case for case in all_scans if case != drawn(10)[3])
    less = session(name="pseudo_label", label_scans=10).learnt_from(some)
    assert set(drawn(10)) - {drawn(10)[3]} < set(less), "the others stay"
    assert drawn(0) == drawn(100) == drawn(200) == all_scans
    assert drawn(10, label_scope="patch") == drawn(10, name="mpl") == all_scans


def test_scans_are_labelled_by_the_teachers_patch_and_with_their_mirror_image(session: Callable[..., Watched]) -> None:
    made = session(name="pseudo_label", warmup_patch=(2, 4, 4))
    assert made.place.labelling_window().patch == (2, 4, 4)
    assert made.place.labelling_window(renewed=True).patch == (4, 4, 4)  # a student's
    assert made.place.labelling_window().mirror_axes == ()  # augmentation is off here
    mirrored = replace(made, augment=AugmentSettings(mirror_axes=(0, 2)))
    assert mirrored.place.labelling_window().mirror_axes == (2,)
    off = replace(mirrored, method=replace(made.method, label_mirror=False))
    assert off.place.labelling_window().mirror_axes == ()
    assert session(name="pseudo_label").place.labelling_window().patch == (4, 4, 4)


@pytest.mark.parametrize("failing", ["warmup", "train", "finetune"])
def test_memory_that_does_not_suffice_shows_in_the_rehearsal(session: Callable[..., Watched], failing: str) -> None:
    with pytest.raises(
        TrainingError, match=r"no memory left on cpu for a batch of 2 patches of \(4, 4, 4\): lower plan"
    ):
        rehearse(session(failing, name="mpl"))
