"""What makes a trained run, or the next one, better: which scans to look at, and which cleaning of labels helps."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semiseg.console import bar
from semiseg.data.case_hashes import hashed_ids
from semiseg.data.labels import read_checked_label
from semiseg.data.plan import Plan, read_plan
from semiseg.data.reviews import DOUBT
from semiseg.data.roles import FEWEST_TO_VALIDATE, Role, of_role, read_run_cases
from semiseg.errors import ConfigError, DataError
from semiseg.io.file_kinds import label_map
from semiseg.io.scans import read_grid, read_label
from semiseg.predict_run import predict_into
from semiseg.prediction.inputs import Scan
from semiseg.prediction.postprocessing import Pair, choose_steps, write_steps
from semiseg.prediction.settings import PredictSettings
from semiseg.processes import workers
from semiseg.rows import read_rounds
from semiseg.run_folder import fold_runs, is_worked_on, prepared_settings
from semiseg.train_run import open_session
from semiseg.training.settled import read_settled
from semiseg.types import AnyPath

if TYPE_CHECKING:  # prediction by other engines than torch does not import it
    from semiseg.rows import Doubt
    from semiseg.training.ranking import Order


def rank(
    run: AnyPath,
    *,
    by: Order = "disagreement",
    against: AnyPath | None = None,
    exclude_worst: float = 0.0,
    quiet: bool = False,
) -> list[Doubt]:
    """Order the unlabelled cases of a trained run by how doubtful their pseudo-labels are, the most doubtful first.

    Cases that these networks judged before are not judged again. Writes `run/ranking.csv`, `run/doubt/ID.json` and,
    where `exclude_worst` names a share of the cases, `run/exclude.txt`, a list for `data.exclude`. by: disagreement of
    the run's two networks (teacher and student, partners, the network of the last round's labels and the one that
    learnt them, or a network and its average), or of its model with that of another run (against: the round before,
    say); entropy; or random, the baseline.

    Raises `DataError` where the run has no checkpoint or no unlabelled case, `ConfigError` where the other run's
    networks do not fit this run's or there is none to disagree with.
    """
    from semiseg.prediction.device import choose_device
    from semiseg.training.ranking import doubts, ranked, ranking_engines, write_ranking
    from semiseg.training.scan_labels import found_poses

    run = Path(run)
    if against and by != "disagreement":
        raise ConfigError(f"--against names who may disagree, but cases are ordered by {by}: leave one of them out.")
    _refuse_share(exclude_worst, by)
    settings = prepared_settings(run)
    _refuse_unranked(run)
    session = open_session(run, settings, read_settled(run), choose_device(settings.train.device))
    cases = [run / "store" / case.id for case in of_role(session.cases, "unlabelled")]
    if not cases:
        raise DataError(f"{run}/cases.jsonl: no unlabelled case, so there is nothing to rank.")
    first, second = ranking_engines(session, None if against is None else Path(against))
    if by == "disagreement" and second is None:
        raise ConfigError(
            f"{run}: has one network alone, which cannot contradict itself. Name another with --against, or order by "
            "entropy."
        )
    with bar("ranking", quiet) as advance:
        (run / DOUBT).mkdir(exist_ok=True)
        found, problems = doubts(
            cases,
            first,
            second,
            session.plan,
            poses=found_poses(read_rounds(run)),
            workers=workers(1),
            kept=run / DOUBT,
            progress=advance,
        )
    if problems:
        print("Not ranked:\n  " + "\n  ".join(problems), file=sys.stderr)
    if not found:
        raise DataError(f"{run}: no unlabelled case could be ranked. Prepare them anew: semiseg prepare {run}")
    order = ranked(found, by, seed=settings.train.seed)
    write_ranking(run, order, by, exclude_worst=exclude_worst)
    return order


def _refuse_share(exclude_worst: float, by: Order) -> None:
    if not 0 <= exclude_worst < 1:
        raise ConfigError(f"exclude-worst = {exclude_worst}: give a share of the cases, from 0 to below 1.")
    if exclude_worst and by == "random":
        raise ConfigError("exclude-worst: in random order none is the worst. Use disagreement or entropy.")


def _refuse_unranked(run: Path) -> None:
    """Raise where a run has no network to rank by; say so where it has not ended."""
    if fold_runs(run):
        raise ConfigError(
            f"{run}: has folds, each with networks of its own. Rank by one: semiseg rank {run / 'fold_0'}"
        )
    if is_worked_on(run):
        if not any((run / "checkpoints").glob("step-*")):
            raise DataError(f"{run}: is being trained, and has no checkpoint yet. Rank when training has ended.")
        text = "is still being trained: ranked by its last checkpoint. Rank again when training has ended."
        print(f"{run}: {text}", file=sys.stderr)


def postprocess(run: AnyPath, *, quiet: bool = False) -> dict[str, Any]:
    """Choose, on the run's validation cases, which cleaning of labels helps which organ, and keep it with the model. A
    run with folds has all its labelled cases for it, each predicted by the network that has not seen it.

    Returns `steps` by organ, `dice` by organ and choice, and the ids of the `cases`. Raises `DataError` where the run
    holds no case back, or one cannot be predicted.
    """
    run = Path(run)
    settings = replace(prepared_settings(run).predict, postprocess=False, probabilities=False)
    plan = read_plan(run / "plan.toml")
    if folds := fold_runs(run):
        pairs = [
            pair for fold in folds for pair in _pairs(fold, "test", fold / "out_of_fold", plan, settings, quiet=quiet)
        ]
        chosen = choose_steps(pairs, plan.labels.organs, ignore=plan.labels.ignore)
        for fold in folds:
            write_steps(fold / "model", _without_names(chosen, run))
        return chosen
    if not of_role(read_run_cases(run / "cases.jsonl"), "validation"):
        raise DataError(
            f"{run}: no validation cases, and nothing may be chosen on others. A run holds cases back where it has "
            f"{FEWEST_TO_VALIDATE} labelled ones or more, no test case has a label, and neither "
            "train.validation_fraction nor train.validation_every is 0. Make a new run with --folds 5, whose networks "
            "predict all labelled scans out of fold, or with --set train.validation_fraction=0.2. Until then labels "
            "stay as predicted."
        )
    chosen = choose_steps(
        _pairs(run, "validation", run / "validation", plan, settings, quiet=quiet),
        plan.labels.organs,
        ignore=plan.labels.ignore,
    )
    write_steps(run / "model", _without_names(chosen, run))
    return chosen


def _without_names(chosen: dict[str, Any], run: Path) -> dict[str, Any]:
    """What is kept in a model's folder, which others may get."""
    return chosen | {"cases": hashed_ids(run, chosen["cases"])}


def _pairs(run: Path, role: Role, output: Path, plan: Plan, settings: PredictSettings, *, quiet: bool) -> list[Pair]:
    """References of a run's cases of a role, and what its model says of them, as predicted."""
    held = [case.case() for case in of_role(read_run_cases(run / "cases.jsonl"), role) if case.label]
    outcomes = predict_into(run / "model", [Scan(case.id, case.images) for case in held], output, settings, quiet=quiet)
    if failed := [f"{outcome.id}: {outcome.error}" for outcome in outcomes if outcome.error]:
        raise DataError("cases that are held back could not be predicted:\n  " + "\n  ".join(failed))
    pairs = []
    for case in held:
        assert case.label is not None  # it was chosen by that
        reference, _ = read_checked_label(case.label, case.images[0], read_grid(case.images[0]), plan.labels)
        labels, _ = read_label(label_map(output, case.id))
        pairs.append(Pair(case.id, reference, labels))
    return pairs
