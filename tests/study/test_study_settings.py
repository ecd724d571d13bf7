"""The study file: which runs it asks for, what they are made of, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from semiseg.errors import ConfigError
from semiseg.methods.settings import MplSettings, OptimiserSettings, SupervisedSettings
from semiseg.study.settings import load_study, planned_runs, run_settings

TEXT = """
recipe = "recipe.toml"
minutes = 8.0
ceiling = 160
common = { "data.development" = 40 }

[methods]
supervised = { "method.name" = "supervised" }
dense = { "method.name" = "mpl", "method.feedback" = "dense", "method.feedback_ratio" = 0.9 }

[[budgets]]
labelled = 4
label_seeds = [-1, 7]
seeds = [0, 1]

[[budgets]]
labelled = 160
methods = ["supervised"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text('[data]\nroot = "scans"\n[method.optimiser]\nlearning_rate = 0.05\n')
    (tmp_path / "study.toml").write_text(TEXT)
    return tmp_path / "study.toml"


def test_every_method_is_run_subset_by_subset_and_seed_by_seed(file: Path) -> None:
    names = [run.name for run in planned_runs(load_study(file))]
    assert names == [
        "supervised-4-first-seed0", "dense-4-first-seed0", "supervised-4-labels7-seed0", "dense-4-labels7-seed0",
        "supervised-4-first-seed1", "dense-4-first-seed1", "supervised-4-labels7-seed1", "dense-4-labels7-seed1",
        "supervised-160-first-seed0",
    ]  # fmt: skip


def test_a_run_is_the_recipe_with_what_all_and_what_the_method_set(file: Path, tmp_path: Path) -> None:
    study = load_study(file)
    runs = {run.name: run_settings(study, file, None, run) for run in planned_runs(study)}
    one = runs["dense-4-labels7-seed1"]
    assert one.method == MplSettings(feedback_ratio=0.9, optimiser=OptimiserSettings(learning_rate=0.05))
    assert (one.data.labelled, one.data.label_seed, one.data.development) == (4, 7, 40)
    assert one.train.seed == 1
    assert one.data.root == str(tmp_path / "scans")
    assert runs["dense-4-first-seed1"].data.label_seed is None
    elsewhere = run_settings(study, file, tmp_path / "other", next(planned_runs(study)))
    assert elsewhere.data.root == str(tmp_path / "other")


def test_each_compute_is_a_run_of_its_own_the_short_ones_first(file: Path) -> None:
    file.write_text(TEXT.replace("ceiling = 160", "ceiling = 160\ncompute = [1, 2.5]"))
    study = load_study(file)
    runs = list(planned_runs(study))
    assert len(runs) == 18
    assert [run.name for run in runs][9] == "supervised-4-first-seed0-2.5x"
    assert {run_settings(study, file, None, run).train.minutes for run in runs[9:]} == {20.0}
    file.write_text(file.read_text().replace('"method.name" = "mpl"', '"method.name" = "mpl", "train.steps" = 101'))
    study = load_study(file)
    steps = [run_settings(study, file, None, run).train.steps for run in planned_runs(study) if run.method == "dense"]
    assert set(steps) == {101, 252}


def test_a_list_of_ids_is_a_subset_that_is_called_as_its_file(file: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "beside.txt").write_text("a\n")
    file.write_text(TEXT.replace("label_seeds = [-1, 7]", 'label_lists = ["beside.txt", "lists/of_data.txt"]'))
    study = load_study(file)
    runs = [run for run in planned_runs(study) if run.labelled == 4 and run.method == "dense" and run.seed == 0]
    assert [run.name for run in runs] == ["dense-4-beside-seed0", "dense-4-of_data-seed0"]
    found = [run_settings(study, file, data, run).data.label_list for run in runs]
    assert found == [str(tmp_path / "beside.txt"), str(data / "lists" / "of_data.txt")]


def with_reference(text: str) -> tuple[str, str]:
    """What is replaced in the study file, and by what."""
    last = 'methods = ["supervised"]'
    return last, f"{last}\n[reference]\n{text}"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("minutes = 8.0", "minutes = 8.0\ncompute = [1, 0]", r"compute = \[1.0, 0.0\]: give numbers above 0"),
        ("seeds = [0, 1]", 'label_lists = ["a.txt"]', "give label_seeds or label_lists, not both"),
        ("minutes = 8.0", "minutes = -1.0", r"study\.toml: minutes = -1\.0: give a number above 0"),
        (
            "minutes = 8.0",
            "",
            r'study\.toml: minutes: give them, or set "train\.steps" for all methods \(methods\.supervised\)',
        ),
        ("minutes = 8.0", "minutes = 8.0\nminute = 3", r"unknown key minute\. Did you mean minutes"),
        (
            "minutes = 8.0",
            'minutes = 8.0\nbaseline = "x"',
            r"baseline = 'x': name one of \[methods\]: super",
        ),
        ('methods = ["supervised"]', 'methods = ["best"]', r"methods = 'best': is none of \[methods\]"),
        ("labelled = 160", "labelled = 0", "labelled = 0: give 1 label"),
        ("labelled = 160", 'labelled = "all"', r"study\.toml: budgets\.1\.labelled = 'all'"),
        ("ceiling = 160", "ceiling = 7", r"ceiling = 7: no \[\[budgets\]\] table has so many labels"),
        ('"data.development" = 40', '"train.threads" = 2', r'\[common\] "train.threads": is set by --jobs'),
        (
            '"method.name" = "mpl"',
            'method.name = "mpl"',
            r"\[methods.dense\] method: keys with a dot need quotes",
        ),
        ('"data.development" = 40', '"train.minutes" = 2.0', r'\[common\] "train.minutes": is set by minutes'),
        ('"data.development" = 40', '"train.steps" = "900"', r'"train.steps" = \'900\': give a whole number, without'),
        (
            '"data.development" = 40',
            '"data.folds" = 5',
            r'\[common\] "data.folds": a study scores all runs on the same',
        ),
        ('"method.name" = "mpl"', '"evaluate.tolerance_mm" = 5', r"\[methods.dense\].*methods are scored alike"),
        ("labelled = 160", "labelled = 160\nseed = 3", r"unknown key budgets\.1\.seed"),
        (*with_reference('method = "a"\nlabelled = 8\nlabeled = 8'), r"unknown key reference\.labeled"),
        (*with_reference('method = "dense"\nlabelled = 160'), r"reference: dense is a method.*Add a \[\[budgets\]\]"),
        (*with_reference('method = "a"\nlabelled = 4'), r"reference: labelled = 4, but no run has fewer labels"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(file: Path, before: str, after: str, message: str) -> None:
    file.write_text(TEXT.replace(before, after))
    with pytest.raises(ConfigError, match=message):
        load_study(file)


def test_a_reference_may_be_a_run_of_the_study_or_of_another_program(file: Path) -> None:
    for method, labelled in (("supervised", 160), ("another", 16)):
        file.write_text(TEXT.replace(*with_reference(f'method = "{method}"\nlabelled = {labelled}')))
        found = load_study(file).reference
        assert found is not None
        assert (found.method, found.labelled) == (method, labelled)


def test_runs_have_the_minutes_of_the_study_or_the_steps_that_it_sets(file: Path) -> None:
    study = load_study(file)
    assert {run_settings(study, file, None, run).train.minutes for run in planned_runs(study)} == {8.0}
    assert {run_settings(study, file, None, run).train.steps for run in planned_runs(study)} == {None}
    file.write_text(TEXT.replace('"method.feedback_ratio" = 0.9', '"train.steps" = 77'))
    study = load_study(file)
    steps = {run.method: run_settings(study, file, None, run).train.steps for run in planned_runs(study)}
    assert steps == {"supervised": None, "dense": 77}


def test_the_recipes_steps_do_not_count_where_the_study_has_minutes(file: Path) -> None:
    """They would beat the minutes, and each compute would be the same run."""
    file.with_name("recipe.toml").write_text('[data]\nroot = "scans"\n[train]\nsteps = 500\n')
    study = load_study(file)
    for run in planned_runs(study):
        train = run_settings(study, file, None, run).train
        assert (train.steps, train.minutes, study.asked(run)) == (None, 8.0, "8 minutes")
    file.write_text(TEXT.replace('{ "data.development" = 40 }', "{}"))
    study = load_study(file)
    file.with_name("recipe.toml").write_text('[data]\nroot = "scans"\nfolds = 5\n')
    with pytest.raises(ConfigError, match=r"recipe.toml: data.folds = 5: a study scores all runs"):
        run_settings(study, file, None, next(planned_runs(study)))


def test_a_study_without_a_recipe_starts_from_the_defaults(file: Path) -> None:
    file.write_text(TEXT.replace('recipe = "recipe.toml"', ""))
    study = load_study(file)
    settings = run_settings(study, file, file.parent, next(planned_runs(study)))
    assert settings.method == SupervisedSettings()
    assert settings.data.development == 40


def test_a_key_that_no_run_has_is_refused(file: Path) -> None:
    file.write_text(TEXT.replace('"data.development" = 40', '"data.develop" = 40'))
    study = load_study(file)
    with pytest.raises(ConfigError, match=r"unknown key data\.develop"):
        run_settings(study, file, None, next(planned_runs(study)))


def test_a_key_that_the_method_does_not_use_is_refused(file: Path) -> None:
    file.write_text(TEXT.replace('"method.feedback_ratio" = 0.9', '"method.rounds" = 2'))
    study = load_study(file)
    *_, dense = [run for run in planned_runs(study) if run.method == "dense"]
    with pytest.raises(ConfigError, match=r"methods\.dense: .*method\.rounds: mpl does not use it, pseudo_rounds has"):
        run_settings(study, file, None, dense)


def test_a_method_may_name_the_cases_that_keep_their_labels(file: Path) -> None:
    """As everywhere, the path starts from the file that names it."""
    file.write_text(TEXT.replace('"data.development" = 40', '"data.label_list" = "ids.txt"'))
    first = next(planned_runs(load_study(file)))
    assert run_settings(load_study(file), file, None, first).data.label_list == str(file.parent / "ids.txt")
