"""Recipes and `--set` flags become settings, or an error that names file and key."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from semiseg.config import load_settings
from semiseg.errors import ConfigError, DataError
from semiseg.methods.settings import OptimiserSettings, SupervisedSettings, TeacherPhases
from semiseg.settings import RunSettings


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_given_means_the_defaults() -> None:
    assert load_settings(None) == RunSettings()


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("train.steps=100", "train", "steps", 100),
        ("method.rounds=7", "method", "rounds", 7),
        ("sampling.cache_gb=3e-4", "sampling", "cache_gb", 3e-4),
        ("sampling.cache_gb=1", "sampling", "cache_gb", 1.0),
        ("predict.mirror=false", "predict", "mirror", False),
        ("method.name=supervised", "method", "name", "supervised"),
        ('method.name="supervised"', "method", "name", "supervised"),
        (" train.seed = 7", "train", "seed", 7),
        ("plan.patch=[16, 32, 48]", "plan", "patch", (16, 32, 48)),
        ("augment.mirror_axes=[]", "augment", "mirror_axes", ()),
        ('data.mirror_pairs=[["a", "b"]]', "data", "mirror_pairs", (("a", "b"),)),
        ("evaluate.organ_tolerance_mm.liver=2", "evaluate", "organ_tolerance_mm", {"liver": 2.0}),
        ("data.root=/scans/a=b", "data", "root", "/scans/a=b"),
    ],
)
def test_set_takes_toml_values_and_bare_words(override: str, section: str, name: str, value: object) -> None:
    found = getattr(getattr(load_settings(None, [override]), section), name)
    assert found == value
    assert type(found) is type(value)


def test_set_comes_after_the_recipe_and_the_last_one_wins(tmp_path: Path) -> None:
    recipe = write(tmp_path, "[train]\nsteps = 5\nseed = 3\n")
    settings = load_settings(recipe, ["train.steps=6", "train.steps=7"])
    assert (settings.train.steps, settings.train.seed) == (7, 3)


def test_tables_within_the_methods_are_set_key_by_key() -> None:
    overrides = ["method.name=mpl", "method.phases.warmup=0.25", "method.optimiser.momentum=0.8"]
    method = load_settings(None, overrides).method
    assert method.parts == TeacherPhases(warmup=0.25), "what else the method has stays"
    assert method.optimiser == OptimiserSettings(momentum=0.8)


def test_what_the_method_does_not_use_is_refused_wherever_it_comes_from(tmp_path: Path) -> None:
    message = (
        r"unknown key method\.rounds: pseudo_label does not use it, pseudo_rounds has it\. Leave it out, or choose"
    )
    with pytest.raises(ConfigError, match=message):
        load_settings(None, ["method.name=pseudo_label", "method.rounds=5"])
    recipe = write(tmp_path, "[method]\nname = 'pseudo_label'\nrounds = 5\n")
    with pytest.raises(ConfigError, match=r"recipe\.toml: " + message):
        load_settings(recipe)
    with pytest.raises(ConfigError, match=message):
        load_settings(write(tmp_path, "[method]\nrounds = 5\n"), ["method.name=pseudo_label"])


def test_the_method_of_a_run_may_be_left_out_for_another(tmp_path: Path) -> None:
    recipe = write(tmp_path, "[method]\nrounds = 5\n[train]\nsteps = 3\n")
    settings = load_settings(recipe, ["method.name=supervised"], another_method=True)
    assert (settings.method, settings.train.steps) == (SupervisedSettings(), 3)


def test_steps_take_the_place_of_a_recipes_minutes(tmp_path: Path) -> None:
    recipe = write(tmp_path, "[train]\nminutes = 8\n")
    assert load_settings(recipe).train.steps is None
    train = load_settings(recipe, ["train.steps=6"]).train
    assert (train.steps, train.minutes) == (6, 8.0)


def test_what_is_to_be_in_brackets_is_shown_so() -> None:
    with pytest.raises(
        ConfigError, match=r"plan.patch = '32,48,32': give three whole numbers, .* plan.patch=\[32,48,32\]\."
    ):
        load_settings(None, ["plan.patch=32,48,32"])


@pytest.mark.parametrize("override", ["train.steps", "steps=3", "=3", "train.=3", ".steps=3", "train..steps=3"])
def test_set_of_another_form_shows_the_form(override: str) -> None:
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        load_settings(None, [override])


def test_set_below_a_value_is_refused(tmp_path: Path) -> None:
    recipe = write(tmp_path, "[train]\nsteps = 5\n")
    with pytest.raises(ConfigError, match="steps is not a section"):
        load_settings(recipe, ["train.steps.more=1"])


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[trian]\nsteps = 1", "trian"),
        ("[train]\nstep = 1", "train.step"),
        ("[train]\nsteps = 'many'", "train.steps"),
        ("[train]\nsteps = '5'", "train.steps"),
        ("[train]\nsteps = true", "train.steps"),
        ("[train]\nsteps = 2.5", "train.steps"),
        ("[train]\nsteps = 0", "train.steps"),
        ("[train]\nminutes = 0", "train.minutes"),
        ("[train]\nminutes = inf", "train.minutes"),
        ("train = 5", "train"),
        ("[train.steps]\nx = 1", "train.steps"),
        ("[plan]\npatch = [16, 16]", "plan.patch"),
        ("[plan]\npatch = [16, 16, 0]", "plan.patch"),
        ("[plan]\npatch = 16", "plan.patch"),
        ("[method]\nname = 'magic'", "method.name"),
        ("[method.optimiser]\nlearning_rate = nan", "method.optimiser.learning_rate"),
        ("[method.optimiser]\nlearning_rate = inf", "method.optimiser.learning_rate"),
        ("[method.phases]\nwarmup = 'long'", "method.phases.warmup"),
        ("method = 'mpl'", "method"),
        ("[plan]\nspacing_mm = [1.0, inf, 1.0]", "plan.spacing_mm"),
        ("[data]\nlabelled = 0", "data.labelled"),
        ("[data]\nlayout = 'dicom'", "data.layout"),
        ("[sampling]\nforeground_fraction = 2.0", "sampling.foreground_fraction"),
        ("[augment]\nzoom = [2.0, 1.0]", "augment.zoom"),
        ("[predict]\ntile_step = 0.0", "predict.tile_step"),
        ("[evaluate]\nrules = 'mine'", "evaluate.rules"),
        ("[evaluate.organ_tolerance_mm]\nliver = 'far'", "evaluate.organ_tolerance_mm.liver"),
    ],
)
def test_a_recipe_that_cannot_be_names_file_and_key(tmp_path: Path, text: str, key: str) -> None:
    recipe = write(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        load_settings(recipe)
    assert str(recipe) in str(refused.value)
    assert key in str(refused.value)


def test_an_unknown_key_is_told_what_is_known() -> None:
    with pytest.raises(ConfigError, match=r"settings: unknown key train\.step\. Did you mean train\.steps\?"):
        load_settings(None, ["train.step=4"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.minute=5", "unknown key train.minute. Did you mean train.minutes?"),
        ("train.budget_minute=5", "unknown key train.budget_minute. Did you mean train.minutes?"),
        ("method.steps=5", "unknown key method.steps. Did you mean train.steps?"),
        ("method.momentum=0.5", "unknown key method.momentum. Did you mean method.optimiser.momentum?"),
        ("method.rounds.warmup=0.5", "method.rounds"),
        ("trian.steps=3", "unknown key trian. Did you mean train?"),
        ("predict.qqq=1", "unknown key predict.qqq. Known here: device, engine"),
        ("plan.patch=64", "plan.patch = 64: give three whole numbers, for example plan.patch=[32, 64, 64]."),
        ("plan.patch=[64,64]", "plan.patch: give three whole numbers, for example plan.patch=[32, 64, 64]."),
        ("plan.patch=[1,2,3,4]", "plan.patch = [1, 2, 3, 4]: give three whole numbers"),
        ("plan.spacing_mm=1.5", "plan.spacing_mm = 1.5: give three numbers, for example plan.spacing_mm=[2.5,"),
        ("augment.zoom=2", "augment.zoom = 2: give two numbers, for example augment.zoom=[0.7, 1.4]."),
    ],
)
def test_what_is_meant_is_asked(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_settings(None, [override])
    assert words in str(refused.value)


def test_a_folder_whose_name_is_no_utf8_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"settings: data\.root = /caf\\udce9/data: no UTF-8\. Rename that file or"):
        load_settings(None, ["data.root=" + os.fsdecode(b"/caf\xe9/data")])


def test_a_missing_or_broken_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.toml: there is no such file"):
        load_settings(tmp_path / "none.toml")
    with pytest.raises(DataError, match=r"recipe\.toml: not valid TOML"):
        load_settings(write(tmp_path, "[train\nsteps = 1"))


def test_a_relative_root_starts_from_the_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    recipe = write(folder, '[data]\nroot = "../scans"\n')
    assert load_settings(recipe).data.root == str((tmp_path / "scans").resolve())
    assert load_settings(recipe, ["data.root=/elsewhere"]).data.root == "/elsewhere"


@pytest.mark.parametrize(
    "key", ["root", "teacher", "label_list", "exclude", "store", "decisions", "teacher_labels", "teacher_names"]
)
def test_every_path_starts_from_where_it_is_named(tmp_path: Path, key: str) -> None:
    (tmp_path / "recipes").mkdir()
    besides = 'teacher_labels = "/theirs"\n' if key == "teacher_names" else ""
    recipe = write(tmp_path / "recipes", f'[data]\n{besides}{key} = "../there"\n')
    assert getattr(load_settings(recipe).data, key) == str((tmp_path / "there").resolve())
    assert getattr(load_settings(recipe, [f"data.{key}=here"]).data, key) == str(Path("here").resolve())
