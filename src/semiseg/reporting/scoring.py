"""What the page says about the scores besides the numbers: what was never found, what an HD95 is over, and how fine the
scans are that a tolerance is for."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from semiseg.errors import DataError
from semiseg.io.scans import read_grid
from semiseg.reporting.figures import words
from semiseg.reporting.numbers import lengths
from semiseg.reporting.run_data import RunData
from semiseg.scoring.statistics import Interval
from semiseg.scoring.summary import Summary, organs_never_found
from semiseg.types import Spacing


@dataclass(frozen=True, kw_only=True)
class WorstDistance:
    """The organ with the largest mean HD95. there: in how many cases reference or prediction have it (`interval` counts
    those in which both do). without: organs that some case has, and that have no HD95 at all, since both never have
    them."""

    organ: str
    interval: Interval
    there: int
    without: int


def banner(data: RunData) -> list[str]:
    """The warnings at the top of the page: those of the run's stages, then what its summary shows."""
    told = [notice.replace("_", " ") for notice in data.notices if "never found" in notice]
    found = organs_never_found(data.summary) if data.summary else {}
    silent = [organ for organ in found if not any(words(organ) in notice for notice in told)]
    if not silent or not data.summary:
        return list(data.notices)
    if len(silent) == 1:
        cases = found[silent[0]]
        where = "the one scored case that has it" if cases == 1 else f"all {cases} scored cases that have it"
        return [*data.notices, f"{words(silent[0])} was never found: Dice 0 in {where}."]
    named = ", ".join(map(words, silent))
    how_many = f"{len(silent)} of {len(data.summary['organs'])} organs were never found"
    return [*data.notices, f"{how_many}, with Dice 0 in every scored case that has them: {named}."]


def worst_distance(summary: Summary | None) -> WorstDistance | None:
    """The organ whose mean HD95 is largest, or None where no organ has any.

    A mean over organs would fall when an organ is missed, since what was not found has no distance.
    """
    if summary is None:
        return None
    found = {organ: row["hd95_mm"] for organ, row in summary["per_organ"].items() if row["hd95_mm"]["count"]}
    if not found:
        return None
    organ = max(found, key=lambda name: found[name]["mean"] or 0.0)
    return WorstDistance(
        organ=organ,
        interval=found[organ],
        there=summary["per_organ"][organ]["dice"]["count"],
        without=sum(row["dice"]["count"] > 0 for row in summary["per_organ"].values()) - len(found),
    )


def tolerance_sentences(data: RunData) -> list[str]:
    """The NSD tolerances beside the voxels of the scored scans, and what a tolerance below them means."""
    if not data.summary or not data.summary["tolerance_mm"]:
        return []
    spacings: list[Spacing] = []
    for case in data.summary["cases"]:
        with suppress(DataError):  # the header of a reference that cannot be read
            spacings.append(read_grid(data.path(case["reference"])).spacing_mm)
    tolerances = f"NSD tolerance: {_by_tolerance(data.summary)}"
    if not spacings:
        return [f"{tolerances}."]
    apart, in_plane = [max(mm) for mm in spacings], [sorted(mm)[1] for mm in spacings]
    sentences = [f"{tolerances}; the scored scans: slices {lengths(apart)} apart, {lengths(in_plane)} in plane."]
    least = min(data.summary["tolerance_mm"].values())
    for sizes, what, meaning in (
        (
            in_plane,
            "a voxel in plane",
            "off by one voxel counts as wrong there, so that NSD asks for the very same voxels",
        ),
        (apart, "the distance between slices", "off by one slice counts as wrong there, however exact it is in plane"),
    ):
        if below := sum(least < mm for mm in sizes):
            where = "all scored scans" if below == len(sizes) else f"{below} of {len(sizes)} scored scans"
            sentences.append(f"In {where} a tolerance of {least:g} mm is less than {what}: a border {meaning}.")
            break
    return sentences


def _by_tolerance(summary: Summary) -> str:
    groups: dict[float, list[str]] = {}
    for organ in summary["organs"].values():
        groups.setdefault(summary["tolerance_mm"][organ], []).append(words(organ))
    if len(groups) == 1:
        return f"{next(iter(groups)):g} mm"
    return ", ".join(f"{mm:g} mm ({', '.join(organs)})" for mm, organs in sorted(groups.items()))
