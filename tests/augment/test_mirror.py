from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from semiseg.augment.mirror import mirror_images, mirror_labels, sample_flips
from semiseg.augment.settings import Augmentation
from semiseg.io.dataset import LabelScheme
from semiseg.randomness import Draw

SCHEME = LabelScheme(names={0: "background", 1: "left", 2: "right", 3: "liver"}, ignore=9, mirror_pairs=((1, 2),))
ALL_FLIPS = np.array(list(itertools.product([False, True], repeat=3)))


def test_flips_are_keyed_and_keep_to_their_axes() -> None:
    flips = sample_flips(Draw(1), 200, Augmentation(mirror_axes=(0, 2)))
    assert np.array_equal(flips, sample_flips(Draw(1), 200, Augmentation(mirror_axes=(0, 2))))
    assert not flips[:, 1].any()
    # 4 standard deviations of 200 fair draws are 0.14.
    assert np.allclose(flips[:, [0, 2]].mean(axis=0), 0.5, atol=0.14)
    assert not sample_flips(Draw(1), 50, Augmentation.none()).any()
    assert not sample_flips(Draw(1), 50, Augmentation()).any()  # nothing is known of the scans yet


def test_left_right_mirroring_exchanges_pairs_and_only_there() -> None:
    label = torch.tensor([1, 0, 3, 9, 2]).view(1, 1, 1, 5)
    left_right = mirror_labels(label, np.array([[False, False, True]]), SCHEME)
    assert left_right.flatten().tolist() == [1, 9, 3, 0, 2]
    front_back = mirror_labels(label, np.array([[True, True, False]]), SCHEME)
    assert torch.equal(front_back, label)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_mirroring_is_its_own_inverse(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((8, 2, 3, 4, 5), generator=generator)
    labels = torch.randint(0, 4, (8, 3, 4, 5), generator=generator).to(dtype)
    labels[:, 0] = 9
    assert torch.equal(mirror_images(mirror_images(images, ALL_FLIPS), ALL_FLIPS), images)
    back = mirror_labels(mirror_labels(labels, ALL_FLIPS, SCHEME), ALL_FLIPS, SCHEME)
    assert torch.equal(back, labels)
    assert back.dtype == dtype


def test_pairs_are_exchanged_sample_by_sample() -> None:
    labels = torch.randint(0, 4, (8, 3, 4, 5), generator=torch.Generator().manual_seed(1))
    before, mirrored = labels.clone(), mirror_images(labels, ALL_FLIPS)
    left_right = torch.from_numpy(ALL_FLIPS[:, 2]).view(-1, 1, 1, 1)
    expected = torch.where(left_right, torch.tensor(SCHEME.permutation())[mirrored], mirrored)
    assert torch.equal(mirror_labels(labels, ALL_FLIPS, SCHEME), expected)
    assert torch.equal(labels, before)


def test_batched_equals_one_by_one_and_no_flip_is_a_no_op() -> None:
    images = torch.randn((8, 1, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    together = mirror_images(images, ALL_FLIPS)
    for i, flip in enumerate(ALL_FLIPS):
        assert torch.equal(mirror_images(images[i : i + 1], flip[None])[0], together[i])
    none = np.zeros((8, 3), dtype=bool)
    assert mirror_images(images, none) is images
    labels = torch.zeros((8, 3, 4, 5), dtype=torch.uint8)
    assert mirror_labels(labels, none, SCHEME) is labels
