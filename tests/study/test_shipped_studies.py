"""The study files in benchmarks/: they load, and every run that they ask for has valid settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from semiseg.study.settings import load_study, planned_runs, run_settings

STUDIES = sorted((Path(__file__).parents[2] / "benchmarks" / "studies").glob("*.toml"))


def test_there_are_studies_for_the_three_sets() -> None:
    assert {"hippocampus", "head_neck", "left_atrium"} <= {file.stem for file in STUDIES}


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_a_study_asks_for_runs_that_can_be_made(file: Path) -> None:
    study = load_study(file)
    runs = list(planned_runs(study))
    assert len({run.name for run in runs}) == len(runs)
    assert [run.method for run in runs if run.labelled == study.ceiling] == (["supervised"] if study.ceiling else [])
    precisions = {run_settings(study, file, Path("data"), run).train.precision for run in runs}
    assert precisions in ({"float32"}, {"bfloat16"}), "one precision for all, on every machine"
    for run in runs:
        settings = run_settings(study, file, Path("data"), run)
        assert settings.data.labelled == run.labelled
        assert settings.train.validation_every == 0  # no label is held out
