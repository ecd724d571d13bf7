from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from semiseg.data.plan import ChannelNormalisation, NetworkPlan, Plan, read_plan, write_plan
from semiseg.errors import ConfigError, DataError
from semiseg.files import read_toml, write_toml
from semiseg.io.dataset import LabelScheme

NETWORK = NetworkPlan(
    features=(8, 16),
    kernels=((1, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2)),
)
PLAN = Plan(
    dataset="d",
    channels=("CT", "PET"),
    labels=LabelScheme(
        names={0: "background", 1: "left", 2: "right"}, ignore=255, unknown=(1, 2), mirror_pairs=((1, 2),)
    ),
    spacing_mm=(2.5, 0.8, 0.75),
    anisotropic_axis=0,
    patch=(5, 8, 8),
    batch=2,
    normalisation=(
        ChannelNormalisation(scheme="ct", low=-100.5, high=300.25, mean=80.1, deviation=55.5),
        ChannelNormalisation(scheme="zscore"),
    ),
    teacher=NETWORK,
    student=replace(NETWORK, features=(4, 8)),
)


@pytest.mark.parametrize(
    "plan",
    [PLAN, replace(PLAN, anisotropic_axis=None, labels=LabelScheme(names={0: "background", 1: "a"}))],
)
def test_a_plan_comes_back_from_toml(tmp_path: Path, plan: Plan) -> None:
    write_plan(tmp_path / "plan.toml", plan)
    assert read_plan(tmp_path / "plan.toml") == plan


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch", 0, "batch 1 to 4096"),
        ("batch", "two", "batch"),
        ("spacing_mm", [1.0, 1.0, 0.0], "must be positive"),
        ("spacing_mm", [1.0, 1.0], "spacing_mm"),
        ("patch", [5, 8, 9], r"patch\[2\] = 9 must be a multiple of 2"),
        ("normalisation", [{"scheme": "zscore"}], "1 entry for 2 channels"),
        ("normalisation", [{"scheme": "minmax"}] * 2, "scheme"),
        ("normalisation", [{"scheme": "zscore", "hihg": 1.0}] * 2, r"unknown key normalisation\.0\.hihg"),
        ("anisotropic_axs", 0, r"unknown key anisotropic_axs"),
        ("labels", {"names": {"0": "background", "1": "a"}, "mirror_axs": 1}, r"unknown key labels\.mirror_axs"),
        ("teacher", asdict(replace(NETWORK, strides=((2, 1, 1), (1, 2, 2)))), r"strides\[0\] = \(2, 1, 1\)"),
        ("normalisation", [{"scheme": "zscore", "deviation": 0.0}] * 2, r"normalisation\[0\]: deviation must be above"),
        ("normalisation", [{"scheme": "ct", "low": 1.0, "high": 0.0}] * 2, "low not above high"),
        ("teacher", asdict(replace(NETWORK, strides=((1, 1, 1), (0, 2, 2)))), "kernels and strides must be 1 or more"),
        ("teacher", asdict(replace(NETWORK, features=(8, 10**9))), "features = .* must be 1 to"),
        ("anisotropic_axis", 7, "anisotropic_axis must be 0, 1 or 2"),
        ("mirror_axes", [3], "mirror_axes must be 0, 1 or 2"),
        ("batch", 10**20, "batch 1 to 4096"),
        ("labels", {"names": {"0": "background", "2": "a"}}, "without gaps"),
        ("labels", {"names": {"0": "background", "1": "a\u001b"}}, "no name that can be printed"),
        ("labels", {"names": {"0": "background", "1": "a"}, "mirror_pairs": [[1, 9]]}, "are pairs of the values"),
        ("labels", {"names": {"0": "background", "1": "a"}, "unknown": [1]}, "need labels.ignore"),
        ("labels", {"names": {"0": "background", "1": "a"}, "ignore": 2, "unknown": [2]}, "are organs"),
        ("student", asdict(replace(NETWORK, kernels=((1, 2, 3), (3, 3, 3)))), "kernels = .* must be odd"),
    ],
)
def test_an_edited_plan_that_cannot_work_is_refused_by_key(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    path = tmp_path / "plan.toml"
    write_plan(path, PLAN)
    write_toml(path, read_toml(path) | {key: value})
    with pytest.raises(ConfigError, match=message) as raised:
        read_plan(path)
    assert str(path) in str(raised.value)


def test_levels_must_agree(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.toml", replace(PLAN, teacher=replace(NETWORK, features=(8, 16, 32))))
    with pytest.raises(ConfigError, match="one entry per level"):
        read_plan(tmp_path / "plan.toml")


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text("batch = ")
    with pytest.raises(DataError, match=r"plan\.toml"):
        read_plan(tmp_path / "plan.toml")
