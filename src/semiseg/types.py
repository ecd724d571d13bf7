"""Aliases of types, in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

AnyArray = NDArray[Any]
FloatArray = NDArray[np.float32]
"""Image or logits, float32; volumes are `(C, Z, Y, X)`."""
DoubleArray = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]
LabelArray = NDArray[np.integer[Any]]
"""Label map of integers, `(Z, Y, X)`."""
BoolArray = NDArray[np.bool_]

Shape = tuple[int, int, int]
"""Voxel counts in `(Z, Y, X)` order."""
Spacing = tuple[float, float, float]
"""Voxel sizes in millimetres, `(Z, Y, X)` order."""

AnyPath = str | Path
"""A file or folder, as callers may name it."""
