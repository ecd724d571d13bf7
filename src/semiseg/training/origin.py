"""What the steps of a run depend on: kept with its checkpoints, and held against the run before it goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from semiseg.augment.settings import AugmentSettings
from semiseg.data.plan import Plan
from semiseg.data.roles import RunCase
from semiseg.data.sampling import SamplingSettings
from semiseg.methods.settings import MethodSettings
from semiseg.tables import flattened

OTHER_CASES = "cases.jsonl: other cases, roles or contents than then"
Origin = dict[str, Any]
"""By `section.key`, as JSON has it."""


def origin_of(
    plan: Plan,
    cases: Sequence[RunCase],
    sampling: SamplingSettings,
    augment: AugmentSettings,
    method: MethodSettings,
    seed: int,
    weights: str | None = None,
) -> Origin:
    """All that a step's result depends on, besides the number of steps and the machine. weights: hash of the model that
    training starts from."""
    learnt_from = [(case.id, case.role, case.hash) for case in cases if case.role != "test"]
    return {
        **_flat(plan=plan, sampling=sampling, augment=augment, method=method),
        "train.seed": seed,
        **({"train.weights": weights} if weights else {}),
        "cases": hashlib.sha256(json.dumps(learnt_from).encode()).hexdigest(),
    }


def changed(before: Origin, now: Origin) -> list[str]:
    """A line for each difference."""
    lines = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if old != new:
            lines.append(OTHER_CASES if key == "cases" else f"{key} = {old!r} then, {new!r} now")
    return lines


def _flat(**sections: Any) -> Origin:
    tables: dict[str, dict[str, Any]] = json.loads(json.dumps({name: asdict(one) for name, one in sections.items()}))
    return flattened(tables)
