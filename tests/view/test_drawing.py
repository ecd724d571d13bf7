"""What is black and white: of each channel by itself."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from view_server import Served, channels, save_scan, serving

from semiseg.io.grid import Grid
from semiseg.io.scans import RawChannel
from semiseg.view.pictures import Drawn, draw_slice
from semiseg.view.volumes import Volume

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
        for layer, scan in zip(served.json("/api/cases/one")["layers"], scans.values(), strict=False):
            names, lows, highs = zip(*(one.values() for one in layer["windows"]), strict=True)
            assert names == ("as it opens", "bright", "everything")
            assert lows == pytest.approx((*np.percentile(scan, (1, 99)), scan.min()), rel=1e-5)
            assert highs == pytest.approx((np.percentile(scan, 99.5), scan.max(), scan.max()), rel=1e-5)
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


def test_strips_are_shown_in_each_channel_and_window(tmp_path: Path) -> None:
    scans = {"CT": (2000 * RAMP - 1000).astype(np.int16), "PET": 9 * RAMP**2}
    with serving(channels(tmp_path / "data", **scans), decisions=tmp_path / "decisions.jsonl") as served:
        looks = served.json("/api/info")["looks"]
        assert looks[:4] == ["CT, soft tissue", "CT, liver", "CT, mediastinum", "CT, lung"]
        assert looks[-3:] == ["PET, as it opens", "PET, bright", "PET, everything"]
        strips = [served.get("/api/cases/one/strip.png", look=look).content for look in range(len(looks))]
        assert len(set(strips)) == len(looks)
        assert served.get("/api/cases/one/strip.png").content == strips[0]


def test_a_strip_does_not_go_between_two_organs(tmp_path: Path) -> None:
    """The middle of two lungs lies in neither."""
    shape = (8, 16, 40)
    label = np.zeros(shape, dtype=np.uint8)
    label[2:6, 4:12, 4:12], label[2:6, 4:12, 28:36] = 1, 2
    folder = channels(tmp_path / "data", T2=np.ones(shape, dtype=np.int16))
    described = json.loads((folder / "dataset.json").read_text())
    described["labels"] = {"background": 0, "right lung": 1, "left lung": 2}
    (folder / "dataset.json").write_text(json.dumps(described))
    save_scan(folder / "labelsTr" / "one.nii.gz", label, np.eye(4))
    with serving(folder, decisions=tmp_path / "decisions.jsonl") as served:
        strip = np.asarray(Image.open(io.BytesIO(served.get("/api/cases/one/strip.png", style="fill").content)))
        sagittal = strip[:, strip.shape[1] // 2 : 3 * strip.shape[1] // 4]
        assert np.ptp(sagittal.astype(int), axis=-1).max() > 10  # a colour, not grey alone


def test_a_reference_beside_another_label_is_a_line_of_its_own() -> None:
    label = np.zeros((4, 40, 40), dtype=np.uint8)
    label[:, 10:30, 10:30] = 1
    grid = Grid((4, 40, 40), (1.0, 1.0, 1.0), np.eye(4), (1.0, 1.0, 1.0))
    one = Drawn(volume=Volume(RawChannel(label), grid), colours={1: (200, 0, 0)})
    thin, wide = (
        draw_slice(None, [drawn], "axial", 0, (0, 1), grid=grid, fit=(320, 320))[..., 0]
        for drawn in (one, replace(one, wide=True))
    )
    assert (thin.max(), wide.max()) == (200, 100)
    assert (wide > 0).sum() > 2 * (thin > 0).sum()
