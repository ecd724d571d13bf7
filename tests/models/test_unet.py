"""The network: shapes, sizes, first weights, and batch norms that can be told to leave their buffers alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from semiseg.data.plan import NetworkPlan
from semiseg.models.build import build_network, count_parameters, in_channels_last
from semiseg.models.layers import BatchNorm3d, Conv3d, InstanceNorm3d, batch_statistics_only
from semiseg.models.unet import UNet3d

pytestmark = pytest.mark.usefixtures("one_thread")

CUBE = (3, 3, 3)
SMALL = NetworkPlan(features=(4, 6, 8), kernels=(CUBE,) * 3, strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)))
FLAT = NetworkPlan(features=(4, 6, 8), kernels=((1, 3, 3), CUBE, CUBE), strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)))
PAPER = NetworkPlan(features=(32, 64, 128, 256, 512), kernels=(CUBE,) * 5, strides=((1, 1, 1), *((2, 2, 2),) * 4))


def small(seed: int = 0, plan: NetworkPlan = SMALL) -> UNet3d:
    return build_network(plan, channels=2, classes=3, seed=seed)


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("learning", [True, False])
def test_a_single_patch_is_convolved_as_it_is_among_others(learning: bool) -> None:
    """oneDNN convolves both, so the numbers are the same, bit for bit; torch would choose another kernel for one."""
    torch.manual_seed(0)
    layer = Conv3d(3, 4, 3, padding=1, bias=False).train(learning)
    alone, pair = image(1, 3, 6, 8, 10), image(1, 3, 6, 8, 10).repeat(2, 1, 1, 1, 1)
    with torch.set_grad_enabled(learning):
        got, wanted = layer(alone), layer(pair)
        assert torch.equal(got, wanted[:1])
    if learning:
        got.square().sum().backward()
        weight, layer.weight.grad = layer.weight.grad, None
        wanted.square().sum().backward()
        assert weight is not None
        assert layer.weight.grad is not None
        torch.testing.assert_close(2 * weight, layer.weight.grad, rtol=1e-5, atol=1e-3)  # sums of 480 float32 products
    tangent = torch.func.jvp(layer.train(), (alone,), (alone,))[1]
    torch.testing.assert_close(tangent, functional.conv3d(alone, layer.weight, padding=1))


@pytest.mark.parametrize(
    ("plan", "patch", "coarsest"),
    [(SMALL, (8, 8, 12), (2, 2, 3)), (FLAT, (4, 8, 12), (2, 2, 3)), (FLAT, (2, 12, 8), (1, 3, 2))],
)
def test_logits_have_the_shape_of_the_image(
    plan: NetworkPlan, patch: tuple[int, int, int], coarsest: tuple[int, int, int]
) -> None:
    network = small(plan=plan)
    seen: list[torch.Size] = []
    network.encoder[-1].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    assert network(image(2, 2, *patch)).shape == (2, 3, *patch)
    assert seen == [(2, 8, *coarsest)]


def test_a_network_of_one_level() -> None:
    plan = NetworkPlan(features=(4,), kernels=(CUBE,), strides=((1, 1, 1),))
    assert small(plan=plan)(image(1, 2, 3, 5, 7)).shape == (1, 3, 3, 5, 7)


def test_a_thin_kernel_does_not_look_along_its_axis() -> None:
    """Each slice is computed alone where kernels and strides are flat (with running statistics)."""
    plan = NetworkPlan(features=(4, 6), kernels=((1, 3, 3),) * 2, strides=((1, 1, 1), (1, 2, 2)))
    network = small(plan=plan).eval()
    one, other = image(1, 2, 4, 8, 8), image(1, 2, 4, 8, 8)
    other[:, :, 1] += 1
    with torch.no_grad():
        moved = (network(one) - network(other)).abs().amax((0, 1, 3, 4))
    # Not bit-equal: the convolution may block differently; what leaks through would be of the order of 1.
    assert moved[1] > 0.1
    assert moved[[0, 2, 3]].max() < 1e-5


def level_numbers(plan: NetworkPlan, channels: int) -> tuple[list[int], list[int], list[int]]:
    """Numbers of encoder, decoder and up-convolution levels, counted by hand: no conv bias, two per batch norm."""

    def level(inputs: int, outputs: int, kernel: tuple[int, int, int]) -> int:
        return math.prod(kernel) * outputs * (inputs + outputs) + 2 * 2 * outputs

    f, k = plan.features, plan.kernels
    encoder = [level(a, b, c) for a, b, c in zip((channels, *f), f, k, strict=False)]
    decoder = [level(2 * a, a, c) for a, c in zip(f[:-1], k[:-1], strict=True)]
    ups = [math.prod(s) * b * a + a for a, b, s in zip(f[:-1], f[1:], plan.strides[1:], strict=True)]
    return encoder, decoder, ups


@pytest.mark.parametrize("plan", [PAPER, FLAT], ids=["paper", "flat"])
def test_numbers_of_parameters_level_by_level(plan: NetworkPlan) -> None:
    with torch.device("meta"):
        network = UNet3d(channels=1, classes=14, plan=plan)
    encoder, decoder, ups = level_numbers(plan, 1)
    assert list(map(count_parameters, network.encoder)) == encoder
    assert list(map(count_parameters, network.decoder)) == decoder
    assert list(map(count_parameters, network.ups)) == ups
    assert count_parameters(network) == sum(encoder + decoder + ups) + 14 * plan.features[0] + 14


def test_the_papers_network_has_22_million_parameters() -> None:
    with torch.device("meta"):
        network = UNet3d(channels=1, classes=14, plan=PAPER)
    # The usual 3D U-Net of five levels from 32 to 512 features: 22.6 million.
    assert count_parameters(network) == pytest.approx(22.6e6, rel=0.01)


def test_first_weights_are_he_normal() -> None:
    plan = NetworkPlan(features=(16, 24, 32), kernels=((1, 3, 3), CUBE, CUBE), strides=((1, 1, 1), *((2, 2, 2),) * 2))
    network = build_network(plan, channels=4, classes=8, seed=3)
    looked_at = 0
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            weight = module.weight.detach()
            # As torch counts it, and nnU-Net with it; a transposed convolution's is that of its backward pass.
            fan_in = weight.shape[1] * math.prod(weight.shape[2:])
            # The deviation of n normal numbers has a relative error of 1/sqrt(2n), their mean one of 1/sqrt(n)
            # deviations; 4.5 of it is beyond chance for the dozen layers.
            n = weight.numel()
            expected = math.sqrt(2 / fan_in)
            assert float(weight.std()) == pytest.approx(expected, rel=4.5 / math.sqrt(2 * n)), name
            assert abs(float(weight.mean())) < 4.5 * expected / math.sqrt(n), name
            assert module.bias is None or torch.count_nonzero(module.bias) == 0, name
            looked_at += 1
        if isinstance(module, BatchNorm3d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.count_nonzero(module.bias) == 0
    assert looked_at == 6 + 4 + 2 + 1


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = small(5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    again, other = small(5).state_dict(), small(6).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_channels_last_changes_the_layout_only() -> None:
    plain, turned = small().eval(), in_channels_last(small()).eval()
    assert turned.encoder[1][0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), turned.parameters(), strict=True))
    with torch.no_grad():
        # The same sums in another order: float32 rounding.
        assert torch.allclose(plain(image(1, 2, 8, 8, 8)), turned(image(1, 2, 8, 8, 8)), atol=1e-5)


def buffers(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.named_buffers()}


def unchanged(network: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(before[name], value) for name, value in network.named_buffers())


def test_measuring_uses_the_batchs_statistics_and_moves_no_buffer() -> None:
    network = small().train()
    x = image(2, 2, 8, 8, 8) + 3
    before = buffers(network)
    with batch_statistics_only(network):
        measured = network(x)
        assert unchanged(network, before)
        network.eval()
        assert torch.equal(network(x), measured)  # not the running statistics, in whatever mode
        network.train()
    trained = network(x)
    assert torch.equal(trained, measured)
    assert not unchanged(network, before)


def test_measuring_nests_and_ends_with_an_exception() -> None:
    network = small().train()
    x = image(1, 2, 8, 8, 8)
    before = buffers(network)

    def measure_and_fail() -> None:
        with batch_statistics_only(network):
            with batch_statistics_only(network):
                network(x)
            network(x)  # the inner one has ended, the outer one has not
            assert unchanged(network, before)
            raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        measure_and_fail()
    assert not any(layer.measuring for layer in network.modules() if isinstance(layer, BatchNorm3d))
    network(x)
    assert not unchanged(network, before)


def test_instance_norm_takes_no_patch_at_all() -> None:
    """As a rank may have none of a step; its parameters have gradients all the same, which the ranks add up."""
    norm = InstanceNorm3d(3, affine=True)
    found = norm(torch.empty((0, 3, 4, 5, 6), requires_grad=True))
    assert found.shape == (0, 3, 4, 5, 6)
    found.sum().backward()
    for parameter in norm.parameters():
        assert torch.equal(parameter.grad, torch.zeros(3))
    x = image(2, 3, 4, 5, 6)
    assert torch.equal(norm(x), nn.InstanceNorm3d(3, affine=True)(x))


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kernel", [CUBE, (1, 3, 3), (5, 3, 3)])
def test_gradients_in_bfloat16_are_those_of_float32(kernel: tuple[int, int, int], depth: int) -> None:
    """Whatever was in the memory that a kernel is given. torch's own layer fails at depth 2 where the processor has
    bfloat16, and at depths 2 to 4 with the deep kernel: parts of the weights' gradient are never written."""
    layer = Conv3d(16, 16, kernel, padding=[size // 2 for size in kernel], bias=False)
    x = image(2, 16, depth, 5, 6)
    gradients = []
    for half in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y = layer(x)
        _fill_free_memory_with_nan()
        (y.float() * image(*y.shape)).sum().backward()
        assert layer.weight.grad is not None
        gradients.append(layer.weight.grad.clone())
    # bfloat16 rounds inputs to 8 bits (0.4 %), and errors of a sum average out.
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 0.01


def _fill_free_memory_with_nan() -> None:
    """So that what is not written afterwards shows."""
    for exponent in range(1, 7):
        pieces = [torch.full((10**exponent,), math.nan) for _ in range(6)]
        del pieces
