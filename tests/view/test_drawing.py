"""What is black and white: of each channel by itself."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from view_server import Served, channels, serving

RAMP = np.linspace(0, 1, 16 * 18 * 20).reshape(16, 18, 20)


def pixels(served: Served, **query: object) -> np.ndarray:  # type: ignore[type-arg]
    answer = served.get("/api/cases/one/slice.png", **query)
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def opens(served: Served) -> dict[str, tuple[list[float], bool]]:
    """The window that each channel opens in, and whether it is CT."""
    layers = served.json("/api/cases/one")["layers"]
    return {one["title"]: (one["window"], one["is_ct"]) for one in layers if one["kind"] == "image"}


def test_each_channel_has_a_window_of_its_own(tmp_path: Path) -> None:
    scans = {"T2": (730 * RAMP).astype(np.int16), "ADC": (2600 * RAMP).astype(np.int16), "small": 0.003 * RAMP}
    with serving(channels(tmp_path / "data", **scans), decisions=tmp_path / "decisions.jsonl") as served:
        found = opens(served)
        for name, scan in scans.items():
            assert found[name] == (pytest.approx(np.percentile(scan, (1, 99.5)), rel=1e-5), False)
        first, *others = (pixels(served, layers=name).astype(int) for name in ("scan", "scan_1", "scan_2"))
        assert np.ptp(first) > 10  # of a slice
        for other in others:  # the same ramp, as dark as the first
            assert np.abs(other - first).max() <= 1
        assert served.json("/api/info")["windows"] == []


def test_windows_of_ct_are_for_ct_alone(tmp_path: Path) -> None:
    scans = {"CT": (2000 * RAMP - 1000).astype(np.int16), "PET": 9 * RAMP}
    with serving(channels(tmp_path / "data", **scans), decisions=tmp_path / "decisions.jsonl") as served:
        found = opens(served)
        assert found["CT"] == ([-160, 240], True)
        assert found["PET"] == (pytest.approx(np.percentile(scans["PET"], (1, 99.5)), rel=1e-5), False)
        assert {"name": "soft tissue", "low": -160, "high": 240} in served.json("/api/info")["windows"]
