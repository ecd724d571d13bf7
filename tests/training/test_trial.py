"""Trials come back with what they are asked for; what they measure is this machine's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from semiseg import planning, train_run
from semiseg.data.plan import NetworkPlan, Plan
from semiseg.methods import build
from semiseg.methods.build import build_method
from semiseg.methods.phases import Phases
from semiseg.methods.settings import method_settings
from semiseg.processes import processor_name
from semiseg.settings import RunSettings
from semiseg.training import session, trial
from semiseg.training.settings import TrainSettings
from semiseg.training.settled import Settled, read_settled, write_settled
from semiseg.training.trial import compiling_pays, fastest_threads, voxel_seconds

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_torch_is_left_with_the_fastest_number_of_threads() -> None:
    found = fastest_threads(2)
    assert found in (1, 2)
    assert torch.get_num_threads() == found


@pytest.mark.parametrize(
    ("cores", "seconds", "best"),
    [(8, {1: 3.0, 4: 1.0, 8: 2.0}, 4), (8, {1: 1.0, 4: 1.0, 8: 1.0}, 1), (1, {1: 1.0}, 1), (2, {1: 2.0, 2: 1.0}, 2)],
)
def test_one_thread_half_of_the_cores_and_all_are_tried(
    monkeypatch: pytest.MonkeyPatch, cores: int, seconds: dict[int, float], best: int
) -> None:
    """By the shortest of a few steps; fewer threads where they are as fast."""
    tried: list[int] = []

    def steps(*arguments: object) -> list[float]:
        tried.append(torch.get_num_threads())
        return [9.0, seconds[torch.get_num_threads()]]

    monkeypatch.setattr(trial, "_step_seconds", steps)
    assert fastest_threads(cores) == best == torch.get_num_threads()
    assert tried == sorted(seconds)


@pytest.mark.parametrize(("ranks", "share"), [(1, 8), (4, 2), (16, 1)])
def test_ranks_of_a_machine_try_their_share_of_its_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ranks: int, share: int
) -> None:
    """At the start, and where the pace collapses."""
    given: list[int] = []

    def tried(most: int) -> int:
        given.append(most)
        return most

    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    for room in (planning, session):
        monkeypatch.setattr(room, "usable_cores", lambda: 8)
    for room in (trial, session):
        monkeypatch.setattr(room, "fastest_threads", tried)
    settings = RunSettings(train=TrainSettings(device="cpu", precision="float32"))
    with session.torch_as_it_was():
        settled, _ = planning.settle_machine(tmp_path, settings)
    assert session._fastest_threads_here() == settled.threads == share
    assert given == [share, share]


@pytest.mark.usefixtures("one_thread")
def test_what_a_voxel_costs_is_told_for_every_width(plan: Plan) -> None:
    costs = voxel_seconds(plan, (2, 4), CPU, None, most_features=512, most_seconds=60.0)
    assert list(costs) == [2, 4]
    # A step of 2 patches of 8 x 8 x 8 voxels: more than a nanosecond and less than a second for each.
    assert all(1e-9 < cost < 1 for cost in costs.values())


def test_the_trials_network_is_that_of_the_plan_at_another_width(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four voxels are left at the coarsest level, and no level has more features than may be."""
    flat = NetworkPlan(features=(8, 16, 16), kernels=((1, 3, 3),) * 3, strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)))
    seen: list[tuple[object, ...]] = []

    def steps(network: NetworkPlan, *arguments: object) -> list[float]:
        seen.append((network, *arguments))
        return [2.0, 1.0]

    monkeypatch.setattr(trial, "_step_seconds", steps)
    costs = voxel_seconds(replace(plan, teacher=flat), (4, 8), CPU, torch.bfloat16, most_features=16, most_seconds=60.0)
    assert costs == {4: 1 / (2 * 8 * 16 * 16), 8: 1 / (2 * 8 * 16 * 16)}
    networks = [one[0] for one in seen]
    assert networks == [replace(flat, features=(4, 8, 16)), replace(flat, features=(8, 16, 16))]
    assert seen[0][1:5] == ((8, 16, 16), 2, CPU, torch.bfloat16)
    assert seen[0][-2:] == (1, 3)  # channels and classes of the plan


