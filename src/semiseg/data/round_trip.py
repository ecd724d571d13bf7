"""What a coarser grid keeps of the labels: label maps taken there and back, against themselves. No training is needed.

The ceiling of any network on that grid, organ by organ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil, prod
from pathlib import Path
from statistics import fmean

import numpy as np
from scipy import ndimage

from semiseg.cases import map_cases
from semiseg.data.labels import boxes_of
from semiseg.errors import DataError
from semiseg.geometry import triple
from semiseg.io.dataset import LabelScheme
from semiseg.io.scans import read_label
from semiseg.ops.resample import resample_image, resample_label, target_shape
from semiseg.types import BoolArray, Spacing

MOST_CASES = 4
"""Label maps that are looked at, evenly spread over the labelled ones."""
_MOST_VOXELS = 400_000
"""Of the box around an organ; larger ones are looked at by every second voxel, or fewer. An organ of several parts that
fit into smaller boxes, such as nodules of the lung, is looked at part by part."""
_MOST_PARTS = 8
"""Of such an organ the largest parts are looked at."""
_MARGIN = 4
_SMALL_BOX = 30_000
"""Voxels of the box around an organ of which what is kept depends on how it lies on the grid."""
_PLACES = tuple((a / 3, b / 3, (a + b) % 3 / 3) for a in range(3) for b in range(3))
"""Parts of a coarse voxel by which a small organ is shifted along Z, Y and X."""
_LONGEST_END = 16
"""Fewer voxels than this are added along an axis, so that the box is whole coarse voxels long."""


def grid_ceilings(
    labels: Sequence[Path],
    grids: Sequence[Spacing],
    scheme: LabelScheme,
    *,
    workers: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[Spacing, dict[str, float]]:
    """By grid and organ the mean Dice over label maps of what comes back from it; no organ where nothing can be read.

    labels: files. grids: spacings in mm. progress: called with (maps done, of how many, the name of the last).
    """
    step = max(1, len(labels) // MOST_CASES)
    chosen = list(labels)[::step][:MOST_CASES]
    kept = map_cases(
        partial(_kept_of, grids=grids, scheme=scheme),
        chosen,
        workers=workers,
        lost=lambda path: {},  # the fingerprint names it
        progress=(lambda done, total, path: progress(done, total, path.name)) if progress else None,
    )
    return {
        grid: {
            name: fmean(one[name][i] for one in kept if name in one)
            for name in scheme.organs.values()
            if any(name in one for one in kept)
        }
        for i, grid in enumerate(grids)
    }


def _kept_of(path: Path, grids: Sequence[Spacing], scheme: LabelScheme) -> dict[str, list[float]]:
    """Of each organ of a label map the Dice on each grid."""
    try:
        label, grid = read_label(path)
    except DataError:
        return {}  # the check names it
    found, boxes = {}, boxes_of(label)
    for value, name in scheme.organs.items():
        if value in boxes:
            parts = _parts(label[_with_margin(boxes[value].slices())] == value)
            voxels = [int(np.count_nonzero(part)) for part in parts]
            dice = np.array([_dice_on(part, grid.spacing_mm, grids) for part in parts])
            found[name] = [float(one) for one in np.average(dice, axis=0, weights=voxels)]
    return found


def _with_margin(box: Sequence[slice]) -> tuple[slice, ...]:
    return tuple(slice(max(0, side.start - _MARGIN), side.stop + _MARGIN) for side in box)


def _parts(mask: BoolArray) -> list[BoolArray]:
    """A mask, or where its box is large and each of its parts lies in a small one, the largest of these by
    themselves: in a box that spans the lungs every fourth voxel of a nodule would be looked at."""
    if mask.size <= _MOST_VOXELS:
        return [mask]
    numbered, count = ndimage.label(mask)
    # Plane by plane: counting needs a copy of 8 bytes a voxel.
    sizes = sum((np.bincount(plane.ravel(), minlength=count + 1) for plane in numbered), np.zeros(count + 1, int))[1:]
    boxes = ndimage.find_objects(numbered)
    largest = sorted(range(len(sizes)), key=lambda part: -sizes[part])[:_MOST_PARTS]
    if any(prod(side.stop - side.start for side in boxes[part]) > _MOST_VOXELS for part in largest):
        return [mask]
    return [numbered[_with_margin(boxes[part])] == part + 1 for part in largest]


def _dice_on(mask: BoolArray, spacing_mm: Spacing, grids: Sequence[Spacing]) -> list[float]:
    """Of a mask on each grid."""
    stride = ceil((mask.size / _MOST_VOXELS) ** (1 / 3))
    thinned, thinned_mm = mask[::stride, ::stride, ::stride], triple(mm * stride for mm in spacing_mm)
    dice = round_trip_dice if thinned.size > _SMALL_BOX else _dice_by_places
    return [dice(thinned, thinned_mm, coarse) for coarse in grids]


def _dice_by_places(mask: BoolArray, spacing_mm: Spacing, coarse_mm: Spacing) -> float:
    """Mean of `round_trip_dice` over how the mask may lie on the grid. The box around an organ alone always puts it in
    the middle, and stretches the grid to the box's length: of 22 voxels a Dice of 0.99 was kept where a whole map kept
    0.77."""
    factors = [max(1.0, coarse / mm) for mm, coarse in zip(spacing_mm, coarse_mm, strict=True)]

    def pads(place: Sequence[float]) -> list[tuple[int, int]]:
        starts = [round(part * factor) for part, factor in zip(place, factors, strict=True)]
        lengths = [start + n for start, n in zip(starts, mask.shape, strict=True)]
        return [(start, _end(n, factor)) for start, n, factor in zip(starts, lengths, factors, strict=True)]

    return fmean(round_trip_dice(np.pad(mask, pads(place)), spacing_mm, coarse_mm) for place in _PLACES)


def _end(length: int, factor: float) -> int:
    """How many voxels make a length the best multiple of a coarse voxel; the fewest such."""
    coarse = [(length + end) / factor for end in range(_LONGEST_END)]
    return min(range(_LONGEST_END), key=lambda end: (round(abs(coarse[end] - round(coarse[end])), 2), end))


def round_trip_dice(mask: BoolArray, spacing_mm: Spacing, coarse_mm: Spacing) -> float:
    """Dice of a mask `(Z, Y, X)` with itself, taken to a grid as preparation does and back as export does. Axes along
    which the grid is finer are left as they are."""
    shape = triple(mask.shape)
    there_mm = triple(map(max, spacing_mm, coarse_mm))
    there = resample_label(mask.astype(np.uint8), target_shape(shape, spacing_mm, there_mm))
    if prod(there.shape) == prod(shape):
        return 1.0
    back = resample_image(there[None].astype(np.float32), shape, order=1)[0] > 0.5
    both, sizes = int(np.count_nonzero(mask & back)), int(np.count_nonzero(mask)) + int(np.count_nonzero(back))
    return 2 * both / max(1, sizes)
