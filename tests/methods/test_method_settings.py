"""Settings of the methods: each has its own keys and no others, bad values are refused by name, and none is dead."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from method_runs import SHAPE, batches
from networks import TINY
from torch import Tensor

import semiseg.methods
from semiseg.data.plan import ChannelNormalisation, Plan
from semiseg.errors import ConfigError
from semiseg.io.dataset import LabelScheme
from semiseg.methods import build
from semiseg.methods import settings as of_methods
from semiseg.methods.base import Batch, UnlabelledBatch
from semiseg.methods.build import add_method, build_method
from semiseg.methods.learner import StudentMethod
from semiseg.methods.phases import Phases
from semiseg.methods.settings import (
    DEFAULT,
    MethodSettings,
    OptimiserSettings,
    PhaseSettings,
    SemiSupervisedSettings,
    known_kind,
    method_names,
    method_settings,
    methods_with,
    settings_kind,
)
from semiseg.methods.supervised import Supervised
from semiseg.randomness import Draw
from semiseg.settings import settings_from
from semiseg.tables import flattened

NAMES = ("supervised", "pseudo_rounds", "masked", "pseudo_label", "mpl", "mean_teacher", "cross_pseudo", "copy_paste")


def keys_of(name: str) -> dict[str, Any]:
    """All keys of a method by their path, with the defaults."""
    return flattened(asdict(method_settings(name)))


def nested(path: str, value: object) -> dict[str, Any]:
    """`{"a": {"b": value}}` for a.b."""
    for part in reversed(path.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


ALL_KEYS = {path: value for name in NAMES for path, value in keys_of(name).items() if path != "name"}


# Which method has which keys.


def test_the_methods() -> None:
    assert method_names() == NAMES
    assert all(method_settings(name).name == name for name in NAMES)
    assert DEFAULT == "pseudo_rounds"
    assert settings_from({}, source="S").method == method_settings() == method_settings(DEFAULT)
    assert known_kind("magic") is None
    assert len({settings_kind(name).title for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_has_its_keys_and_their_defaults(name: str) -> None:
    assert settings_from({"method": {"name": name}}, source="S").method == method_settings(name)
    for path, value in keys_of(name).items():
        settings = settings_from({"method": {"name": name} | nested(path, value)}, source="S").method
        assert settings == method_settings(name)
        assert path == "name" or name in methods_with(path)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_refuses_the_keys_of_others_and_names_who_has_them(name: str) -> None:
    foreign = ALL_KEYS.keys() - keys_of(name).keys()
    assert foreign
    for path in foreign:
        have = [other for other in NAMES if path in keys_of(other)]
        assert methods_with(path) == have
        with pytest.raises(ConfigError) as refused:
            settings_from({"method": {"name": name} | nested(path, ALL_KEYS[path])}, source="S")
        who = " and ".join(have) + (" has it." if len(have) == 1 else " have it.")
        assert str(refused.value).startswith(f"S: unknown key method.{path}: {name} does not use it, {who}")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"name": "magic"},
            "S: method.name = 'magic': choose one of supervised, pseudo_rounds, masked, pseudo_label, ",
        ),
        ({"name": 5}, "S: method.name = 5: choose one of "),
        ({"name": "mpl", "label_scope": "scan"}, "S: unknown key method.label_scope: mpl does not use it, "),
        ({"learning_rate": 0.1}, "S: unknown key method.learning_rate. Did you mean method.optimiser.learning_rate?"),
        ({"optimiser": {"momentun": 0.5}}, "S: unknown key method.optimiser.momentun. Did you mean "),
        ({"temperature": 0.5}, "S: unknown key method.temperature. "),
    ],
)
def test_keys_that_no_method_has(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        settings_from({"method": table}, source="S")
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("table", ["optimiser", "phases"])
def test_a_table_may_be_empty_and_is_no_value(table: str) -> None:
    assert settings_from({"method": {table: {}}}, source="S").method == method_settings()
    with pytest.raises(ConfigError, match=rf"^S: method\.{table} must be a table"):
        settings_from({"method": {table: "adamw"}}, source="S")


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("optimiser.momentum", NAMES),
        ("phases.warmup", NAMES[1:]),
        ("phases.pretrain", ("pseudo_rounds", "masked")),
        ("label_scope", ("pseudo_label",)),
        ("label_scans", ("pseudo_rounds", "pseudo_label")),
        ("unlabelled_weight", ("mean_teacher", "cross_pseudo", "copy_paste")),
        ("rounds", ("pseudo_rounds",)),
        ("feedback_ratio", ("mpl",)),
        ("magic", ()),
        ("phases.magic", ()),
        ("name.magic", ()),
    ],
)
def test_who_has_a_key(path: str, names: tuple[str, ...]) -> None:
    assert methods_with(path) == list(names)


# Values.

BAD_FOR_ALL: list[tuple[str, object, str]] = [
    ("optimiser.learning_rate", 0.0, "method.optimiser.learning_rate = 0.0: give a number above 0"),
    ("optimiser.learning_rate", -1.0, "method.optimiser.learning_rate = -1.0"),
    ("optimiser.learning_rate", 1e10, "method.optimiser.learning_rate = 10000000000.0"),
    ("optimiser.momentum", 1.0, "method.optimiser.momentum = 1.0: give a number from 0 to below 1"),
    ("optimiser.momentum", -0.1, "method.optimiser.momentum = -0.1"),
    ("phases.pretrain", 1.0, "method.phases.pretrain = 1.0: give a number from 0 to below 1"),
    ("phases.pretrain", -0.1, "method.phases.pretrain = -0.1"),
    ("phases.warmup", 1.5, "method.phases.warmup = 1.5: give a number from 0 to 1"),
    ("phases.warmup", -0.5, "method.phases.warmup = -0.5"),
    ("phases.finetune", 1.5, "method.phases.finetune = 1.5"),
    ("phases.restart_rate", -0.5, "method.phases.restart_rate = -0.5: give 0 or more"),
    ("phases.restart_rate", 1e10, "method.phases.restart_rate = 10000000000.0"),
    ("phases", {"warmup": 0.7, "finetune": 0.4}, "method.phases: warmup + finetune exceed 1"),
    ("label_scans", -1, "method.label_scans = -1: give 0 or more"),
    ("label_scans", 2_000_000_000, "method.label_scans = 2000000000"),
    ("rounds", 0, "method.rounds = 0: give 1 or more"),
    ("label_scope", "voxel", "method.label_scope = 'voxel'"),
    ("feedback", "vector", "method.feedback = 'vector'"),
    ("feedback_ratio", -0.2, "method.feedback_ratio = -0.2: give 0 or more"),
    ("teacher_rate", 0.0, "method.teacher_rate = 0.0: give a number above 0. A teacher that stands still is "),
    ("teacher_rate", -0.5, "method.teacher_rate = -0.5"),
    ("teacher_every", 0, "method.teacher_every = 0: give a number above 0. A teacher that stands still is "),
    ("teacher_every", -1, "method.teacher_every = -1"),
    ("unlabelled_weight", -1.0, "method.unlabelled_weight = -1.0: give 0 or more"),
    ("uncertainty_passes", -1, "method.uncertainty_passes = -1: give 0 or more"),
    ("uncertainty_passes", 1.5, "method.uncertainty_passes = 1.5"),
    ("optimiser.momentum", "0.9", "method.optimiser.momentum = '0.9'"),
    ("optimiser.learning_rate", float("nan"), "method.optimiser.learning_rate = nan: give a finite number"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD_FOR_ALL)
def test_bad_values_are_refused_by_name_by_every_method_with_the_key(path: str, value: object, message: str) -> None:
    names = [name for name in NAMES if path in (*keys_of(name), *asdict(method_settings(name)))]
    assert names
    for name in names:
        with pytest.raises(ConfigError) as refused:
            settings_from({"method": {"name": name} | nested(path, value)}, source="S")
        assert str(refused.value).startswith(f"S: {message}")


def test_there_is_a_bad_value_of_every_key() -> None:
    assert {path for path, _, _ in BAD_FOR_ALL} - {"phases"} == ALL_KEYS.keys()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimiserSettings(momentum=1.0), "method.optimiser.momentum = 1.0"),
        (lambda: PhaseSettings(warmup=1.5), "method.phases.warmup = 1.5"),
        (lambda: PhaseSettings(warmup=0.7, finetune=0.4), "method.phases: warmup + finetune exceed 1"),
        (lambda: method_settings("mpl", teacher_every=0), "method.teacher_every = 0"),
        (lambda: method_settings("pseudo_rounds", rounds=0), "method.rounds = 0"),
        (lambda: method_settings("mean_teacher", unlabelled_weight=-1.0), "method.unlabelled_weight = -1.0"),
        (lambda: method_settings("magic"), "method.name = 'magic'"),
    ],
)
def test_bad_values_are_refused_in_python_too(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        make()


def test_a_part_of_a_table_leaves_the_rest_as_the_method_has_it() -> None:
    settings = settings_from({"method": {"name": "copy_paste", "phases": {"finetune": 0.1}}}, source="S").method
    assert settings.parts == of_methods.CopyPastePhases(warmup=0.25, finetune=0.1, restart_rate=0.5)
    assert method_settings("supervised").parts == PhaseSettings()


# No setting is dead.

CLASSES: dict[type[MethodSettings], type[StudentMethod[Any]]] = dict(build._METHODS)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_reads_its_own_settings_and_all_of_them(name: str) -> None:
    """In the code of its class and of those that it comes from; phases are also read by what lays them down."""
    kind = CLASSES[settings_kind(name)]
    bases = [base for base in kind.__mro__ if base.__module__.startswith("semiseg.")]
    found = {one for base in bases for one in _read_in(inspect.getsource(base), "settings")}
    every_key = {field.name for other in NAMES for field in fields(settings_kind(other))}
    own = {field.name for field in fields(settings_kind(name))}
    assert found & every_key <= own
    assert own - found <= {"name", "phases"}


def test_optimiser_and_phases_are_read() -> None:
    optimiser = _read_in(_text("methods/optimiser.py"), "settings") | _read_in(_text("methods/learner.py"), "_settings")
    assert {field.name for field in fields(OptimiserSettings)} <= optimiser
    laid_down = _read_in(_text("methods/phases.py"), "parts") | _read_in(_text("training/loop.py"), "parts")
    assert {field.name for field in fields(PhaseSettings)} <= laid_down


def _text(path: str) -> str:
    return (Path(semiseg.methods.__file__).parents[1] / path).read_text(encoding="utf-8")


def _read_in(source: str, owner: str) -> set[str]:
    """The attributes of what is called `owner`, or is an attribute of that name, that code reads."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            called = getattr(node.value, "id", getattr(node.value, "attr", ""))
            if called == owner:
                found.add(node.attr)
    return found


