"""What the benchmarks that train another program share: whose labels it gets, and where its run is written down."""

from __future__ import annotations

import os
import subprocess
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiseg.data.roles import DataSettings, RunCase, assign_roles, of_role
from semiseg.files import read_json
from semiseg.io.dataset import Dataset
from semiseg.io.layouts import read_dataset
from semiseg.scoring import EvaluateSettings, evaluate_folder
from semiseg.scoring.study_results import StudyRun, name_of, read_study, run_name, scores_of, write_study


@dataclass(frozen=True)
class PeerRun:
    """A run of another program in a study: its cases, its folder, and whether its scores are written down."""

    name: str
    method: str
    subset: int | str | None
    arguments: Namespace
    folder: Path
    dataset: Dataset
    labelled: Sequence[RunCase]
    unlabelled: Sequence[RunCase]
    test: Sequence[RunCase]
    known: bool


def add_arguments(parser: ArgumentParser, out: str) -> None:
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--labelled", type=int, required=True)
    parser.add_argument("--label-seed", type=int, default=None, help="a drawn subset; by default the first labels")
    parser.add_argument("--label-list", type=Path, default=None, help="as data.label_list of the study")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--development", type=int, default=0, help="as data.development of the study")
    parser.add_argument("--out", type=Path, default=Path(out))


def peer_run(method: str, arguments: Namespace) -> PeerRun:
    """The run of the study in `arguments.results`; its method has the minutes in its name if they are not the study's.

    Ends the program where the study was scored on other cases.
    """
    file = arguments.results / "results.json"
    study = read_study(file)
    if arguments.minutes != study["minutes"]:
        method = f"{method}_{arguments.minutes:g}min"
    listed = arguments.label_list
    subset = listed.stem if listed else arguments.label_seed
    name = run_name(method, arguments.labelled, subset, 0)
    dataset = read_dataset(arguments.data)
    settings = DataSettings(
        labelled=arguments.labelled,
        label_seed=arguments.label_seed,
        label_list=str(listed.resolve()) if listed else "",
        development=arguments.development,
    )
    cases = assign_roles(dataset, settings, validation_fraction=0, seed=0)
    test = [case for case in of_role(cases, "test") if case.label]
    scored = sorted(study["runs"][0]["cases"]) if study["runs"] else []
    if scored and scored != sorted(case.id for case in test):
        raise SystemExit(f"{file}: was scored on other cases. Is --development that of the study?")
    return PeerRun(
        name=name,
        method=method,
        subset=subset,
        arguments=arguments,
        folder=arguments.out / study["name"] / name,
        dataset=dataset,
        labelled=of_role(cases, "labelled"),
        unlabelled=of_role(cases, "unlabelled"),
        test=test,
        known=any(name_of(run) == name for run in study["runs"]),
    )


def run_peer(run: PeerRun, command: Sequence[str], cores: int) -> float:
    """Run another program on so many cores, its output in `log.txt`; return the peak of its memory in MB."""
    began = time.perf_counter()
    with (run.folder / "log.txt").open("a") as log:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
        process = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{run.name}: failed. Read {run.folder}/log.txt")
    print(f"{run.name}: {(time.perf_counter() - began) / 60:.1f} minutes with preparation and prediction", flush=True)
    return round(usage.ru_maxrss * 1024 / 1e6, 1)


def add_to_study(run: PeerRun, peak_memory_mb: float) -> dict[str, Any]:
    """Score the label maps in `predicted` and add the run to the study; return what `trained.json` says and Dice."""
    file = run.arguments.results / "results.json"
    references = [(case.id, Path(str(case.label)), Path(case.images[0])) for case in run.test]
    scoring = EvaluateSettings(organ_tolerance_mm=read_study(file)["tolerance_mm"])
    summary = evaluate_folder(run.folder / "predicted", references, run.dataset.labels, settings=scoring)
    trained: dict[str, Any] = read_json(run.folder / "trained.json")
    study = read_study(file)  # the study may have grown meanwhile
    study["runs"].append(
        StudyRun(
            method=run.method,
            labelled=run.arguments.labelled,
            label_seed=run.subset,
            seed=0,
            key=run.name,
            steps=trained["steps"],
            minutes=trained["minutes"],
            peak_memory_mb=peak_memory_mb,
            cases=scores_of(summary),
        )
    )
    write_study(file, study)
    return trained | {"dice": summary["mean"]["dice"]}
