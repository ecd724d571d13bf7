"""Cross-validation: K networks, each trained without one part of the labelled scans, and scored on that part.

A run with folds holds K runs, `fold_0` and on, which share its plan and the prepared scans. Each is a run like any
other, so each resumes as exactly. What they say of the scans that they have not learnt from is the run's summary: how
good is it, where there is no test set. Prediction averages the networks.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from semiseg import prepare_run, workflows
from semiseg.data.plan import read_plan
from semiseg.data.roles import of_role, read_run_cases
from semiseg.data.shared_store import store_beside
from semiseg.errors import ConfigError, DataError
from semiseg.files import file_lock, write_text
from semiseg.notices import add_notice, notices_by_topic
from semiseg.predict_run import predict_test_cases
from semiseg.reporting import write_report
from semiseg.run_folder import fold_runs, refuse_links
from semiseg.scoring import print_summary
from semiseg.scoring.evaluator import TOLERANCE, too_forgiving
from semiseg.scoring.summary import Summary, read_summary, summarise, write_summary
from semiseg.settings import RunSettings, write_settings
from semiseg.training.settled import Settled, read_settled, write_settled
from semiseg.words import counted, in_minutes


def run_folds(run: Path, settings: RunSettings, *, fold: int | None = None, quiet: bool = False) -> Path | None:
    """Prepare once, then train and score every fold, or one; goes on where it was cut off. Returns the page, or None
    while other folds are missing.

    Raises `ConfigError` for a fold that there is not.
    """
    count = settings.data.folds
    if fold is not None and not 0 <= fold < count:
        raise ConfigError(f"--fold {fold}: there are the folds 0 to {count - 1}.")
    run.mkdir(parents=True, exist_ok=True)
    with file_lock(run / ".folds.lock"):  # folds on many machines begin together: one makes the plan
        prepare_run.prepare(run, settings, quiet=quiet)
    if not quiet:
        each = "" if settings.train.steps else f", {in_minutes(settings.train.minutes)} each"
        print(f"{counted(count, 'network')}{each}: every labelled scan is predicted by one that has not seen it.")
    for index in range(count) if fold is None else (fold,):
        if not quiet:
            print(f"\nFold {index} (they are 0 to {count - 1}):")
        own = run / f"fold_{index}"
        if not (own / "plan.toml").exists():
            _begin(run, own, index, settings)
        workflows.run_all(own, _settings_of(run, index, settings), quiet=quiet)
    missing = [index for index in range(count) if not (run / f"fold_{index}" / "summary.json").exists()]
    if missing:
        if not quiet:
            folds = ("Fold {} is" if len(missing) == 1 else "Folds {} are").format(", ".join(map(str, missing)))
            print(f"{folds} still to come: semiseg run {run} --fold I makes one.")
        return None
    with file_lock(run / ".folds.lock"):  # two that end together sum up one after the other
        return summed_up(run, settings, quiet=quiet)


def _settings_of(run: Path, index: int, settings: RunSettings) -> RunSettings:
    store = str(store_beside(run, settings.data.store).resolve())
    # Cleaning is chosen on these very predictions, which are to be scored as they are.
    predict = replace(settings.predict, postprocess=False)
    return replace(settings, data=replace(settings.data, fold=index, store=store), predict=predict)


def _begin(run: Path, own: Path, index: int, settings: RunSettings) -> None:
    """Give a fold the plan of all, so that scans are prepared once and the networks can be averaged."""
    own.mkdir(exist_ok=True)
    refuse_links(own)
    write_settings(own / "run.toml", _settings_of(run, index, settings))
    # What the machine that prepared found out of itself is not that of another, which may train this fold.
    write_settled(own, Settled(plan=read_settled(run).plan))
    for name in ("fingerprint.json", "plan.toml"):  # the plan last: with it the fold has begun
        write_text(own / name, (run / name).read_text(encoding="utf-8"))


def summed_up(run: Path, settings: RunSettings, *, quiet: bool) -> Path:
    """Write what the folds say together: `summary.json` of all labelled scans, the scores of the test cases by the
    averaged networks if there are any, and the page."""
    summary = out_of_fold(run, settings.data.patients)
    write_summary(run, summary)
    for fold in fold_runs(run):
        own = (text for topic, text in notices_by_topic(fold).items() if topic != TOLERANCE)
        add_notice(run, fold.name, " ".join(f"{fold.name}: {text}" for text in own))
    plan = read_plan(run / "plan.toml")
    add_notice(run, TOLERANCE, too_forgiving(settings.evaluate, plan.spacing_mm, run))
    if not quiet:
        print("\nOut of fold: every labelled scan, predicted by the network that has not learnt from it.")
        print_summary(summary)
    tests = of_role(read_run_cases(run / "cases.jsonl"), "test")
    if tests:
        outcomes = predict_test_cases(run, quiet=quiet)
        if failed := [f"{outcome.id}: {outcome.error}" for outcome in outcomes if outcome.error]:
            raise DataError("test cases could not be predicted (the others are kept):\n  " + "\n  ".join(failed))
        if any(case.label for case in tests):
            if not quiet:
                print("\nThe test cases, by the average of the networks:")
            workflows.evaluate_run(run, quiet=quiet)
    return write_report(run)


def out_of_fold(run: Path, patients: str) -> Summary:
    """The scores of all folds as one summary. patients: `DataSettings.patients`. Raises `DataError` where a fold has
    none, and where they do not have every labelled scan once."""
    summaries = [read_summary(fold / "summary.json") for fold in fold_runs(run)]
    if not summaries:
        raise DataError(f"{run}: has no folds. Make them with `semiseg run {run} --folds 5`.")
    first = summaries[0]
    scored = sorted(case["id"] for summary in summaries for case in summary["cases"])
    labelled = sorted(case.id for case in of_role(read_run_cases(run / "cases.jsonl"), "labelled", "validation"))
    if scored != labelled:
        raise DataError(
            f"{run}: its folds do not have every labelled scan once, since scans, labels or the number of folds "
            "changed between them. Use another run folder."
        )
    organs = {int(value): name for value, name in first["organs"].items()}
    cases = sorted((case for summary in summaries for case in summary["cases"]), key=lambda case: case["id"])
    return summarise(cases, organs, first["tolerance_mm"], first["rules"], patients)


def closing_lines(run: Path) -> list[str]:
    """Five lines, as of one network."""
    folds = fold_runs(run)
    found = read_summary(run / "summary.json")["mean"]["dice"]
    value = "undefined" if found["mean"] is None else f"{found['mean']:.3f}"
    return [
        f"Scores:  mean Dice {value} of {counted(found['count'], 'labelled scan')}, out of fold.",
        f"Trained: {counted(len(folds), 'network')} on the plan of {run / 'plan.toml'} ({_features(run)}).",
        f"Models:  {folds[0] / 'model'} to {folds[-1] / 'model'}",
        f"Page:    {run / 'report.html'} (open it in a browser)",
        f"Next:    semiseg predict {run} SCANS --output LABELS (averages the networks)",
    ]


def _features(run: Path) -> str:
    student = read_plan(run / "plan.toml").student.features
    return f"{len(student)} levels, {student[0]} to {student[-1]} features"
