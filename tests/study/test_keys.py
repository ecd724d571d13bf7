"""By what a study knows its runs again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from semiseg.data.roles import DataSettings
from semiseg.errors import ConfigError
from semiseg.methods.settings import PseudoRoundsSettings
from semiseg.prediction.settings import PredictSettings
from semiseg.settings import RunSettings
from semiseg.study.keys import run_key
from semiseg.training.settings import TrainSettings


def test_a_run_is_known_by_method_and_settings() -> None:
    key = run_key("mpl", RunSettings())
    assert key == run_key("mpl", RunSettings())
    others = [
        run_key("other", RunSettings()),
        run_key("mpl", RunSettings(method=PseudoRoundsSettings(rounds=4))),
        run_key("mpl", RunSettings(data=DataSettings(label_seed=3))),
        run_key("mpl", RunSettings(train=TrainSettings(minutes=5.0))),
        run_key("mpl", RunSettings(train=TrainSettings(steps=100))),
        run_key("mpl", RunSettings(train=TrainSettings(seed=1))),
    ]
    assert len({key, *others}) == 1 + len(others)


def test_the_machine_does_not_count_and_the_contents_of_lists_do(tmp_path: Path) -> None:
    key = run_key("mpl", RunSettings())
    elsewhere = RunSettings(train=TrainSettings(threads=7), predict=PredictSettings(device="cpu", max_memory="4GB"))
    assert key == run_key("mpl", elsewhere)
    here, there = tmp_path / "here.txt", tmp_path / "there.txt"
    here.write_text("a\n")
    there.write_text("a\n")
    listed = [run_key("mpl", RunSettings(data=DataSettings(label_list=str(f)))) for f in (here, there)]
    assert listed[0] == listed[1] != key
    there.write_text("b\n")
    assert run_key("mpl", RunSettings(data=DataSettings(label_list=str(there)))) != listed[0]


def test_of_the_dataset_its_name_counts_and_not_where_it_lies() -> None:
    here, there, other = (RunSettings(data=DataSettings(root=root)) for root in ("/a/scans", "/b/scans", "/a/other"))
    assert run_key("mpl", here) == run_key("mpl", there) != run_key("mpl", other)


def test_a_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    settings = RunSettings(data=DataSettings(label_list=str(tmp_path / "none.txt")))
    with pytest.raises(ConfigError, match=r"data\.label_list = .*none\.txt: cannot be read"):
        run_key("mpl", settings)


def test_patients_count_only_where_they_decide_on_who_is_learnt_from() -> None:
    def key(*, every: int = 0, **data: Any) -> str:
        settings = RunSettings(data=DataSettings(**data))
        return run_key("mpl", replace(settings, train=replace(settings.train, validation_every=every)))

    assert key(patients="P[0-9]+") == key()
    assert key(patients="P[0-9]+", label_seed=1) != key(label_seed=1)
    assert key(patients="P[0-9]+", folds=3, fold=0) != key(folds=3, fold=0)
    assert key(patients="P[0-9]+", every=1) != key(every=1)
