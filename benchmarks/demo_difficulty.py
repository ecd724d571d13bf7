"""Is the demo's phantom set hard enough to be worth more labels? Few labels against all, supervised, one seed or more.

    python benchmarks/demo_difficulty.py --out runs/demo-difficulty

The same network, steps and augmentation for 4 and for all 28 training labels; the mean Dice of 13 organs on the 24 test
cases. It goes on where it was cut off and writes benchmarks/results/demo_difficulty.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from semiseg import workflows
from semiseg.demo.dataset import write_phantom_dataset
from semiseg.demo.tour import demo_settings
from semiseg.files import read_json, write_json

FEW, ALL = 4, 28


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo-difficulty"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    data = write_phantom_dataset(arguments.out / "data", seed=0, hidden_labels=True)
    scores: dict[int, list[float]] = {FEW: [], ALL: []}
    for seed in arguments.seeds:
        for labelled, found in scores.items():
            run = arguments.out / f"{labelled}-labels-seed-{seed}"
            settings = demo_settings(data, seed=seed, steps=arguments.steps)
            settings = replace(
                settings,
                data=replace(settings.data, labelled=labelled),
                method=replace(settings.method, name="supervised"),
                train=replace(settings.train, threads=arguments.threads, precision="float32"),
            )
            workflows.run_all(run, settings)
            summary = read_json(run / "summary.json")
            found.append(round(summary["mean"]["dice"]["mean"], 4))
    gaps = [round(b - a, 4) for a, b in zip(scores[FEW], scores[ALL], strict=True)]
    result = {"steps": arguments.steps, "seeds": arguments.seeds, "dice by labels": scores, "all minus few": gaps}
    write_json(Path(__file__).parent / "results" / "demo_difficulty.json", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
