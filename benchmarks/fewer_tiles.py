"""What fewer tiles cost: real CTs predicted with every tile of the usual window, and with fewer.

    python benchmarks/fewer_tiles.py --run RUN --data FOLDER

The cases are the last 40 training cases of the run whose labels were hidden from it: the step between tiles is chosen
on them, and nothing on test cases. Prints the Dice of each way, its paired difference to the usual window (steps of
half a patch, air too) and the seconds; writes benchmarks/results/fewer_tiles.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from semiseg import predict_run
from semiseg.data.plan import read_plan
from semiseg.data.roles import of_role, read_run_cases
from semiseg.files import read_jsonl, write_json
from semiseg.io.layouts import read_dataset
from semiseg.prediction.settings import PredictSettings
from semiseg.randomness import Draw
from semiseg.scoring import evaluate_folder
from semiseg.scoring.statistics import paired_difference
from semiseg.scoring.summary import case_means

USUAL = "step 0.5, air too"
WAYS: dict[str, dict[str, Any]] = {
    USUAL: {"tile_step": 0.5, "skip_air": False},
    "step 0.5": {"tile_step": 0.5},
    "step 0.6": {"tile_step": 0.6},
    "step 0.75": {"tile_step": 0.75},
    "step 1": {"tile_step": 1.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--engine", default="openvino", choices=["openvino", "onnx", "torch"])
    arguments = parser.parse_args()
    run, dataset = arguments.run, read_dataset(arguments.data)
    labels = {case.id: case.label for case in dataset.cases}
    hidden = {case.id: case for case in of_role(read_run_cases(run / "cases.jsonl"), "unlabelled") if labels[case.id]}
    chosen = [case for case in dataset.train_order if case in hidden][-40:]
    images = [Path(image) for case in chosen for image in hidden[case].images]
    references = [(case, label, Path(hidden[case].images[0])) for case in chosen if (label := labels[case])]
    dice: dict[str, list[float | None]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, options in WAYS.items():
        output = run / "fewer-tiles" / name.replace(" ", "-").replace(",", "")
        settings = PredictSettings(engine=arguments.engine, postprocess=False, mirror=False, **options)
        predict_run.predict(run / "model", images, output, settings=settings)
        summary = evaluate_folder(output, references, read_plan(run / "plan.toml").labels)
        dice[name] = case_means(summary["cases"], "dice")
        found = paired_difference(dice[USUAL], dice[name], Draw(seed=0), name, samples=10_000).difference
        rows[name] = {
            "dice": summary["mean"]["dice"]["mean"],
            "difference": {key: found[key] for key in ("mean", "low", "high")},
            "seconds": round(sum(row["seconds"] for row in read_jsonl(output / "predictions.jsonl")), 1),
        }
        print(name, json.dumps(rows[name]), flush=True)
    result = {"run": run.name, "cases": len(chosen), "ways": rows}
    write_json(Path(__file__).parent / "results" / "fewer_tiles.json", result)


if __name__ == "__main__":
    main()
