"""Which methods use which settings: the table says what their files do."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

import semiseg.methods
from semiseg.methods.settings import MethodName, MethodSettings
from semiseg.methods.settings_by_method import USED_BY

FILES = {name: f"{name}.py" for name in get_args(MethodName)} | {"pseudo_label": "mpl.py"}
BY_PROPERTY = {
    "weight_of_unlabelled": "unlabelled_weight",
    "labels_whole_scans": "label_scope",
    "teacher_moves_every": "teacher_every",
    "used_cutmix_ways": "cutmix_ways",
    "derivative_on": "directional_derivative",
    "normalises_feedback": "feedback_normalise",
}
"""Settings that methods read by a property of another name."""
OF_THE_SESSION = {"label_scans"}
"""Settings of methods that the session reads for them."""


def test_names_are_those_of_settings_and_methods() -> None:
    assert set(USED_BY) <= {field.name for field in fields(MethodSettings)}
    assert {method for methods in USED_BY.values() for method in methods} <= set(get_args(MethodName))


@pytest.mark.parametrize("method", [name for name in get_args(MethodName) if name not in ("mpl", "pseudo_label")])
def test_what_a_method_reads_is_said_to_be_used_by_it(method: str) -> None:
    """mpl and pseudo_label share a file, which does not tell one from the other."""
    used = {name for name, users in USED_BY.items() if method in users}
    assert _read_by(method) == used - OF_THE_SESSION


def test_what_mpl_and_pseudo_labels_read_is_used_by_one_of_them() -> None:
    used = {name for name, users in USED_BY.items() if {"mpl", "pseudo_label"} & set(users)}
    assert _read_by("mpl") == used - OF_THE_SESSION


def _read_by(method: str) -> set[str]:
    text = (Path(semiseg.methods.__file__).parent / FILES[method]).read_text(encoding="utf-8")
    found = {BY_PROPERTY.get(name, name) for name in re.findall(r"settings\.(\w+)", text)}
    return found & set(USED_BY)
