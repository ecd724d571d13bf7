"""How far a run is: shares rise, steps and shares are each other's inverse, and what is past stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semiseg.errors import ConfigError
from semiseg.methods.phases import Phases
from semiseg.methods.settings import PhaseSettings, RoundPhases, method_settings
from semiseg.methods.timeline import Stretch, Timeline

EACH = st.floats(1e-4, 0.3)
SHARES = st.floats(0.0, 1.0)
ROUNDING = 1e-8
"""Of sums of a few thousand shares."""


@st.composite
def timelines(draw: st.DrawFn, *, may_fall_back: bool = True) -> Timeline:
    """Laid down from a few looks, each from a step of the stretch before on, with another pace; what is done by the
    clock may be more or less than was thought."""
    timeline = Timeline((Stretch(0, 0.0, draw(EACH)),))
    for _ in range(draw(st.integers(0, 4))):
        last = timeline.stretches[-1]
        step = last.step + draw(st.integers(1, 50))
        share = timeline.share(step)
        done = draw(st.floats(0.0 if may_fall_back else share, 1.0))
        timeline = timeline.with_stretch(Stretch(step, done, draw(EACH)))
    return timeline


def reaches(timeline: Timeline, share: float, slack: float = 0.0) -> list[bool]:
    """Of each step of the run whether so much is done before it."""
    return [timeline.share(step) + slack >= share for step in range(timeline.total + 1)]


def test_a_run_of_given_steps() -> None:
    timeline = Timeline.of_steps(8)
    assert [timeline.share(step) for step in range(10)] == [n / 8 for n in range(9)] + [1.0]
    assert [timeline.step_at(n / 8) for n in range(9)] == list(range(9))
    assert timeline.step_at(0.3) == 3
    assert timeline.total == 8


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 49, 1000, 250_000])
def test_as_many_steps_as_were_given(steps: int) -> None:
    """A share is a fraction that is no binary number, and a sum of thousands of them."""
    assert Timeline.of_steps(steps).total == steps
    timeline = Timeline.of_steps(steps)
    assert all(timeline.step_at(step / steps) == step for step in range(0, steps + 1, max(1, steps // 99)))


@given(timelines(may_fall_back=False))
def test_shares_rise(timeline: Timeline) -> None:
    shares = [timeline.share(step) for step in range(timeline.total + 1)]
    assert shares == sorted(shares)
    assert shares[0] >= 0
    assert shares[-1] == pytest.approx(1.0, abs=ROUNDING)
    assert timeline.share(timeline.total + 5) <= 1


@given(timelines(), SHARES)
def test_the_step_at_a_share_is_the_first_before_which_so_much_is_done(timeline: Timeline, share: float) -> None:
    step = timeline.step_at(share)
    assert timeline.share(step) >= share - ROUNDING
    assert not any(timeline.share(earlier) >= share + ROUNDING for earlier in range(step))


@given(timelines(), st.lists(SHARES, min_size=2, max_size=2))
def test_more_comes_later(timeline: Timeline, shares: list[float]) -> None:
    less, more = sorted(shares)
    assert timeline.step_at(less) <= timeline.step_at(more) <= timeline.total


@given(timelines(), st.integers(1, 50), SHARES, EACH, SHARES)
def test_a_later_stretch_changes_no_step_that_is_past(
    timeline: Timeline, later: int, done: float, each: float, share: float
) -> None:
    now = timeline.stretches[-1].step + later
    extended = timeline.with_stretch(Stretch(now, done, each))
    assert [extended.share(step) for step in range(now)] == [timeline.share(step) for step in range(now)]
    assert extended.share(now) == done
    before, after = timeline.step_at(share), extended.step_at(share)
    assert after == before if before < now else after >= now


@given(timelines(), st.integers(1, 50), SHARES, EACH, st.floats(0.0, 0.6), st.floats(0.0, 0.3))
def test_a_step_that_is_past_stays_in_its_phase(
    timeline: Timeline, later: int, done: float, each: float, warmup: float, finetune: float
) -> None:
    now = timeline.stretches[-1].step + later
    before = Phases.at(timeline, warmup, 1 - finetune)
    after = Phases.at(timeline.with_stretch(Stretch(now, done, each)), warmup, 1 - finetune)
    assert [after.name(step) for step in range(now)] == [before.name(step) for step in range(now)]


def test_what_was_laid_down_from_a_step_on_is_laid_down_anew() -> None:
    timeline = Timeline((Stretch(0, 0.0, 0.1), Stretch(4, 0.3, 0.05, threads=2)))
    assert timeline.with_stretch(Stretch(4, 0.5, 0.25)) == Timeline((Stretch(0, 0.0, 0.1), Stretch(4, 0.5, 0.25)))
    assert timeline.with_stretch(Stretch(6, 0.5, 0.25)).stretches[:2] == timeline.stretches


def test_a_share_that_passed_between_two_steps_is_reached_at_the_later_one() -> None:
    """Labelling scans took half of the run before step 4."""
    timeline = Timeline((Stretch(0, 0.0, 0.1), Stretch(4, 0.9, 0.05)))
    assert [timeline.step_at(share) for share in (0.25, 0.35, 0.5, 0.9, 0.93, 1.0)] == [3, 4, 4, 4, 5, 6]
    assert timeline.total == 6


def test_phases_go_by_the_share_of_the_run() -> None:
    """Half of the time are the first 10 steps; then each takes a fifth of what it took."""
    timeline = Timeline((Stretch(0, 0.0, 0.05), Stretch(10, 0.5, 0.01)))
    settings = method_settings("pseudo_rounds", phases=RoundPhases(warmup=0.5, finetune=0.1))
    phases = Phases.of(settings, timeline)
    assert (phases.warmup_stop, phases.train_stop, phases.total) == (10, 50, 60)


def test_phases_of_so_many_steps_and_those_of_their_shares_are_the_same() -> None:
    phases = Phases.of_steps(3, 8, 10)
    assert Phases.at(Timeline.of_steps(10), *phases.shares) == phases
    assert [phases.name(step) for step in (0, 2, 3, 7, 8)] == ["warmup", "warmup", "train", "train", "finetune"]


def test_phases_of_a_run() -> None:
    settings = method_settings("cross_pseudo", phases=PhaseSettings(warmup=0.3, finetune=0.2))
    phases = Phases.of(settings, Timeline.of_steps(10))
    assert phases == Phases.of_steps(3, 8, 10)
    assert [phases.name(step) for step in range(10)] == ["warmup"] * 3 + ["train"] * 5 + ["finetune"] * 2


def test_the_shares_of_phases_are_of_what_follows_the_pre_training() -> None:
    settings = method_settings("pseudo_rounds", phases=RoundPhases(pretrain=0.5, warmup=0.4, finetune=0.2))
    phases = Phases.of(settings, Timeline.of_steps(100))
    assert (phases.pretrain_stop, phases.warmup_stop, phases.train_stop) == (50, 70, 90)
    assert [phases.name(step) for step in (0, 49, 50, 70, 90)] == [
        "pretrain",
        "pretrain",
        "warmup",
        "train",
        "finetune",
    ]


@pytest.mark.parametrize(
    ("name", "warmup"),
    [
        ("supervised", 0),
        ("pseudo_rounds", 30),
        ("pseudo_label", 50),
        ("mpl", 50),
        ("mean_teacher", 0),
        ("cross_pseudo", 0),
        ("copy_paste", 25),
    ],
)
def test_phases_that_methods_have_by_default(name: str, warmup: int) -> None:
    """One that has none trains in one, as supervised training does."""
    assert Phases.of(method_settings(name), Timeline.of_steps(100)) == Phases.of_steps(warmup, 100, 100)


def test_a_warm_up_that_leaves_the_student_no_step_is_refused() -> None:
    late = method_settings("pseudo_rounds", phases=RoundPhases(warmup=0.9))
    with pytest.raises(ConfigError, match=r"method\.phases\.warmup = 0\.9 takes all of the 3 steps"):
        Phases.of(late, Timeline.of_steps(3))
    nothing = method_settings("pseudo_rounds", phases=RoundPhases(warmup=0.75, finetune=0.25))
    with pytest.raises(ConfigError, match=r"method\.phases: warmup = 0\.75 and finetune = 0\.25 leave no step"):
        Phases.of(nothing, Timeline.of_steps(100))
    assert Phases.of(method_settings("supervised"), Timeline.of_steps(1)).total == 1
