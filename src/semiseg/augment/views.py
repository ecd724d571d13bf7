"""The views of a batch that methods train on.

B batch, C channel, D H W (= Z Y X).
"""

from __future__ import annotations

from torch import Tensor

from semiseg.augment.intensity import apply_intensity, sample_intensity
from semiseg.augment.mirror import mirror_images, mirror_labels, sample_flips
from semiseg.augment.settings import Augmentation
from semiseg.augment.spatial import apply_spatial, sample_spatial
from semiseg.io.dataset import LabelScheme
from semiseg.randomness import Draw


def labelled_view(
    images: Tensor, labels: Tensor, draw: Draw, settings: Augmentation, scheme: LabelScheme
) -> tuple[Tensor, Tensor]:
    """The fully augmented images (B, C, D, H, W), float32, and their label maps (B, D, H, W), integer.

    draw: of the batch's first sample by its global index. scheme: gives the mirror pairs and the ignore value.
    """
    n = len(images)
    spatial = sample_spatial(draw, images.shape, settings, "labelled/spatial")
    flips = sample_flips(draw, n, settings, "labelled/mirror")
    images, warped = apply_spatial(images, labels, spatial, ignore=scheme.ignore)
    images = _with_intensity(mirror_images(images, flips), draw, settings, "labelled/intensity")
    return images, mirror_labels(labels if warped is None else warped, flips, scheme)


def unlabelled_views(
    images: Tensor, draw: Draw, settings: Augmentation, pseudo: tuple[Tensor, LabelScheme] | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The weak and the strong view of the images (B, C, D, H, W), float32, voxel by voxel in the same place, and
    pseudo-labels brought there. pseudo: label maps (B, D, H, W) that were made before, and their scheme.

    Both share one geometry, so a pseudo-label of the weak view is one of the strong view as it is, without any exchange
    of mirror pairs. The weak view's intensities follow `settings.weak()`, the strong view's `settings`.
    """
    n = len(images)
    flips = sample_flips(draw, n, settings, "unlabelled/mirror")
    labels, scheme = pseudo or (None, None)
    spatial = sample_spatial(draw, images.shape, settings, "unlabelled/spatial")
    images, warped = apply_spatial(images, labels, spatial)
    images = mirror_images(images, flips)
    if warped is not None and scheme is not None:
        warped = mirror_labels(warped, flips, scheme)
    weak = _with_intensity(images, draw, settings.weak(), "unlabelled/weak")
    return weak, _with_intensity(images, draw, settings, "unlabelled/strong"), warped


def _with_intensity(images: Tensor, draw: Draw, settings: Augmentation, purpose: str) -> Tensor:
    n, channels = images.shape[:2]
    return apply_intensity(images, sample_intensity(draw, n, channels, settings, purpose))
