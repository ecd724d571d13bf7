"""The values of voxels from what files store: bits that are used, and each slice's own slope and intercept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from semiseg.io.dicom.headers import Pixels, Slice
from semiseg.types import AnyArray

_MOST_LISTED_BITS = 16


@dataclass(frozen=True)
class Form:
    """How a volume is held: `stored` as the files have it (a value is `stored * slope + inter`), `whole` numbers to
    which slopes are applied already, or `float` ones."""

    kind: Literal["stored", "whole", "float"]
    dtype: np.dtype[np.generic]
    slope: float = 1.0
    inter: float = 0.0


def form_of(slices: Sequence[Slice]) -> Form:
    """As the files store it, where they agree and float32 gives each value exactly; whole numbers, where all slopes
    are; else float32, rounded once from float64."""
    rescales = {(found.slope, found.inter) for found in slices}
    kinds = {(found.pixels.allocated, found.pixels.signed) for found in slices}
    if len(rescales) == len(kinds) == 1:
        (slope, inter), dtype = rescales.pop(), stored_dtype(slices[0].pixels)
        if all(_is_exact(found.pixels, slope, inter) for found in _different(slices)):
            return Form("stored", dtype, slope, inter)
        rescales = {(slope, inter)}
    if all(slope.is_integer() and inter.is_integer() for slope, inter in rescales):
        return Form("whole", np.dtype(np.int16))
    return Form("float", np.dtype(np.float32))


def voxel_bytes(slices: Sequence[Slice]) -> int:
    """Of a voxel as it is held."""
    return form_of(slices).dtype.itemsize


def _different(slices: Sequence[Slice]) -> list[Slice]:
    return list({found.pixels: found for found in slices}.values())


def _is_exact(pixels: Pixels, slope: float, inter: float) -> bool:
    """Whether float32 arithmetic gives the same as float64, rounded, for every value that the bits can hold."""
    if slope == 1 and inter == 0:
        return True
    if pixels.stored > _MOST_LISTED_BITS:
        return False
    low = -(1 << (pixels.stored - 1)) if pixels.signed else 0
    values = np.arange(low, low + (1 << pixels.stored))
    in_float32 = values.astype(np.float32) * np.float32(slope) + np.float32(inter)
    return bool((in_float32 == (values * slope + inter).astype(np.float32)).all())


def stored_dtype(pixels: Pixels) -> np.dtype[np.generic]:
    """Of the numbers that a file holds, in the machine's order of bytes."""
    return np.dtype(f"{'i' if pixels.signed else 'u'}{pixels.allocated // 8}")


def used_bits(plane: AnyArray, pixels: Pixels) -> AnyArray:
    """The values without the bits that are not theirs (overlays, once), with their sign."""
    left = pixels.allocated - pixels.high - 1
    right = pixels.allocated - pixels.stored
    if left == right == 0:
        return plane
    return (plane << left) >> right  # of signed numbers the sign comes along


def rescaled(plane: AnyArray, found: Slice, form: Form) -> AnyArray:
    """What a volume of the form holds of a slice: int64, where the form is of whole numbers."""
    if form.kind == "stored":
        return plane
    if form.kind == "whole":
        return plane.astype(np.int64) * int(found.slope) + int(found.inter)
    return (plane * found.slope + found.inter).astype(np.float32)


def widened(values: AnyArray, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type that holds whole numbers, too, if the one at hand does not."""
    low, high = int(values.min()), int(values.max())
    fitting = (kind for kind in (dtype, np.int32, np.int64) if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    return np.dtype(next(fitting))