# A method of one's own.


@dataclass(frozen=True, kw_only=True)
class OwnPhases(PhaseSettings):
    warmup: float = 0.125


@dataclass(frozen=True, kw_only=True)
class OwnSettings(SemiSupervisedSettings):
    """Of a method that nobody published."""

    name: Literal["own"] = "own"
    phases: OwnPhases = OwnPhases()
    strength: float = 0.5

    title: ClassVar[str] = "a method of one's own"

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ConfigError(f"method.strength = {self.strength}: give 0 or more.")


class Own(StudentMethod[OwnSettings]):
    """Learns from labels, by so much."""

    learner_names: ClassVar[tuple[str, ...]] = ("student", "teacher")

    def step(self, labelled: Batch, unlabelled: UnlabelledBatch | None, draw: Draw) -> dict[str, Tensor]:
        loss = self.settings.strength * self.student.labelled_loss(labelled)
        return {"labelled_loss": loss.detach(), "gradient_norm": self.student.step(loss, self.learning_rate_factor)}


@pytest.fixture
def own_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Own` is known in this test alone."""
    monkeypatch.setattr(of_methods, "_KINDS", dict(of_methods._KINDS))
    monkeypatch.setattr(build, "_METHODS", dict(build._METHODS))
    add_method(OwnSettings, Own)


@pytest.mark.usefixtures("own_method")
def test_a_method_of_ones_own_is_known_to_run_files() -> None:
    assert method_names() == (*NAMES, "own")
    table = {"name": "own", "strength": 2.0, "phases": {"finetune": 0.25}}
    settings = settings_from({"method": table}, source="S").method
    assert settings == OwnSettings(strength=2.0, phases=OwnPhases(finetune=0.25))
    assert type(settings) is OwnSettings
    for bad, message in (
        ({"name": "own", "strength": -1.0}, "S: method.strength = -1.0: give 0 or more."),
        ({"name": "own", "rounds": 2}, "S: unknown key method.rounds: own does not use it, pseudo_rounds has it."),
        ({"name": "mpl", "strength": 2.0}, "S: unknown key method.strength: mpl does not use it, own has it."),
    ):
        with pytest.raises(ConfigError) as refused:
            settings_from({"method": bad}, source="S")
        assert str(refused.value).startswith(message)


@pytest.mark.usefixtures("own_method", "one_thread")
def test_a_method_of_ones_own_is_built_from_the_plan_and_learns() -> None:
    plan = Plan(
        dataset="made up",
        channels=("MRI",),
        labels=LabelScheme(names={0: "background", 1: "a", 2: "b"}),
        spacing_mm=(1.0, 1.0, 1.0),
        anisotropic_axis=None,
        patch=SHAPE,
        batch=2,
        normalisation=(ChannelNormalisation(scheme="zscore"),),
        teacher=TINY,
        student=TINY,
    )
    settings = method_settings("own", strength=3.0)
    phases = Phases.of_steps(1, 8, 8)
    method: Any = build_method(plan, settings, phases, seed=1, device=torch.device("cpu"))
    usual = build_method(plan, method_settings("supervised"), phases, seed=1, device=torch.device("cpu"))
    assert isinstance(method, Own)
    assert isinstance(usual, Supervised)
    assert method.networks.keys() == {"student", "student_average", "teacher", "teacher_average"}
    labelled, unlabelled = batches(0)
    draw = Draw(seed=4)
    found, expected = method.step(labelled, unlabelled, draw), usual.step(labelled, None, draw)
    assert float(found["labelled_loss"]) == pytest.approx(3 * float(expected["labelled_loss"]), rel=1e-6)


def test_a_method_of_ones_own_is_unknown_where_it_was_not_added() -> None:
    assert "own" not in method_names()
    with pytest.raises(ConfigError, match=r"^S: method\.name = 'own': choose one of"):
        settings_from({"method": {"name": "own"}}, source="S")
