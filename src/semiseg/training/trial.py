"""Short trials of this machine: how many threads are fastest, and what a voxel costs in training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod
from typing import cast

import torch
from torch import Tensor

from semiseg.data.plan import NetworkPlan, Plan
from semiseg.losses import supervised_loss
from semiseg.methods.optimiser import NamedOptimiser
from semiseg.methods.settings import OptimiserSettings
from semiseg.models.build import build_network, compiled_passes, in_channels_last
from semiseg.models.layers import Network
from semiseg.processes import usable_cores
from semiseg.types import Shape

_SIDE = 24
_THREAD_TRIES = 3
_COMPILED_WARM, _COMPILED_TRIES = 3, 5
"""Steps that are not timed, since CUDA graphs are compiled in the first and recorded in the second, and those that
are."""
TRIAL_SHARE = 0.03
"""Of the minutes, that trying networks may take."""
TRIED_LEVELS = 4
"""Of the networks that are tried: the coarser ones cost little."""
COMPILED_MINUTES = 60.0
"""Compiling passes takes a minute or so: it is not tried for shorter runs."""
COMPILED_GAIN, COMPILED_ERROR = 0.85, 0.01
"""Of the eager step's time, what a compiled one takes at most to be worth it; and how far the losses of the last steps
may be apart."""
WIDER_COSTS = 4.0
"""Times as long as half of its features a network takes at most."""


def fastest_threads(most: int | None = None) -> int:
    """By training steps of a small network with one thread, half of the cores and all of them; torch is left with it.

    most: cores; None is what this process may use.
    """
    cores = most or usable_cores()
    network = NetworkPlan(features=(8, 16), kernels=((3, 3, 3),) * 2, strides=((1, 1, 1), (2, 2, 2)))
    seconds: dict[int, float] = {}
    for threads in sorted({1, max(1, cores // 2), cores}):
        torch.set_num_threads(threads)
        times = _step_seconds(network, (_SIDE,) * 3, 2, torch.device("cpu"), None, _THREAD_TRIES)
        seconds[threads] = min(times)
    best = min(seconds, key=lambda threads: (seconds[threads], threads))
    torch.set_num_threads(best)
    return best


def voxel_seconds(
    plan: Plan,
    features: Iterable[int],
    device: torch.device,
    autocast: torch.dtype | None,
    *,
    most_features: int,
    most_seconds: float,
) -> dict[int, float]:
    """What a voxel of a labelled patch costs in a training step, in seconds, by features of the finest level.

    plan: tells levels, kernels and classes, on which the cost depends. most_features: of any level. The trial ends
    before the network that would take it beyond `most_seconds`, or for which memory does not suffice; one is tried in
    any case.
    """
    strides = plan.teacher.strides
    z, y, x = (4 * prod(level[axis] for level in strides) for axis in range(3))
    costs: dict[int, float] = {}
    began, took = time.perf_counter(), 0.0
    for base in features:
        network = replace(
            plan.teacher, features=tuple(min(base * 2**level, most_features) for level in range(len(strides)))
        )
        if costs and time.perf_counter() - began + WIDER_COSTS * took > most_seconds:
            break
        start = time.perf_counter()
        try:
            tries = 2 if device.type == "cpu" else 6
            times = _step_seconds(network, (z, y, x), 2, device, autocast, tries, len(plan.channels), plan.labels.count)
        except torch.cuda.OutOfMemoryError:
            break
        took = time.perf_counter() - start
        costs[base] = min(times) / (2 * z * y * x)
    return costs


def compiling_pays(plan: Plan, device: torch.device, autocast: torch.dtype | None, *, backend: str = "") -> bool:
    """Whether `torch.compile` makes training steps of the plan's student faster on this device, and as right.

    Small networks wait for their kernels to be launched on a GPU; compiled, they are launched as one. On a CPU steps
    took 0.93 to 0.99 of the time, and 77 s to compile (docs/lab/benchmarks.md), so it is not tried there. backend: of
    `torch.compile`. Where compiling fails it does not pay; a missing compiler is one reason.
    """

    def timed(compiled: bool) -> tuple[float, float]:
        network = build_network(plan.student, channels=len(plan.channels), classes=plan.labels.count, seed=0)
        network = in_channels_last(network.to(device))
        forward = compiled_passes(network, backend) if compiled else network
        trial = _Trial(network, forward, plan.patch, plan.batch, device, autocast)
        steps = [trial.step() for _ in range(_COMPILED_WARM + _COMPILED_TRIES)]
        return min(seconds for seconds, _ in steps[_COMPILED_WARM:]), steps[-1][1]

    try:
        (eager, loss), (compiled, same) = timed(False), timed(True)
    except Exception:  # noqa: BLE001 (whatever a compiler raises)
        return False
    return compiled < COMPILED_GAIN * eager and abs(same - loss) <= COMPILED_ERROR * abs(loss)


def _step_seconds(
    plan: NetworkPlan,
    patch: Shape,
    batch: int,
    device: torch.device,
    autocast: torch.dtype | None,
    tries: int,
    channels: int = 1,
    classes: int = 2,
) -> list[float]:
    """Seconds of training steps after a first that is not counted."""
    network = in_channels_last(build_network(plan, channels=channels, classes=classes, seed=0).to(device))
    trial = _Trial(network, network, patch, batch, device, autocast)
    return [trial.step()[0] for _ in range(tries + 1)][1:]


class _Trial:
    """Training steps on random patches that are taken again and again."""

    def __init__(
        self,
        network: Network,
        forward: Callable[[Tensor], Tensor],
        patch: Shape,
        batch: int,
        device: torch.device,
        autocast: torch.dtype | None,
    ) -> None:
        self._forward, self._device, self._autocast = forward, device, autocast
        self._optimiser = NamedOptimiser(network, OptimiserSettings())
        generator = torch.Generator().manual_seed(0)
        images = torch.randn((batch, network.channels, *patch), generator=generator).to(device)
        self._images = images.contiguous(memory_format=torch.channels_last_3d)
        self._labels = torch.randint(network.classes, (batch, *patch), generator=generator).to(device)

    def step(self) -> tuple[float, float]:
        """Seconds of a step, and its loss."""
        began = time.perf_counter()
        with torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
            logits = self._forward(self._images)
        loss = supervised_loss(self._labels, logits.float())
        torch.autograd.backward(loss)
        gradients = {name: cast(Tensor, p.grad) for name, p in self._optimiser.parameters.items()}
        self._optimiser.step(gradients, 1e-3)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - began, float(loss.detach())
