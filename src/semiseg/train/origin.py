"""What the steps of a run depend on: kept with its checkpoints, and held against the run before it goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from semiseg.augment.settings import AugmentSettings
from semiseg.data.plan import Plan
from semiseg.data.roles import RunCase
from semiseg.data.sampling import SamplingSettings
from semiseg.methods.settings import MethodSettings
from semiseg.newer_settings import AS_BEFORE, as_they_come_to

Origin = dict[str, Any]
"""By `section.key`, as JSON has it."""


def origin_of(
    plan: Plan,
    cases: Sequence[RunCase],
    sampling: SamplingSettings,
    augment: AugmentSettings,
    method: MethodSettings,
    seed: int,
) -> Origin:
    """All that a step's result depends on, besides the number of steps and the machine."""
    learnt_from = [(case.id, case.role, case.hash) for case in cases if case.role != "test"]
    return {
        **_flat(plan=plan, sampling=sampling, augment=augment, method=method),
        "train.seed": seed,
        "cases": hashlib.sha256(json.dumps(learnt_from).encode()).hexdigest(),
    }


def changed(before: Origin, now: Origin) -> list[str]:
    """A line for each difference. A setting that is newer than `before` is one where it is not as if it were not
    there."""
    return list(_changed(before, now))


def _changed(before: Origin, now: Origin) -> Iterator[str]:
    without = _flat(sampling=SamplingSettings(), augment=AugmentSettings(), method=MethodSettings()) | AS_BEFORE
    for key in sorted(before.keys() | now.keys()):
        if key not in now:
            yield f"{key} = {before[key]!r} then; this version of semiseg has no such setting"
        elif key not in before and key not in without:
            yield f"{key} = {now[key]!r} now; the version of semiseg that began it did not have it"
        elif key not in before and now[key] != without[key]:
            yield f"{key} = {now[key]!r} now; it is newer than the run, which was made as with {without[key]!r}"
        elif key == "cases" and before[key] != now[key]:
            yield "cases.jsonl: other cases, roles or contents than then"
        elif key in before and before[key] != now[key]:
            yield f"{key} = {before[key]!r} then, {now[key]!r} now"


def _flat(**sections: Any) -> Origin:
    tables: dict[str, dict[str, Any]] = json.loads(json.dumps({name: asdict(one) for name, one in sections.items()}))
    flat = {f"{name}.{key}": value for name, table in tables.items() for key, value in table.items()}
    return as_they_come_to(flat)
