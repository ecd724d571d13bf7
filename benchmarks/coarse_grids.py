"""What a coarser grid costs before any network: labels there and back, against themselves.

    python benchmarks/coarse_grids.py --data FOLDER --labelled 8 --grid 3,5,5 --grid 5,3.9,3.9

Each label map of the first training cases is taken to the grid (mm along z, y, x) as preparation does, and back as
export does, by the largest of linearly resampled classes. No student on that grid can be expected to do better. Prints
the Dice of each organ and the mean over organs; writes benchmarks/results/coarse_grids.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semiseg.files import write_json
from semiseg.io.layouts import read_dataset
from semiseg.io.scans import read_label
from semiseg.ops.resample import resample_image, resample_label, target_shape
from semiseg.scoring.metrics import dice
from semiseg.types import LabelArray, Spacing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--labelled", type=int, default=8, metavar="N", help="the first N of the training cases")
    parser.add_argument("--grid", type=_spacing, action="append", required=True, metavar="Z,Y,X", help="in mm")
    arguments = parser.parse_args()
    dataset = read_dataset(arguments.data)
    cases = {case.id: case.label for case in dataset.cases}
    labels = [read_label(label) for id in dataset.train_order[: arguments.labelled] if (label := cases[id])]
    rows = []
    for spacing_mm in arguments.grid:
        found = [_there_and_back(label, grid.spacing_mm, spacing_mm, dataset.labels.count) for label, grid in labels]
        pairs = [(label, back) for (label, _), (back, _) in zip(labels, found, strict=True)]
        organs = {
            name: _mean([dice(label == value, back == value) for label, back in pairs])
            for value, name in dataset.labels.organs.items()
        }
        row: dict[str, Any] = {
            "grid": list(spacing_mm),
            "voxels": round(float(np.mean([voxels for _, voxels in found]))),
            "dice": round(float(np.mean(list(organs.values()))), 4),
            "organs": organs,
        }
        print(row, flush=True)
        rows.append(row)
    result = {"data": arguments.data.name, "cases": len(labels), "grids": rows}
    write_json(Path(__file__).parent / "results" / "coarse_grids.json", result)


def _spacing(text: str) -> Spacing:
    z, y, x = (float(part) for part in text.split(","))
    return (z, y, x)


def _there_and_back(label: LabelArray, spacing_mm: Spacing, coarse_mm: Spacing, classes: int) -> tuple[LabelArray, int]:
    """The label map after the grid, and the number of voxels that it had there."""
    coarse = resample_label(label, target_shape(label.shape, spacing_mm, coarse_mm))
    one_hot = (np.arange(classes).reshape(-1, 1, 1, 1) == coarse).astype(np.float32)
    back = resample_image(one_hot, label.shape, order=1).argmax(axis=0)
    return back.astype(label.dtype), coarse.size


def _mean(values: Sequence[float | None]) -> float:
    return round(float(np.mean([value for value in values if value is not None])), 4)


if __name__ == "__main__":
    main()
