"""What steps are given: unlabelled scans drawn and labelled anew in each round, none where labels are not trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from semiseg.augment.settings import Augmentation
from semiseg.data.batches import BatchSource
from semiseg.data.plan import Plan
from semiseg.data.poses import Pose
from semiseg.errors import DataError
from semiseg.files import read_jsonl
from semiseg.methods.base import Method
from semiseg.methods.build import build_method
from semiseg.methods.phases import Phases
from semiseg.methods.settings import MethodSettings, PseudoLabelSettings, PseudoRoundsSettings
from semiseg.rows import RoundRow, read_rounds
from semiseg.training import inputs
from semiseg.training.inputs import FIRST_LOOK, LOOKED_AT, ROUNDS_FILE, Feed, Found, Place, TrainingData
from semiseg.training.scan_labels import found_poses
from semiseg.training.settings import TrainSettings

pytestmark = pytest.mark.usefixtures("one_thread")
Store = Callable[..., Path]
CPU = torch.device("cpu")
PHASES = Phases.of_steps(2, 8, 10)
"""With two rounds, from the steps 2 and 5 on."""


@pytest.fixture
def feed(store: Store, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Feed]:
    """A feed of two labelled and eight unlabelled cases, which may label many however short its training is."""
    monkeypatch.setattr(inputs, "LABELLED_SHARE", 100.0)
    shown = np.zeros((6, 6, 6))
    shown[2:4] = 1
    labelled = [store(f"l{n}", shown, shown) for n in range(2)]
    unlabelled = [store(f"u{n}", shown) for n in range(8)]

    def made(label_scans: int = 3, seed: int = 0, settings: MethodSettings | None = None) -> Feed:
        settings = settings or PseudoRoundsSettings(rounds=2, label_scans=label_scans)
        built: Method = build_method(plan, settings, PHASES, seed=seed, device=CPU)
        source = BatchSource(labelled, unlabelled, patch=plan.patch, batch=2, seed=seed)
        kept = tmp_path / "run" / "scan_labels"
        kept.parent.mkdir(exist_ok=True)
        data = TrainingData(source, tuple(labelled), tuple(unlabelled), (), kept)
        place = Place(plan, Augmentation.none(), CPU, None)
        return Feed(data, built, TrainSettings(steps=10, seed=seed), place)

    return made


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "verdict", lambda found: (True, "trusted."))


def rounds(tmp_path: Path) -> list[dict[str, object]]:
    return read_jsonl(tmp_path / "run" / ROUNDS_FILE)


def test_organs_that_are_not_found_are_unknown_in_the_round(
    feed: Callable[..., Feed], plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run goes on within the round."""
    (value, name), *_ = plan.labels.organs.items()
    monkeypatch.setattr(inputs, "looked_at", lambda *_: Found(0.95, 0.95, (name,), 2))
    made = feed()
    for step, *_ in made.steps(0, 8, PHASES):
        assert made.method.unknown == (() if step < 2 else (value,))
    assert [(row["trusted"], row["unknown"]) for row in rounds(tmp_path)] == [(True, [name])] * 2
    monkeypatch.setattr(inputs, "looked_at", lambda *_: Found(0.95, 0.95, (), 2))
    again = feed()
    list(again.steps(6, 8, PHASES))
    assert again.method.unknown == (value,)


@pytest.mark.usefixtures("trusted")
def test_steps_of_a_round_come_with_labels_of_whole_scans(feed: Callable[..., Feed], tmp_path: Path) -> None:
    given = list(feed().steps(0, 8, PHASES))
    assert [step for step, *_ in given] == list(range(8))
    assert [unlabelled is not None for *_, unlabelled in given] == [False] * 2 + [True] * 6
    assert all(unlabelled.labels is not None for *_, unlabelled in given if unlabelled)
    assert [(row["round"], row["step"], row["scans"], row["trusted"]) for row in rounds(tmp_path)] == [
        (1, 2, 3, True),
        (2, 5, 3, True),
    ]


