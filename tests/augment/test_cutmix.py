from __future__ import annotations

import numpy as np
import pytest
import torch

from semiseg.augment.cutmix import apply_cutmix, box_mask, sample_boxes
from semiseg.errors import ConfigError
from semiseg.randomness import Draw

SHAPE = (8, 12, 10)


def test_boxes_lie_inside_with_edges_of_the_range_and_are_keyed() -> None:
    boxes = sample_boxes(Draw(1, 2), 300, SHAPE, (0.25, 0.75))
    edges = boxes[:, 1] - boxes[:, 0]
    assert (boxes[:, 0] >= 0).all()
    assert (boxes[:, 1] <= SHAPE).all()
    assert (np.abs(edges / np.array(SHAPE) - 0.5) <= 0.25 + 0.5 / 8).all()  # half a voxel of rounding
    assert (boxes[:, 0].min(axis=0) == 0).all()
    assert (boxes[:, 1].max(axis=0) == SHAPE).all()
    assert np.array_equal(boxes[100:], sample_boxes(Draw(1, 2, sample=100), 200, SHAPE, (0.25, 0.75)))


def test_mix_takes_the_box_from_b_for_images_labels_and_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = np.array([[[1, 2, 3], [4, 5, 9]], [[0, 0, 0], [8, 12, 10]]])
    for lead in ((2,), (2, 1), (2, 5)):
        a, b = (torch.randn((*lead, *SHAPE), generator=generator) for _ in range(2))
        mixed, mask = apply_cutmix(a, b, boxes)
        expected = a.clone()
        expected[0, ..., 1:4, 2:5, 3:9] = b[0, ..., 1:4, 2:5, 3:9]
        expected[1] = b[1]
        assert torch.equal(mixed, expected)
        assert mask.shape == (2, *SHAPE)
        assert int(mask[0].sum()) == 3 * 3 * 6


def test_batched_equals_one_by_one_and_an_empty_box_is_a_no_op() -> None:
    boxes = sample_boxes(Draw(5), 4, SHAPE, (0.0, 1.0))
    masks = box_mask(boxes, SHAPE, torch.device("cpu"))
    for i in range(4):
        assert torch.equal(box_mask(boxes[i : i + 1], SHAPE, torch.device("cpu"))[0], masks[i])
    a, b = torch.zeros((4, *SHAPE)), torch.ones((4, *SHAPE))
    mixed, _ = apply_cutmix(a, b, sample_boxes(Draw(5), 4, SHAPE, (0.0, 0.0)))
    assert torch.equal(mixed, a)


def test_gradient_goes_to_the_batch_that_a_voxel_came_from() -> None:
    a, b = (torch.zeros((1, 2, *SHAPE), requires_grad=True) for _ in range(2))
    mixed, mask = apply_cutmix(a, b, sample_boxes(Draw(0), 1, SHAPE, (0.5, 0.5)))
    mixed.sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    assert torch.equal(b.grad[:, 0] > 0, mask)
    assert torch.equal(a.grad + b.grad, torch.ones_like(a))


def test_a_wrong_fraction_is_refused() -> None:
    with pytest.raises(ConfigError, match="cut-mix fraction"):
        sample_boxes(Draw(0), 1, SHAPE, (0.5, 1.5))
