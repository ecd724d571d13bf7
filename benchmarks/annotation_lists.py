"""Which scans to label next: lists for `data.label_list`, for a simulated annotation experiment.

    semiseg rank RUN
    python benchmarks/annotation_lists.py --run RUN --add 4 --out docs/lab/studies/hippocampus_annotation
    semiseg study docs/lab/studies/hippocampus_annotation.toml --data FOLDER --output runs/hippocampus_annotation

Each list has the run's labelled cases and then, in the order that an annotator would be told, so many of its unlabelled
ones: by entropy, by disagreement, and in three random orders.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from semiseg.data.roles import of_role, read_run_cases
from semiseg.files import write_text
from semiseg.rows import read_ranking
from semiseg.training.ranking import Order, ranked

RANDOM_SEEDS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--add", type=int, required=True, help="cases that are labelled next")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    labelled = [case.id for case in of_role(read_run_cases(arguments.run / "cases.jsonl"), "labelled")]
    doubts = read_ranking(arguments.run)
    orders: list[tuple[str, Order, int]] = [("entropy", "entropy", 0), ("disagreement", "disagreement", 0)]
    orders += [(f"random_{seed}", "random", seed) for seed in RANDOM_SEEDS]
    for name, order, seed in orders:
        chosen = [doubt["id"] for doubt in ranked(doubts, order, seed=seed)[: arguments.add]]
        write_text(arguments.out / f"{name}.txt", "\n".join([*labelled, *chosen]) + "\n")
        print(f"{name}: {', '.join(chosen)}")


if __name__ == "__main__":
    main()
