"""By what a study knows its runs again, when semiseg is another version than the one that it began with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from semiseg.data.roles import DataSettings
from semiseg.errors import ConfigError
from semiseg.evaluate.label_efficiency import read_study
from semiseg.methods.settings import MethodSettings
from semiseg.predict.settings import PredictSettings
from semiseg.settings import RunSettings
from semiseg.study.keys import run_key, setting_names, steps_key
from semiseg.study.settings import load_study, planned_runs, run_settings
from semiseg.train.settings import TrainSettings

ALL = setting_names()
SCOPES: tuple[Literal["auto", "patch", "scan"], ...] = ("auto", "patch", "scan")
BEFORE = [name for name in ALL if name != "method.temperature"]
"""The settings of a semiseg that had no temperature yet."""


def test_a_run_is_known_by_method_and_settings() -> None:
    key = run_key("mpl", RunSettings(), ALL)
    assert key == run_key("mpl", RunSettings(), ALL)
    assert key != run_key("other", RunSettings(), ALL)
    assert key != run_key("mpl", RunSettings(method=MethodSettings(temperature=1.0)), ALL)
    assert key != run_key("mpl", RunSettings(data=DataSettings(label_seed=3)), ALL)


def test_a_setting_that_may_be_open_since_counts_as_what_it_was() -> None:
    assert RunSettings().method.rounds is None
    key = run_key("rounds", RunSettings(), ALL)
    assert key == run_key("rounds", RunSettings(method=MethodSettings(rounds=3)), ALL)
    assert key != run_key("rounds", RunSettings(method=MethodSettings(rounds=2)), ALL)


def test_rounds_whose_labels_are_auto_count_as_of_scans() -> None:
    """When they were of patches, it was written so, too."""
    keys = {scope: run_key("r", RunSettings(method=MethodSettings(label_scope=scope)), ALL) for scope in SCOPES}
    assert keys["auto"] == keys["scan"] != keys["patch"]
    other = {scope: MethodSettings(name="pseudo_label", label_scope=scope) for scope in SCOPES}
    assert len({run_key("r", RunSettings(method=one), ALL) for one in other.values()}) == 3


def test_a_setting_that_is_newer_than_the_study_counts_where_it_is_not_at_its_default() -> None:
    """At its default the runs of before stay known, and only there."""
    assert "method.temperature" in ALL
    before = run_key("mpl", RunSettings(), BEFORE)
    assert before != run_key("mpl", RunSettings(method=MethodSettings(temperature=1.0)), BEFORE)
    # An old setting counts at its default too: a later semiseg may have another.
    assert before != run_key("mpl", RunSettings(), [name for name in BEFORE if name != "method.momentum"])


def test_a_study_from_before_padding_was_shown_knows_its_runs() -> None:
    """Where it says that its runs are as before: the new default changed what comes out."""
    folder = Path(__file__).parents[2]
    name, data = "hippocampus_small_patches", Path("Dataset004_Hippocampus")
    study, file = load_study(folder / f"benchmarks/studies/{name}.toml"), folder / f"benchmarks/studies/{name}.toml"
    known = read_study(folder / f"docs/benchmarks/{name}/results.json")
    assert "sampling.reach_outside" not in known["settings"]
    planned = next(run for run in planned_runs(study) if (run.method, run.labelled) == ("supervised", 160))
    made = next(run for run in known["runs"] if (run["method"], run["labelled"]) == ("supervised", 160))
    settings = run_settings(study, file, data, planned)
    settings = replace(settings, train=replace(settings.train, steps=made["steps"], budget_minutes=0.0))
    assert run_key("supervised", settings, known["settings"]) == made["key"]
    shown = replace(settings, sampling=replace(settings.sampling, reach_outside=True))
    assert run_key("supervised", shown, known["settings"]) != made["key"]


def test_the_machine_does_not_count_and_the_contents_of_lists_do(tmp_path: Path) -> None:
    key = run_key("mpl", RunSettings(), ALL)
    elsewhere = RunSettings(train=TrainSettings(threads=7), predict=PredictSettings(device="cpu", max_memory="4GB"))
    assert key == run_key("mpl", elsewhere, ALL)
    here, there = tmp_path / "here.txt", tmp_path / "there.txt"
    here.write_text("a\n")
    there.write_text("a\n")
    listed = [run_key("mpl", RunSettings(data=DataSettings(label_list=str(f))), ALL) for f in (here, there)]
    assert listed[0] == listed[1] != key
    there.write_text("b\n")
    assert run_key("mpl", RunSettings(data=DataSettings(label_list=str(there))), ALL) != listed[0]


def test_a_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    settings = RunSettings(data=DataSettings(label_list=str(tmp_path / "none.txt")))
    with pytest.raises(ConfigError, match=r"data\.label_list = .*none\.txt: cannot be read"):
        run_key("mpl", settings, ALL)


def test_steps_depend_on_neither_labels_nor_seed() -> None:
    other = RunSettings(data=DataSettings(labelled=8, label_list="ids.txt"), train=TrainSettings(seed=5))
    assert steps_key(other, ALL) == steps_key(RunSettings(), ALL)
    assert steps_key(RunSettings(train=TrainSettings(budget_minutes=2.0)), ALL) != steps_key(RunSettings(), ALL)
