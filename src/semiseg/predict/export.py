"""From logits on the plan's grid to labels and probabilities on the scan's, slab by slab.

Peak memory is one slab of all classes, not the volume of all classes, and the result does not depend on the slab.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from semiseg.ops.resample import resample_slab
from semiseg.types import FloatArray, LabelArray, Shape

SLAB_BYTES = 128 * 2**20
"""Upper bound of one slab of resampled logits."""


def _slabs(logits: FloatArray, shape: Shape, axis: int | None) -> Iterator[tuple[slice, FloatArray]]:
    plane_bytes = 4 * logits.shape[0] * shape[1] * shape[2]
    rows = max(1, SLAB_BYTES // plane_bytes)
    for start in range(0, shape[0], rows):
        stop = min(start + rows, shape[0])
        yield slice(start, stop), resample_slab(logits, shape, start, stop, axis)


def labels_from_logits(logits: FloatArray, shape: Shape, *, anisotropic_axis: int | None) -> LabelArray:
    """Resample logits `(K, Z, Y, X)` to `shape` (order 1, order 0 along `anisotropic_axis`) and take the argmax."""
    dtype = np.uint8 if logits.shape[0] <= 256 else np.uint16
    labels = np.empty(shape, dtype=dtype)
    for rows, slab in _slabs(logits, shape, anisotropic_axis):
        labels[rows] = slab.argmax(axis=0)
    return labels


def probabilities_from_logits(logits: FloatArray, shape: Shape, *, anisotropic_axis: int | None) -> FloatArray:
    """Class probabilities `(K, Z, Y, X)` on the grid of `shape`: softmax of the resampled logits."""
    out = np.empty((logits.shape[0], *shape), dtype=np.float32)
    for rows, slab in _slabs(logits, shape, anisotropic_axis):
        slab -= slab.max(axis=0)
        np.exp(slab, out=slab)
        out[:, rows] = slab / slab.sum(axis=0)
    return out
