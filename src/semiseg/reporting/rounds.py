"""The pseudo-labels of whole unlabelled scans: how they came to agree round by round, and pictures of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semiseg.errors import DataError
from semiseg.geometry import Box
from semiseg.io.colours import organ_colours
from semiseg.io.store import open_case, open_labels
from semiseg.reporting.numbers import value
from semiseg.reporting.overlays import label_panels
from semiseg.reporting.pictures import Picture, spread_out
from semiseg.reporting.run_data import RunData
from semiseg.types import LabelArray

_SCANS_SHOWN = 3
_SCANS_COMPARED = 40
"""Scans whose labels are read to find those that agree least and most: each takes a fraction of a second."""


@dataclass(frozen=True, kw_only=True)
class LabelledScans:
    """Pictures of the last round's labels. of: how many scans they were chosen from; compared: whether by agreement
    with the round before, whose differing voxels are then marked."""

    pictures: tuple[Picture, ...] = ()
    of: int = 0
    compared: bool = False


def labelled_scans(data: RunData) -> LabelledScans:
    """Up to three unlabelled scans with the labels of the last round: those that agree least, middlingly and best with
    the round before; without one, scans from the first to the last."""
    if not data.label_folders:
        return LabelledScans()
    newest, *others = data.label_folders
    ids = sorted(file.stem for file in newest.glob("*.b2nd") if (data.folder / "store" / file.stem).is_dir())
    earlier = others[0] if others and any((others[0] / f"{case}.b2nd").is_file() for case in ids) else None
    if earlier:
        return _compared(data, newest, earlier, spread_out(ids, _SCANS_COMPARED))
    chosen = spread_out(ids, _SCANS_SHOWN)
    pictures = tuple(_picture(data, "Unlabelled scan", case, newest) for case in chosen)
    return LabelledScans(pictures=pictures, of=len(ids))


def _compared(data: RunData, newest: Path, earlier: Path, ids: Sequence[str]) -> LabelledScans:
    agreement: dict[str, float] = {}
    for case in ids:
        try:
            shape = open_case(data.folder / "store" / case).meta.shape_zyx
            a, b = (np.asarray(open_labels(folder / f"{case}.b2nd", shape)[:]) for folder in (newest, earlier))
        except (DataError, RuntimeError):  # a scan that one of them lacks, or that is damaged
            continue
        agreement[case] = label_agreement(a, b)
    order = sorted(agreement, key=lambda case: (math.isnan(agreement[case]), agreement[case], case))
    titles = {1: ("Only scan",), 2: ("Least agreement", "Most agreement")}.get(
        len(order), ("Least agreement", "Median agreement", "Most agreement")
    )
    pictures = tuple(
        _picture(data, title, case, newest, earlier, agreement[case])
        for title, case in zip(titles, spread_out(order, _SCANS_SHOWN), strict=False)
    )
    return LabelledScans(pictures=pictures, of=len(order), compared=True)


def label_agreement(a: LabelArray, b: LabelArray) -> float:
    """Mean Dice of two label maps over the organs that one of them has, NaN where neither has any."""
    classes = int(max(a.max(), b.max())) + 1
    overlap, first, second = (np.bincount(labels.ravel(), minlength=classes)[1:] for labels in (a[a == b], a, b))
    sizes = first + second
    return float((2 * overlap[sizes > 0] / sizes[sizes > 0]).mean()) if sizes.any() else math.nan


def _picture(
    data: RunData,
    title: str,
    case: str,
    newest: Path,
    earlier: Path | None = None,
    agreement: float | None = None,
) -> Picture:
    organs = data.label_values
    colours = organ_colours(organs.values())
    try:
        stored = open_case(data.folder / "store" / case)
        shape = stored.meta.shape_zyx
        labels = np.asarray(open_labels(newest / f"{case}.b2nd", shape)[:])
        before = np.asarray(open_labels(earlier / f"{case}.b2nd", shape)[:]) if earlier else None
        image = stored.read_image(Box((0, 0, 0), shape))[0]
    except (DataError, RuntimeError) as error:
        return Picture(title=title, id=case, problem=f"This scan cannot be drawn. {error}")
    found = [name for number, name in organs.items() if (labels == number).any()]
    return Picture(
        title=title,
        id=case,
        score="" if agreement is None else f"agreement {value(agreement)}",
        organs=tuple((name, colours[name], "") for name in found),
        panels=tuple(label_panels(image, labels, before, stored.meta.spacing_mm, organs=organs)),
        problem="" if found else "No organ was found in this scan.",
    )
