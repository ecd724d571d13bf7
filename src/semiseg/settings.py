"""All settings of a run, as one frozen tree: the sections of `run.toml`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from semiseg.augment.settings import AugmentSettings
from semiseg.data.planner import PlanSettings
from semiseg.data.roles import DataSettings
from semiseg.data.sampling import SamplingSettings
from semiseg.errors import ConfigError
from semiseg.files import read_toml, write_toml
from semiseg.methods.settings import DEFAULT, MethodSettings, PseudoRoundsSettings, methods_with, settings_kind
from semiseg.prediction.settings import PredictSettings
from semiseg.scoring.evaluator import EvaluateSettings
from semiseg.tables import first_problem, flattened, refuse_unknown_keys
from semiseg.training.settings import TrainSettings
from semiseg.words import printable


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """One run. Every section can be left out of a file; what is left out has its default."""

    data: DataSettings = field(default_factory=DataSettings)
    """Which folder, and which of its labels are used."""
    plan: PlanSettings = field(default_factory=PlanSettings)
    """What the planner is told."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    """How patches are chosen."""
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    """How patches are augmented."""
    method: MethodSettings = field(default_factory=PseudoRoundsSettings)
    """How is learned: the method that `method.name` names, with its keys alone."""
    train: TrainSettings = field(default_factory=TrainSettings)
    """How long, on what, and how it is logged."""
    predict: PredictSettings = field(default_factory=PredictSettings)
    """How the test cases are predicted."""
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    """How predictions are scored."""


def settings_from(value: dict[str, Any], *, source: str) -> RunSettings:
    """Settings from nested tables; raises `ConfigError` for unknown keys, wrong types and bad values."""
    method = value.get("method", {})
    try:
        if isinstance(method, dict):
            _refuse_keys_of_others(method)
        kind = _with_method(settings_kind(method.get("name", DEFAULT) if isinstance(method, dict) else DEFAULT))
        # By way of JSON, since only there strict types (no "5" or true for a number) take a list for a tuple.
        refuse_unknown_keys(value, kind, source)
        _refuse_other_codings(value)
        settings = TypeAdapter(kind).validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{source}: {first_problem(error, kind)}") from None
    except ConfigError as error:
        raise ConfigError(str(error) if str(error).startswith(f"{source}: ") else f"{source}: {error}") from None
    return RunSettings(**{one.name: getattr(settings, one.name) for one in fields(RunSettings)})


def _refuse_other_codings(value: dict[str, Any]) -> None:
    """Raise `ConfigError` for the name of a file that is no UTF-8, which settings are kept in."""
    for key, given in flattened(value).items():
        if isinstance(given, str) and any("\ud800" <= letter <= "\udfff" for letter in given):
            raise ConfigError(f"{key} = {printable(given)}: no UTF-8. Rename that file or folder.")


def _with_method(kind: type[MethodSettings]) -> type[RunSettings]:
    """`RunSettings` whose section `[method]` is that of one method."""
    section = [("method", kind, field(default_factory=kind))]
    return make_dataclass("RunSettings", section, bases=(RunSettings,), frozen=True, kw_only=True)


def _refuse_keys_of_others(method: dict[str, Any]) -> None:
    """Raise `ConfigError` for a key that other methods have and this one has not."""
    kind = settings_kind(method.get("name", DEFAULT))
    name, own = method.get("name", DEFAULT), flattened(asdict(kind()))  # type: ignore[call-arg]
    for key in flattened(method):
        is_table = any(path.startswith(f"{key}.") for path in own)  # empty, or no table: that is said elsewhere
        if key not in own and not is_table and (others := methods_with(key)):
            have = "has" if len(others) == 1 else "have"
            raise ConfigError(
                f"unknown key method.{key}: {name} does not use it, {' and '.join(others)} {have} it. Leave it out, or "
                "choose another method.name."
            )


def refuse_contradictions(settings: RunSettings) -> None:
    """Raise `ConfigError` for settings of two sections that cannot both be meant."""
    of_models = {
        "data.teacher": settings.data.teacher,
        "data.teacher_labels": settings.data.teacher_labels,
        "data.decisions": settings.data.decisions,
        "train.weights": settings.train.weights,
    }
    model = next((key for key, given in of_models.items() if given), None)
    if settings.data.folds and model:
        raise ConfigError(
            f"data.folds with {model}: the model behind it may have learnt from the scans that folds hold back, so "
            "their scores would be too good. Leave one of the two out."
        )
    if settings.train.weights and replace(settings.plan, device="auto") != PlanSettings():
        raise ConfigError(f"train.weights = {settings.train.weights}: brings its plan along. Leave section [plan] out.")
    student = settings.plan.student_base_features
    if student not in (None, settings.plan.base_features) and not settings.method.student_has_own_size:
        raise ConfigError(
            f"plan.student_base_features = {student}: {settings.method.name} has no teacher of another size. Choose "
            'method.name = "pseudo_label" or "mpl", or leave it out.'
        )
    if settings.data.teacher and settings.method.uses_unlabelled:
        raise ConfigError(
            f"data.teacher = {settings.data.teacher}: it labels every unlabelled scan, so that none is left to method "
            f"{settings.method.name}. Add --method supervised, which learns from the teacher's labels; or leave "
            "data.teacher out."
        )


def read_settings(path: Path) -> RunSettings:
    """Read a run file; raises `ConfigError` or `DataError` that names it."""
    return settings_from(read_toml(path), source=str(path))


def write_settings(path: Path, settings: RunSettings) -> None:
    """Write the resolved settings; a key that is None (semiseg chooses) is left out."""
    tables = asdict(settings)
    write_toml(path, {name: {k: v for k, v in table.items() if v is not None} for name, table in tables.items()})
