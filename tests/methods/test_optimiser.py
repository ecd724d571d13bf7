"""SGD by name, averaged networks, and the state of both."""

from __future__ import annotations

import math

import pytest
import torch
from networks import tiny_unet
from torch import Tensor, nn

from semiseg.errors import ModelError
from semiseg.methods import optimiser
from semiseg.methods.optimiser import (
    Average,
    NamedOptimiser,
    Parameters,
    flatten_state,
    global_norm,
    gradients_of,
    restore_state,
)
from semiseg.methods.settings import OptimiserSettings

pytestmark = pytest.mark.usefixtures("one_thread")


def small_network(seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return network


def gradients(network: nn.Module, seed: int) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator) for name, p in network.named_parameters()}


def by_hand(start: Tensor, given: list[Tensor], settings: OptimiserSettings, rates: list[float]) -> Tensor:
    """SGD with Nesterov momentum as torch documents it, in float64."""
    value = start.double()
    buffer: Tensor | None = None
    for gradient, rate in zip(given, rates, strict=True):
        update = gradient.double() + optimiser.WEIGHT_DECAY * value
        buffer = update if buffer is None else settings.momentum * buffer + update
        value = value - rate * (update + settings.momentum * buffer if settings.momentum else update)
    return value


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_equal_the_formula(momentum: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimiser, "WEIGHT_DECAY", 0.1)
    settings = OptimiserSettings(momentum=momentum)
    network = small_network()
    start = {name: value.detach().clone() for name, value in network.named_parameters()}
    sgd, rates = NamedOptimiser(network, settings), [0.1, 0.05, 0.2]
    given = [gradients(network, seed) for seed in range(3)]
    assert all(global_norm(gradient) < optimiser.LARGEST_NORM for gradient in given)  # none is clipped
    for gradient, rate in zip(given, rates, strict=True):
        sgd.step({name: value.clone() for name, value in gradient.items()}, rate)
    for name, value in network.named_parameters():
        expected = by_hand(start[name], [g[name] for g in given], settings, rates)
        assert torch.allclose(value.double(), expected, atol=1e-6)  # float32 against float64 over three steps
        assert value.grad is None


def test_steps_equal_torch_bit_for_bit() -> None:
    settings = OptimiserSettings(learning_rate=0.1)
    ours, theirs = small_network(), small_network()
    sgd = NamedOptimiser(ours, settings)
    torchs = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=3e-5, nesterov=True)
    for seed in range(3):
        sgd.step(gradients(ours, seed), 0.1)
        for name, parameter in theirs.named_parameters():
            parameter.grad = gradients(theirs, seed)[name]
        torchs.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("clip", [0.5, 12.0, math.inf])
