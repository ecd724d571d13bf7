"""Compiled passes in training, by torch's tracer without its code generator, which needs a compiler of C++."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from method_runs import PHASES, rows, weights_of
from networks import tiny_unet
from rank_runs import KINDS, SEEDS

from semiseg.methods.settings import method_settings
from semiseg.models.build import compiled_passes


@pytest.fixture(autouse=True)
def _nothing_is_compiled_afterwards() -> Iterator[None]:
    yield
    torch._dynamo.reset()


USUAL = ("supervised", "pseudo_rounds", "mpl", "cross_pseudo")
"""Of which every run of the tests takes a look."""


@pytest.mark.parametrize(
    "kind", [kind if kind in USUAL else pytest.param(kind, marks=pytest.mark.thorough) for kind in sorted(KINDS)]
)
def test_every_method_learns_the_same(kind: str) -> None:
    """Weights after eight steps of all phases: sums in another order are off by float32's rounding of 1e-7 each."""
    cls, given = KINDS[kind]
    found = []
    for compiled in (False, True):
        networks = {name: tiny_unet(SEEDS[name], torch.float32) for name in cls.learner_names}
        method = cls(networks, method_settings(kind.split()[0], **given), PHASES)
        if compiled:
            for learner in method.learners.values():
                learner.forward = compiled_passes(learner.network, "aot_eager")
        rows(method, 0, 8)
        found.append(torch.cat([weights_of(network) for network in method.networks.values()]))
    assert torch.allclose(*found, rtol=1e-3, atol=1e-5)
