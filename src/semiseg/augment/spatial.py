"""Rotation and scaling about the centre of the patch, and elastic deformation, as one resampling pass.

B batch, C channel, D H W (= Z Y X).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from semiseg.augment.draws import factor, generators
from semiseg.augment.settings import Augmentation
from semiseg.randomness import Draw
from semiseg.transfer import to_device
from semiseg.types import DoubleArray


@dataclass(frozen=True)
class SpatialParams:
    """matrices: (B, 3, 3) float64 in (Z, Y, X) order; the offset of an output voxel from the patch centre
    times its matrix is the offset in the input that it is read from, in voxels.

    displacements: (B, 3, nodes along Z, Y, X) float64, what is added to that offset at nodes that lie at even
    distances from the first voxel of each axis to its last; between them it is linear.
    """

    matrices: DoubleArray
    displacements: DoubleArray

    @property
    def changed(self) -> list[int]:
        """Samples that are read from anywhere but where they are; no other is interpolated."""
        turned = [not np.array_equal(matrix, np.eye(3)) for matrix in self.matrices]
        return [i for i, moved in enumerate(self.displacements) if turned[i] or moved.any()]


def sample_spatial(
    draw: Draw, shape: tuple[int, ...], settings: Augmentation, purpose: str = "spatial"
) -> SpatialParams:
    """Draw rotation, zoom and elastic deformation for the samples of a batch, each by its own key.

    shape: of the batch, (B, C, D, H, W).
    """
    n = shape[0]
    matrices = np.tile(np.eye(3), (n, 1, 1))
    displacements = np.zeros((n, 3, *_nodes(shape[2:], settings)))
    if settings.enabled:
        for i, generator in enumerate(generators(draw, n, purpose)):
            matrices[i] = _sample_matrix(generator, settings)
        for i, generator in enumerate(generators(draw, n, f"{purpose}/elastic")):
            if generator.random() < settings.elastic_probability:
                deviation = generator.uniform(*settings.elastic_deviation)
                displacements[i] = deviation * generator.standard_normal(displacements[i].shape)
        if settings.coarse_axis is not None:
            displacements[:, settings.coarse_axis] = 0.0
    return SpatialParams(matrices, displacements)


def _nodes(size: tuple[int, ...], settings: Augmentation) -> list[int]:
    """How many along each axis of a patch, no further apart than `elastic_spacing`; one, where nothing is interpolated
    along the axis."""
    return [
        1 if axis == settings.coarse_axis else math.ceil((voxels - 1) / settings.elastic_spacing) + 1
        for axis, voxels in enumerate(size)
    ]


def _sample_matrix(generator: np.random.Generator, settings: Augmentation) -> DoubleArray:
    # Everything is drawn whether it is used or not, so that one probability does not shift the other draws.
    rotate, scale = generator.random(2)
    angles = generator.uniform(-1, 1, size=3) * np.array(settings.rotation_radians)
    zoom = np.full(3, factor(generator, settings.zoom))
    if settings.coarse_axis is not None:
        angles[np.arange(3) != settings.coarse_axis] = 0.0
        zoom[settings.coarse_axis] = 1.0
    matrix = np.eye(3)
    if rotate < settings.rotation_probability:
        matrix = rotation_matrix(angles)
    if scale < settings.zoom_probability:
        matrix = matrix / zoom[None, :]
    return matrix


def rotation_matrix(angles: DoubleArray) -> DoubleArray:
    """The rotation about Z, then Y, then X (3 angles in radians) of offsets in (Z, Y, X) order, (3, 3)."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def apply_spatial(
    images: Tensor, labels: Tensor | None, params: SpatialParams, *, ignore: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Images resampled linearly, (B, C, D, H, W), and their label maps by nearest neighbour, (B, D, H, W).

    Nearest neighbour for labels because it keeps any value, the ignore value too, at the cost of one channel; linear
    interpolation of K one-hot channels smooths borders by less than half a voxel and costs K times as much.

    Outside of the patch the image continues with its border. So do the labels, that they name what the image
    shows; where the dataset has an `ignore` value, voxels from outside of the patch get it instead.
    """
    changed = params.changed
    if not changed:
        return images, labels
    index = to_device(np.array(changed), images.device)
    grid = _grid(params.matrices[changed], images)
    if params.displacements.any():
        grid = grid + _shift(params.displacements[changed], images)
    images = _replaced(images, index, _resample(images[index], grid, "bilinear"))
    if labels is not None:
        resampled = _resample(labels[index].unsqueeze(1).float(), grid, "nearest").squeeze(1).to(labels.dtype)
        if ignore is not None:
            resampled = resampled.masked_fill((grid.abs() > 1).any(dim=-1), ignore)
        labels = _replaced(labels, index, resampled)
    return images, labels


def _resample(volumes: Tensor, grid: Tensor, mode: str) -> Tensor:
    return functional.grid_sample(volumes, grid, mode=mode, padding_mode="border", align_corners=False)


def _replaced(batch: Tensor, index: Tensor, part: Tensor) -> Tensor:
    out = batch.clone()
    out[index] = part
    return out


def _grid(matrices: DoubleArray, images: Tensor) -> Tensor:
    """Where `grid_sample` reads each output voxel, (n, D, H, W, 3) in its normalised (x, y, z) coordinates.

    Built by broadcasting instead of `affine_grid`, whose matrix product rounds differently with the batch size.
    """
    sizes = images.shape[2:]
    offsets = [torch.arange(s, dtype=torch.float32, device=images.device) - (s - 1) / 2 for s in sizes]
    z, y, x = offsets[0].view(1, -1, 1, 1), offsets[1].view(1, 1, -1, 1), offsets[2].view(1, 1, 1, -1)
    # A coordinate of ±1 is the outer face of the border voxels, which lies size/2 from the centre.
    scaled = matrices * (2 / np.array(sizes))[None, :, None]
    m = to_device(scaled.astype(np.float32), images.device)[..., None, None, None]
    rows = [m[:, axis, 0] * z + m[:, axis, 1] * y + m[:, axis, 2] * x for axis in (2, 1, 0)]
    return torch.stack(rows, dim=-1)


def _shift(displacements: DoubleArray, images: Tensor) -> Tensor:
    """What displacements at nodes add to `_grid` at each voxel, (n, D, H, W, 3)."""
    sizes = images.shape[2:]
    scaled = displacements * (2 / np.array(sizes)).reshape(3, 1, 1, 1)
    nodes = to_device(scaled.astype(np.float32), images.device)
    shift = functional.interpolate(nodes, size=sizes, mode="trilinear", align_corners=True)
    return shift.flip(1).permute(0, 2, 3, 4, 1)
