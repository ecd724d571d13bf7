"""The story: check, prepare, train, predict, evaluate, compare, report. Each reads what the one before left on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from semiseg.console import bar
from semiseg.data.check import CheckReport, check_dataset
from semiseg.data.check_table import print_check
from semiseg.data.patients import BIDS, refuse_wrong_pattern
from semiseg.data.plan import read_plan
from semiseg.data.roles import (
    DataSettings,
    assign_roles,
    of_role,
    read_run_cases,
)
from semiseg.errors import DataError
from semiseg.io.dicom.listing import print_places, print_series
from semiseg.io.dicom.places import place_of
from semiseg.io.dicom.series import find_series
from semiseg.io.dicom.sources import zips_below
from semiseg.io.layouts import is_heap, read_dataset
from semiseg.io.layouts.series import SeriesChoice
from semiseg.io.modality import Modality
from semiseg.notices import add_notice
from semiseg.planning import made_plan
from semiseg.predict_run import predict_test_cases
from semiseg.prepare_run import prepare
from semiseg.processes import asked_ranks, usable_cores, workers
from semiseg.reporting import write_comparison_report, write_report
from semiseg.run_folder import (
    budget,
    fold_runs,
    prepared_settings,
)
from semiseg.scoring import (
    Comparison,
    EvaluateSettings,
    Summary,
    compare_summaries,
    evaluate_folder,
    print_comparison,
    print_summary,
    read_summary,
)
from semiseg.scoring.evaluator import TOLERANCE, too_forgiving
from semiseg.scoring.scheme import scheme_of
from semiseg.scoring.summary import never_found
from semiseg.settings import RunSettings
from semiseg.train_run import together, train
from semiseg.training.settings import TrainSettings
from semiseg.types import AnyPath
from semiseg.words import counted, in_minutes


def check(
    folder: AnyPath,
    *,
    layout: str = "auto",
    modality: Modality = "auto",
    minutes: float | None = None,
    series: str = "",
    resample: bool = False,
    paths: bool = False,
    quiet: bool = False,
) -> CheckReport:
    """Open every file of a dataset folder and say what was found and what is wrong; `.ok` is the verdict.

    modality, series, resample: as in section `[data]` of a run. minutes: also say which plan so many minutes of
    training on this machine would get, and why. paths: also say where each series of DICOM lies.
    """
    dataset = read_dataset(Path(folder), layout=layout, modality=modality, choice=SeriesChoice(series, resample))
    with bar("checking", quiet) as advance:
        report = check_dataset(dataset, workers=workers(), progress=lambda done, total: advance(done, total, ""))
    if not quiet:
        print_check(report)
        if paths:
            of_cases = [(case.id, path) for case in dataset.cases for path in case.images]
            print_places(dataset.root, [*of_cases, *(("", file) for file, _ in dataset.problems)])
        elif any(place and place.id for place in (place_of(file) for file, _ in dataset.problems)):
            print(f"series-... are series of DICOM. Where they lie: semiseg check {folder} --paths")
    if minutes is not None and report.ok:
        settings = RunSettings(
            data=DataSettings(root=str(folder), series=series, resample=resample),
            train=TrainSettings(minutes=minutes, threads=usable_cores()),
        )
        cases = assign_roles(dataset, settings.data, validation_fraction=0.0, seed=0)
        with TemporaryDirectory() as scratch:
            plan, _ = made_plan(Path(scratch), dataset, cases, settings, quiet=quiet)
        print(f"\nThe plan for {in_minutes(minutes)} on this machine:")
        for reason in plan.reasons:
            print(f"  {reason}")
    elif minutes is not None:
        print(f"The plan for {in_minutes(minutes)} is made once there are no errors.")
    return report


def list_series(folder: AnyPath, *, series: str = "", resample: bool = False, paths: bool = False) -> bool | None:
    """Print the series of DICOM in a folder, a zip or a file that is no dataset; whether one of them can be read, and
    None where there is no DICOM, or a dataset. paths: also where they lie."""
    folder = Path(folder)
    if not is_heap(folder):
        return None
    found = find_series(folder, resample=resample)
    for archive in zips_below(folder):
        found += find_series(archive, resample=resample)
    return print_series(folder, found, series, paths=paths)


def evaluate(
    predictions: AnyPath,
    references: AnyPath,
    labels: AnyPath | None = None,
    *,
    settings: EvaluateSettings | None = None,
    output: AnyPath | None = None,
    patients: str = BIDS,
    quiet: bool = False,
) -> Summary:
    """Score a folder of predictions against a folder of references; writes summary.json and summary.csv.

    labels: a dataset.json or plan.toml that names the labels; without one they are the values found, or the
    challenge's organs under its rules. patients: as `data.patients`: over whom intervals are.
    """
    refuse_wrong_pattern(patients)
    settings = settings or EvaluateSettings()
    predictions, references = Path(predictions), Path(references)
    for folder, holds in ((predictions, "predicted"), (references, "reference")):
        if not folder.is_dir():
            wrong = "is a file" if folder.exists() else "there is no such folder"
            raise DataError(f"{folder}: {wrong}. Name the folder of the {holds} label maps.")
    scheme = scheme_of(None if labels is None else Path(labels), references, settings.rules)
    with bar("scoring", quiet) as advance:
        summary = evaluate_folder(
            predictions,
            references,
            scheme,
            settings=settings,
            output=None if output is None else Path(output),
            workers=workers(),
            progress=lambda done, total: advance(done, total, ""),
            patients=patients,
        )
    if not quiet:
        print_summary(summary)
    return summary


def evaluate_run(run: AnyPath, *, output: AnyPath | None = None, quiet: bool = False) -> Summary:
    """Score `run/predictions` against the labels of the run's test cases. output: folder for the summary, by default
    the run, and its folder `tests` where it has folds."""
    run = Path(run)
    prepared = prepared_settings(run)
    settings, patients = prepared.evaluate, prepared.data.patients
    plan = read_plan(run / "plan.toml")
    cases = [case for case in of_role(read_run_cases(run / "cases.jsonl"), "test") if case.label]
    if not cases and fold_runs(run):
        raise DataError(
            f"{run}: no test case has a label. `semiseg run {run}` scores the labelled scans, out of fold, into "
            f"{run / 'summary.json'}."
        )
    if not cases:
        raise DataError(
            f"{run}/cases.jsonl: no test case has a label. Put test scans and their labels into imagesTs and labelsTs "
            f"and give `semiseg run {run}` again, which predicts and scores them and does nothing twice; or name two "
            "folders with --predictions and --references."
        )
    references = [(case.id, Path(case.label or ""), Path(case.images[0])) for case in cases]
    labels = plan.labels
    if settings.rules == "flare22":  # which know no ignore value; one of a review is in no reference
        labels = replace(labels, ignore=None)
    with bar("scoring", quiet) as advance:
        summary = evaluate_folder(
            run / "predictions",
            references,
            labels,
            settings=settings,
            output=_scores_of_tests(run) if output is None else Path(output),
            workers=workers(),
            progress=lambda done, total: advance(done, total, ""),
            patients=patients,
        )
    if not quiet:
        print_summary(summary)
    noticed = {"missed": never_found(summary), TOLERANCE: too_forgiving(settings, plan.spacing_mm, run)}
    for topic, text in noticed.items():
        add_notice(run, topic, text)
        if text and not quiet:
            print(f"Note: {text}")
    return summary


def _scores_of_tests(run: Path) -> Path:
    """Where the summary of the test cases goes: beside that of the labelled ones, where a run has folds."""
    return run / "tests" if fold_runs(run) else run


def compare(
    runs: AnyPath | Sequence[AnyPath], *, names: Sequence[str] = (), page: AnyPath | None = None, quiet: bool = False
) -> Comparison:
    """Compare runs that were evaluated on the same test cases, the first as baseline: the paper's tables. page: an
    HTML file to write them to besides."""
    folders = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    for run in folders:
        if run.is_dir() and not (run / "summary.json").exists():
            raise DataError(f"{run}: has no summary.json. Score the run first: semiseg evaluate {run}")
    comparison = compare_summaries(
        list(names) or [run.resolve().name for run in folders],
        [read_summary(run / "summary.json") for run in folders],
        budgets=[budget(run) for run in folders],
    )
    if page is not None:
        write_comparison_report(folders, Path(page), names=comparison.names)
    if not quiet:
        print_comparison(comparison)
    return comparison


def report(run: AnyPath) -> Path:
    """Write `run/report.html` and return its path; raises `DataError` where the folder holds no run."""
    run = Path(run)
    prepared_settings(run)
    return write_report(run)


def run_all(run: AnyPath, settings: RunSettings, *, quiet: bool = False) -> Path:
    """Prepare, train, predict the test cases, evaluate and report; a run that was cut off goes on. Returns the page.

    Started by `torchrun` all ranks train, and the first does the rest, for which the others wait: where they ended,
    torchrun would end the first some minutes later.
    """
    from semiseg.world import first_alone

    run = Path(run)
    with together(run, settings):
        first_alone(lambda: prepare(run, settings, quiet=quiet) and None)
        train(run, quiet=quiet)
        if asked_ranks() > 1:
            _leave_the_machine_to_the_first()
        return first_alone(lambda: _predicted_and_reported(run, quiet=quiet))


def _leave_the_machine_to_the_first() -> None:
    """All cores (`torchrun` gave each rank one thread), and what the others kept of GPUs."""
    import torch

    torch.cuda.empty_cache()
    torch.set_num_threads(usable_cores())


def _predicted_and_reported(run: Path, *, quiet: bool) -> Path:
    cases = of_role(read_run_cases(run / "cases.jsonl"), "test")
    if cases:
        outcomes = predict_test_cases(run, quiet=quiet)
        failed = [f"{outcome.id}: {outcome.error}" for outcome in outcomes if outcome.error]
        if failed:
            raise DataError(
                f"{counted(len(failed), 'test case')} could not be predicted (the others are kept):\n  "
                + "\n  ".join(failed)
                + "\nMend these files, or move them out of the data folder. Then give the same command again: it goes "
                "on from here."
            )
        if any(case.label for case in cases):
            evaluate_run(run, quiet=quiet)
    return report(run)
