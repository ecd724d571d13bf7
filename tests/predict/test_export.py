"""From logits to labels and probabilities, slab by slab, against scipy on the whole volume."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage, special

from semiseg.predict import export
from semiseg.predict.export import labels_from_logits, probabilities_from_logits
from semiseg.types import Shape

SIZE: Shape = (5, 7, 6)


def logits(classes: int = 4) -> np.ndarray:
    return (3 * np.random.default_rng(0).normal(size=(classes, *SIZE))).astype(np.float32)


def zoomed(array: np.ndarray, shape: Shape, axis: int | None) -> np.ndarray:
    """Order 1 by scipy in float64; order 0 along `axis`, first."""
    out = array.astype(np.float64)
    options = {"mode": "nearest", "grid_mode": True}
    if axis is not None:
        factors = [1.0] * 4
        factors[axis + 1] = shape[axis] / out.shape[axis + 1]
        out = ndimage.zoom(out, factors, order=0, **options)
    factors = [1.0] + [n / m for n, m in zip(shape, out.shape[1:], strict=True)]
    return np.asarray(ndimage.zoom(out, factors, order=1, **options))


SHAPES = [(5, 7, 6), (11, 13, 9), (3, 4, 5), (12, 5, 6)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axis", [None, 0, 2])
def test_labels_and_probabilities_equal_scipy(shape: Shape, axis: int | None) -> None:
    whole = zoomed(logits(), shape, axis)
    probabilities = probabilities_from_logits(logits(), shape, anisotropic_axis=axis)
    # Float32 against float64 of numbers up to 1.
    assert np.allclose(probabilities, special.softmax(whole, axis=0), atol=1e-5)
    labels = labels_from_logits(logits(), shape, anisotropic_axis=axis)
    top = np.sort(whole, axis=0)
    clear = top[-1] - top[-2] > 1e-4  # ties may fall either way
    assert clear.mean() > 0.99
    assert np.array_equal(labels[clear], whole.argmax(axis=0)[clear])


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_the_result_does_not_depend_on_the_slab(axis: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (11, 13, 9)
    labels = labels_from_logits(logits(), shape, anisotropic_axis=axis)
    probabilities = probabilities_from_logits(logits(), shape, anisotropic_axis=axis)
    plane = 4 * 4 * 13 * 9
    for size in (1, plane, 3 * plane + 5, 11 * plane):
        monkeypatch.setattr(export, "SLAB_BYTES", size)
        slabs = list(export._slabs(logits(), shape, axis))
        assert len(slabs) == {1: 11, plane: 11, 3 * plane + 5: 4, 11 * plane: 1}[size]
        assert np.array_equal(labels_from_logits(logits(), shape, anisotropic_axis=axis), labels)
        found = probabilities_from_logits(logits(), shape, anisotropic_axis=axis)
        assert np.array_equal(found, probabilities)


def test_probabilities_sum_to_one_for_any_logits() -> None:
    huge = logits() * np.float32(1e4)
    probabilities = probabilities_from_logits(huge, (9, 9, 9), anisotropic_axis=None)
    assert np.isfinite(probabilities).all()
    # Float32 rounding of four numbers.
    assert np.allclose(probabilities.sum(axis=0), 1, atol=1e-6)


def test_the_logits_stay_as_they_were() -> None:
    given = logits()
    probabilities_from_logits(given, SIZE, anisotropic_axis=None)
    labels_from_logits(given, SIZE, anisotropic_axis=None)
    assert np.array_equal(given, logits())


def test_labels_are_as_small_as_the_classes_allow() -> None:
    assert labels_from_logits(logits(4), SIZE, anisotropic_axis=None).dtype == np.uint8
    many = np.zeros((300, 1, 1, 2), np.float32)
    many[299, 0, 0, 1] = 1
    labels = labels_from_logits(many, (1, 1, 2), anisotropic_axis=None)
    assert labels.dtype == np.uint16
    assert labels.tolist() == [[[0, 299]]]
