from __future__ import annotations

from dataclasses import asdict, replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semiseg.data.fingerprint import CaseFingerprint, ChannelIntensity, Fingerprint
from semiseg.data.memory import training_gb
from semiseg.data.plan import NetworkPlan, read_plan, write_plan
from semiseg.data.planner import PlanSettings, Ranks, estimated_gb, make_plan, median_shape, target_spacing
from semiseg.errors import ConfigError
from semiseg.io.dataset import LabelScheme
from semiseg.models.build import build_network
from semiseg.ops.normalise import normalise_ct
from semiseg.types import Shape, Spacing

CPU = PlanSettings(device="cpu")
INTENSITY = ChannelIntensity(
    minimum=-900.0,
    maximum=2000.0,
    mean=80.0,
    median=90.0,
    deviation=130.0,
    percentile_00_5=-900.0,
    percentile_99_5=300.0,
)


def _fingerprint(cases: list[tuple[Shape, Spacing]], channel: str = "CT") -> Fingerprint:
    return Fingerprint(
        dataset="made up",
        channels=(channel,),
        cases=tuple(
            CaseFingerprint(id=f"case{i}", shape_zyx=shape, spacing_mm=spacing, labelled=i == 0)
            for i, (shape, spacing) in enumerate(cases)
        ),
        intensities=(INTENSITY,),
        class_voxels={0: 1, 1: 1},
    )


def _labels(organs: int) -> LabelScheme:
    return LabelScheme(names={value: f"organ {value}" for value in range(organs + 1)})


def _flare22() -> Fingerprint:
    """Spacings and shapes like FLARE22's: most at 2.5 mm, some thinner, some thicker, planes of 0.6 to 0.95
    mm.
    """
    rng = np.random.default_rng(22)
    slices = [1.25, *[2.5] * 36, *[5.0] * 13]
    planes = rng.uniform(0.65, 0.95, len(slices))
    planes += 0.8 - np.median(planes)
    return _fingerprint(
        [((int(rng.integers(85, 115)), 512, 512), (z, p, p)) for z, p in zip(slices, planes, strict=True)]
    )


@pytest.mark.parametrize("fingerprint", [_fingerprint([((100, 512, 512), (2.5, 0.8, 0.8))]), _flare22()])
def test_flare22_gets_the_papers_plan(fingerprint: Fingerprint) -> None:
    plan = make_plan(fingerprint, _labels(13))
    assert plan.patch == (64, 160, 160)
    assert plan.batch == 8
    for network in (plan.teacher, plan.student):
        assert network.features == (32, 64, 128, 256, 512)
        assert network.strides == ((1, 1, 1), *[(2, 2, 2)] * 4)
        assert network.kernels == ((3, 3, 3),) * 5
    # Without a tolerance for anything but the float mean of two middle spacings.
    assert plan.spacing_mm == pytest.approx((2.5, 0.8, 0.8), abs=1e-9)
    assert plan.anisotropic_axis == 0  # 2.5 / 0.8 = 3.1 > 3
    normalisation = plan.normalisation[0]
    assert (normalisation.scheme, normalisation.low, normalisation.high) == ("ct", -900.0, 300.0)
    assert (normalisation.mean, normalisation.deviation) == (80.0, 130.0)
    assert 40 < estimated_gb(plan, "cuda") < 48  # 42.7 GB of tensors were counted in a dense step with this plan


def test_hippocampus_patch_covers_the_median_scan() -> None:
    plan = make_plan(_fingerprint([((36, 50, 36), (1.0, 1.0, 1.0))], "MRI"), _labels(2), CPU)
    assert plan.patch == (40, 56, 40)
    assert plan.teacher.features == (16, 32, 64, 128)
    assert plan.anisotropic_axis is None
    assert plan.normalisation[0].scheme == "zscore"


