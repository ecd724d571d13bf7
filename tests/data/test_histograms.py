"""Histograms of other scans on labelled patches."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from semiseg.data.histograms import mapped, quantiles, with_other_histogram
from semiseg.io.store import StoredCase
from semiseg.randomness import Draw

RANDOM = np.random.default_rng(0)


def _scan(scale: float, margin: int) -> np.ndarray:
    """Tissue of one distribution, brighter by a factor, with so many slices of darkness around it."""
    tissue = scale * np.random.default_rng(1).gamma(9.0, 1.0, size=(12, 30, 30)) + 2 * scale
    return np.pad(tissue, [(margin, margin), (0, 0), (0, 0)]).astype(np.float32)


def _case(name: str, channel: np.ndarray) -> StoredCase:
    return StoredCase(
        id=name, shape_zyx=(1, 1, 1), spacing_mm=(1, 1, 1), source_shape_zyx=(1, 1, 1), source_spacing_mm=(1, 1, 1),
        hash="0", labelled=True, channels=1, class_voxels={}, class_locations={}, body_locations=(),
        channel_quantiles=(quantiles(channel),),
    )  # fmt: skip


def test_quantiles_do_not_see_a_dark_margin() -> None:
    without, with_margin = quantiles(_scan(1.0, 0)), quantiles(_scan(1.0, 20))
    # Without a margin the darkest tissue is what counts as dark: the lowest quantiles move.
    np.testing.assert_allclose(with_margin[3:], without[3:], rtol=0.05)


def test_a_scan_gets_the_looks_of_another() -> None:
    """At full strength its quantiles are the other's."""
    dim, bright = _scan(1.0, 4), _scan(3.0, 4)
    source, target = (np.array(quantiles(one)) for one in (dim, bright))
    np.testing.assert_allclose(quantiles(mapped(dim, source, target)), target, rtol=0.02, atol=0.02)


@settings(max_examples=50)
@given(values=st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=30))
def test_the_map_keeps_the_order_and_its_own_histogram_changes_nothing(values: list[float]) -> None:
    array = np.sort(np.array(values, dtype=np.float32))
    source, target = np.array([0.0, 1.0, 2.0, 5.0]), np.array([1.0, 1.5, 4.0, 4.5])
    assert (np.diff(mapped(array, source, target)) >= 0).all()
    np.testing.assert_allclose(mapped(array, source, source), array, rtol=1e-6, atol=1e-6)


def test_patches_are_changed_as_often_as_asked_and_by_their_key_alone() -> None:
    own, other = _case("own", _scan(1.0, 2)), _case("other", _scan(2.0, 2))
    patch = _scan(1.0, 0)[None]
    out = [with_other_histogram(patch, own, [other], Draw(0, step, 0), 0.3, [0]) for step in range(200)]
    changed = sum(not np.array_equal(one, patch) for one in out)
    assert 35 < changed < 85  # 60 of 200 expected; four deviations of the binomial are 26
    again = with_other_histogram(patch, own, [other], Draw(0, 7, 0), 1.0, [0])
    np.testing.assert_array_equal(again, with_other_histogram(patch, own, [other], Draw(0, 7, 0), 1.0, [0]))
    assert with_other_histogram(patch, own, [other], Draw(0, 7, 0), 0.0, [0]) is patch
    np.testing.assert_array_equal(with_other_histogram(patch, own, [other], Draw(0, 7, 0), 1.0, []), patch)
