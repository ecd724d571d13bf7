"""What was asked is kept as it was asked, and an existing run is not asked for something else."""

from __future__ import annotations

import errno
import fcntl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from semiseg.data.planner import PlanSettings
from semiseg.data.roles import RunCase, write_run_cases
from semiseg.errors import ConfigError, DataError
from semiseg.files import write_jsonl
from semiseg.methods.settings import MplSettings, PseudoRoundsSettings
from semiseg.prediction.settings import PredictSettings
from semiseg.run_folder import alone_in, budget, is_worked_on, keep_asked, prepared_settings, refuse_links
from semiseg.settings import RunSettings, read_settings, write_settings
from semiseg.training.settings import TrainSettings


def asked(run: Path, *made: str, **sections: Any) -> RunSettings:
    """Settings that a run was asked for, and files of it that are there already."""
    settings = keep_asked(run, RunSettings(**sections))
    for name in made:
        (run / name).touch()
    return settings


def test_what_was_asked_is_written_as_it_was_asked(tmp_path: Path) -> None:
    """What a machine makes of `auto` is no part of it."""
    settings = asked(tmp_path, plan=PlanSettings(device="auto"), train=TrainSettings(minutes=5.0))
    kept = read_settings(tmp_path / "run.toml")
    assert kept == settings
    assert (kept.plan, kept.train, kept.method) == (PlanSettings(), TrainSettings(minutes=5.0), PseudoRoundsSettings())


def test_a_run_without_a_plan_counts_as_new(tmp_path: Path) -> None:
    asked(tmp_path, train=TrainSettings(seed=1))
    assert asked(tmp_path, train=TrainSettings(seed=2)).train.seed == 2
    assert read_settings(tmp_path / "run.toml").train.seed == 2


def test_until_it_is_trained_what_only_training_depends_on_may_change(tmp_path: Path) -> None:
    asked(tmp_path, "plan.toml")
    changed = RunSettings(method=MplSettings(), train=TrainSettings(seed=3))
    assert keep_asked(tmp_path, changed).train.seed == 3
    assert read_settings(tmp_path / "run.toml").method.name == "mpl"
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(
        ConfigError, match=r"run\.toml: .*other settings:\n  train\.seed = 3 in the run, 4 now\nUse anoth"
    ):
        keep_asked(tmp_path, replace(changed, train=TrainSettings(seed=4)))
    assert keep_asked(tmp_path, replace(changed, predict=PredictSettings(tile_step=0.7))).predict.tile_step == 0.7
    assert read_settings(tmp_path / "run.toml").predict.tile_step == 0.7


@pytest.mark.parametrize(
    "train", [TrainSettings(minutes=5.0), TrainSettings(steps=100), TrainSettings(device="cuda")], ids=str
)
def test_the_plan_was_made_for_the_time_and_the_device(tmp_path: Path, train: TrainSettings) -> None:
    """They are settings of training, and still the plan must be made anew for others."""
    asked(tmp_path, "plan.toml")
    with pytest.raises(
        ConfigError, match=r"The plan was made for them.*delete .*plan\.toml and .*settled\.toml"
    ) as said:
        keep_asked(tmp_path, RunSettings(train=train))
    assert read_settings(tmp_path / "run.toml").train == TrainSettings()
    assert "train." in str(said.value)
    (tmp_path / "plan.toml").unlink()
    assert keep_asked(tmp_path, RunSettings(train=train)).train == train


def test_the_remedy_of_another_plan_is_a_new_plan_and_that_of_other_data_is_not(tmp_path: Path) -> None:
    asked(tmp_path, "plan.toml")
    with pytest.raises(ConfigError, match=r"plan\.batch = None in the run, 4 now(.|\n)*delete"):
        keep_asked(tmp_path, RunSettings(plan=PlanSettings(batch=4)))
    settings = RunSettings()
    other = replace(settings, data=replace(settings.data, labelled=3))
    with pytest.raises(ConfigError, match=r"data\.labelled = None in the run, 3 now\nUse another run folder") as said:
        keep_asked(tmp_path, other)
    assert "delete" not in str(said.value)


def test_more_minutes_for_a_trained_run_are_told_how(tmp_path: Path) -> None:
    asked(tmp_path, "plan.toml")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "card.json").write_text("{}")
    usual = TrainSettings().minutes
    with pytest.raises(ConfigError, match=r"semiseg run .* --continue 2\.5` trains on"):
        keep_asked(tmp_path, RunSettings(train=TrainSettings(minutes=usual + 2.5)))
    with pytest.raises(ConfigError, match=r"\nUse another run folder"):
        keep_asked(tmp_path, RunSettings(train=TrainSettings(minutes=usual - 2.5)))


def test_patients_may_be_named_later_where_they_decide_on_intervals_alone(tmp_path: Path) -> None:
    asked(tmp_path, "plan.toml")
    patients = replace(RunSettings(), data=replace(RunSettings().data, patients="P[0-9]+"))
    keep_asked(tmp_path, patients)  # before training in any case
    (tmp_path / "checkpoints").mkdir()
    keep_asked(tmp_path, RunSettings())
    held = RunCase(id="a", images=("a.nii.gz",), label="l.nii.gz", split="train", role="validation", hash="h")
    write_run_cases(tmp_path / "cases.jsonl", [held])
    with pytest.raises(ConfigError, match=r"data\.patients = "):
        keep_asked(tmp_path, patients)


def test_only_one_process_at_a_time(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(DataError, match="another semiseg process works on this run"):
        alone_in(tmp_path).__enter__()
    with alone_in(tmp_path):
        pass


def test_a_folder_that_was_not_prepared_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no prepared run here.*semiseg prepare"):
        prepared_settings(tmp_path)


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (TrainSettings(steps=10), "1 labelled cases, 7 steps, seed 0"),
        (TrainSettings(minutes=2.5, seed=4), "1 labelled cases, 7 steps in 2.5 minutes, seed 4"),
        (TrainSettings(steps=10, weights="/runs/first"), "1 labelled cases, 7 steps from the weights of first, seed 0"),
    ],
)
def test_a_run_says_what_it_was_allowed(tmp_path: Path, train: TrainSettings, said: str) -> None:
    write_settings(tmp_path / "run.toml", RunSettings(train=train))
    case = RunCase(id="a", images=("a.nii.gz",), label="l.nii.gz", split="train", role="labelled", hash="h")
    write_run_cases(tmp_path / "cases.jsonl", [case])
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": 7}])
    assert budget(tmp_path) == said
    assert budget(tmp_path / "none") == ""


def test_another_process_is_noticed_and_nothing_is_left_locked(tmp_path: Path) -> None:
    assert not is_worked_on(tmp_path)
    with alone_in(tmp_path):
        assert is_worked_on(tmp_path)
    assert not is_worked_on(tmp_path)
    with alone_in(tmp_path):
        pass


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lustre is that was mounted without them. A file in the place of the lock would stay after a kill."""

    def flock(*_: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    said = r"\.lock: the file system has no locks \(flock\), .* option flock"
    with pytest.raises(ConfigError, match=said), alone_in(tmp_path):
        pass


@pytest.mark.parametrize("folder", ["inferred", "pseudo_labels", "corrections"])
def test_a_link_out_of_a_folder_of_labels_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "mine.nii.gz").write_text("mine")
    link = tmp_path / "run" / folder / "a.nii.gz"
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "mine.nii.gz")
    with pytest.raises(DataError, match=rf"{folder}/a\.nii\.gz: a link that leads out of the run"):
        refuse_links(tmp_path / "run")