def test_head_neck_patch_is_bounded_on_a_cpu_and_covers_the_scan_on_a_gpu() -> None:
    fingerprint = _fingerprint([((99, 59, 67), (3.0, 3.9, 3.9))])
    assert make_plan(fingerprint, _labels(4), CPU).patch == (80, 64, 64)
    assert make_plan(fingerprint, _labels(4)).patch == (112, 64, 80)


def test_a_much_coarser_axis_is_held_back() -> None:
    plan = make_plan(_fingerprint([((20, 320, 300), (6.0, 0.6, 0.6))], "MRI"), _labels(2))
    assert plan.anisotropic_axis == 0
    assert plan.teacher.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    assert plan.teacher.kernels == ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))


def test_target_spacing_is_the_median_and_the_10th_percentile_along_a_coarse_axis() -> None:
    plane = [((40, 400, 400), (z, 0.8, 0.8)) for z in (1.0, 3.0, 5.0, 5.0, 6.0)]
    # numpy's 10th percentile of 1, 3, 5, 5, 6 lies 0.4 of the way from 1 to 3.
    assert target_spacing(_fingerprint(plane)) == pytest.approx((1.8, 0.8, 0.8), abs=1e-12)
    thin = [((40, 400, 400), (z, 0.8, 0.8)) for z in (0.1, 5.0, 5.0)]
    assert target_spacing(_fingerprint(thin)) == pytest.approx((1.08, 0.8, 0.8), abs=1e-12)
    finest = [((40, 400, 400), (z, 0.8, 0.8)) for z in (0.1, 0.1, 5.0, 5.0, 5.0)]
    assert target_spacing(_fingerprint(finest)) == (0.8, 0.8, 0.8)
    many_slices = [((400, 400, 400), (z, 0.8, 0.8)) for z in (1.0, 5.0, 6.0)]
    assert target_spacing(_fingerprint(many_slices)) == (5.0, 0.8, 0.8)


def test_median_shape_is_at_the_target_spacing() -> None:
    fingerprint = _fingerprint([((10, 20, 30), (2.0, 1.0, 1.0)), ((20, 21, 30), (1.0, 1.0, 1.0))])
    assert median_shape(fingerprint, (1.0, 1.0, 1.0)) == (20, 21, 30)


def test_settings_are_taken_as_given() -> None:
    wanted = PlanSettings(
        device="cpu",
        spacing_mm=(2.0, 2.0, 2.0),
        patch=(32, 48, 40),
        batch=3,
        base_features=12,
        student_base_features=6,
        max_features=40,
    )
    plan = make_plan(_flare22(), _labels(13), wanted)
    assert (plan.spacing_mm, plan.patch, plan.batch) == ((2.0, 2.0, 2.0), (32, 48, 40), 3)
    assert plan.teacher.features == (12, 24, 40, 40)
    assert plan.student.features == (6, 12, 24, 40)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory_budget_gb": 0.0}, "memory_budget_gb = 0.0"),
        ({"batch": -1}, "batch = -1"),
        ({"patch": (0, 8, 8)}, "patch"),
        ({"spacing_mm": (1.0, -1.0, 1.0)}, "spacing_mm"),
        ({"max_levels": 1}, "max_levels"),
        ({"max_features": 0}, "max_features"),
    ],
)
def test_bad_settings_are_refused_by_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PlanSettings(**change)  # type: ignore[arg-type]


def test_what_cannot_be_planned_is_refused() -> None:
    fingerprint = _flare22()
    with pytest.raises(ConfigError, match="memory_budget_gb"):
        make_plan(fingerprint, _labels(13), PlanSettings(memory_budget_gb=0.1))
    with pytest.raises(ConfigError, match="cannot be pooled"):
        make_plan(fingerprint, _labels(13), PlanSettings(patch=(33, 33, 32)))
    with pytest.raises(ConfigError, match="cannot be pooled"):
        make_plan(_fingerprint([((5, 6, 30), (1.0, 1.0, 1.0))]), _labels(1))


