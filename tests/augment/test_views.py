from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from semiseg.augment.settings import Augmentation
from semiseg.augment.views import labelled_view, unlabelled_views
from semiseg.io.dataset import LabelScheme
from semiseg.randomness import Draw

SCHEME = LabelScheme(names={0: "background", 1: "left", 2: "right"}, mirror_pairs=((1, 2),))
ANY_WAY = Augmentation(mirror_axes=(0, 1, 2))
STILL = replace(ANY_WAY.weak(), rotation_probability=0.0, zoom_probability=0.0, elastic_probability=0.0)
GEOMETRY = replace(STILL, rotation_probability=1.0, zoom_probability=1.0, elastic_probability=1.0)
STRONG = replace(ANY_WAY, gamma_probability=1.0, noise_probability=1.0)


def _batch(n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros((n, 12, 12, 12), dtype=torch.int64)
    labels[:, 3:9, 3:9, 1:5], labels[:, 3:9, 3:9, 7:11] = 1, 2
    return torch.randn((n, 1, 12, 12, 12), generator=generator) * 0.01 + labels[:, None], labels


def test_without_augmentation_every_view_is_its_input() -> None:
    images, labels = _batch()
    none = Augmentation.none()
    out, out_labels = labelled_view(images, labels, Draw(0), none, SCHEME)
    weak, strong, _ = unlabelled_views(images, Draw(0), none)
    assert out is images
    assert out_labels is labels
    assert weak is images
    assert strong is images


def test_labels_follow_the_image_but_left_stays_left() -> None:
    # Left is 1, right is 2, and the image shows the organ's value; after mirroring, the organ that now lies on the left
    # shows the value of the right one, but is named left.
    images, labels = _batch(8)
    out, out_labels = labelled_view(images, labels, Draw(3), STILL, SCHEME)
    assert torch.equal(out_labels, labels)
    shown = out[:, 0].round().long()
    mirrored = [torch.equal(s, label.flip(2)) for s, label in zip(shown, labels, strict=True)]
    kept = [torch.equal(s, label) for s, label in zip(shown, labels, strict=True)]
    assert any(mirrored)
    assert any(kept)
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))


def test_labels_stay_on_the_image_under_rotation_zoom_and_deformation() -> None:
    images, labels = _batch(6)
    plain = LabelScheme(names=SCHEME.names)
    out, out_labels = labelled_view(images, labels, Draw(3), GEOMETRY, plain)
    assert not torch.equal(out_labels, labels)
    agree = (out[:, 0].round().long() == out_labels).float().mean()
    # Linear and nearest interpolation part along the organs' surfaces only (about a third of these tiny volumes).
    assert agree > 0.85


def test_both_unlabelled_views_share_one_geometry() -> None:
    images, _ = _batch()
    weak, strong, _ = unlabelled_views(images, Draw(1, 5), replace(GEOMETRY, gamma_probability=1.0))
    assert not torch.equal(weak, images)
    assert not torch.equal(weak, strong)
    # Gamma keeps the order of intensities, so equal ranks at every voxel mean equal geometry.
    for w, s in zip(weak.flatten(1), strong.flatten(1), strict=True):
        assert (s[w.argsort()].diff() >= -1e-6).all()  # rounding of nearly equal neighbours


def test_pseudo_labels_follow_their_images() -> None:
    """Their geometry and mirroring are those of the views, left stays left, and they do not change the views."""
    images, labels = _batch(8)
    weak, _, warped = unlabelled_views(images, Draw(3), STILL, (labels, SCHEME))
    assert torch.equal(weak, unlabelled_views(images, Draw(3), STILL)[0])
    assert torch.equal(warped, labels)  # symmetric but for the names: mirrored and renamed it is itself
    assert not torch.equal(weak[:, 0].round().long(), labels)
    weak, _, warped = unlabelled_views(images, Draw(3), GEOMETRY, (labels, LabelScheme(names=SCHEME.names)))
    assert warped is not None
    assert not torch.equal(warped, labels)
    assert (weak[:, 0].round().long() == warped).float().mean() > 0.85  # as above


@pytest.mark.parametrize("settings", [GEOMETRY, STRONG], ids=["geometry", "strong"])
def test_ranks_see_what_one_device_sees(settings: Augmentation) -> None:
    images, labels = _batch(4)
    whole, whole_labels = labelled_view(images, labels, Draw(1, 2), settings, SCHEME)
    weak, strong, _ = unlabelled_views(images, Draw(1, 2), settings)
    half, half_labels = labelled_view(images[2:], labels[2:], Draw(1, 2, sample=2), settings, SCHEME)
    half_weak, half_strong, _ = unlabelled_views(images[2:], Draw(1, 2, sample=2), settings)
    # The vectorised sums and powers of gamma round differently with the place in memory.
    assert torch.allclose(half, whole[2:], atol=1e-5)
    assert torch.equal(half_labels, whole_labels[2:])
    assert torch.equal(half_weak, weak[2:])
    assert torch.allclose(half_strong, strong[2:], atol=1e-5)


def test_labelled_and_unlabelled_batches_draw_apart() -> None:
    images, labels = _batch()
    one, _ = labelled_view(images, labels, Draw(1), GEOMETRY, SCHEME)
    other, *_ = unlabelled_views(images, Draw(1), GEOMETRY)
    assert not torch.equal(one, other)


def test_the_global_generator_is_not_touched() -> None:
    images, labels = _batch()
    before = torch.get_rng_state()
    labelled_view(images, labels, Draw(1), STRONG, SCHEME)
    unlabelled_views(images, Draw(1), STRONG)
    assert torch.equal(torch.get_rng_state(), before)
