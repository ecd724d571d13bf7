"""How often ranks wait for each other in a step, and for how many bytes: as `benchmarks/cluster_model.py` has it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import CLASSES, TINY
from rank_runs import KINDS, SEEDS, tiny_unet, whole_batch
from torch import Tensor, distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from semiseg.methods.base import Batch, UnlabelledBatch
from semiseg.methods.phases import Phases
from semiseg.methods.settings import method_settings
from semiseg.models.build import count_parameters
from semiseg.randomness import Draw
from semiseg.world import first_sample, size

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = 4
WARMUP, MOVES = 0, 2
"""Steps: on labels alone, and of the training phase, in which MPL's teacher moves."""


def counted(kind: str) -> dict[str, list[int]]:
    """The numbers in each all-reduce of a step on labels alone, and of one of the training phase."""
    cls, given = KINDS[kind]
    networks = {name: tiny_unet(SEEDS[name], torch.float32) for name in cls.learner_names}
    method = cls(networks, method_settings(kind.split()[0], **given), Phases.of_steps(MOVES, MOVES + 1, MOVES + 1))
    found: dict[str, list[int]] = {}
    share = BATCH // size()
    own = slice(first_sample(share), first_sample(share) + share)
    for name, step in (("labels alone", WARMUP), ("training", MOVES)):
        labelled, views = whole_batch(step, BATCH, torch.float32)
        labels, given_labels = labelled.labels[own].clamp_max(CLASSES - 1), views.labels
        pseudo = given_labels[own].clamp_min(0) if given_labels is not None and method.scan_labellers(step) else None
        unlabelled = UnlabelledBatch(views.weak[own], views.strong[own], pseudo)
        sizes: list[int] = []
        with _counting(sizes):
            method.step(
                Batch(labelled.images[own], labels),
                unlabelled if method.needs_unlabelled(step) else None,
                Draw(seed=4, step=step, sample=own.start),
            )
        found[name] = sizes
    return found


class _counting:  # noqa: N801 (used as a function)
    """Within: each all-reduce is done, and its length is kept."""

    def __init__(self, sizes: list[int]) -> None:
        self._sizes, self._all_reduce = sizes, distributed.all_reduce

    def __enter__(self) -> None:
        def all_reduce(tensor: Tensor, *arguments: Any, **named: Any) -> Any:
            self._sizes.append(tensor.numel())
            return self._all_reduce(tensor, *arguments, **named)

        distributed.all_reduce = all_reduce  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        distributed.all_reduce = self._all_reduce


@pytest.fixture(params=[2, 4])
def counts(request: pytest.FixtureRequest) -> Iterator[dict[str, dict[str, list[int]]]]:
    """As one of so many ranks whose sums come back as they are: how often they are asked for is the same by gloo."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=request.param)
    yield {kind: counted(kind) for kind in KINDS}
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def model() -> Any:
    file = Path(__file__).parents[2] / "benchmarks" / "cluster_model.py"
    spec = spec_from_file_location("cluster_model", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["cluster_model"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_step_waits_as_often_as_the_model_of_a_cluster_says(counts: dict[str, Any], model: Any) -> None:
    parameters = count_parameters(tiny_unet(0))
    for kind, found in counts.items():
        name = kind if kind in model.STEPS else kind.split()[0]
        wanted = {"training": model.STEPS[name], "labels alone": model.STEPS["supervised"]}
        if name == "cross_pseudo":
            del wanted["labels alone"]  # of both of its networks
        for phase, waiting in wanted.items():
            sizes = found[phase]
            assert len(sizes) == waiting.calls(TINY), (kind, phase)
            assert sizes.count(parameters) == waiting.gradients, (kind, phase)
            # The model takes each of a loss's sums for as long as the longest of them.
            unused = waiting.bytes(TINY, parameters, CLASSES) - 4 * sum(sizes)
            assert 0 <= unused <= waiting.sums * 4 * 2 * CLASSES, (kind, phase)


def test_the_model_knows_the_papers_network(model: Any) -> None:
    """Norms and parameters by which it counts are those that are built."""
    from semiseg.models.build import build_network
    from semiseg.models.layers import BatchNorm3d

    network = build_network(model.PAPER, channels=1, classes=14, seed=0)
    norms = [module.num_features for module in network.modules() if isinstance(module, BatchNorm3d)]
    assert norms == model._norms(model.PAPER)
    constants = (Path(model.__file__).parent / "cluster_constants.toml").read_text()
    assert f"value = {count_parameters(network)}\n" in constants
