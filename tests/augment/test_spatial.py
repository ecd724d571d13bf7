from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from semiseg.augment.settings import Augmentation
from semiseg.augment.spatial import SpatialParams, apply_spatial, rotation_matrix, sample_spatial
from semiseg.randomness import Draw
from semiseg.types import DoubleArray

ALWAYS = Augmentation(rotation_probability=1.0, zoom_probability=1.0, elastic_probability=1.0)
AFFINE = replace(ALWAYS, elastic_probability=0.0)
SIZE = (9, 11, 10)


def _batch_of(n: int) -> tuple[int, ...]:
    return (n, 1, *SIZE)


def _turned(matrices: DoubleArray) -> SpatialParams:
    return SpatialParams(matrices, np.zeros((len(matrices), 3, 1, 1, 1)))


def _volumes(n: int = 3, channels: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((n, channels, *SIZE), generator=generator)
    return images, torch.randint(0, 4, (n, *SIZE), generator=generator)


def test_same_key_same_parameters_and_other_key_other_ones() -> None:
    first, again = (sample_spatial(Draw(1, 7), _batch_of(4), ALWAYS) for _ in range(2))
    other = sample_spatial(Draw(1, 8), _batch_of(4), ALWAYS)
    assert np.array_equal(first.matrices, again.matrices)
    assert np.array_equal(first.displacements, again.displacements)
    assert not np.isclose(first.matrices, other.matrices).all(axis=(1, 2)).any()
    assert not np.isclose(first.displacements, other.displacements).any()


def test_second_rank_draws_the_second_half_of_the_global_batch() -> None:
    whole = sample_spatial(Draw(1, 7), _batch_of(4), ALWAYS)
    second = sample_spatial(Draw(1, 7, sample=2), _batch_of(2), ALWAYS)
    assert np.array_equal(whole.matrices[2:], second.matrices)
    assert np.array_equal(whole.displacements[2:], second.displacements)


def test_identity_is_a_no_op_and_leaves_the_others_of_the_batch_alone() -> None:
    images, labels = _volumes()
    same, same_labels = apply_spatial(images, labels, _turned(np.tile(np.eye(3), (3, 1, 1))))
    assert same is images
    assert same_labels is labels

    matrices = np.stack([np.eye(3), np.eye(3) / 1.2, np.eye(3)])
    before = images.clone()
    out, out_labels = apply_spatial(images, labels, _turned(matrices))
    assert out_labels is not None
    assert torch.equal(images, before)
    assert torch.equal(out[[0, 2]], images[[0, 2]])
    assert torch.equal(out_labels[[0, 2]], labels[[0, 2]])
    assert not torch.equal(out[1], images[1])


def test_batched_equals_one_by_one() -> None:
    images, labels = _volumes()
    params = sample_spatial(Draw(3, 2), _batch_of(3), replace(ALWAYS, elastic_probability=0.5))
    assert len({bool(moved.any()) for moved in params.displacements}) == 2
    out, out_labels = apply_spatial(images, labels, params, ignore=9)
    assert out_labels is not None
    for i in range(3):
        part = slice(i, i + 1)
        one_param = SpatialParams(params.matrices[part], params.displacements[part])
        one, one_labels = apply_spatial(images[part], labels[part], one_param, ignore=9)
        assert one_labels is not None
        assert torch.equal(one[0], out[i])
        assert torch.equal(one_labels[0], out_labels[i])


@pytest.mark.parametrize("seed", range(4))
def test_equals_scipy_map_coordinates(seed: int) -> None:
    images, labels = _volumes(n=1, channels=1)
    params = sample_spatial(Draw(seed), _batch_of(1), ALWAYS)
    out, out_labels = apply_spatial(images, labels, params)
    assert out_labels is not None
    voxels, centre = np.indices(SIZE, dtype=float), ((np.array(SIZE) - 1) / 2).reshape(3, 1, 1, 1)
    nodes = params.displacements[0]
    assert nodes.shape == (3, 2, 3, 3)  # 8 voxels apart or less
    at_nodes = [voxels[axis] * (nodes.shape[1 + axis] - 1) / (SIZE[axis] - 1) for axis in range(3)]
    shift = np.stack([ndimage.map_coordinates(part, at_nodes, order=1) for part in nodes])
    where = centre + np.einsum("ij,jzyx->izyx", params.matrices[0], voxels - centre) + shift
    expected = ndimage.map_coordinates(images[0, 0].double().numpy(), where, order=1, mode="nearest")
    # float32 coordinates of a grid of about 10 voxels are off by up to 1e-6 voxels, values differ by up to 6 a voxel.
    assert np.abs(out[0, 0].numpy() - expected).max() < 2e-5
    expected_labels = ndimage.map_coordinates(labels[0].numpy(), where, order=0, mode="nearest")
    # A voxel whose source lies on the border of two voxels within rounding may go to either.
    assert (out_labels[0].numpy() != expected_labels).mean() < 0.002


def test_quarter_turn_about_z_is_exact_for_labels() -> None:
    labels = torch.arange(2 * 4 * 4).reshape(1, 2, 4, 4)
    turn = rotation_matrix(np.array([math.pi / 2, 0, 0]))
    _, out = apply_spatial(labels[:, None].float(), labels, _turned(turn[None]))
    assert out is not None
    # Offsets (y, x) are read from (-x, y): np.rot90 in the plane of Y and X, clockwise.
    assert np.array_equal(out[0].numpy(), np.rot90(labels[0].numpy(), -1, axes=(1, 2)))


def test_zoom_enlarges_a_ball_by_the_factor() -> None:
    z, y, x = np.ogrid[-15:16, -15:16, -15:16]
    ball = torch.as_tensor((z**2 + y**2 + x**2) <= 8**2).long()[None]
    _, out = apply_spatial(ball[:, None].float(), ball, _turned(np.eye(3)[None] / 1.4))
    assert out is not None
    ratio = float(out.sum() / ball.sum())
    # The voxel count of balls of radius 8 and 11.2 is within 5 % of their volumes' ratio.
    assert ratio == pytest.approx(1.4**3, rel=0.05)


def test_outside_is_border_or_ignored() -> None:
    labels = torch.full((1, 8, 8, 8), 2)
    shrink = _turned(np.eye(3)[None] / 0.5)
    images = labels[:, None].float()
    out, continued = apply_spatial(images, labels, shrink)
    _, ignored = apply_spatial(images, labels, shrink, ignore=7)
    assert continued is not None
    assert ignored is not None
    assert (continued == 2).all()
    assert torch.allclose(out, images, atol=1e-6)  # interpolation weights sum to 1 up to rounding
    # At half the size, 4 of 8 voxels an axis show the patch.
    assert int((ignored == 2).sum()) == 4**3
    assert set(ignored.unique().tolist()) == {2, 7}


def test_coarse_axis_is_never_interpolated() -> None:
    params = sample_spatial(Draw(0), _batch_of(8), replace(ALWAYS, coarse_axis=0))
    assert np.array_equal(params.matrices[:, 0], np.tile([1.0, 0.0, 0.0], (8, 1)))
    assert np.array_equal(params.matrices[:, :, 0], np.tile([1.0, 0.0, 0.0], (8, 1)))
    assert not np.isclose(params.matrices[:, 1, 2], 0).any()
    # One deformation for all slices, within their planes.
    assert params.displacements.shape == (8, 3, 1, 3, 3)
    assert not params.displacements[:, 0].any()
    assert params.displacements[:, 1:].all()
    slices = torch.arange(9.0).view(1, 1, 9, 1, 1).expand(8, 1, *SIZE)
    same, _ = apply_spatial(slices, None, params)
    assert torch.allclose(same, slices, atol=1e-5)  # float32 rounds coordinates by up to 1e-6 of 9 slices
    image, _ = _volumes(n=1, channels=1)
    pictures = image[:, :, :1].expand(8, 1, *SIZE)
    moved, _ = apply_spatial(pictures, None, params)
    assert torch.allclose(moved, moved[:, :, :1].expand_as(moved), atol=1e-5)
    assert not torch.isclose(moved, pictures).all(dim=(1, 2, 3, 4)).any()


def test_elastic_deformation_alone_moves_voxels_on_nodes_by_their_displacement() -> None:
    ramp = torch.arange(17.0).view(1, 1, 1, 1, 17).expand(1, 1, 9, 9, 17)
    settings = replace(AFFINE, rotation_probability=0.0, zoom_probability=0.0, elastic_probability=1.0)
    params = sample_spatial(Draw(0), ramp.shape, settings)
    out, _ = apply_spatial(ramp, None, params)
    moved = ramp[0, 0, ::8, ::8, ::8] + torch.as_tensor(params.displacements[0, 2])  # X, of which the ramp is made
    # The image ends at 0 and 16; float32 rounds coordinates by up to 1e-6 of 17 voxels.
    assert torch.allclose(out[0, 0, ::8, ::8, ::8], moved.clamp(0, 16).float(), atol=2e-5)
    assert not torch.equal(out, ramp)


def test_rotation_and_zoom_do_not_depend_on_elastic_deformation() -> None:
    """What is switched off leaves every other draw as it was, so that older runs can be repeated."""
    with_it, without = (sample_spatial(Draw(3), _batch_of(4), settings) for settings in (ALWAYS, AFFINE))
    assert np.array_equal(with_it.matrices, without.matrices)
    assert not without.displacements.any()


def test_probabilities_and_ranges_are_those_of_the_settings() -> None:
    params = sample_spatial(Draw(0), _batch_of(2000), Augmentation())
    # 1 - 0.8 * 0.8 * 0.5 = 0.68 are changed; 4 standard deviations of 2,000 draws are 0.042.
    assert len(params.changed) / 2000 == pytest.approx(0.68, abs=0.042)
    scales = np.cbrt(1 / np.linalg.det(params.matrices))
    assert scales.min() >= 0.7 - 1e-12
    assert scales.max() <= 1.4 + 1e-12
    moved = params.displacements[params.displacements.any(axis=(1, 2, 3, 4))]
    # Deviations are even in 0 to 3 voxels: the root of their mean square is 3 / sqrt(3); four deviations of it over
    # 1,000 samples are 0.11.
    assert np.sqrt((moved**2).mean()) == pytest.approx(math.sqrt(3), abs=0.11)
    by_sample = moved.reshape(len(moved), -1).std(axis=1)  # of 54 draws each: off by a tenth
    assert (by_sample < 0.75).mean() == pytest.approx(0.25, abs=0.07)  # four deviations are 0.055, and that tenth
    assert len(sample_spatial(Draw(0), _batch_of(50), Augmentation.none()).changed) == 0
