"""What a predicted label map holds: volumes, mean values, and which organs the scan's border cuts. One pass, a row of
the scan at a time."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.data.plan import Plan
from semiseg.files import write_json, write_text
from semiseg.geometry import triple
from semiseg.io.scans import RawChannel
from semiseg.types import DoubleArray, LabelArray, Shape, Spacing
from semiseg.words import as_text_cell

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Census:
    """How many voxels of each value lie in each slice along Z, Y and X, `(slices, K)` each, and the sums of the
    channels' values over them, `(C, K)`."""

    areas: tuple[Counts, Counts, Counts]
    sums: DoubleArray

    @property
    def voxels(self) -> Counts:
        """Of each value."""
        return np.asarray(self.areas[0].sum(axis=0))

    def touches_border(self, value: int) -> bool:
        """Whether voxels of the value lie in the first or last slice along an axis."""
        return any(area[0, value] or area[-1, value] for area in self.areas)


def take_census(labels: LabelArray, channels: Sequence[RawChannel], count: int) -> Census:
    """Count a label map `(Z, Y, X)` of values below `count`, and add up the channels of its scan; the background (0) is
    left out."""
    axis = int(np.argmax(np.abs(labels.strides)))  # whose slices lie together in memory
    order = (axis, *(other for other in range(3) if other != axis))
    labels = labels.transpose(order)
    stored = [channel.along(triple(order)).stored for channel in channels]
    areas = [np.zeros((n, count), dtype=np.int64) for n in labels.shape]
    sums = np.zeros((len(channels), count))
    for index, plane in enumerate(labels):
        rows, columns = plane.nonzero()
        if not rows.size:
            continue
        found = plane[rows, columns].astype(np.intp)
        areas[0][index] = np.bincount(found, minlength=count)
        for area, places in zip(areas[1:], (rows, columns), strict=True):
            area += np.bincount(places * count + found, minlength=area.size).reshape(area.shape)
        for values, total in zip(stored, sums, strict=True):
            total += np.bincount(found, weights=values[index][rows, columns].astype(np.float64), minlength=count)
    for channel, total in zip(channels, sums, strict=True):
        total *= channel.slope
        total += channel.inter * areas[0].sum(axis=0)
    along = dict(zip(order, areas, strict=True))
    return Census((along[0], along[1], along[2]), sums)


def organ_rows(census: Census, spacing_mm: Spacing, plan: Plan) -> list[dict[str, Any]]:
    """A row for each organ of the plan, in its order; `mean_...` is None where there is none of it."""
    names = mean_names(plan)
    voxels, one_ml = census.voxels, float(np.prod(spacing_mm)) / 1000
    rows = []
    for value, organ in plan.labels.organs.items():
        count = int(voxels[value])
        means = {
            name: _to_six_digits(float(total[value]) / count) if count else None
            for name, total in zip(names, census.sums, strict=True)
        }
        rows.append(
            {"organ": organ, "value": value, "voxels": count, "ml": _to_six_digits(count * one_ml)}
            | means
            | {"touches_border": census.touches_border(value)}
        )
    return rows


def _to_six_digits(number: float) -> float:
    """Six significant ones: organs of tiny voxels have some 1e-6 ml, and diffusion some 1e-3 mm²/s."""
    return float(f"{number:.6g}")


def mean_names(plan: Plan) -> list[str]:
    """What the mean of each channel is called: `mean_hu` of a CT, `mean_intensity` of another one; of several channels
    with their names."""
    kinds = ["hu" if one.scheme == "ct" else "intensity" for one in plan.normalisation]
    if len(kinds) == 1:
        return [f"mean_{kinds[0]}"]
    return [f"mean_{kind}_{name}" for kind, name in zip(kinds, plan.channels, strict=True)]


def write_statistics(stem: Path, cases: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Write the rows of cases, by their ids, as `stem.csv` and `stem.json`."""
    rows = [{"id": id} | row for id, found in cases.items() for row in found]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer.writerow(columns or ["id"])
    writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
    table, as_json = statistics_files(stem)
    write_text(table, text.getvalue())
    write_json(as_json, [{"id": id, "organs": list(found)} for id, found in cases.items()])


def statistics_files(stem: Path) -> list[Path]:
    """The two files of statistics."""
    return [stem.with_name(f"{stem.name}{end}") for end in (".csv", ".json")]


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return as_text_cell(value) if isinstance(value, str) else value


def fullest_slices(census: Census) -> Shape:
    """For each axis the slice that holds most of all organs, each by its area as a share of its largest one, so that
    small organs count as much as large ones; the middle one without any."""
    z, y, x = map(_fullest, census.areas)
    return (z, y, x)


def _fullest(areas: Counts) -> int:
    held = (areas / np.maximum(areas.max(axis=0), 1)).sum(axis=1)
    return int(held.argmax()) if held.any() else len(areas) // 2
