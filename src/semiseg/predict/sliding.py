"""The sliding window: a prepared scan to logits on the plan's grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from semiseg.geometry import Box
from semiseg.io.dataset import LabelScheme
from semiseg.ops.tiles import gaussian_importance, tile_boxes
from semiseg.predict.engine import Engine
from semiseg.types import FloatArray, Shape


def sliding_window(
    image: FloatArray,
    engine: Engine,
    *,
    patch: Shape,
    step: float = 0.5,
    tile_batch: int = 1,
    mirror_axes: Sequence[int] = (),
    labels: LabelScheme | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FloatArray:
    """Gaussian-weighted mean of the tiles' logits: `(C, Z, Y, X)` to `(K, Z, Y, X)`, float32.

    A scan smaller than the patch is padded with each channel's smallest value, as in training. mirror_axes: the
    mean over flips along all their combinations is taken; where left and right change places, the classes of the
    mirror pairs of `labels` are exchanged back. progress: called with tiles done and tiles in all.
    """
    shape = (image.shape[1], image.shape[2], image.shape[3])
    padded, inside = _padded(image, patch)
    boxes = tile_boxes((padded.shape[1], padded.shape[2], padded.shape[3]), patch, step)
    importance = gaussian_importance(patch)
    total: FloatArray | None = None
    weights = np.zeros(padded.shape[1:], dtype=np.float32)
    for first in range(0, len(boxes), tile_batch):
        group = boxes[first : first + tile_batch]
        tiles = np.stack([padded[:, *box.slices()] for box in group])
        logits = _mirrored_logits(tiles, engine, mirror_axes, labels)
        if total is None:
            total = np.zeros((logits.shape[1], *padded.shape[1:]), dtype=np.float32)
        for box, tile in zip(group, logits, strict=True):
            total[:, *box.slices()] += tile * importance
            weights[box.slices()] += importance
        if progress:
            progress(min(first + tile_batch, len(boxes)), len(boxes))
    if total is None:
        raise ValueError(f"a scan of shape {shape} has no tiles")
    total /= weights
    return np.ascontiguousarray(total[:, *inside.slices()])


def _mirrored_logits(
    tiles: FloatArray, engine: Engine, mirror_axes: Sequence[int], labels: LabelScheme | None
) -> FloatArray:
    logits = engine.run(tiles)
    combinations = [
        tuple(axis for bit, axis in enumerate(mirror_axes) if mask >> bit & 1)
        for mask in range(1, 2 ** len(mirror_axes))
    ]
    for axes in combinations:
        where = tuple(axis + 2 for axis in axes)
        mirrored = np.flip(engine.run(np.ascontiguousarray(np.flip(tiles, where))), where)
        swapped = labels is not None and labels.mirror_axis in axes
        logits = logits + (mirrored[:, labels.permutation()] if labels and swapped else mirrored)
    return logits / np.float32(len(combinations) + 1)


def _padded(image: FloatArray, patch: Shape) -> tuple[FloatArray, Box]:
    """The image grown to at least the patch, evenly on both sides, and where the image lies in it."""
    shape = image.shape[1:]
    before = [max(0, p - n) // 2 for n, p in zip(shape, patch, strict=True)]
    size = [max(n, p) for n, p in zip(shape, patch, strict=True)]
    inside = Box(
        (before[0], before[1], before[2]),
        (before[0] + shape[0], before[1] + shape[1], before[2] + shape[2]),
    )
    if tuple(size) == shape:
        return image, inside
    minimum = image.reshape(len(image), -1).min(axis=1)
    padded = np.broadcast_to(minimum[:, None, None, None], (len(image), *size)).copy()
    padded[:, *inside.slices()] = image
    return padded, inside
