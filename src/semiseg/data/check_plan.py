"""What of a checked dataset preparation would refuse: found by making the plan, without images."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import psutil

from semiseg.data.check_case import CaseFacts, Remark
from semiseg.data.fingerprint import CaseFingerprint, ChannelIntensity, Fingerprint
from semiseg.data.planner import make_plan
from semiseg.errors import ConfigError
from semiseg.io.dataset import Dataset
from semiseg.ops.resample import target_shape

_NO_INTENSITY = ChannelIntensity(
    minimum=0.0, maximum=0.0, mean=0.0, median=0.0, deviation=1.0, percentile_00_5=0.0, percentile_99_5=0.0
)
_FLOAT32_BYTES = 4


def plan_remarks(facts: Sequence[CaseFacts], dataset: Dataset) -> list[Remark]:
    """Errors for scans too small for any network, and for those that memory cannot hold at the set's spacing."""
    cases = tuple(
        CaseFingerprint(id=f.id, shape_zyx=f.shape_zyx, spacing_mm=f.spacing_mm, labelled=f.role == "labelled")
        for f in facts
        if f.shape_zyx is not None and f.spacing_mm is not None and f.role != "test"
    )
    if not cases:
        return []
    fingerprint = Fingerprint(
        dataset=dataset.name,
        channels=dataset.channels,
        cases=cases,
        intensities=(_NO_INTENSITY,) * len(dataset.channels),
        class_voxels={},
    )
    try:
        plan = make_plan(fingerprint, dataset.labels)
    except ConfigError as error:
        return [("error", dataset.root, str(error))]
    remarks: list[Remark] = []
    files = {case.id: case.images[0] for case in dataset.cases}
    memory = psutil.virtual_memory().total
    for case in cases:
        z, y, x = target_shape(case.shape_zyx, case.spacing_mm, plan.spacing_mm)
        size = prod((z, y, x)) * _FLOAT32_BYTES * len(dataset.channels)
        if size > memory:
            own, target = (" x ".join(f"{mm:.4g}" for mm in spacing) for spacing in (case.spacing_mm, plan.spacing_mm))
            text = (
                f"voxels of {own} mm, which become {z} x {y} x {x} voxels of the set's {target} mm: {size / 1e9:,.0f} "
                f"GB, and this machine has {memory / 1e9:.0f}. Correct the spacing in the header."
            )
            remarks.append(("error", files[case.id], text))
    return remarks
