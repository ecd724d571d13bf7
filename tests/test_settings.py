"""run.toml: what is written is what is read."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semiseg.augment.settings import AugmentSettings
from semiseg.data.planner import PlanSettings
from semiseg.data.roles import DataSettings
from semiseg.data.sampling import SamplingSettings
from semiseg.errors import ConfigError
from semiseg.methods.settings import (
    MplSettings,
    OptimiserSettings,
    SupervisedSettings,
    TeacherPhases,
    method_names,
    settings_kind,
)
from semiseg.prediction.settings import PredictSettings
from semiseg.scoring import EvaluateSettings
from semiseg.settings import RunSettings, read_settings, write_settings
from semiseg.training.settings import TrainSettings

UNUSUAL = RunSettings(
    data=DataSettings(
        root='/scans/"quoted" \\ Ünïcode',
        layout="msd",
        labelled=3,
        label_seed=0,
        mirror_pairs=(("left kidney", "right kidney"), ("a", "b")),
    ),
    plan=PlanSettings(
        device="cpu",
        memory_budget_gb=1e-3,
        spacing_mm=(2.5, 0.8, 0.1 + 0.2),
        patch=(16, 32, 48),
        batch=3,
        base_features=4,
        student_base_features=2,
        max_features=8,
        max_levels=2,
    ),
    sampling=SamplingSettings(
        foreground_fraction=1 / 3,
        cache_gb=0.0,
    ),
    augment=AugmentSettings(
        enabled=False,
        mirror_axes=(),
        turn_degrees=(0.0, 180.0, 1e-3),
        zoom=(0.5, 1.0),
        elastic=False,
        intensities=False,
    ),
    method=MplSettings(
        optimiser=OptimiserSettings(learning_rate=5e-324, momentum=0.0),
        phases=TeacherPhases(warmup=0.1 + 0.2),
        teacher_every=7,
    ),
    train=TrainSettings(steps=10**9, minutes=0.1, seed=2**63 - 1, schedule="plateau"),
    predict=PredictSettings(device="cuda:1", mirror=False, tile_step=1.0),
    evaluate=EvaluateSettings(tolerance_mm=0.0, organ_tolerance_mm={"left kidney": 2.5, "ö.x": 1.0}),
)


OF_METHODS = [RunSettings(method=settings_kind(name)(name=name)) for name in method_names()]


@pytest.mark.parametrize("value", [RunSettings(), UNUSUAL, *OF_METHODS], ids=["defaults", "unusual", *method_names()])
def test_what_is_written_is_read(tmp_path: Path, value: RunSettings) -> None:
    write_settings(tmp_path / "run.toml", value)
    assert read_settings(tmp_path / "run.toml") == value


def test_the_unusual_settings_differ_from_the_defaults_in_every_section() -> None:
    for field in dataclasses.fields(RunSettings):
        assert getattr(UNUSUAL, field.name) != getattr(RunSettings(), field.name), field.name


@settings(max_examples=20)
@given(
    rate=st.floats(min_value=0, exclude_min=True, max_value=1e9, allow_nan=False),
    zoom=st.tuples(st.floats(0.1, 1), st.floats(1, 1e300)),
    root=st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=8),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_number_and_text_comes_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, rate: float, zoom: tuple[float, float], root: str, seed: int
) -> None:
    value = RunSettings(
        data=DataSettings(root=root),
        method=SupervisedSettings(optimiser=OptimiserSettings(learning_rate=rate)),
        augment=AugmentSettings(zoom=zoom),
        train=TrainSettings(seed=seed),
    )
    path = tmp_path_factory.mktemp("run") / "run.toml"
    write_settings(path, value)
    assert read_settings(path) == value


def test_only_keys_whose_default_is_none_can_be_none() -> None:
    """TOML has no null: a key that is None is left out, so its default must be None."""
    for section in dataclasses.fields(RunSettings):
        kind = typing.get_type_hints(RunSettings)[section.name]
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if types.NoneType in typing.get_args(hints[field.name]):
                assert field.default is None, f"{section.name}.{field.name}"


def test_a_damaged_run_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    write_settings(path, RunSettings())
    path.write_text(path.read_text().replace("momentum = 0.9\n", "momentum = 1.99\n"))
    with pytest.raises(ConfigError, match=r"run\.toml: method\.optimiser\.momentum = 1\.99"):
        read_settings(path)
