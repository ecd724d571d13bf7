"""Whether `semiseg rank` finds bad pseudo-labels: its doubt against the hidden labels of a run's unlabelled scans.

    semiseg rank RUN
    python benchmarks/doubt.py --run RUN --data FOLDER

Predicts the unlabelled scans with the run's model, scores them against the labels that the run was not shown, and
prints the Spearman correlation with Dice and the mean Dice of the most doubtful tenth.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.stats import spearmanr

from semiseg import predict_run
from semiseg.data.plan import read_plan
from semiseg.data.roles import of_role, read_run_cases
from semiseg.io.layouts import read_dataset
from semiseg.prediction.settings import PredictSettings
from semiseg.rows import read_ranking
from semiseg.scoring import evaluate_folder
from semiseg.scoring.summary import case_means
from semiseg.training.ranking import ranked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    labels = {case.id: case.label for case in read_dataset(arguments.data).cases}
    cases = of_role(read_run_cases(arguments.run / "cases.jsonl"), "unlabelled")
    hidden = [(case.id, label, Path(case.images[0])) for case in cases if (label := labels[case.id])]
    output = arguments.run / "unlabelled_predictions"
    settings = PredictSettings(engine="torch", device="cpu", mirror=False)
    predict_run.predict(arguments.run, [image for *_, image in hidden], output, settings=settings, quiet=True)
    summary = evaluate_folder(output, hidden, read_plan(arguments.run / "plan.toml").labels)
    dice = {case["id"]: mean for case in summary["cases"] if (mean := case_means([case], "dice")[0]) is not None}
    doubts = {doubt["id"]: doubt for doubt in read_ranking(arguments.run)}
    few = round(len(dice) / 10)
    print(f"{len(dice)} scans, mean Dice {np.mean(list(dice.values())):.4f}")
    orders: tuple[Literal["entropy", "disagreement"], ...] = ("entropy", "disagreement")
    for order in orders:
        found = spearmanr([doubts[case][order] for case in dice], list(dice.values()))
        worst = [doubt["id"] for doubt in ranked(list(doubts.values()), order) if doubt["id"] in dice][:few]
        tenth = np.mean([dice[case] for case in worst])
        print(f"{order}: Spearman {found.statistic:.2f} (p = {found.pvalue:.1g}), the {few} most doubtful {tenth:.4f}")


if __name__ == "__main__":
    main()
