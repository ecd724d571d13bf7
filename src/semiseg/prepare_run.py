"""A run folder prepared: roles, labels of others, the plan, and every case stored in network units."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from semiseg.console import bar
from semiseg.data.batches import refuse_indivisible
from semiseg.data.fingerprint import write_fingerprint
from semiseg.data.partial import ignore_value
from semiseg.data.plan import Plan, read_plan, write_plan
from semiseg.data.prepare import prepare_cases, write_recipe
from semiseg.data.remarks import print_label_remarks, print_remarks
from semiseg.data.reviews import TEACHER_LABELS, Review, count_roles, made_review, read_review, write_review
from semiseg.data.roles import (
    RunCase,
    assign_roles,
    of_role,
    read_ids,
    read_run_cases,
    taught,
    with_hashes,
    write_run_cases,
)
from semiseg.data.shared_store import open_store, store_beside
from semiseg.data.sizing import TOO_COARSE
from semiseg.data.teachers import open_teacher, taught_by_others
from semiseg.data.unlike import unlike_others
from semiseg.errors import ConfigError, DataError
from semiseg.files import remove_leftovers, write_text
from semiseg.io.dataset import Dataset, LabelScheme
from semiseg.io.layouts import read_dataset, refuse_no_folder
from semiseg.io.layouts.series import SeriesChoice
from semiseg.io.store_index import IndexedCases, write_index
from semiseg.notices import add_notice, notices_by_topic
from semiseg.planning import LEARNT_FROM, for_ranks, lacking_space, made_plan, what_comes
from semiseg.predict_run import predict_into
from semiseg.prediction.inputs import Scan
from semiseg.prediction.model import load_model
from semiseg.processes import asked_ranks, workers
from semiseg.run_folder import alone_in, fold_runs, keep_asked, refuse_foreign, trained_models
from semiseg.settings import RunSettings, refuse_contradictions
from semiseg.types import AnyPath
from semiseg.words import counted, shortened


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
        print_remarks(dataset, settings.data.patients)
    settings.evaluate.check_labels(dataset.labels)
    validation = _validation_fraction(run, dataset, settings) if settings.train.validation_every else 0.0
    cases = assign_roles(dataset, settings.data, validation_fraction=validation, seed=settings.train.seed)
    dataset, cases = _with_other_labels(run, dataset, cases, settings, quiet=quiet)
    training = [case.case() for case in of_role(cases, *LEARNT_FROM)]

    if not (run / "plan.toml").exists():
        plan, fingerprint = made_plan(run, dataset, cases, settings, quiet=quiet)
        plan = for_ranks(plan, settings.plan, asked_ranks())
        write_fingerprint(run / "fingerprint.json", fingerprint)
        _notice_grid(run, plan)
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
    _refuse_damaged(run, settings, {result.id: result.error for result in results if result.error}, of=len(results))
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


def _notice_grid(run: Path, plan: Plan) -> None:
    """Notice a grid that is too coarse for some organs, or take back what an earlier plan was noticed for."""
    text = next((reason for reason in plan.reasons if reason.startswith(TOO_COARSE)), "")
    if text != notices_by_topic(run).get("grid", ""):
        add_notice(run, "grid", text)


def _refuse_damaged(run: Path, settings: RunSettings, failed: dict[str, str], *, of: int) -> None:
    """Raise `DataError` where some of so many cases could not be prepared, which `run/damaged.txt` lists then."""
    damaged, asked = run / "damaged.txt", settings.data.exclude
    if failed:
        before = read_ids(asked, "exclude") if asked else []
        write_text(damaged, "\n".join(["# left out before, and could not be prepared", *before, *failed]) + "\n")
        raise DataError(
            f"{len(failed)} of {counted(of, 'case')} could not be prepared (the others are kept):\n  "
            + "\n  ".join(f"{id}: {error}" for id, error in failed.items())
            + "\nMend or remove the files; or leave these cases out: give the same command with --set "
            f"data.exclude={damaged}, which lists them."
        )
    if asked != str(damaged.resolve()):  # else good scans would be left out when they are mended
        damaged.unlink(missing_ok=True)


def _validation_fraction(run: Path, dataset: Dataset, settings: RunSettings) -> float | None:
    """The share of the labelled cases that is held out, as in a run that was prepared before; None is the usual one.
    Where test cases have labels, these tell how good the model is, and all other labels are learnt from."""
    if settings.train.validation_fraction is not None:
        return settings.train.validation_fraction
    if (run / "plan.toml").exists() and (before := _cases_before(run)):
        is_scored = not of_role(before, "validation")
    else:
        held_back = settings.data.development > 0 or settings.data.fold is not None
        is_scored = held_back or any(case.split == "test" and case.label for case in dataset.cases)
    return 0.0 if is_scored else None


def _cases_before(run: Path) -> list[RunCase]:
    """Those that were prepared before; none where their list is missing or damaged, as it is written anew."""
    try:
        return read_run_cases(run / "cases.jsonl")
    except DataError:
        return []


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
    """Have the teacher label the unlabelled cases, or the average of its folds; those that were labelled before are not
    done again."""
    named = Path(settings.data.teacher)
    folders = [load_model(folder).folder for folder in (trained_models(named) if fold_runs(named) else [named])]
    teacher = load_model(folders[0])
    if teacher.plan.labels.names != labels.names:
        raise ConfigError(
            f"data.teacher = {settings.data.teacher}: knows {', '.join(teacher.plan.labels.organs.values())}, but "
            f"{settings.data.root} has {', '.join(labels.organs.values())}. Name a model that was trained on these."
        )
    output = run / TEACHER_LABELS
    scans = [Scan(case.id, tuple(map(Path, case.images))) for case in of_role(cases, "unlabelled")]
    predict_settings = replace(settings.predict, probabilities=False)
    outcomes = predict_into(folders[0], scans, output, predict_settings, ensemble=folders[1:], quiet=quiet)
    if failed := [f"{outcome.id}: {outcome.error}" for outcome in outcomes if outcome.error]:
        raise DataError("the teacher could not label (the others are kept):\n  " + "\n  ".join(failed))
    return taught(cases, output)
