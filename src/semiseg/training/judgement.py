"""What a person must be told of a training that ended: said in the console at the time, and a banner in the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from semiseg.notices import add_notice
from semiseg.rows import RoundRow, read_metrics, read_rounds
from semiseg.training.settings import TrainSettings
from semiseg.words import in_minutes

FEW_STEPS = 500
USUAL_FOLDS = 5
STILL_FALLING = 0.82
"""The loss of the last fifth of a run, divided by that of the fifth before the last but one. Runs with less gained 0.01
to 0.03 Dice by three to four times the steps: docs/lab/first_hour.md."""
OVERRUN = 1.1
HARDLY_LEARNT = 0.8
"""The loss at the end of a run that has not found most of its organs yet: where networks had not, it was 0.84 to 1.02,
and below 0.43 where their labels were to be trusted (docs/lab/first_hour.md)."""
_FEWEST_ROWS = 20


def judge_training(
    run: Path, settings: TrainSettings, *, steps: int, seconds: float, loss: str, labelled: int, scored: bool
) -> list[str]:
    """Add to the run's notices what its steps, minutes and losses say, and return the sentences.

    loss: name of the one by which the network is judged that the run ended with. labelled: of how many patients
    cases are learnt from that a person labelled. scored: whether there are labels that the model is held against.
    """
    rows = read_metrics(run)
    found = {
        "steps": _few_steps(settings, steps),
        "minutes": _overrun(settings, seconds),
        "convergence": _not_converged([row[loss] for row in rows if loss in row]),
        "unlabelled": _not_learnt_from(read_rounds(run)),
        "validation": "" if scored else _nothing_tells(labelled),
    }
    for topic, text in found.items():
        add_notice(run, topic, text)
    return [text for text in found.values() if text]


def _nothing_tells(labelled: int) -> str:
    folds = f", or use --folds {min(USUAL_FOLDS, labelled)}" if labelled > 1 else ""
    return (
        "No validation case was held back, so nothing tells how good the model is. Put scans with labels into imagesTs "
        f"and labelsTs{folds}."
    )


def _few_steps(settings: TrainSettings, steps: int) -> str:
    if steps >= FEW_STEPS:
        return ""
    remedy = "Give more steps." if settings.steps is not None else "Give more --minutes, or a machine with less to do."
    return f"{steps} training steps were made, and {FEW_STEPS} or more are usual. {remedy}"


def _overrun(settings: TrainSettings, seconds: float) -> str:
    if settings.steps is not None or seconds <= OVERRUN * 60 * settings.minutes:
        return ""
    return (
        f"Training took {in_minutes(round(seconds / 60, 1))}, and {settings.minutes:g} were asked for: labelling "
        "scans or other programs took more time than there was."
    )


def _not_converged(losses: Sequence[float]) -> str:
    if len(losses) < _FEWEST_ROWS:
        return ""
    fifth = len(losses) // 5
    last, before = fmean(losses[-fifth:]), fmean(losses[-3 * fifth : -2 * fifth])
    if last > HARDLY_LEARNT:
        return (
            f"Training had hardly begun to learn: its loss was still {last:.2f} at the end, where networks that find "
            "their organs are far below 0.8. Give more minutes, or label more scans."
        )
    if last >= STILL_FALLING * before:
        return ""
    return (
        f"Training had not converged: its loss still fell from {before:.2f} to {last:.2f} in the last part. More "
        "minutes will make the model better."
    )


def _not_learnt_from(rounds: Sequence[RoundRow]) -> str:
    if not rounds or any(row["trusted"] for row in rounds):
        return ""
    return f"Nothing was learnt from the unlabelled scans. In the last round: {rounds[-1]['why']}"
