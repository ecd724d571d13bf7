"""Where the teacher sees which class in unlabelled scans, so that patches find rare organs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semiseg.data.plan import Plan
from semiseg.io.store import open_case
from semiseg.prediction.engines.base import Engine
from semiseg.randomness import Draw
from semiseg.training.scan_labels import places_of_classes, scan_labels, scan_window
from semiseg.world import gathered, own_part


def predicted_locations(
    cases: Sequence[Path], turn: int, count: int, engine: Engine, plan: Plan, seed: int
) -> dict[str, Any]:
    """Up to 64 voxels `(z, y, x)` of every class that the teacher predicts, for the `count` cases whose turn it is.

    Keys are the case's id, then the class. turn: number of the refresh, from 0; cases come round in order.
    """
    found: dict[str, Any] = {}
    turns = range(turn * count, turn * count + min(count, len(cases)))
    for index in own_part(turns):
        case = open_case(cases[index % len(cases)])
        labels = scan_labels(case, engine, scan_window(case, plan))
        found[case.meta.id] = places_of_classes(labels, plan, Draw(seed=seed, step=turn, sample=index))
    found = gathered(found)
    return {name: found[name] for name in (cases[index % len(cases)].name for index in turns)}
