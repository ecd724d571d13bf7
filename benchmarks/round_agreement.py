"""Whether the scans on which the last two rounds agree are those that are labelled well, against hidden labels.

    semiseg prepare ALL --recipe docs/lab/studies/recipes/left_atrium.toml --data FOLDER --labelled 80 \\
        --set plan.base_features=16 --set plan.patch=[32,48,48]
    python benchmarks/round_agreement.py --run RUN --labels ALL

RUN was trained by rounds of whole scans; ALL is a run of the same plan that is only prepared, with every label.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from semiseg.geometry import Box
from semiseg.io.store import open_case, open_labels
from semiseg.training.scan_labels import scan_agreement

SHARES = (1.0, 0.9, 0.8, 0.7, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run that was trained by rounds of whole scans")
    parser.add_argument("--labels", type=Path, required=True, help="prepared run in which every case has its label")
    arguments = parser.parse_args()
    now, before = sorted((arguments.run / "scan_labels").iterdir(), key=lambda folder: -folder.stat().st_mtime)
    rows = []
    for file in sorted(now.glob("*.b2nd")):
        case = open_case(arguments.labels / "store" / file.stem)
        shape = case.meta.shape_zyx
        last, first = (np.asarray(open_labels(folder / file.name, shape)[:]) for folder in (now, before))
        rows.append((scan_agreement(last, first), scan_agreement(last, case.read_label(Box((0, 0, 0), shape)))))
    found = np.array(sorted(rows, reverse=True))
    print(f"{len(found)} scans, Spearman correlation {spearmanr(found[:, 0], found[:, 1]).statistic:.2f}")
    for share in SHARES:
        kept = found[: round(share * len(found)), 1]
        print(f"{share:4.0%} that agree most: mean Dice of the labels {kept.mean():.4f}, worst {kept.min():.3f}")


if __name__ == "__main__":
    main()
