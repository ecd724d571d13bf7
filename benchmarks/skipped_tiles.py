"""What leaving out the air costs: the test cases of a run predicted with all tiles, and with those around the body.

    python benchmarks/skipped_tiles.py --run runs/head_neck/first-supervised

Prints Dice both ways, the paired difference and the seconds; writes benchmarks/results/skipped_tiles.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from semiseg import workflows
from semiseg.data.plan import read_plan
from semiseg.data.roles import of_role, read_run_cases
from semiseg.evaluate import evaluate_folder
from semiseg.evaluate.statistics import paired_difference
from semiseg.evaluate.summary import case_means
from semiseg.files import read_jsonl, write_json
from semiseg.predict.settings import PredictSettings
from semiseg.randomness import Draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--engine", default="openvino", choices=["openvino", "onnx", "torch"])
    arguments = parser.parse_args()
    run = arguments.run
    cases = [case.case() for case in of_role(read_run_cases(run / "cases.jsonl"), "test") if case.label]
    references = [(case.id, case.label, case.images[0]) for case in cases if case.label]
    dice: dict[str, list[float | None]] = {}
    means: dict[str, float | None] = {}
    seconds: dict[str, float] = {}
    for name, skip in (("all tiles", False), ("around the body", True)):
        output = run / f"skipped-tiles-{'yes' if skip else 'no'}"
        settings = PredictSettings(engine=arguments.engine, skip_air=skip, postprocess=False)
        workflows.predict(run / "model", [image for case in cases for image in case.images], output, settings=settings)
        summary = evaluate_folder(output, references, read_plan(run / "plan.toml").labels)
        means[name] = summary["mean"]["dice"]["mean"]
        dice[name] = case_means(summary["cases"], "dice")
        seconds[name] = round(sum(row["seconds"] for row in read_jsonl(output / "predictions.jsonl")), 1)
    found = paired_difference(
        dice["all tiles"], dice["around the body"], Draw(seed=0), "skipped tiles", samples=10_000
    ).difference
    result = {
        "run": run.name,
        "cases": len(cases),
        "dice": means,
        "difference": {key: found[key] for key in ("mean", "low", "high")},
        "seconds": seconds,
    }
    write_json(Path(__file__).parent / "results" / "skipped_tiles.json", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
