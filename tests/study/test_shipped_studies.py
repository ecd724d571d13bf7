"""The studies that were made: their files load, and what came out is found by the names of their runs.

Their settings are those of the version that made them; another makes other runs.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from semiseg.scoring.study_results import name_of
from semiseg.study.runner import known_runs
from semiseg.study.settings import load_study, planned_runs, run_settings

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "docs" / "lab" / "studies").glob("*.toml"))
RESULTS = ROOT / "docs" / "benchmarks"
TO_BE_MADE = sorted((ROOT / "benchmarks" / "studies").glob("*.toml"))


def test_there_are_studies_for_the_three_sets() -> None:
    assert {"hippocampus", "head_neck", "left_atrium"} <= {file.stem for file in STUDIES}


def test_every_result_has_its_study() -> None:
    scripts = (ROOT / "benchmarks").glob("*.toml")  # studies of a method that is no part of the package
    known = {file.stem for file in (*STUDIES, *TO_BE_MADE, *scripts)}
    assert {file.parent.name for file in RESULTS.glob("*/results.json")} <= known


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_a_study_loads_and_names_files_that_are_there(file: Path) -> None:
    study = load_study(file)
    runs = list(planned_runs(study))
    assert len({run.name for run in runs}) == len(runs)
    assert [run.method for run in runs if run.labelled == study.ceiling] == (["supervised"] if study.ceiling else [])
    named = [study.recipe, *(keys.get("data.label_list", "") for keys in study.methods.values())]
    assert all((file.parent / name).is_file() for name in named if name)


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_what_came_out_is_known_by_name(file: Path) -> None:
    """Every method has at least one of its runs, and whatever is of the study's methods is one of its runs."""
    study, known = load_study(file), known_runs(file, RESULTS / file.stem)
    found = [run for run in known["runs"] if run["method"] in study.methods]
    assert {name_of(run) for run in found} <= {run.name for run in planned_runs(study)}
    assert len({name_of(run) for run in found}) == len(found)
    assert study.baseline in {run["method"] for run in found}
    assert all(run["cases"] and run["steps"] > 0 for run in found)


@pytest.mark.parametrize("file", TO_BE_MADE, ids=lambda file: file.stem)
def test_a_study_asks_for_runs_that_can_be_made(file: Path) -> None:
    """Of the defaults, by minutes that are the study's, or converged; names of data are any."""
    study = load_study(file)
    planned = list(planned_runs(study))
    runs = [run_settings(study, file, Path("data"), run) for run in planned]
    others = {"masked"} if file.stem.endswith("_levers") else set()
    assert {run.method.name for run in runs} == {"supervised", "pseudo_rounds"} | others
    if study.minutes:
        assert {run.train.minutes for run in runs} == {study.minutes}
    else:
        assert study.compute == (1, 2, 4)
        assert {run.train.steps for run in runs} == {
            round(study.methods[one.method]["train.steps"] * one.compute) for one in planned
        }


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks" / "studies" / "acdc_lists").glob("*.txt")))
def test_both_volumes_of_a_patient_are_labelled_or_neither(file: Path) -> None:
    ids = file.read_text().split()
    patients = [name.rpartition("_")[0] for name in ids]
    assert len(ids) == 2 * int(file.name[0])
    assert all(patients.count(patient) == 2 for patient in patients)
