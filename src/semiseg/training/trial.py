"""Short trials of this machine: how many threads are fastest, and what a voxel costs in training."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from math import prod
from typing import cast

import torch
from torch import Tensor

from semiseg.data.plan import NetworkPlan, Plan
from semiseg.losses import supervised_loss
from semiseg.methods.optimiser import NamedOptimiser
from semiseg.methods.settings import OptimiserSettings
from semiseg.models.build import build_network, in_channels_last
from semiseg.processes import usable_cores
from semiseg.types import Shape

_SIDE = 24
_THREAD_TRIES = 3
TRIAL_SHARE = 0.03
"""Of the minutes, that trying networks may take."""
TRIED_LEVELS = 4
"""Of the networks that are tried: the coarser ones cost little."""
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
    optimiser = NamedOptimiser(network, OptimiserSettings())
    images = torch.zeros((batch, channels, *patch), device=device).contiguous(memory_format=torch.channels_last_3d)
    labels = torch.zeros((batch, *patch), dtype=torch.int64, device=device)
    times = []
    for _ in range(tries + 1):
        began = time.perf_counter()
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            logits = network(images)
        torch.autograd.backward(supervised_loss(labels, logits.float()))
        optimiser.step({name: cast(Tensor, p.grad) for name, p in optimiser.parameters.items()}, 1e-3)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return times[1:]
