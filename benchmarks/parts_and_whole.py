"""How far networks are from right in the outline of the hippocampus, and how far at the border between its two parts.

    python benchmarks/parts_and_whole.py --data FOLDER RUN [RUN ...]

The reference's parts meet at a coronal slice (how nearly is printed first): the border of a label map is the slice
that divides it best. Printed of each run's scored cases, on average: Dice of the two parts; the same with the run's
outline divided at the reference's border (what is left is the outline's), and with the last run's outline divided at
this run's border (if that one has all labels: what this border allows). Then Dice of both parts as one; of its voxels
that reference and prediction share, the share that is given to the other part; the slices from the reference's border
to this one, their standard deviation over cases, and their correlation over cases with those of the first and of the
last run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semiseg.io.scans import read_label
from semiseg.scoring import read_summary

Labels = NDArray[np.integer]
ANTERIOR, POSTERIOR = 1, 2
CORONAL = 1
"""The axis of `(Z, Y, X)` from back to front."""


def border(labels: Labels) -> int:
    """The first slice of the anterior part, if it begins where fewest voxels of both are on the wrong side."""
    posterior, anterior = ((labels == part).sum((0, 2)) for part in (POSTERIOR, ANTERIOR))
    return int(np.argmax(np.concatenate([[0], np.cumsum(posterior - anterior)])))


def divided(labels: Labels, at: int) -> Labels:
    """The same outline with the border at another slice."""
    slices = np.arange(labels.shape[CORONAL])[None, :, None]
    return np.where(labels > 0, np.where(slices < at, POSTERIOR, ANTERIOR), 0)


def dice(labels: Labels, reference: Labels, *parts: int) -> float:
    """Mean Dice of the parts."""
    pairs = [(labels == part, reference == part) for part in parts]
    return float(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    files = {file.name: file for name in ("labelsTr", "labelsTs") for file in (arguments.data / name).iterdir()}
    names = [f"{case['id']}.nii.gz" for case in read_summary(arguments.runs[-1] / "summary.json")["cases"]]
    truth = [read_label(files[name])[0] for name in names]
    found = [[read_label(run / "predictions" / name)[0] for name in names] for run in arguments.runs]
    off = np.array([[border(a) - border(b) for a, b in zip(labels, truth, strict=True)] for labels in found])
    alike = np.corrcoef(off)
    wrong = [(divided(true, border(true)) != true).sum() / (true > 0).sum() for true in truth]
    print(f"reference: its border leaves {100 * np.mean(wrong):.2f} % of the voxels on the wrong side")
    print(f"{'run':<32} Dice    true border  last outline  whole   other part  slices off    like first, last")
    for i, (run, labels) in enumerate(zip(arguments.runs, found, strict=True)):
        rows = [
            (
                dice(mine, true, ANTERIOR, POSTERIOR),
                dice(divided(mine, border(true)), true, ANTERIOR, POSTERIOR),
                dice(divided(last, border(mine)), true, ANTERIOR, POSTERIOR),
                dice(divided(mine, 0), divided(true, 0), ANTERIOR),
                (true != mine)[(true > 0) & (mine > 0)].mean(),
            )
            for mine, last, true in zip(labels, found[-1], truth, strict=True)
        ]
        parts, outline, allowed, whole, other = np.mean(rows, axis=0)
        dices = f"{parts:.4f}  {outline:.4f}       {allowed:.4f}        {whole:.4f}"
        slices = f"{off[i].mean():+.2f} ± {off[i].std():.2f}  {alike[i, 0]:.2f}, {alike[i, -1]:.2f}"
        print(f"{run.name:<32} {dices}  {100 * other:.1f} %       {slices}")


if __name__ == "__main__":
    main()
