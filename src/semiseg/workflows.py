"""The story: check, prepare, train, predict, evaluate, compare, report. Each reads what the one before left on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from semiseg.console import bar
from semiseg.data.batches import refuse_indivisible
from semiseg.data.check import CheckReport, check_dataset
from semiseg.data.check_table import print_check
from semiseg.data.fingerprint import write_fingerprint
from semiseg.data.partial import ignore_value
from semiseg.data.plan import Plan, read_plan, write_plan
from semiseg.data.prepare import prepare_cases, write_recipe
from semiseg.data.remarks import print_label_remarks, print_remarks
from semiseg.data.reviews import TEACHER_LABELS, Review, count_roles, made_review, read_review, write_review
from semiseg.data.roles import (
    DataSettings,
    RunCase,
    assign_roles,
    of_role,
    read_run_cases,
    taught,
    with_hashes,
    write_run_cases,
)
from semiseg.data.shared_store import open_store, store_beside
from semiseg.data.teachers import open_teacher, taught_by_others
from semiseg.data.unlike import unlike_others
from semiseg.errors import ConfigError, DataError
from semiseg.files import remove_leftovers, write_text
from semiseg.io.dataset import Dataset, LabelScheme
from semiseg.io.dicom.listing import print_places, print_series
from semiseg.io.dicom.places import place_of
from semiseg.io.dicom.series import find_series
from semiseg.io.dicom.sources import zips_below
from semiseg.io.layouts import is_heap, read_dataset, refuse_no_folder
from semiseg.io.layouts.series import SeriesChoice
from semiseg.io.modality import Modality
from semiseg.io.store_index import IndexedCases, write_index
from semiseg.notices import add_notice
from semiseg.planning import LEARNT_FROM, for_ranks, lacking_space, made_plan, what_comes
from semiseg.predict_run import predict_into, predict_test_cases
from semiseg.prediction.inputs import Scan
from semiseg.prediction.model import load_model
from semiseg.processes import asked_ranks, is_first_rank, usable_cores, workers
from semiseg.reporting import write_comparison_report, write_report
from semiseg.run_folder import (
    alone_in,
    budget,
    fold_runs,
    keep_asked,
    prepared_settings,
    refuse_foreign,
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
from semiseg.scoring.scheme import scheme_of
from semiseg.scoring.summary import never_found
from semiseg.settings import RunSettings, refuse_contradictions
from semiseg.train_run import together, train
from semiseg.training.settings import TrainSettings
from semiseg.types import AnyPath
from semiseg.words import counted, in_minutes, shortened

if TYPE_CHECKING:  # only training waits for torch to load; prediction by another engine works without it
    pass


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


def prepare(run: AnyPath, settings: RunSettings, *, verify: bool = False, quiet: bool = False) -> Plan:
    """Assign roles, take the fingerprint, make the plan and store every case in network units.

    An existing run goes on: its plan is kept (edits too), and unchanged cases are not done twice. verify: also read
    those again whose files have the sizes and times that they had. Raises `ConfigError` where the run was made with
    other settings, and `DataError` naming every case that failed.
    """
    run = Path(run)
    if not isinstance(settings, RunSettings):
        raise ConfigError(
            f"settings: RunSettings are expected, not {type(settings).__name__}. Give semiseg.RunSettings(...), or a "
            "recipe by semiseg.config.load_settings(FILE)."
        )
    if not settings.data.root:
        raise ConfigError("data.root is not set: name the dataset folder with --data FOLDER, or in the recipe.")
    root = Path(settings.data.root).resolve()
    if run.resolve().is_relative_to(root):
        raise ConfigError(f"{run}: lies in the dataset {root}. Name a run folder outside of it.")
    refuse_contradictions(settings)
    refuse_foreign(run)
    refuse_no_folder(Path(settings.data.root))
    run.mkdir(parents=True, exist_ok=True)
    with alone_in(run):
        before = (run / "run.toml").read_text(encoding="utf-8") if (run / "run.toml").exists() else None
        try:
            return _prepare(run, keep_asked(run, settings), verify=verify, quiet=quiet)
        except (ConfigError, DataError):
            if not (run / "plan.toml").exists():  # what was refused is not to be read back as the run's settings
                if before is None:
                    (run / "run.toml").unlink(missing_ok=True)
                else:
                    write_text(run / "run.toml", before)
            raise


def _prepare(run: Path, settings: RunSettings, *, verify: bool, quiet: bool) -> Plan:
    dataset = read_dataset(
        Path(settings.data.root),
        layout=settings.data.layout,
        mirror_pairs=settings.data.mirror_pairs,
        modality=settings.data.modality,
        choice=SeriesChoice(settings.data.series, settings.data.resample),
    )
    if not quiet:
        print_remarks(dataset)
    settings.evaluate.check_labels(dataset.labels)
    validation = settings.train.validation_fraction if settings.train.validation_every else 0.0
    cases = assign_roles(dataset, settings.data, validation_fraction=validation, seed=settings.train.seed)
    dataset, cases = _with_other_labels(run, dataset, cases, settings, quiet=quiet)
    training = [case.case() for case in of_role(cases, *LEARNT_FROM)]

    if not (run / "plan.toml").exists():
        plan, fingerprint = made_plan(run, dataset, cases, settings, quiet=quiet)
        plan = for_ranks(plan, settings.plan, asked_ranks())
        write_fingerprint(run / "fingerprint.json", fingerprint)
        write_plan(run / "plan.toml", plan)
        if not quiet:
            for reason in plan.reasons:
                print(reason)
            print(what_comes(run, plan, fingerprint, cases, settings))
            if lacking := lacking_space(run, plan, fingerprint, cases):
                print(lacking)
    plan = read_plan(run / "plan.toml")
    refuse_indivisible(plan.batch, asked_ranks())

    shared = store_beside(run, settings.data.store)
    open_store(shared)
    if settings.data.store and not quiet:
        print(f"Prepared scans are kept in {shared}.")
    remove_leftovers(run)
    remove_leftovers(run / "store")
    with bar("preparing", quiet) as advance:
        results = prepare_cases(
            training, plan, run / "store", shared=shared, workers=workers(), verify=verify, progress=advance
        )
    write_run_cases(run / "cases.jsonl", with_hashes(cases, {result.id: result.hash for result in results}))
    failed = [f"{result.id}: {result.error}" for result in results if result.error]
    if failed:
        raise DataError(
            f"{len(failed)} of {counted(len(results), 'case')} could not be prepared (the others are kept):\n  "
            + "\n  ".join(failed)
            + "\nMend or remove the files; or leave the cases out: write their ids into a text file, one a line, and "
            "give the same command with --set data.exclude=FILE."
        )
    index = write_index(run / "store", [case.id for case in training], anew=verify)
    stored = IndexedCases(index, [run / "store" / case.id for case in training])
    if not quiet:
        print_label_remarks(training, stored, plan.labels)
    write_recipe(run / "store", plan)
    if not quiet and (channels := [i for i, one in enumerate(plan.normalisation) if one.scheme == "zscore"]):
        names = unlike_others(stored, channels)
        if names:
            looks = f"Unlike the other scans in their intensities: {shortened(names)}."
            print(f"{looks} Look whether they belong to the set.")
    return plan


def _with_other_labels(
    run: Path, dataset: Dataset, cases: list[RunCase], settings: RunSettings, *, quiet: bool
) -> tuple[Dataset, list[RunCase]]:
    """The cases with what a review, a teacher or another program says of them; and the dataset with an ignore value,
    where they leave something open."""
    data, open_ends = settings.data, False
    if data.decisions:
        review = _reviewed(run, cases, dataset.labels, data.decisions, quiet=quiet)
        cases, open_ends = review.applied(cases, run), review.ignores
        for text in () if quiet else review.sentences():
            print(text)
    if data.teacher:
        cases = _teach(run, cases, dataset.labels, settings, quiet=quiet)
    if data.teacher_labels:
        names = Path(data.teacher_names) if data.teacher_names else None
        teacher = open_teacher(Path(data.teacher_labels), names, dataset.labels)
        if teacher.unknown and not quiet:
            meant = "may be one of these" if teacher.scheme.unknown else "is ignored"
            print(
                f"The labels in {teacher.folder} do not know {', '.join(teacher.unknown.values())}: what they call "
                f"background {meant}."
            )
        with bar("taking over labels", quiet) as advance:
            cases = taught_by_others(cases, teacher, run / TEACHER_LABELS, workers=workers(), progress=advance)
        open_ends, dataset = True, replace(dataset, labels=teacher.scheme)
    if not quiet and (data.decisions or data.teacher_labels):
        print(f"Scans: {count_roles(cases)}.")
    if open_ends:
        dataset = replace(dataset, labels=replace(dataset.labels, ignore=ignore_value(dataset.labels)))
    return dataset, cases


def _reviewed(run: Path, cases: list[RunCase], labels: LabelScheme, asked: str, *, quiet: bool) -> Review:
    """What a review says, as it was read when the run was begun."""
    kept = read_review(run)
    if kept is not None and kept.source == asked and (run / "plan.toml").exists():
        return kept
    with bar("reading the review", quiet) as advance:
        review = made_review(run, asked, cases, labels, workers=workers(), progress=advance)
    write_review(run, review)
    return review


def _teach(
    run: Path, cases: list[RunCase], labels: LabelScheme, settings: RunSettings, *, quiet: bool
) -> list[RunCase]:
    """Have the teacher label the unlabelled cases; those that it has labelled before are not done again."""
    teacher = load_model(Path(settings.data.teacher))
    if teacher.plan.labels.names != labels.names:
        raise ConfigError(
            f"data.teacher = {settings.data.teacher}: knows {', '.join(teacher.plan.labels.organs.values())}, but "
            f"{settings.data.root} has {', '.join(labels.organs.values())}. Name a model that was trained on these."
        )
    output = run / TEACHER_LABELS
    scans = [Scan(case.id, tuple(map(Path, case.images))) for case in of_role(cases, "unlabelled")]
    predict_settings = replace(settings.predict, probabilities=False)
    outcomes = predict_into(teacher.folder, scans, output, predict_settings, quiet=quiet)
    if failed := [f"{outcome.id}: {outcome.error}" for outcome in outcomes if outcome.error]:
        raise DataError("the teacher could not label (the others are kept):\n  " + "\n  ".join(failed))
    return taught(cases, output)


def evaluate(
    predictions: AnyPath,
    references: AnyPath,
    labels: AnyPath | None = None,
    *,
    settings: EvaluateSettings | None = None,
    output: AnyPath | None = None,
    quiet: bool = False,
) -> Summary:
    """Score a folder of predictions against a folder of references; writes summary.json and summary.csv.

    labels: a dataset.json or plan.toml that names the labels; without one they are the values found, or the
    challenge's organs under its rules.
    """
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
        )
    if not quiet:
        print_summary(summary)
    return summary


def evaluate_run(run: AnyPath, *, output: AnyPath | None = None, quiet: bool = False) -> Summary:
    """Score `run/predictions` against the labels of the run's test cases. output: folder for the summary, by default
    the run, and its folder `tests` where it has folds."""
    run = Path(run)
    settings = prepared_settings(run).evaluate
    plan = read_plan(run / "plan.toml")
    cases = [case for case in of_role(read_run_cases(run / "cases.jsonl"), "test") if case.label]
    if not cases:
        raise DataError(
            f"{run}/cases.jsonl: no test case has a label. Put labels into labelsTs and run `semiseg prepare {run}`, "
            "which looks again and does nothing twice, or name two folders with --predictions and --references."
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
        )
    if not quiet:
        print_summary(summary)
    missed = never_found(summary)
    add_notice(run, "missed", missed)
    if missed and not quiet:
        print(f"Note: {missed}")
    return summary


def _scores_of_tests(run: Path) -> Path:
    """Where the summary of the test cases goes: beside that of the labelled ones, where a run has folds."""
    return run / "tests" if fold_runs(run) else run


def compare(
    runs: AnyPath | Sequence[AnyPath], *, names: Sequence[str] = (), page: AnyPath | None = None, quiet: bool = False
) -> Comparison:
    """Compare evaluated runs on their common test cases, the first as baseline: the paper's tables. page: an HTML file
    to write them to besides."""
    folders = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    for run in folders:
        if run.is_dir() and not (run / "summary.json").exists():
            raise DataError(f"{run}: has no summary.json. Score the run first: semiseg evaluate {run}")
    comparison = compare_summaries(
        list(names) or [run.name for run in folders],
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

    Started by `torchrun` all ranks train, and the first does the rest.
    """
    from semiseg.world import first_alone

    run = Path(run)
    with together(settings):
        first_alone(lambda: prepare(run, settings, quiet=quiet) and None)
        train(run, quiet=quiet)
    if not is_first_rank():
        return run / "report.html"
    cases = of_role(read_run_cases(run / "cases.jsonl"), "test")
    if cases:
        outcomes = predict_test_cases(run, quiet=quiet)
        failed = [f"{outcome.id}: {outcome.error}" for outcome in outcomes if outcome.error]
        if failed:
            raise DataError(
                f"{counted(len(failed), 'test case')} could not be predicted (the others are kept):\n  "
                + "\n  ".join(failed)
                + "\nMend these files and run the same command again, which goes on from here."
            )
        if any(case.label for case in cases):
            evaluate_run(run, quiet=quiet)
    return report(run)