def test_less_memory_means_smaller_batch_then_patch_then_features() -> None:
    plans = [make_plan(_flare22(), _labels(13), PlanSettings(memory_budget_gb=gb)) for gb in (48, 22, 4, 0.8)]
    assert [p.batch for p in plans[:2]] == [8, 4]
    assert plans[1].patch == (64, 160, 160)
    assert prod(plans[2].patch) < 64 * 160 * 160
    assert plans[3].teacher.features[0] < 32
    for plan, budget in zip(plans, (48, 22, 4, 0.8), strict=True):
        assert estimated_gb(plan, "cuda") <= budget


def test_a_rank_needs_the_memory_of_its_part_of_the_batch() -> None:
    told = PlanSettings(memory_budget_gb=22)
    alone, four = (make_plan(_flare22(), _labels(13), told, ranks=ranks) for ranks in (Ranks(), Ranks(4)))
    assert (alone.batch, four.batch) == (4, 8)
    assert alone.patch == four.patch
    assert estimated_gb(four, "cuda", Ranks(4)) <= 22 < estimated_gb(four, "cuda")
    # On the cores of one machine ranks divide the batch, and each has networks of its own.
    whole, shared = estimated_gb(alone, "cpu"), estimated_gb(alone, "cpu", Ranks(2, sharing=2))
    assert whole < shared < 1.1 * whole


@settings(max_examples=60)
@given(
    shape=st.tuples(*[st.integers(8, 300)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6.0)] * 3),
    device=st.sampled_from(["cpu", "cuda"]),
)
def test_every_plan_can_be_read_back_and_built(
    tmp_path_factory: pytest.TempPathFactory, shape: Shape, spacing: Spacing, device: str
) -> None:
    where = PlanSettings(device=device)  # type: ignore[arg-type]
    plan = make_plan(_fingerprint([(shape, spacing)]), _labels(2), where)
    path = tmp_path_factory.mktemp("plan") / "plan.toml"
    write_plan(path, plan)
    assert read_plan(path) == plan  # reading checks divisibility
    totals = [prod(stride[axis] for stride in plan.teacher.strides) for axis in range(3)]
    for patch, total in zip(plan.patch, totals, strict=True):
        assert total == 1 or patch // total >= 4


def test_a_ct_whose_organs_are_of_one_intensity_gets_a_plan_that_can_be_read(tmp_path: Path) -> None:
    """As a generated one may be."""
    intensity = replace(INTENSITY, mean=40.0, median=40.0, deviation=0.0, percentile_00_5=40.0, percentile_99_5=40.0)
    plan = make_plan(
        replace(_fingerprint([((64, 64, 64), (1.0, 1.0, 1.0))]), intensities=(intensity,)), _labels(1), CPU
    )
    write_plan(tmp_path / "plan.toml", plan)
    assert read_plan(tmp_path / "plan.toml") == plan
    values = {key: value for key, value in asdict(plan.normalisation[0]).items() if key != "scheme"}
    assert not normalise_ct(np.array([-1000.0, 40.0, 1000.0], np.float32), **values).any()


def test_the_memory_model_counts_what_torch_keeps() -> None:
    network = NetworkPlan(features=(16, 32, 64), kernels=((3, 3, 3),) * 3, strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)))
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model = build_network(network, channels=1, classes=5, seed=0)
    weights = sum(p.numel() * 4 for p in model.parameters())
    image = torch.zeros(2, 1, 24, 32, 32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = torch.nn.functional.cross_entropy(model(image), torch.zeros(2, 24, 32, 32, dtype=torch.long))
    model_gb = training_gb(network, patch=(24, 32, 32), batch=2, channels=1, classes=5, activation_bytes=4)
    measured_gb = (sum(kept.values()) + 3 * weights) / 1e9
    assert loss.requires_grad
    # The model adds room for gradients of the loss's maps and rounds the count of feature maps.
    assert measured_gb == pytest.approx(model_gb, rel=0.15)
