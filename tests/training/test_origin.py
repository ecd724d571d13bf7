"""Whether a run may go on is told key by key."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from semiseg.augment.settings import AugmentSettings
from semiseg.data.plan import Plan
from semiseg.data.roles import RunCase
from semiseg.data.sampling import SamplingSettings
from semiseg.methods.settings import PseudoRoundsSettings, RoundPhases
from semiseg.training.origin import Origin, changed, origin_of

METHOD = PseudoRoundsSettings()
CASES = [
    RunCase(id=name, images=(Path(f"{name}.nii.gz"),), label=None, split="train", role=role, hash=name * 8)
    for name, role in (("a", "labelled"), ("b", "unlabelled"), ("c", "test"))
]


@pytest.fixture
def origin(plan: Plan) -> Origin:
    return made(plan)


def made(plan: Plan, cases: list[RunCase] = CASES, **changes: Any) -> Origin:
    sections = {
        "sampling": SamplingSettings(),
        "augment": AugmentSettings(),
        "method": PseudoRoundsSettings(),
        "seed": 0,
    }
    return origin_of(plan, cases, **(sections | changes))


def test_a_card_keeps_it(plan: Plan, origin: Origin) -> None:
    """Tuples and whole numbers as keys are others in JSON."""
    assert changed(json.loads(json.dumps(origin)), made(plan)) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"method": PseudoRoundsSettings(phases=RoundPhases(warmup=0.25))},
            "method.phases.warmup = 0.3 then, 0.25 now",
        ),
        ({"augment": AugmentSettings(mirror_axes=(0,))}, "augment.mirror_axes = None then, [0] now"),
        ({"seed": 3}, "train.seed = 0 then, 3 now"),
        ({"cases": [CASES[0], replace(CASES[1], hash="other"), CASES[2]]}, "cases.jsonl: other cases"),
    ],
)
def test_what_differs_is_named(plan: Plan, origin: Origin, changes: dict[str, Any], line: str) -> None:
    (told,) = changed(origin, made(plan, **changes))
    assert told.startswith(line)


def test_a_changed_plan_is_named_by_its_keys(plan: Plan, origin: Origin) -> None:
    (told,) = changed(origin, made(replace(plan, batch=7)))
    assert told == f"plan.batch = {plan.batch} then, 7 now"


def test_test_cases_are_not_part_of_it(plan: Plan, origin: Origin) -> None:
    assert changed(origin, made(plan, cases=[*CASES[:2], replace(CASES[2], hash="other")])) == []


def test_a_setting_that_another_version_lacks_is_a_difference(origin: Origin) -> None:
    """A run goes on with the version that began it, unless both have the same settings."""
    (told,) = changed(origin | {"method.forgotten": 1}, origin)
    assert told == "method.forgotten = 1 then, None now"
    (told,) = changed({key: value for key, value in origin.items() if key != "method.rounds"}, origin)
    assert told == "method.rounds = None then, 5 now"
