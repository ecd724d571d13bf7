"""The residual-encoder U-Net: sizes, what its output depends on, and kinds of networks in general."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from semiseg.data.memory import _parameters, training_gb
from semiseg.data.plan import NetworkPlan
from semiseg.errors import ConfigError
from semiseg.models.build import build_network, count_parameters, onnx_graph
from semiseg.models.residual_encoder import ResidualEncoderUNet

CUBE = (3, 3, 3)
SMALL = NetworkPlan(
    kind="residual_encoder",
    features=(4, 6, 8),
    kernels=((1, 3, 3), CUBE, CUBE),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    blocks=(1, 2, 3),
)
UNET = NetworkPlan(features=(4, 6), kernels=(CUBE, CUBE), strides=((1, 1, 1), (2, 2, 2)))
ONE_BLOCK = replace(SMALL, features=(4, 6), kernels=(CUBE, CUBE), strides=((1, 1, 1), (2, 2, 2)), blocks=(1, 1))


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_logits_have_the_size_of_the_image() -> None:
    network = build_network(SMALL, channels=2, classes=3, seed=0)
    assert isinstance(network, ResidualEncoderUNet)
    assert network(image(1, 2, 4, 16, 12)).shape == (1, 3, 4, 16, 12)
    assert [len(level) for level in network.encoder] == [1, 2, 3]  # type: ignore[arg-type]


def test_weights_depend_on_the_seed_alone() -> None:
    first, again, other = (build_network(SMALL, channels=1, classes=2, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_a_patch_does_not_depend_on_the_others_of_its_batch() -> None:
    """In training, too: the reason for instance norm."""
    network = build_network(SMALL, channels=1, classes=2, seed=0).train()
    one, other = image(1, 1, 4, 8, 8, seed=1), image(1, 1, 4, 8, 8, seed=2)
    with torch.no_grad():
        together = network(torch.cat([one, other]))
        # The same float32 sums, perhaps in another order.
        torch.testing.assert_close(together[:1], network(one), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("plan", [ONE_BLOCK, UNET, replace(ONE_BLOCK, blocks=(2, 1))], ids=["1", "unet", "2"])
def test_the_reach_is_that_of_the_gradient(plan: NetworkPlan) -> None:
    """Norms over the whole patch would let everything depend on everything: they are left out here."""
    network = build_network(plan, channels=1, classes=2, seed=0)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, torch.nn.InstanceNorm3d | torch.nn.BatchNorm3d):
                setattr(parent, name, torch.nn.Identity())
            if isinstance(child, torch.nn.MaxPool3d):
                setattr(parent, name, torch.nn.AvgPool3d(child.kernel_size))
    edge = 2 * max(plan.reach) + 2
    edge += edge % 2
    x = image(1, 1, edge, edge, edge).requires_grad_()
    middle = edge // 2
    network(x)[0, 0, middle, middle, middle].backward()
    assert x.grad is not None
    seen = x.grad[0, 0].abs().sum((1, 2)) > 0
    reached = int(seen.nonzero().max() - seen.nonzero().min()) + 1
    # A voxel of the coarser level is two of the finer: the reach is of an output voxel at its middle.
    assert plan.reach[0] - 1 <= reached <= plan.reach[0] + 1


@pytest.mark.parametrize("plan", [SMALL, UNET], ids=["residual_encoder", "unet"])
def test_parameters_are_as_many_as_the_planner_counts(plan: NetworkPlan) -> None:
    wide = replace(plan, features=tuple(16 * value for value in plan.features))
    network = build_network(wide, channels=1, classes=2, seed=0)
    # Norms, biases and the short cuts of blocks are not counted: below a fiftieth of networks so wide.
    assert _parameters(wide, 1, 2) == pytest.approx(count_parameters(network), rel=0.02)


def test_more_blocks_take_more_memory() -> None:
    sizes = {"patch": (16, 32, 32), "batch": 2, "channels": 1, "classes": 3, "activation_bytes": 4}
    few, many = (training_gb(replace(SMALL, blocks=blocks), **sizes) for blocks in ((1, 1, 1), (1, 3, 4)))  # type: ignore[arg-type]
    assert 0 < few < many < math.inf


@pytest.mark.parametrize("plan", [SMALL, UNET], ids=["residual_encoder", "unet"])
def test_the_graph_gives_what_the_network_gives(plan: NetworkPlan) -> None:
    """For other numbers of tiles than that of the export; batch norm is folded, so rounding differs."""
    onnxruntime = pytest.importorskip("onnxruntime")
    network = build_network(plan, channels=1, classes=3, seed=0)
    network.train()
    with torch.no_grad():
        network(image(4, 1, 4, 16, 16, seed=3))  # running statistics of its own
    session = onnxruntime.InferenceSession(onnx_graph(network, (4, 16, 16)), providers=["CPUExecutionProvider"])
    assert network.training, "left as it was"
    tiles = image(3, 1, 4, 16, 16, seed=4)
    (found,) = session.run(None, {"tiles": tiles.numpy()})
    with torch.no_grad():
        expected = network.eval()(tiles).numpy()
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_kind_that_is_not_known_is_named() -> None:
    with pytest.raises(ConfigError, match=r"kind = 'vit' of a network in the plan: known are unet, residual_encoder"):
        build_network(replace(UNET, kind="vit"), channels=1, classes=2, seed=0)
