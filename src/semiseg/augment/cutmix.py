"""Cut-mix in 3D: a box of one batch is pasted into another, as in bidirectional copy-paste (Bai et al., CVPR 2023).

B batch, C channel, K class, D H W (= Z Y X).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semiseg.augment.draws import generators
from semiseg.errors import ConfigError
from semiseg.randomness import Draw
from semiseg.transfer import to_device
from semiseg.types import Shape


def sample_boxes(
    draw: Draw, n: int, shape: Shape, fraction: tuple[float, float], purpose: str = "cutmix"
) -> NDArray[np.int64]:
    """One box for each of the n samples, wholly inside of the patch: (n, 2, 3) int64, starts then stops in (Z, Y, X).

    fraction: range of the box's edge relative to the patch's, drawn for each axis; BCP uses 2/3. (0, 0) is no box.
    """
    low, high = fraction
    if not 0 <= low <= high <= 1:
        raise ConfigError(
            f"cut-mix fraction = {fraction} is no range; give two numbers from 0 to 1, the lower one first."
        )
    boxes = np.zeros((n, 2, 3), dtype=np.int64)
    for i, generator in enumerate(generators(draw, n, purpose)):
        edges = np.rint(generator.uniform(low, high, size=3) * np.array(shape)).astype(np.int64)
        starts = generator.integers(0, np.array(shape) - edges, endpoint=True)
        boxes[i] = starts, starts + edges
    return boxes


def box_mask(boxes: NDArray[np.int64], shape: Shape, device: torch.device) -> Tensor:
    """True inside of each sample's box, (B, D, H, W) bool."""
    mask = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device)
    for axis, size in enumerate(shape):
        view = [len(boxes), 1, 1, 1]
        view[axis + 1] = size
        place = np.arange(size)[None]
        inside = (place >= boxes[:, 0, axis, None]) & (place < boxes[:, 1, axis, None])
        mask = mask & to_device(inside, device).view(view)
    return mask


def apply_cutmix(a: Tensor, b: Tensor, boxes: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """`a` with the boxes filled from `b`, and the mask of what came from `b`, (B, D, H, W) bool.

    a, b: batches of one shape and dtype: images (B, C, D, H, W), class maps (B, K, D, H, W) or label maps (B,
    D, H, W). Differentiable in both. The bidirectional partner is `apply_cutmix(b, a, boxes)`.
    """
    depth, height, width = a.shape[-3:]
    mask = box_mask(boxes, (depth, height, width), a.device)
    return torch.where(mask if a.ndim == 4 else mask.unsqueeze(1), b, a), mask