def test_the_gradient_is_clipped_and_its_norm_told(clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimiser, "WEIGHT_DECAY", 0.0)
    assert optimiser.LARGEST_NORM == 12
    monkeypatch.setattr(optimiser, "LARGEST_NORM", clip)
    network = small_network()
    start = {name: value.detach().clone() for name, value in network.named_parameters()}
    settings = OptimiserSettings(momentum=0.0)
    given = gradients(network, 1)
    norm = float(global_norm(given))
    assert 0.5 < norm < 12
    told = NamedOptimiser(network, settings).step({k: v.clone() for k, v in given.items()}, 1.0)
    assert float(told) == pytest.approx(norm, rel=1e-6)
    moved = {name: start[name] - value.detach() for name, value in network.named_parameters()}
    # The norm of differences of float32 numbers around 1.
    assert float(global_norm(moved)) == pytest.approx(0.5 if clip == 0.5 else norm, rel=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_optimisers_state_goes_and_comes_back_bit_for_bit(momentum: float) -> None:
    settings = OptimiserSettings(momentum=momentum)
    first, second = small_network(), small_network()
    named, resumed = NamedOptimiser(first, settings), NamedOptimiser(second, settings)
    assert named.momentum() == {}
    named.step(gradients(first, 0), 0.1)
    assert named.momentum().keys() == (dict(first.named_parameters()).keys() if momentum else set())
    tensors = flatten_state({"student": first}, {"student": named})
    assert {name.split("/", 1)[0] for name in tensors} == ({"network", "momentum"} if momentum else {"network"})
    kept = {name: value.clone() for name, value in tensors.items()}
    restore_state(tensors, {"student": second}, {"student": resumed})
    resumed.step(gradients(second, 1), 0.1)
    now = flatten_state({"student": first}, {"student": named})
    assert all(torch.equal(kept[name], value) for name, value in now.items())  # copies were taken
    named.step(gradients(first, 1), 0.1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(value, resumed.momentum()[name]) for name, value in named.momentum().items())


def test_without_momentum_to_load_the_optimiser_begins_anew() -> None:
    settings = OptimiserSettings()
    used, fresh = small_network(), small_network()
    old, new = NamedOptimiser(used, settings), NamedOptimiser(fresh, settings)
    old.step(gradients(used, 0), 0.1)
    old.load_momentum({})
    assert old.momentum() == {}
    used.load_state_dict(fresh.state_dict())
    for network, one in ((used, old), (fresh, new)):
        one.step(gradients(network, 1), 0.1)
    assert all(torch.equal(a, b) for a, b in zip(used.parameters(), fresh.parameters(), strict=True))


def test_gradients_of_a_loss_without_some_parameter_are_zero() -> None:
    network = small_network()
    parameters: Parameters = dict(network.named_parameters())
    found = gradients_of(2 * parameters["0.weight"].sum(), parameters)
    assert torch.equal(found["0.weight"], torch.full((4, 3), 2.0))
    assert all(torch.count_nonzero(found[name]) == 0 for name in parameters if name != "0.weight")
    assert all(p.grad is None for p in network.parameters())


def test_the_average_follows_weights_and_running_statistics() -> None:
    network = tiny_unet(dtype=torch.float32)
    average = Average(network, decay=0.15)
    expected = {name: value.double() for name, value in network.state_dict().items()}
    generator = torch.Generator().manual_seed(2)
    for update in range(3):
        for value in network.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=generator) if value.is_floating_point() else value + 1)
        average.update(network)
        decay = min(0.15, (1 + update) / (10 + update))
        for name, value in network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    found = average.network.state_dict()
    assert any("running_var" in name for name in found)
    for name, value in found.items():
        if value.is_floating_point():
            assert torch.allclose(value.double(), expected[name], atol=1e-6), name  # float32 against float64
        else:
            assert torch.equal(value, network.state_dict()[name]), name
    assert average.updates == 3
    assert not any(p.requires_grad for p in average.network.parameters())


def test_a_young_average_follows_quickly_and_an_old_one_slowly() -> None:
    network, start = small_network(0), small_network(0)
    average = Average(network, decay=0.99)
    network.load_state_dict(small_network(1).state_dict())
    average.update(network)
    a, b, mine = (net.state_dict()["0.bias"] for net in (start, network, average.network))
    assert torch.allclose(mine, 0.1 * a + 0.9 * b, atol=1e-6)  # float32 rounding
    for _ in range(2000):
        average.updates += 1
    before = mine.clone()
    network.load_state_dict(start.state_dict())
    average.update(network)
    assert torch.allclose(mine, 0.99 * before + 0.01 * a, atol=1e-6)


def test_a_restarted_average_is_the_network_and_follows_slowly_from_the_first() -> None:
    network = small_network(0)
    average = Average(network, decay=0.9)
    for seed in (1, 2):
        network.load_state_dict(small_network(seed).state_dict())
        average.update(network)
    average.restart(network)
    assert all(torch.equal(a, b) for a, b in zip(average.network.parameters(), network.parameters(), strict=True))
    with torch.no_grad():
        network[0].bias += 1  # type: ignore[index]
    assert not torch.equal(average.network.state_dict()["0.bias"], network.state_dict()["0.bias"])
    average.update(network)
    moved = network.state_dict()["0.bias"] - average.network.state_dict()["0.bias"]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.9), rtol=0, atol=1e-6)  # float32 rounding


def test_a_state_of_another_network_is_refused_by_name() -> None:
    networks: dict[str, nn.Module] = {"student": small_network()}
    optimisers = {"student": NamedOptimiser(networks["student"], OptimiserSettings())}
    tensors = flatten_state(networks, optimisers)
    with pytest.raises(ModelError, match="does not fit network teacher"):
        restore_state(tensors, {"teacher": small_network()}, {})
    tensors["network/student/0.weight"] = torch.zeros(2, 2)
    with pytest.raises(ModelError, match="does not fit network student"):
        restore_state(tensors, networks, optimisers)
