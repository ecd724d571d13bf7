"""A scan as the network sees it: the same rows, whoever asks for them and along whatever axis."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from semiseg.data.plan import ChannelNormalisation, NetworkPlan, Plan
from semiseg.data.scan_rows import ScanRows
from semiseg.io.dataset import LabelScheme
from semiseg.io.scans import RawChannel
from semiseg.ops.normalise import dark_limit

NETWORK = NetworkPlan(features=(4, 8), kernels=((3, 3, 3),) * 2, strides=((1, 1, 1), (2, 2, 2)))
CT = ChannelNormalisation(scheme="ct", low=-150, high=250, mean=40, deviation=80)
PLAN = Plan(
    dataset="made up",
    channels=("CT", "MR"),
    labels=LabelScheme(names={0: "background", 1: "organ"}),
    spacing_mm=(2.0, 1.0, 1.0),
    anisotropic_axis=None,
    patch=(8, 8, 8),
    batch=2,
    normalisation=(CT, ChannelNormalisation(scheme="zscore")),
    teacher=NETWORK,
    student=NETWORK,
)
SHAPE = (37, 70, 41)


def channels() -> list[RawChannel]:
    """As a scanner stores them: 16-bit integers, one with a slope that turns the order of values round."""
    rng = np.random.default_rng(0)
    return [
        RawChannel(rng.integers(-1000, 1000, SHAPE, dtype=np.int16)),
        RawChannel(rng.integers(0, 3000, SHAPE, dtype=np.uint16), slope=-0.5, inter=700.0),
    ]


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize("spacing", [(1.5, 1.3, 0.7), (4.0, 1.0, 1.0), (2.0, 1.0, 1.0), (0.9, 0.9, 6.0)])
def test_rows_along_any_axis_are_the_prepared_scan(
    axes: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    upright = ScanRows([RawChannel(channel.values()) for channel in channels()], spacing, PLAN)
    scan = ScanRows(channels(), spacing, PLAN, axes)
    turned = upright.rows(0, upright.shape[0]).transpose(0, *(axis + 1 for axis in axes))
    assert scan.shape == turned.shape[1:]
    # The axes in another order: float32 rounding of three products of values up to 5.
    np.testing.assert_allclose(scan.rows(0, scan.shape[0]), turned, atol=4e-6)


def test_rows_do_not_depend_on_how_they_are_asked_for() -> None:
    spacing = (1.5, 1.3, 0.7)
    whole = ScanRows(channels(), spacing, PLAN, (1, 0, 2))
    expected = whole.rows(0, whole.shape[0])
    assert whole.shape[0] > 64  # three blocks
    for cuts in ([0, 5, 31, 32, 40, 91], [0, 33, 91], [60, 91], [64, 65]):
        scan = ScanRows(channels(), spacing, PLAN, (1, 0, 2))
        for start, stop in pairwise(cuts):
            assert np.array_equal(scan.rows(start, stop), expected[:, start:stop])


def test_what_is_resampled_stays_in_the_range_of_its_source() -> None:
    """nnU-Net's clipping, told from the stored integers alone, and also where the slope is negative."""
    raw = channels()
    scan = ScanRows(raw, (1.0, 2.0, 2.0), PLAN)
    rows = scan.rows(0, scan.shape[0])
    assert rows[0].min() == np.float32((-150 - 40) / 80)
    assert rows[0].max() == np.float32((250 - 40) / 80)
    values = raw[1].values()
    # The mean and deviation, in float32, of what is not dark.
    counted = values[values > dark_limit(values)]
    assert rows[1].min() == pytest.approx((values.min() - counted.mean()) / counted.std(), rel=1e-5)
    assert rows[1].max() == pytest.approx((values.max() - counted.mean()) / counted.std(), rel=1e-5)


def test_only_the_rows_that_are_needed_are_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 slices thin, the scan is read in blocks with a halo, never whole."""
    read: list[tuple[int, int]] = []
    values = RawChannel.values

    def watched(self: RawChannel, start: int = 0, stop: int | None = None) -> np.ndarray:
        read.append((start, len(self.stored) if stop is None else stop))
        return values(self, start, stop)

    monkeypatch.setattr(RawChannel, "values", watched)
    channel = RawChannel(np.zeros((512, 6, 6), np.int16))
    plan = replace(PLAN, channels=("CT",), normalisation=(CT,), spacing_mm=(1.5, 1.0, 1.0))
    scan = ScanRows([channel], (1.0, 1.0, 1.0), plan)
    read.clear()  # the limits of the values were two numbers
    scan.rows(0, 32)
    scan.rows(32, 64)
    assert len(read) == 2
    # 32 rows of 1.5 mm are 48 mm, and the halo is as long as weights of 0.27 a voxel are over 1e-9.
    assert max(stop - start for start, stop in read) < 48 + 2 * 20
