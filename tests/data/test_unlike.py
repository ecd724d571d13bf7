"""Scans that look unlike the others."""

from __future__ import annotations

import numpy as np

from semiseg.data.unlike import unlike_others
from semiseg.io.store import StoredCase


def _case(name: str, values: np.ndarray) -> StoredCase:
    return StoredCase(
        id=name, shape_zyx=(1, 1, 1), spacing_mm=(1, 1, 1), source_shape_zyx=(1, 1, 1), source_spacing_mm=(1, 1, 1),
        hash="0", labelled=False, channels=1, class_voxels={}, class_locations={}, body_locations=(),
        channel_quantiles=(tuple(map(float, values)),),
    )  # fmt: skip


def test_the_scan_that_is_far_off_is_named_and_no_other() -> None:
    random = np.random.default_rng(0)
    cases = [_case(f"c{i:02}", np.arange(10) + random.normal(0, 0.1, 10)) for i in range(30)]
    assert unlike_others(cases, [0]) == []
    cases.insert(7, _case("inverted", np.arange(10)[::-1] + 5.0))
    assert unlike_others(cases, [0]) == ["inverted"]
    assert unlike_others(cases, []) == []
    assert unlike_others(cases[5:9], [0]) == []  # too few to say
