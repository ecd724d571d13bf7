"""Pictures of cases from a run's files: test cases, feedback maps, and one slice of a case as several runs have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semiseg.errors import DataError
from semiseg.io.colours import organ_colours
from semiseg.io.scans import read_label, read_volume
from semiseg.reporting.numbers import value
from semiseg.reporting.overlays import Panel, case_panels, feedback_panels, method_panels
from semiseg.reporting.run_data import RunData
from semiseg.scoring.summary import CaseScores, Summary, case_means
from semiseg.types import FloatArray, LabelArray

_FEEDBACK_CASES = 3


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One case with its panels, or with the reason why there are none.

    score: what stands at the right of the title. organs: name, colour and number of each organ, for the legend. limit:
    the end of the feedback scale.
    """

    title: str
    id: str
    score: str = ""
    organs: tuple[tuple[str, str, str], ...] = ()
    panels: tuple[Panel, ...] = ()
    problem: str = ""
    limit: str = ""


@dataclass(frozen=True, kw_only=True)
class DrawnCase:
    """The same slice of a case for each of several methods or runs, with its name and mean Dice as text, or the reason
    why there is none."""

    id: str
    title: str = ""
    panels: tuple[tuple[str, str, Panel], ...] = ()
    problem: str = ""


def ranked(summary: Summary | None) -> list[CaseScores]:
    """The cases from the worst to the best mean Dice; those without any Dice come last."""

    def rank(case: CaseScores) -> tuple[bool, float, str]:
        mean = mean_dice(case)
        return (mean is None, mean or 0.0, case["id"])

    return sorted(summary["cases"], key=rank) if summary else []


def mean_dice(case: CaseScores) -> float | None:
    """A case's mean Dice over the organs in which it is defined, or None."""
    return case_means([case], "dice")[0]


def chosen_cases(summary: Summary | None) -> list[tuple[str, CaseScores]]:
    """The worst, the median and the best case by mean Dice; fewer if there are fewer."""
    found = [case for case in ranked(summary) if mean_dice(case) is not None]
    if len(found) < 3:
        return list(zip(("Worst case", "Best case") if len(found) == 2 else ("Only case",), found, strict=False))
    return [("Worst case", found[0]), ("Median case", found[len(found) // 2]), ("Best case", found[-1])]


def case_pictures(data: RunData) -> list[Picture]:
    """The chosen test cases with the contours of reference and prediction."""
    return [_case_picture(data, title, case) for title, case in chosen_cases(data.summary)]


def _case_picture(data: RunData, title: str, case: CaseScores) -> Picture:
    colours = organ_colours(data.label_values.values())
    try:
        panels, problem = _case_panels(data, case), ""
    except DataError as error:
        panels, problem = (), f"This case cannot be drawn. {error}"
    return Picture(
        title=title,
        id=case["id"],
        score=f"mean Dice {value(mean_dice(case))}",
        organs=tuple((organ, colours[organ], value(scores["dice"])) for organ, scores in case["organs"].items()),
        panels=panels,
        problem=problem,
    )


def _case_panels(data: RunData, case: CaseScores) -> tuple[Panel, ...]:
    prediction, grid = read_label(data.path(case["prediction"]))
    reference, reference_grid = read_label(data.path(case["reference"]))
    if difference := grid.difference(reference_grid):
        raise DataError(f"{case['prediction']} is not on the grid of {case['reference']}: {difference}.")
    image = scan_image(image_path(data, case), prediction)
    organs, ct = data.label_values, data.is_ct
    return tuple(case_panels(image, reference, prediction, grid.spacing_mm, organs=organs, ct=ct))


def image_path(data: RunData, case: CaseScores) -> Path | None:
    """The file of a case's first channel, from summary.json or cases.jsonl; None if neither names one."""
    listed = next((row.images for row in data.cases if row.id == case["id"]), ())
    path = case["image"] or next(iter(listed), None)
    return data.path(path) if path else None


def scan_image(path: Path | None, like: LabelArray) -> FloatArray:
    """The scan in a file, which has the shape of `like`; black without a file."""
    if path is None:
        return np.zeros(like.shape, dtype=np.float32)
    image: FloatArray = read_volume([path]).array[0]
    if image.shape != like.shape:
        raise DataError(f"{path} has shape {image.shape}, but its prediction {like.shape}.")
    return image


def one_slice(
    predictions: Mapping[str, Path], reference: Path, image: Path | None, *, organs: Mapping[int, str], ct: bool
) -> dict[str, Panel]:
    """The same slice of a case as each of several methods or runs labels it, by its name; see `method_panels`."""
    found: dict[str, LabelArray] = {}
    reference_zyx, grid = read_label(reference)
    for name, path in predictions.items():
        found[name], other = read_label(path)
        if difference := other.difference(grid):
            raise DataError(f"{path} is not on the grid of {reference}: {difference}.")
    scan = scan_image(image, reference_zyx)
    return method_panels(scan, reference_zyx, found, grid.spacing_mm, organs=organs, ct=ct)


def feedback_pictures(data: RunData) -> list[Picture]:
    """The first feedback maps that a run has kept."""
    return [_feedback_picture(path, data.label_values) for path in data.feedback[:_FEEDBACK_CASES]]


def _feedback_picture(path: Path, organs: Mapping[int, str]) -> Picture:
    try:
        with np.load(path, allow_pickle=False) as archive:
            image, labels, feedback = (archive[name] for name in ("image", "pseudo_label", "feedback"))
            z, y, x = (float(mm) for mm in archive["spacing_mm"])
    except (OSError, KeyError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable feedback map ({error}). Remove the file.") from None
    panels, limit = feedback_panels(image, labels, feedback, (z, y, x), organs=organs)
    return Picture(title="Unlabelled scan", id=path.stem, panels=tuple(panels), limit=f"{limit:.1e}")


def spread_out(items: Sequence[str], number: int) -> list[str]:
    """That many of the items, evenly from the first to the last; all where there are no more."""
    if len(items) <= number:
        return list(items)
    return [items[round(n * (len(items) - 1) / max(1, number - 1))] for n in range(number)]
