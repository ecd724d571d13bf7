"""Minutes become steps: against a clock that is made up."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semiseg.methods.timeline import Stretch, Timeline
from semiseg.training.pace import CHECKPOINTS, FIRST_STEPS, LAST_SHARE, LONGEST_STRETCH_SECONDS, Pace
from semiseg.training.settings import TrainSettings
from semiseg.training.settled import Settled, read_settled, rows, write_settled

MINUTES = 10.0
TOTAL = 60 * MINUTES
BY_MINUTES = TrainSettings(minutes=MINUTES)
Cost = Callable[[int], float]


class Run:
    """Follows a pace as the loop does. step, seconds: of the last checkpoint. stops: where it looked."""

    def __init__(self, folder: Path, train: TrainSettings = BY_MINUTES, *, step: int = 0, seconds: float = 0.0) -> None:
        self.tried = 0
        self.pace = Pace(folder, train, step=step, seconds=seconds, fastest_threads=self._try)
        self.step, self.seconds, self.stops = step, seconds, list[int]()

    def _try(self) -> int:
        self.tried += 1
        return 3

    def stretch(self, cost: Cost, labelling: Cost = lambda step: 0.0) -> None:
        """To the next look. cost, labelling: seconds of a step, and of what is done before it."""
        stop = self.pace.stop_after(self.step)
        assert self.step < stop <= self.pace.timeline.total
        pausing = sum(map(labelling, range(self.step, stop)))
        self.seconds += pausing + sum(map(cost, range(self.step, stop)))
        self.step = stop
        self.stops.append(stop)
        self.pace.look(stop, self.seconds, pausing)

    def to_the_end(self, cost: Cost, labelling: Cost = lambda step: 0.0) -> Run:
        while self.step < self.pace.timeline.total:
            self.stretch(cost, labelling)
        self.pace.finish()
        return self


def constant(seconds: float) -> Cost:
    return lambda step: seconds


@pytest.mark.parametrize("each", [0.01, 0.3, 2.0, 40.0])
def test_the_minutes_are_kept_whatever_a_step_takes(tmp_path: Path, each: float) -> None:
    run = Run(tmp_path).to_the_end(constant(each))
    assert run.step == pytest.approx(TOTAL / each, abs=1)
    assert abs(run.seconds - TOTAL) <= each
    assert len(run.stops) <= CHECKPOINTS + 1
    assert run.stops[0] == FIRST_STEPS


def test_steps_that_take_twice_as_long_are_half_as_many(tmp_path: Path) -> None:
    fast, slow = (Run(tmp_path / str(each)) for each in (1, 2))
    for folder in ("1", "2"):
        (tmp_path / folder).mkdir()
    assert fast.to_the_end(constant(0.1)).step == 2 * slow.to_the_end(constant(0.2)).step


@pytest.mark.parametrize("factor", [0.25, 1.9])
def test_the_minutes_are_kept_where_the_pace_changes(tmp_path: Path, factor: float) -> None:
    """As where patches of unlabelled scans come in from the half on."""

    def cost(step: int) -> float:
        return 0.5 if step < 600 else 0.5 * factor

    run = Run(tmp_path).to_the_end(cost)
    assert run.step == pytest.approx(600 + 300 / (0.5 * factor), rel=0.02)
    # It is seen within a fortieth of the run, in which it makes less of a difference.
    assert run.seconds == pytest.approx(TOTAL, rel=0.01)


def test_labelling_is_in_the_minutes_and_not_in_the_pace(tmp_path: Path) -> None:
    def labelling(step: int) -> float:
        return 100.0 if step == 500 else 0.0

    run = Run(tmp_path).to_the_end(constant(0.5), labelling)
    assert run.step == pytest.approx((TOTAL - 100) / 0.5, abs=2)
    assert run.seconds == pytest.approx(TOTAL, abs=1)
    each = [stretch.each for stretch in run.pace.timeline.stretches[1:]]
    assert each == pytest.approx([0.5 / TOTAL] * len(each), rel=1e-9)
    assert not run.tried


@settings(max_examples=20)
@given(changes=st.lists(st.tuples(st.integers(5, 600), st.floats(0.2, 5.0)), max_size=4), each=st.floats(1.0, 4.0))
def test_an_overrun_is_bounded_however_the_pace_changes(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, float]], each: float
) -> None:
    """By one stretch and by what it has to settle in, at the worst pace for the best."""
    factors = [1.0, *(factor for _, factor in changes)]

    def cost(step: int) -> float:
        return each * next((factor for start, factor in sorted(changes, reverse=True) if step >= start), 1.0)

    run = Run(tmp_path_factory.mktemp("run")).to_the_end(cost)
    worst = max(factors) / min(factors)
    steps = 2 * each * max(factors)  # of each part at most one more than fits
    assert run.seconds <= TOTAL * (1 + worst * (1.5 / CHECKPOINTS + LAST_SHARE)) + steps
    assert run.seconds >= TOTAL * (1 - 1.5 / CHECKPOINTS - LAST_SHARE) - steps
    shares = [run.pace.timeline.share(step) for step in range(run.step + 1)]
    assert shares[-1] == pytest.approx(1)
    assert shares[-2] < 1, "the last step is one of the run"


@pytest.mark.parametrize("minutes", [10.0, 60.0, 8 * 60.0])
def test_a_run_whose_minutes_are_over_still_settles_in(tmp_path: Path, minutes: float) -> None:
    """Labelling that took all that was left: the learning rate comes down in another thirtieth, and not at once."""
    total = 60 * minutes
    half = round(total / 2)

    def labelling(step: int) -> float:
        return total if step == half else 0.0

    run = Run(tmp_path, TrainSettings(minutes=minutes)).to_the_end(constant(1.0), labelling)
    stretch = min(total / CHECKPOINTS, LONGEST_STRETCH_SECONDS)
    settling = run.step - next(stop for stop in run.stops if stop > half)
    assert settling == pytest.approx(LAST_SHARE * total, abs=2)
    assert run.seconds <= 1.5 * total + stretch + LAST_SHARE * total + 2
    # From a thirtieth before the end on, down to nothing, step by step.
    last = [run.pace.timeline.share(step) for step in range(run.step - settling, run.step + 1)]
    assert last == pytest.approx([1 - LAST_SHARE + LAST_SHARE * n / settling for n in range(settling + 1)], abs=2e-3)


def test_a_long_run_looks_every_five_minutes(tmp_path: Path) -> None:
    run = Run(tmp_path, TrainSettings(minutes=6 * 60.0)).to_the_end(constant(2.0))
    gaps = [2.0 * (b - a) for a, b in zip(run.stops[1:], run.stops[2:], strict=False)]
    assert max(gaps) <= 1.5 * LONGEST_STRETCH_SECONDS
    assert min(gaps) >= 0.5 * LONGEST_STRETCH_SECONDS


# Known stretches.


def test_a_finished_run_is_followed_step_by_step_at_any_pace(tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    first.mkdir()
    run = Run(first).to_the_end(lambda step: 0.5 + 0.001 * step, lambda step: 30.0 if step == 300 else 0.0)
    settled = read_settled(first)
    assert settled.finished
    assert settled.laid_down() == run.pace.timeline
    shutil.copytree(first, again)
    slow = Run(again).to_the_end(constant(50.0))
    assert slow.stops == run.stops
    assert slow.pace.timeline == run.pace.timeline
    assert not slow.tried
    assert (again / "settled.toml").read_text() == (first / "settled.toml").read_text()


@pytest.mark.parametrize("looks", [1, 2, 10])
def test_what_was_written_before_a_kill_is_followed_after_it(tmp_path: Path, looks: int) -> None:
    """`settled.toml` has the stretch, the checkpoint of its first step was not written any more."""
    run = Run(tmp_path)
    for _ in range(looks - 1):
        run.stretch(constant(0.5))
    checkpoint = (run.step, run.seconds)
    run.stretch(constant(0.5))
    written = read_settled(tmp_path)
    resumed = Run(tmp_path, step=checkpoint[0], seconds=checkpoint[1])
    assert resumed.pace.timeline.share(resumed.step) < written.timeline[-1][1]
    resumed.stretch(constant(0.9))  # a busier machine
    assert resumed.step == run.step
    assert resumed.pace.timeline == run.pace.timeline
    assert read_settled(tmp_path) == written
    resumed.to_the_end(constant(0.9))
    assert resumed.seconds == pytest.approx(TOTAL, rel=0.01)


def test_a_run_that_was_killed_anywhere_and_one_that_was_not_are_of_one_timeline(tmp_path: Path) -> None:
    """What is finished, made once more, and killed at each of its checkpoints in turn."""
    whole = Run(tmp_path).to_the_end(constant(1.5))
    stops, timeline, step, seconds = list[int](), whole.pace.timeline, 0, 0.0
    while step < timeline.total:
        part = Run(tmp_path, step=step, seconds=seconds)
        part.stretch(constant(3.0))
        step, seconds = part.step, part.seconds
        stops.append(step)
        assert [part.pace.timeline.share(n) for n in range(step)] == [timeline.share(n) for n in range(step)]
    assert stops == whole.stops


def test_other_keys_of_the_file_stay(tmp_path: Path) -> None:
    write_settled(tmp_path, Settled(threads=2, precision="float32"))
    Run(tmp_path).to_the_end(constant(5.0))
    settled = read_settled(tmp_path)
    assert (settled.threads, settled.precision, settled.finished) == (2, "float32", True)


# Given steps.


def test_given_steps_are_one_stretch(tmp_path: Path) -> None:
    run = Run(tmp_path, TrainSettings(steps=25, checkpoint_every=10)).to_the_end(constant(1.0))
    assert run.stops == [4, 10, 20, 25]  # a first one early, to know the pace
    assert run.pace.timeline == Timeline.of_steps(25)
    assert not run.pace.by_minutes
    assert read_settled(tmp_path) == Settled(timeline=rows(Timeline.of_steps(25)), finished=True)
    resumed = Run(tmp_path, TrainSettings(steps=25, checkpoint_every=10), step=17)
    assert resumed.to_the_end(constant(1.0)).stops == [20, 25]


def test_long_steps_are_saved_each_minute_where_a_row_of_metrics_is_due(tmp_path: Path) -> None:
    stops = Run(tmp_path, TrainSettings(steps=1000, log_every=10)).to_the_end(constant(2.5)).stops
    assert all(stop % 10 == 0 for stop in stops)
    assert stops[:5] == [10, 40, 70, 100, 130]  # 24 steps take a minute


# Threads.


def test_another_number_of_threads_is_tried_where_the_pace_collapses(tmp_path: Path) -> None:
    run = Run(tmp_path).to_the_end(lambda step: 0.5 if step < 400 else 1.5)
    assert run.tried == 1
    (tried,) = [stretch for stretch in run.pace.timeline.stretches if stretch.threads]
    assert tried.threads == 3
    assert tried.step > 400
    assert run.pace.threads == 3


def test_a_run_goes_on_with_the_threads_that_it_had_come_to(tmp_path: Path) -> None:
    """Stretches after the one that changed them say nothing of them; those before had another number."""
    stretches = (Stretch(0, 0.0, 0.01), Stretch(10, 0.1, 0.02, threads=1), Stretch(20, 0.3, 0.02))
    write_settled(tmp_path, Settled(timeline=rows(Timeline(stretches))))
    found = {step: Pace(tmp_path, BY_MINUTES, step=step).threads for step in (0, 9, 10, 15, 20, 25)}
    assert found == {0: 0, 9: 0, 10: 1, 15: 1, 20: 1, 25: 1}
    assert Pace(tmp_path, replace(BY_MINUTES, steps=100), step=25).threads == 0


def test_a_run_that_is_trained_on_takes_the_minutes_that_are_added(tmp_path: Path) -> None:
    first = Run(tmp_path).to_the_end(constant(0.5))
    longer = replace(BY_MINUTES, minutes=3 * MINUTES)
    second = Run(tmp_path, longer, step=first.step, seconds=first.seconds)
    assert second.pace.timeline.share(first.step) == pytest.approx(1 / 3, abs=0.01)
    second.to_the_end(constant(1.0))
    assert second.seconds == pytest.approx(3 * TOTAL, abs=2.0)
    settled = read_settled(tmp_path)
    assert (settled.minutes, settled.finished) == (3 * MINUTES, True)
    again = Run(tmp_path, longer, step=second.step, seconds=second.seconds)
    assert again.pace.timeline == second.pace.timeline, "it is not stretched a second time"