def test_memory_that_does_not_suffice_ends_at_the_widest_that_fits(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(network: NetworkPlan, *arguments: object) -> list[float]:
        if network.features[0] > 8:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return [1.0]

    monkeypatch.setattr(trial, "_step_seconds", steps)
    wide = replace(plan, teacher=replace(plan.teacher, features=(32, 64)))
    told = {"most_features": 512, "most_seconds": 60.0}
    assert list(voxel_seconds(wide, (4, 8, 16, 32), CPU, None, **told)) == [4, 8]


def test_a_trial_that_would_take_too_long_ends_before_it(plan: Plan) -> None:
    """One network is tried in any case."""
    assert list(voxel_seconds(plan, (2, 4), CPU, None, most_features=512, most_seconds=0.0)) == [2]


# Compiling.


def compiled_by(monkeypatch: pytest.MonkeyPatch, seconds: float, loss: float) -> None:
    """Steps of a second and a loss of 2 where they are eager, and others where they are compiled."""

    def step(self: object) -> tuple[float, float]:
        return (seconds, loss) if hasattr(self._forward, "compiled") else (1.0, 2.0)  # type: ignore[attr-defined]

    def compiled(network: torch.nn.Module, backend: str) -> torch.nn.Module:
        network.compiled = True  # type: ignore[assignment]
        return network

    monkeypatch.setattr(trial._Trial, "step", step)
    monkeypatch.setattr(trial, "compiled_passes", compiled)


@pytest.mark.parametrize(
    ("seconds", "loss", "pays"), [(0.5, 2.0, True), (0.9, 2.0, False), (0.5, 2.1, False), (0.5, float("nan"), False)]
)
def test_compiling_pays_where_it_is_faster_and_right(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, seconds: float, loss: float, pays: bool
) -> None:
    compiled_by(monkeypatch, seconds, loss)
    assert compiling_pays(plan, CPU, None) is pays


def test_what_cannot_be_compiled_does_not_pay(plan: Plan) -> None:
    assert not compiling_pays(plan, CPU, None, backend="of nobody")


def test_a_trial_of_compiling_takes_steps(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's tracer without its code generator: as right, and no time is said of it."""
    monkeypatch.setattr(trial, "COMPILED_GAIN", 1e9)
    assert compiling_pays(plan, CPU, None, backend="aot_eager")
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("device", "asked", "settled", "tried"),
    [
        ("cuda", TrainSettings(minutes=60), Settled(), True),
        ("cpu", TrainSettings(minutes=60), Settled(), False),
        ("cuda", TrainSettings(minutes=59), Settled(), False),
        ("cuda", TrainSettings(steps=9), Settled(), False),
        ("cuda", TrainSettings(minutes=60), Settled(compiled=False), False),
        ("cuda", TrainSettings(minutes=60), Settled(timeline=((0, 0.0, 0.1, 0),)), False),
    ],
)
def test_compiling_is_tried_once_on_a_gpu_where_there_is_time(
    plan: Plan, tmp_path: Path, device: str, asked: TrainSettings, settled: Settled, tried: bool
) -> None:
    settings = RunSettings(train=asked)
    one = session.Session(
        tmp_path, [], plan, settings.sampling, settings.augment, settings.method, asked, torch.device(device)
    )
    assert train_run._may_be_compiled(one, settled) is tried


def test_what_the_trial_found_is_kept(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RunSettings()
    parts = (settings.sampling, settings.augment, settings.method, settings.train)
    one = session.Session(tmp_path, [], plan, *parts, CPU)
    for found in (True, False):
        monkeypatch.setattr(trial, "compiling_pays", lambda *told, found=found: found)
        assert train_run._compiled_or_not(one, quiet=True).compiled is found
        assert read_settled(tmp_path).compiled is found


def test_another_torch_does_not_trust_the_trial(tmp_path: Path) -> None:
    settings = RunSettings(train=TrainSettings(device="cpu", precision="float32", threads=1))
    with session.torch_as_it_was():
        settled, _ = planning.settle_machine(tmp_path, settings)
        write_settled(tmp_path, replace(settled, compiled=True))
        assert planning.settle_machine(tmp_path, settings)[0].compiled
        write_settled(tmp_path, replace(settled, compiled=True, torch="2.0.0"))
        assert planning.settle_machine(tmp_path, settings)[0].compiled is None


def test_a_device_that_is_no_gpu_of_nvidia_is_not_asked_for_its_name_there(tmp_path: Path) -> None:
    """mps, say; torch's `meta` is such a device, and on every machine."""
    settings = RunSettings(train=TrainSettings(device="meta", precision="float32", threads=1))
    with session.torch_as_it_was():
        settled, device = planning.settle_machine(tmp_path, settings)
    assert (settled.device, device.type, settled.processor) == ("meta", "meta", processor_name())


def test_passes_are_eager_where_compiled_ones_fail(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first step."""
    settings = RunSettings()
    parts = (settings.sampling, settings.augment, settings.method, settings.train)
    one = session.Session(tmp_path, [], plan, *parts, CPU, compiled=True)
    tried: list[bool] = []

    def fails_compiled(given: session.Session) -> None:
        tried.append(given.compiled)
        if given.compiled:
            raise RuntimeError("no compiler")

    monkeypatch.setattr(session, "rehearse", fails_compiled)
    assert not session.rehearsed(one).compiled
    assert tried == [True, False]
    assert read_settled(tmp_path).compiled is False


def test_a_method_is_built_with_compiled_passes(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def compiled(network: torch.nn.Module) -> torch.nn.Module:
        asked.append(network)
        return network

    monkeypatch.setattr(build, "compiled_passes", compiled)
    told = {"seed": 0, "device": CPU}
    method = build_method(plan, method_settings("mpl"), Phases.of_steps(0, 1, 1), **told, compiled=True)
    assert asked == [method.networks["student"], method.networks["teacher"]]
    build_method(plan, method_settings("mpl"), Phases.of_steps(0, 1, 1), **told)
    assert len(asked) == 2
