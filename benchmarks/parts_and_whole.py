"""How far networks are from right in the outline of the hippocampus, and how far at the border between its two parts.

    python benchmarks/parts_and_whole.py --data FOLDER RUN [RUN ...]

Of each run's scored cases: mean Dice of both parts as one organ; of its voxels that reference and prediction share, the
share that is given to the other part; and the volume of the posterior part relative to the reference's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from semiseg.evaluate import read_summary
from semiseg.io.nifti import read_label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    folders = [arguments.data / name for name in ("labelsTr", "labelsTs")]
    references = {file.name: file for folder in folders for file in folder.iterdir()}
    print(f"{'run':<40} whole   other part  posterior volume")
    for run in arguments.runs:
        rows = []
        for case in read_summary(run / "summary.json")["cases"]:
            reference, _ = read_label(references[f"{case['id']}.nii.gz"])
            labels, _ = read_label(run / "predictions" / f"{case['id']}.nii.gz")
            both = (reference > 0) & (labels > 0)
            whole = 2 * both.sum() / ((reference > 0).sum() + (labels > 0).sum())
            rows.append((whole, (reference[both] != labels[both]).mean(), (labels == 2).sum() / (reference == 2).sum()))
        whole, other, volume = np.mean(rows, axis=0)
        print(f"{run.name:<40} {whole:.4f}  {100 * other:.1f} %       {volume:.2f}")


if __name__ == "__main__":
    main()