@pytest.mark.parametrize(("agreement", "looked_at"), [(0.69, FIRST_LOOK), (0.89, LOOKED_AT)])
def test_labels_that_are_not_trusted_are_not_given(
    feed: Callable[..., Feed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agreement: float, looked_at: int
) -> None:
    """A few scans are labelled to know, two where these leave no hope, and no more."""
    monkeypatch.setattr(inputs, "verdict", lambda found: (False, "nothing is learnt."))
    monkeypatch.setattr(inputs, "looked_at", lambda *_: Found(agreement, agreement, (), 2))
    one = feed(label_scans=6)
    said: list[str] = []
    one.say = said.append
    given = list(one.steps(0, 5, PHASES))
    assert len({file.stem for file in (tmp_path / "run").glob("scan_labels/*/*.b2nd")}) == looked_at
    given += one.steps(5, 8, PHASES)
    assert not any(unlabelled for *_, unlabelled in given)
    assert [(row["trusted"], row["scans"]) for row in rounds(tmp_path)] == [(False, 0)] * 2
    assert [text for text in said if text.endswith("nothing is learnt.")] == [
        f"Round {row['round']}: {row['why']}" for row in rounds(tmp_path)
    ]


def test_a_round_that_was_refused_stays_so_when_a_run_goes_on(
    feed: Callable[..., Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its networks have been remembered anew by then, and might agree."""
    monkeypatch.setattr(inputs, "verdict", lambda found: (False, "nothing is learnt."))
    list(feed().steps(0, 4, PHASES))
    monkeypatch.setattr(inputs, "verdict", lambda found: (True, "trusted."))
    assert [unlabelled is not None for *_, unlabelled in feed().steps(4, 6, PHASES)] == [False, True]


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("settings", [None, PseudoLabelSettings()], ids=["rounds", "pseudo_label"])
def test_scans_that_lie_otherwise_are_learnt_from_as_if_they_lay_alike(
    feed: Callable[..., Feed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: MethodSettings | None
) -> None:
    """A pose that a round found is known in the next, which need not look; the log says how many lie so."""
    exchanged = Pose((0, 2, 1))
    looks: list[int] = []

    def clear_poses(cases: Sequence[Path], *_: object) -> tuple[Pose, ...]:
        looks.append(len(cases))
        return (exchanged,)

    monkeypatch.setattr(inputs, "clear_poses", clear_poses)
    monkeypatch.setattr(inputs, "possible_poses", lambda plan: (exchanged,))
    monkeypatch.setattr(inputs, "kept_poses", lambda folder, ids: dict.fromkeys(ids, exchanged))
    one = feed(label_scans=6, settings=settings)
    said: list[str] = []
    one.say = said.append
    list(one.steps(0, 8, PHASES))
    count = len(one.method.labelling_steps)
    scans = min(6, len(one.data.unlabelled)) if settings is None else len(one.data.unlabelled)
    assert looks == [scans]
    assert [(row["poses"], row["lying"]) for row in rounds(tmp_path)] == count * [
        ([{"axes": [0, 2, 1], "flipped": []}], {"Y and X exchanged": scans})
    ]
    assert f"Round 1: {scans} of {scans} scans lie otherwise than the labelled ones" in " ".join(said)
    assert found_poses(read_rounds(tmp_path / "run")) == (exchanged,)


def _round(number: int, lying: int, *, trusted: bool = True, known: bool = True) -> RoundRow:
    return {
        "round": number,
        "step": number,
        "scans": 4,
        "agreement": 1.0,
        "found": {},
        "trusted": trusted,
        "why": "",
        "unknown": [],
        "poses": [{"axes": [0, 2, 1], "flipped": []}] if known else [],
        "lying": {"Y and X exchanged": lying} if lying else {},
    }


def test_a_pose_that_no_scan_lies_in_any_more_is_let_go_of() -> None:
    """But not for a round that was refused, and not for one that drew none of its scans."""
    exchanged = (Pose((0, 2, 1)),)
    assert found_poses([]) == ()
    assert found_poses([_round(1, 2)]) == exchanged
    assert found_poses([_round(1, 0, trusted=False)]) == exchanged
    assert found_poses([_round(1, 2), _round(2, 0, trusted=False, known=False)]) == exchanged
    assert found_poses([_round(1, 3), _round(2, 0)]) == exchanged
    assert found_poses([_round(1, 5), _round(2, 1), _round(3, 0)]) == ()
    assert found_poses([_round(1, 0)]) == ()
    edited: RoundRow = {**_round(1, 2), "poses": [{"axes": [0, 0, 1], "flipped": []}]}
    with pytest.raises(DataError, match=r"rounds.jsonl, round 1: .* is no pose. Mend or delete the line."):
        found_poses([edited])


@pytest.mark.usefixtures("trusted")
def test_a_round_that_goes_on_keeps_its_poses(
    feed: Callable[..., Feed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is labelled again, and nothing is asked of a network that was remembered anew."""
    exchanged = Pose((0, 2, 1))
    monkeypatch.setattr(inputs, "clear_poses", lambda *_: (exchanged,))
    monkeypatch.setattr(inputs, "possible_poses", lambda plan: (exchanged,))
    list(feed(label_scans=6).steps(0, 4, PHASES))
    before = rounds(tmp_path)
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").glob("scan_labels/*/*.b2nd")}
    monkeypatch.setattr(inputs, "clear_poses", lambda *_: ())
    again = feed(label_scans=6)
    again.method.networks["teacher"].load_state_dict(again.method.networks["student"].state_dict())
    assert all(unlabelled is not None for *_, unlabelled in again.steps(4, 5, PHASES))
    assert rounds(tmp_path) == before
    assert {file: file.stat().st_mtime_ns for file in files} == files


def test_rounds_take_turns_through_the_scans(feed: Callable[..., Feed]) -> None:
    def drawn(number: int, **changes: int) -> tuple[str, ...]:
        return tuple(case.name for case in feed(**changes)._drawn(number, 2, 0))

    assert drawn(1) == drawn(1)
    assert len(set(drawn(1))) == 3
    everything = tuple(f"u{n}" for n in range(8))
    turns = [scan for number in range(1, 9) for scan in drawn(number)]
    assert set(drawn(1)).isdisjoint(drawn(2)), "no network labels what it has just learnt from"
    assert Counter(turns) == dict.fromkeys(everything, 3)
    assert len({drawn(1, seed=seed) for seed in range(8)}) > 1
    assert set(drawn(1)) < set(drawn(1, label_scans=5)), "more of them are the same and others"
    assert drawn(1, label_scans=0) == drawn(1, label_scans=8) == drawn(1, label_scans=99) == everything


def test_little_training_labels_few_scans_and_too_little_none(
    feed: Callable[..., Feed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each step 2 patches of 64 voxels are seen; scans have 216."""
    monkeypatch.setattr(inputs, "LABELLED_SHARE", 1.0)
    one = feed(label_scans=5)
    assert [len(one._drawn(1, first, 0)) for first in (2, 5, 10, 100)] == [1, 2, 5, 5]
    assert [len(one._drawn(2, 100, before)) for before in (98, 95, 90)] == [1, 2, 5]
    assert one.method.shortest_round == 5 * 216 / (2 * 64)
    with monkeypatch.context() as patch:  # labelled in four ways each
        patch.setattr(inputs, "found_poses", lambda _: (Pose((0, 2, 1), ()),) * 3)
        assert [len(one._drawn(2, first, 0)) for first in (2, 5, 10, 100)] == [1, 2, 4, 5]
    assert not any(unlabelled for *_, unlabelled in one.steps(0, 8, PHASES))
    assert [(row["step"], row["trusted"], row["why"]) for row in rounds(tmp_path)] == [(5, False, inputs.TOO_EARLY)]
    assert not list((tmp_path / "run").glob("scan_labels/*/*.b2nd"))


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("cut", [2, 3, 4, 5, 6])
def test_stretches_give_what_one_would_have_given(feed: Callable[..., Feed], tmp_path: Path, cut: int) -> None:
    """Those of one feed, and of another that goes on after a kill: rounds are not labelled or told anew."""
    whole = list(feed().steps(0, 8, PHASES))
    told = rounds(tmp_path)
    parts = feed()
    in_two = [*parts.steps(0, cut, PHASES), *parts.steps(cut, 8, PHASES)]
    resumed = list(feed().steps(cut, 8, PHASES))
    for found, expected in ((in_two, whole), (resumed, whole[cut:])):
        assert len(found) == len(expected)
        for (step, labelled, unlabelled), (number, batch, other) in zip(found, expected, strict=True):
            assert step == number
            assert torch.equal(labelled.images, batch.images)
            assert (unlabelled is None) == (other is None)
            if unlabelled and other:
                assert torch.equal(unlabelled.weak, other.weak)
                assert unlabelled.labels is not None
                assert other.labels is not None
                assert torch.equal(unlabelled.labels, other.labels)
    assert rounds(tmp_path) == told


@pytest.mark.usefixtures("trusted")
def test_what_labelling_took_is_counted(feed: Callable[..., Feed]) -> None:
    one = feed()
    list(one.steps(0, 2, PHASES))
    assert one.pausing == 0
    list(one.steps(2, 5, PHASES))
    first = one.pausing
    assert first > 0
    list(one.steps(5, 8, PHASES))
    assert one.pausing > first


def test_a_method_of_patches_labels_no_scan(feed: Callable[..., Feed], tmp_path: Path) -> None:
    given = list(feed(settings=PseudoLabelSettings(label_scope="patch")).steps(0, 8, PHASES))
    assert all(unlabelled.labels is None for *_, unlabelled in given[2:] if unlabelled)
    assert all(unlabelled for *_, unlabelled in given[2:])
    assert not (tmp_path / "run" / "scan_labels").exists()
    assert rounds(tmp_path) == []
