"""How tiles are laid over a scan, and what is done with each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeVar, cast

from semiseg.geometry import CANONICAL_AXES, Box
from semiseg.io.dataset import LabelScheme
from semiseg.types import Shape

Columns = tuple[slice, slice]
"""Where a tile lies across the rows."""
BACKGROUND_LOGIT = 10.0
"""Of background where no tile is computed, all others being 0: a probability of nearly 1."""
Array = TypeVar("Array", bound=Any)
"""A numpy array or a tensor."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """How tiles are laid and what is done with each.

    mirror_axes: the mean over flips along all their combinations (canonical axes) is taken; where left and right
    change places, the classes of the mirror pairs of `labels` are exchanged back.
    axes: the order of axes that the work is done in, the one that is rolled along first.
    region: tiles are laid over this part of the image's grid, in the order of `axes`; all of it by default.
    holds_body: told where a tile starts and stops on that grid; says whether it is computed.
    rows_stay: blended rows may come as tensors, where they were blended; otherwise they are arrays.
    Voxels that no computed tile holds are background.
    """

    patch: Shape
    """Of a tile, canonical."""
    step: float = 0.5
    tile_batch: int = 1
    mirror_axes: Sequence[int] = ()
    labels: LabelScheme | None = None
    axes: Shape = CANONICAL_AXES
    region: Box | None = None
    holds_body: Callable[[Shape, Shape], bool] | None = field(default=None, repr=False)
    rows_stay: bool = False


def turned(values: Shape, axes: Shape) -> Shape:
    """Three numbers of the canonical axes in the order of `axes`."""
    return (values[axes[0]], values[axes[1]], values[axes[2]])


def roll(buffer: Any, finished: int) -> None:
    """Let go of the first rows of an array or tensor `(., rows, ., .)`; new ones are zero."""
    kept = buffer.shape[1] - finished
    for row in range(kept):  # one at a time: numpy would copy what overlaps, and torch overwrite it before it is read
        buffer[:, row] = buffer[:, row + finished]
    buffer[:, kept:] = 0


def cheapest_axes(shape: Shape, patch: Shape) -> Shape:
    """The order of axes to work in: the one first whose rolling window, a patch thick, holds the fewest voxels."""
    size = [max(n, p) for n, p in zip(shape, patch, strict=True)]
    first = min(range(3), key=lambda axis: patch[axis] * prod(size) // size[axis])
    others = [axis for axis in range(3) if axis != first]
    return (first, others[0], others[1])


def mirrored_logits(
    tiles: Array, run: Callable[[Array], Array], flip: Callable[[Array, tuple[int, ...]], Array], window: Window
) -> Array:
    """Canonical tiles `(N, C, D, H, W)` to logits `(N, K, D, H, W)`, the mean over `window.mirror_axes`.

    run: computes logits. flip: turns around the axes that are named.
    """
    total: Any = run(tiles)
    combinations = 2 ** len(window.mirror_axes)
    for mask in range(1, combinations):
        axes = [axis for bit, axis in enumerate(window.mirror_axes) if mask >> bit & 1]
        where = tuple(axis + 2 for axis in axes)
        mirrored = flip(run(flip(tiles, where)), where)
        swapped = window.labels is not None and window.labels.mirror_axis in axes
        total = total + (mirrored[:, window.labels.permutation()] if window.labels and swapped else mirrored)
    return cast(Array, total / combinations if combinations > 1 else total)
