"""A plan that fits the time: what grows with the minutes, what is kept as it was given, and that reasons are said."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semiseg.data.fingerprint import CaseFingerprint, ChannelIntensity, Fingerprint
from semiseg.data.plan import Plan, indivisible
from semiseg.data.planner import (
    PATCH_VOXELS,
    PlanSettings,
    Ranks,
    estimated_gb,
    make_plan,
    median_shape,
    target_spacing,
)
from semiseg.data.sizing import (
    TOO_COARSE,
    Candidate,
    candidate_grids,
    features_to_try,
    organ_voxels,
    proportional_patch,
    timed_plan,
)
from semiseg.errors import ConfigError
from semiseg.io.dataset import LabelScheme
from semiseg.types import Shape, Spacing

CPU = PlanSettings(device="cpu")
LABELS = LabelScheme(names={0: "background", 1: "a", 2: "b"})
COSTS = {8: 4e-7, 16: 1.1e-6, 32: 3.2e-6}
"""Seconds of a voxel in a step, as two cores have them."""
MINUTES = (1.0, 5.0, 60.0, 1440.0)


def fingerprint(shape: Shape = (48, 112, 112), spacing_mm: Spacing = (2.5, 0.8, 0.8)) -> Fingerprint:
    intensity = ChannelIntensity(
        minimum=-900.0, maximum=2000.0, mean=80.0, median=90.0, deviation=130.0,
        percentile_00_5=-900.0, percentile_99_5=300.0,
    )  # fmt: skip
    case = CaseFingerprint(id="a", shape_zyx=shape, spacing_mm=spacing_mm, labelled=True)
    return Fingerprint(
        dataset="made up", channels=("CT",), cases=(case,), intensities=(intensity,), class_voxels={0: 1, 1: 1, 2: 1}
    )


def kept_of(one: Fingerprint, settings: PlanSettings) -> dict[Spacing, dict[str, float]]:
    """Less by a hundredth for each volume of a voxel more."""
    grids = candidate_grids(one, settings)
    return {grid: {"liver": max(0.0, 1.0 - 0.01 * (prod(grid) / prod(grids[0]) - 1))} for grid in grids}


@cache
def planned(minutes: float, settings: PlanSettings = CPU) -> Plan:
    one = fingerprint()
    costs = {base: COSTS[base] for base in features_to_try(settings) if base in COSTS} or {4: 2e-7}
    return timed_plan(one, LABELS, settings, kept_of(one, settings), costs, seconds=60 * minutes)


def steps_said(plan: Plan) -> int:
    found = re.match(r"Time: about ([\d,]+) training steps fit", plan.reasons[0])
    assert found
    return int(found.group(1).replace(",", ""))


class Looked(tuple[CaseFingerprint, ...]):
    """Cases that count how often all of them are looked at."""

    times = 0

    def __iter__(self) -> Iterator[CaseFingerprint]:
        self.times += 1
        return super().__iter__()


def test_cases_are_looked_at_a_few_times_a_grid_not_for_every_candidate() -> None:
    """Of which there are many hundreds: with ten thousand unlabelled scans planning would take long."""
    one = fingerprint()
    cases = Looked(one.cases)
    kept = kept_of(one, CPU)
    plan = timed_plan(replace(one, cases=cases), LABELS, CPU, kept, COSTS, seconds=3600)
    assert plan == timed_plan(one, LABELS, CPU, kept, COSTS, seconds=3600)
    assert cases.times <= 2 * len(kept) + 10


def test_the_usual_grid_comes_first_and_all_others_are_coarser() -> None:
    grids = candidate_grids(fingerprint(), CPU)
    assert grids[0] == target_spacing(fingerprint())
    assert len(set(grids)) == len(grids)
    assert all(mm >= own - 1e-4 for grid in grids for mm, own in zip(grid, grids[0], strict=True))
    # Along the fine axes alone, along all, and along the coarse one alone: organs differ in which they need.
    assert {(2.5, 1.6, 1.6), (5.0, 1.6, 1.6), (5.0, 0.8, 0.8)} <= set(grids)


def test_more_minutes_give_more_steps_or_a_larger_plan() -> None:
    """And never a larger loss: the plan of fewer minutes would do with more."""
    plans = [planned(minutes) for minutes in MINUTES]
    for less, more in pairwise(plans):
        cost = [prod(plan.patch) * plan.batch * COSTS[plan.teacher.features[0]] for plan in (less, more)]
        assert steps_said(more) > steps_said(less) or cost[1] > cost[0]
    volumes = [prod(plan.spacing_mm) for plan in plans]
    assert volumes == sorted(volumes, reverse=True)


def test_with_time_enough_it_is_the_full_plan() -> None:
    """The grid of the scans, all of the features, and the largest patch that the rules allow."""
    full = make_plan(fingerprint(), LABELS, PlanSettings(device="cpu", base_features=32))
    plan = planned(100_000.0)
    assert plan.spacing_mm == pytest.approx(target_spacing(fingerprint()), abs=1e-4)
    assert plan.teacher.features[0] == 32
    assert prod(plan.patch) >= 0.9 * prod(full.patch)


def test_few_minutes_give_a_coarser_grid_and_fewer_features() -> None:
    few, many = planned(1.0), planned(1440.0)
    assert prod(few.spacing_mm) > 2 * prod(many.spacing_mm)
    assert few.teacher.features[0] < many.teacher.features[0]
    assert steps_said(few) > 100


def test_a_scan_is_not_made_coarser_where_its_labels_would_not_survive() -> None:
    one = fingerprint()
    grids = candidate_grids(one, CPU)
    kept = {grid: {"liver": 1.0 if grid == grids[0] else 0.1} for grid in grids}
    plan = timed_plan(one, LABELS, CPU, kept, COSTS, seconds=600)
    assert plan.spacing_mm == grids[0]
    assert plan.reasons[1].endswith("that of the median scan.")


def test_organs_that_a_grid_loses_are_named() -> None:
    one = fingerprint()
    usual, *coarser = candidate_grids(one, CPU)
    kept = {usual: {"liver": 1.0, "nodule": 1.0}} | {grid: {"liver": 1.0, "nodule": 0.65} for grid in coarser}
    told = {
        minutes: " ".join(timed_plan(one, LABELS, CPU, kept, COSTS, seconds=60 * minutes).reasons)
        for minutes in (0.1, 10_000.0)
    }
    assert f"{TOO_COARSE} nodule 0.65: no network does better there." in told[0.1]
    assert f"plan.spacing_mm={[round(mm, 2) for mm in usual]}" in told[0.1]
    assert "More minutes get a finer grid" in told[0.1]
    assert TOO_COARSE not in told[10_000.0]


@pytest.mark.parametrize(
    ("asked", "remedy"),
    [
        ({"spacing_mm": (5.0, 0.8, 3.0)}, "Give a finer one: plan.spacing_mm=[2.5, 0.8, 0.8]."),
        ({"spacing_mm": (2.5, 0.8, 0.8)}, "Give a finer one with plan.spacing_mm."),
        ({"patch": (16, 32, 32)}, "Give a finer one with plan.spacing_mm."),  # on the grid of the scans
        ({}, "Give a finer one with plan.spacing_mm."),
    ],
)
def test_more_minutes_are_advised_only_where_they_get_a_finer_grid(
    asked: dict[str, tuple[float, float, float]], remedy: str
) -> None:
    settings = replace(CPU, **asked)
    grid, *_ = candidate_grids(fingerprint(), settings)
    plan = timed_plan(fingerprint(), LABELS, settings, {grid: {"nodule": 0.65}}, COSTS, seconds=600)
    assert f"{TOO_COARSE} nodule 0.65: no network does better there. {remedy}" in plan.reasons


@pytest.mark.parametrize(
    ("scan", "voxels", "patch"),
    [
        ((35, 51, 35), 22_000, (24, 40, 24)),
        ((30, 60, 120), 27_000, (16, 32, 64)),  # half of each edge, in steps that can be halved
        ((7, 100, 100), 25_000, (7, 56, 56)),  # thin: its slices stay together
        ((20, 200, 200), 30_000, (8, 64, 64)),  # a tenth of its slices would be none
        ((35, 51, 35), 1e9, (32, 48, 32)),  # the scan, and no more
    ],
)
def test_a_patch_has_the_proportions_of_the_scan(scan: Shape, voxels: float, patch: Shape) -> None:
    assert proportional_patch(scan, voxels) == patch


@given(scan=st.tuples(*[st.integers(4, 400)] * 3), voxels=st.floats(8_000, 400_000))
def test_a_proportional_patch_has_as_many_voxels_as_was_asked_for(scan: Shape, voxels: float) -> None:
    """Each edge is rounded to an eighth or nearer, or to 4 voxels and a half."""
    found = proportional_patch(scan, voxels)
    asked = min(voxels, prod(scan))
    assert all(edge <= 1.25 * max(4, n) for edge, n in zip(found, scan, strict=True))
    assert asked / 2 <= prod(found) <= 2 * max(asked, prod(min(8, n) for n in scan))


@settings(max_examples=8)
@given(
    shape=st.tuples(*[st.integers(2, 300)] * 3).filter(lambda shape: sorted(shape)[1] >= 8),
    spacing=st.tuples(*[st.floats(0.3, 6.0)] * 3),
    device=st.sampled_from(["cpu", "cuda"]),
    minutes=st.sampled_from(MINUTES),
)
def test_every_timed_plan_can_be_built(shape: Shape, spacing: Spacing, device: str, minutes: float) -> None:
    """And has no patch beyond the scan but for what halving needs, or what rounding a proportional patch adds: a
    quarter at most, as above."""
    one, told = fingerprint(shape, spacing), PlanSettings(device=device)  # type: ignore[arg-type]
    plan = timed_plan(one, LABELS, told, kept_of(one, told), COSTS, seconds=60 * minutes)
    assert indivisible(plan.patch, plan.teacher) is None
    median = median_shape(one, plan.spacing_mm)
    for axis in range(3):
        unit = prod(stride[axis] for stride in plan.teacher.strides)
        assert plan.patch[axis] < median[axis] + max(unit, 2) or plan.patch[axis] <= 1.25 * median[axis]
    assert prod(plan.patch) <= max(PATCH_VOXELS[told.planned_for], prod(make_plan(one, LABELS, told).patch))


def test_the_reasons_are_said() -> None:
    plan = planned(1.5)
    time, grid, patch, network = plan.reasons
    assert re.match(r"Time: about [\d,]+ training steps fit into 1\.5 minutes, of [\d.e-]+ s each\.", time)
    assert "coarser than the median scan's 2.5 x 0.8 x 0.8 mm" in grid
    assert "keep a Dice of 0." in grid
    assert patch.startswith(f"Patch: {' x '.join(map(str, plan.patch))} voxels, ")
    assert f"; {plan.batch} patches a step." in patch
    assert (
        network == f"Network: {plan.teacher.features[0]} features at the finest of {len(plan.teacher.features)} levels."
    )
    seconds = float(re.findall(r"of ([\d.e-]+) s each", time)[0])
    assert seconds == pytest.approx(COSTS[plan.teacher.features[0]] * prod(plan.patch) * plan.batch, rel=0.05)


@pytest.mark.parametrize("minutes", [1.0])
def test_what_is_given_is_kept(minutes: float) -> None:
    spacing = planned(minutes, PlanSettings(device="cpu", spacing_mm=(2.0, 1.0, 1.0)))
    assert spacing.spacing_mm == (2.0, 1.0, 1.0)
    patch = planned(minutes, PlanSettings(device="cpu", patch=(32, 48, 64)))
    assert patch.patch == (32, 48, 64)
    features = planned(minutes, PlanSettings(device="cpu", base_features=16))
    assert features.teacher.features[0] == 16
    batch = planned(minutes, PlanSettings(device="cuda", batch=3))
    assert batch.batch == 3
    student = planned(minutes, PlanSettings(device="cpu", student_base_features=8))
    assert student.student.features[0] == 8


def test_features_to_try_are_those_of_the_device_or_the_one_that_is_given() -> None:
    assert features_to_try(CPU) == (8, 16, 32)
    assert features_to_try(PlanSettings(device="cuda")) == (8, 16, 32)
    assert features_to_try(PlanSettings(base_features=24)) == (24,)


@pytest.mark.parametrize("minutes", [1.0, 60.0, 1440.0])
def test_it_fits_the_memory(minutes: float) -> None:
    settings = PlanSettings(device="cpu", memory_budget_gb=0.5)
    plan = planned(minutes, settings)
    assert estimated_gb(plan, "cpu") <= 0.5


def test_ranks_make_more_steps_in_the_same_minutes() -> None:
    one = fingerprint()
    told = replace(CPU, batch=4, patch=(32, 32, 32))
    alone, four = (
        timed_plan(one, LABELS, told, kept_of(one, told), {8: 1e-6}, seconds=600.0, ranks=ranks)
        for ranks in (Ranks(), Ranks(4))
    )

    def steps(plan: Plan) -> float:
        return float(plan.reasons[0].split()[2].replace(",", ""))

    assert steps(four) == pytest.approx(4 * steps(alone), rel=0.01)  # both are rounded


def test_memory_that_no_plan_fits_is_named() -> None:
    with pytest.raises(ConfigError, match=r"plan\.memory_budget_gb = 0\.0001"):
        planned(10.0, PlanSettings(device="cpu", memory_budget_gb=1e-4))


def test_small_scans_are_planned_too() -> None:
    """Hippocampi: 36 x 50 x 36 voxels of a millimetre."""
    one = fingerprint((36, 50, 36), (1.0, 1.0, 1.0))
    plan = timed_plan(one, LABELS, CPU, kept_of(one, CPU), COSTS, seconds=3600.0)
    assert plan.spacing_mm == (1.0, 1.0, 1.0)
    assert prod(plan.patch) <= 2 * 36 * 50 * 36


def candidate(
    steps: float = 3000.0, covered: float = 0.3, kept: float = 0.95, base: int = 16, organ: float = 1000.0
) -> Candidate:
    plan = make_plan(fingerprint(), LABELS, PlanSettings(device="cpu", base_features=base))
    z, y, x = plan.patch
    return Candidate(plan, steps, 0.1, (z, y, round(x / covered)), organ, {"liver": kept})


def test_each_term_of_the_loss_has_its_sign() -> None:
    base = candidate().loss
    assert candidate(steps=6000.0).loss < base
    assert candidate(covered=0.6).loss < base < candidate(covered=0.1).loss
    assert candidate(kept=0.99).loss < base
    assert candidate(base=32).loss < base < candidate(base=8).loss
    assert candidate(organ=4000.0).loss == base < candidate(organ=40_000.0).loss
    # Where little is seen, steps are worth less.
    lost = [candidate(600.0, share).loss - candidate(6e6, share).loss for share in (0.3, 0.1)]
    assert lost[1] == pytest.approx((120 / 600) ** 2 * 2.5 + 12 / 600 * 2.5**0.5, rel=1e-3)
    assert lost[0] < lost[1] / 2
    # What a patch sees beyond a quarter of the scan is worth less than up to it.
    assert base - candidate(covered=0.6).loss < candidate(covered=0.1).loss - candidate(covered=0.2).loss
    assert candidate(steps=1e9, covered=1.0, kept=1.0, base=32).loss == pytest.approx(0.0, abs=1e-5)


def test_networks_of_few_levels_see_little_of_a_patch() -> None:
    """Of 96 voxels a network of three levels decides by 31, one of five by all."""
    plan = make_plan(fingerprint(), LABELS, PlanSettings(device="cpu", patch=(96, 96, 96), base_features=16))
    deep = Candidate(plan, 3000.0, 0.1, (96, 96, 192), 1000.0, {"liver": 0.95})
    assert len(plan.student.features) == 5
    assert deep.seen == deep.covered == 0.5

    shallow_network = replace(
        plan.student,
        features=plan.student.features[:3],
        kernels=plan.student.kernels[:3],
        strides=plan.student.strides[:3],
    )
    shallow = replace(deep, plan=replace(plan, student=shallow_network))
    assert shallow_network.reach == (41, 41, 41)
    assert shallow.seen == pytest.approx((31 / 96) ** 3 / 2)
    assert shallow.loss > deep.loss


def test_organs_are_counted_on_the_grid() -> None:
    """Two labelled scans of 1 x 2 x 2 mm with 800 and 200 voxels of two organs in both together."""
    cases = tuple(
        CaseFingerprint(id=str(i), shape_zyx=(9, 9, 9), spacing_mm=(1.0, 2.0, 2.0), labelled=i < 2) for i in range(3)
    )
    one = replace(fingerprint(), cases=cases, class_voxels={0: 10**6, 1: 800, 2: 200, 3: 0})
    assert organ_voxels(one, (1.0, 2.0, 2.0)) == pytest.approx((400 * 100) ** 0.5)
    assert organ_voxels(one, (2.0, 4.0, 4.0)) == pytest.approx((400 * 100) ** 0.5 / 8)
    assert organ_voxels(replace(one, class_voxels={}), (1.0, 1.0, 1.0)) == 1.0
