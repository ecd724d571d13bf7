"""Drives a learning method step by step on made-up batches, and looks at its networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from networks import CLASSES, TINY
from torch import Tensor, nn

from semiseg.data.plan import NetworkPlan
from semiseg.methods.base import Batch, UnlabelledBatch
from semiseg.methods.learner import StudentMethod
from semiseg.methods.phases import Phases
from semiseg.randomness import Draw
from semiseg.types import Shape

SHAPE = (4, 4, 4)
PHASES = Phases.of_steps(2, 6, 8)
TRAINING = Phases.of_steps(0, 1000, 1000)
WIDER = NetworkPlan(features=(4, 5), kernels=TINY.kernels, strides=TINY.strides)


def batches(step: int, shape: Shape = SHAPE) -> tuple[Batch, UnlabelledBatch]:
    """Two labelled and two unlabelled patches of a step; these have no labels."""
    generator = torch.Generator().manual_seed(step)
    images, weak, noise = torch.randn((3, 2, 1, *shape), generator=generator)
    labels = torch.randint(0, CLASSES, (2, *shape), generator=generator)
    return Batch(images, labels), UnlabelledBatch(weak, weak + 0.3 * noise)


def scan_labels(step: int, shape: Shape = SHAPE) -> Tensor:
    """What a teacher may have found in the two unlabelled patches of a step."""
    return torch.randint(0, CLASSES, (2, *shape), generator=torch.Generator().manual_seed(1000 + step))


def rows(trained: StudentMethod[Any], start: int, stop: int, shape: Shape = SHAPE) -> list[dict[str, Tensor]]:
    """The metrics of the steps `[start, stop)`, with what the loop would give for each."""
    found = []
    for step in range(start, stop):
        labelled, unlabelled = batches(step, shape)
        if trained.scan_labellers(step):
            unlabelled = replace(unlabelled, labels=scan_labels(step, shape))
        given = unlabelled if trained.needs_unlabelled(step) else None
        found.append(trained.step(labelled, given, Draw(seed=4, step=step)))
    return found


def run(trained: StudentMethod[Any], start: int = 0, stop: int = 1) -> dict[str, Tensor]:
    """The metrics of the last of the steps `[start, stop)`."""
    return rows(trained, start, stop)[-1]


def copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor], *, only: Callable[[str], bool] = lambda name: True) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a if only(name))


def weights_of(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def running(name: str) -> bool:
    return "running" in name or "num_batches" in name


def resumed(build: Callable[[], StudentMethod[Any]], cut: int, stop: int, shape: Shape = SHAPE) -> None:
    """Asserts that a run which stops at `cut` and goes on in a new process ends as one that never stopped."""
    whole, first, second = build(), build(), build()
    rows(whole, 0, stop, shape)
    rows(first, 0, cut, shape)
    tensors, numbers = first.state()
    kept = {name: value.clone() for name, value in tensors.items()}
    for network in second.networks.values():  # what it was before must not matter
        for value in network.state_dict().values():
            value.zero_()
    second.load_state(kept, dict(numbers))
    rows(second, cut, stop, shape)
    for name, network in whole.networks.items():
        assert same(copied(network), copied(second.networks[name])), name
    (expected, expected_numbers), (found, found_numbers) = whole.state(), second.state()
    assert expected_numbers == found_numbers
    assert same(expected, found)
