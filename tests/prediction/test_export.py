"""From logits to labels and probabilities, slab by slab, against scipy on the whole volume."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, special

from semiseg.ops.resample import resample_image
from semiseg.prediction.export import LabelExport, ProbabilityExport
from semiseg.types import Shape

SIZE: Shape = (5, 7, 6)


def logits(classes: int = 4) -> np.ndarray:
    return (3 * np.random.default_rng(0).normal(size=(classes, *SIZE))).astype(np.float32)


def labels_from_logits(logits: np.ndarray, shape: Shape, *, anisotropic_axis: int | None) -> np.ndarray:
    export = LabelExport(logits.shape[1:], shape, len(logits), anisotropic_axis=anisotropic_axis)
    export.add(logits)
    return export.labels


def probabilities_from_logits(logits: np.ndarray, shape: Shape, *, anisotropic_axis: int | None) -> np.ndarray:
    export = ProbabilityExport(logits.shape[1:], shape, len(logits), anisotropic_axis=anisotropic_axis)
    export.add(logits)
    return export.probabilities


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


def blobs() -> np.ndarray:
    """Large areas of one label, so that the short way through them is taken."""
    z, y, x = np.indices(SIZE)
    labels = (z > 1) + 2 * ((y > 3) & (x > 2))
    return np.eye(4, dtype=np.float32)[labels].transpose(3, 0, 1, 2)


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


@pytest.mark.parametrize("kind", ["noise", "blobs"])
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 14, 2)])
def test_rows_that_come_piece_by_piece_give_the_same_bits(shape: Shape, axis: int | None, kind: str) -> None:
    field = logits() if kind == "noise" else blobs()
    whole_labels = labels_from_logits(field, shape, anisotropic_axis=axis)
    whole = probabilities_from_logits(field, shape, anisotropic_axis=axis)
    assert len(np.unique(whole_labels)) > 1
    for cuts in ([1, 2, 3, 4], [2], [3, 4]):
        labels = LabelExport(SIZE, shape, 4, anisotropic_axis=axis, threads=3)
        probabilities = ProbabilityExport(SIZE, shape, 4, anisotropic_axis=axis, threads=2)
        for part in np.split(field, cuts, axis=1):
            reused = part.copy()
            labels.add(reused)
            probabilities.add(reused)
            reused[:] = np.nan  # what was given may be overwritten afterwards
        assert np.array_equal(labels.labels, whole_labels)
        assert np.array_equal(probabilities.probabilities, whole)


@settings(max_examples=80)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    out=st.tuples(*[st.integers(1, 20)] * 3),
    axis=st.sampled_from([None, 0, 1, 2]),
    seed=st.integers(0, 100),
)
def test_labels_are_those_of_the_interpolated_logits(shape: Shape, out: Shape, axis: int | None, seed: int) -> None:
    """The short way of voxels within one label, and of few voxels between labels, gives what the long one gives."""
    noise = np.random.default_rng(seed).normal(size=(3, *shape))
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2, 2)).astype(np.float32)
    labels = labels_from_logits(smooth, out, anisotropic_axis=axis)
    whole = resample_image(smooth, out, axis, order=1)
    top = np.sort(whole, axis=0)
    clear = top[-1] - top[-2] > 1e-6  # where float32 rounding cannot decide
    assert np.array_equal(labels[clear], whole.argmax(axis=0)[clear])


def test_probabilities_sum_to_one_for_any_logits() -> None:
    huge = logits() * np.float32(1e4)
    probabilities = probabilities_from_logits(huge, (9, 9, 9), anisotropic_axis=None)
    assert np.isfinite(probabilities).all()
    # Float32 rounding of four numbers.
    assert np.allclose(probabilities.sum(axis=0), 1, atol=1e-6)


def test_the_logits_stay_as_they_were() -> None:
    unchanged = logits()
    probabilities_from_logits(unchanged, SIZE, anisotropic_axis=None)
    labels_from_logits(unchanged, SIZE, anisotropic_axis=None)
    assert np.array_equal(unchanged, logits())


def test_labels_are_as_small_as_the_classes_allow() -> None:
    assert labels_from_logits(logits(4), SIZE, anisotropic_axis=None).dtype == np.uint8
    many = np.zeros((300, 1, 1, 2), np.float32)
    many[299, 0, 0, 1] = 1
    labels = labels_from_logits(many, (1, 1, 2), anisotropic_axis=None)
    assert labels.dtype == np.uint16
    assert labels.tolist() == [[[0, 299]]]
