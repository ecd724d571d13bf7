"""Methods side by side on few labels: the same minutes for each, several label subsets, paired over test cases.

    python benchmarks/label_efficiency.py ACTION --recipe recipes/hippocampus.toml --data FOLDER --out runs/hippocampus

with the actions calibrate, run, develop and table in turn.
`calibrate` turns the recipe's minutes into steps for each method, once, on a quiet machine with all cores. `run` then
trains by steps, `--jobs` runs at a time with one thread each, so that a busy machine changes when a result comes but
not what it is; it goes on where it was cut off. `develop` scores the models on training cases whose labels were hidden,
for choosing settings: nothing is chosen on test cases. `table` scores and writes `benchmarks/results/NAME.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semiseg import workflows
from semiseg.config import load_settings
from semiseg.data.plan import read_plan
from semiseg.data.roles import of_role, read_run_cases
from semiseg.evaluate import evaluate_folder, read_summary
from semiseg.evaluate.statistics import Interval, paired_difference
from semiseg.evaluate.summary import case_means
from semiseg.files import read_json, read_jsonl, write_json
from semiseg.io.layouts import read_dataset
from semiseg.io.nifti import read_label
from semiseg.randomness import Draw
from semiseg.settings import read_settings
from semiseg.train.session import calibrate as session_steps

METHODS = {
    "supervised": ["method.name=supervised"],
    # Without feedback nothing is gained by moving the teacher, so that its share of the time goes to the student.
    "pseudo_label": ["method.name=pseudo_label", "method.teacher_every=0"],
    # Brought to the size of dense feedback: as the rule comes, it is under a hundredth of the supervised gradient.
    "mpl_scalar": ["method.name=mpl", "method.feedback=scalar", "method.feedback_normalise=on"],
    "mpl_dense": ["method.name=mpl", "method.feedback=dense"],
}
SUBSETS: dict[str, list[str]] = {"first": [], "seed1": ["data.label_seed=1"], "seed2": ["data.label_seed=2"]}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    actions = {"calibrate": calibrate, "run": run, "develop": develop, "table": table}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=list(actions))
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--subsets", nargs="+", default=list(SUBSETS), choices=list(SUBSETS))
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    actions[arguments.action](arguments)


def calibrate(arguments: argparse.Namespace) -> None:
    """Write steps by method to `out/steps.json`."""
    file = arguments.out / "steps.json"
    steps: dict[str, int] = read_json(file) if file.exists() else {}
    run = arguments.out / "calibration"
    plain = load_settings(arguments.recipe, [f'data.root="{arguments.data.resolve()}"'])
    workflows.prepare(run, plain, quiet=True)
    for name in arguments.methods:
        settings = load_settings(arguments.recipe, METHODS[name])
        settings = replace(plain, method=settings.method, train=replace(settings.train, precision="float32"))
        steps[name] = session_steps(workflows.open_session(run, settings, torch.device("cpu")))
        print(f"{name}: {steps[name]} steps in {settings.train.budget_minutes:g} minutes", flush=True)
    write_json(file, steps)


def run(arguments: argparse.Namespace) -> None:
    """Train, predict and score every method on every subset; a run that was finished with these settings stays."""
    steps = read_json(arguments.out / "steps.json")

    def one(job: tuple[str, str]) -> None:
        subset, method = job
        name = f"{subset}-{method}"
        extra = ["train.budget_minutes=0", f"train.steps={steps[method]}", "train.precision=float32", "train.threads=1"]
        flags = [flag for value in (*METHODS[method], *SUBSETS[subset], *extra) for flag in ("--set", value)]
        command = [sys.executable, "-m", "semiseg", "run", str(arguments.out / name), "--recipe", str(arguments.recipe)]
        with (arguments.out / f"{name}.log").open("a") as log:
            subprocess.run([*command, "--data", str(arguments.data), *flags], stdout=log, stderr=log, check=True)
        print(f"{subset} {method}: done", flush=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(one, [(subset, method) for subset in arguments.subsets for method in arguments.methods]))


def develop(arguments: argparse.Namespace) -> None:
    """Print the mean Dice on every third training case whose label the run was not shown."""
    labels = {case.id: case.label for case in read_dataset(arguments.data).cases}
    for _, _, folder in finished(arguments):
        cases = of_role(read_run_cases(folder / "cases.jsonl"), "unlabelled")
        hidden = [(case.id, label, Path(case.images[0])) for case in cases if (label := labels[case.id])][::3]
        output = folder / "development"
        workflows.predict(folder, [image for *_, image in hidden], output, quiet=True)
        plan, settings = read_plan(folder / "plan.toml"), read_settings(folder / "run.toml")
        summary = evaluate_folder(output, hidden, plan.labels, settings=settings.evaluate)
        means = "  ".join(f"{organ} {scores['dice']['mean']:.4f}" for organ, scores in summary["per_organ"].items())
        print(f"{folder.name:24} {len(hidden)} cases  mean {summary['mean']['dice']['mean']:.4f}  {means}", flush=True)


def table(arguments: argparse.Namespace) -> None:
    """Mean Dice by method and subset, and differences to supervised paired over cases, averaged over subsets.

    A case is drawn with all its subsets, since its differences under different labels are not independent; the
    interval is over cases, with these subsets and this seed of training.
    """
    rows: dict[str, dict[str, Any]] = {}
    by_case: dict[str, dict[str, dict[str, float | None]]] = {}
    for subset, method, folder in finished(arguments):
        summary, settings = read_summary(folder / "summary.json"), read_settings(folder / "run.toml")
        ids = [case["id"] for case in summary["cases"]]
        by_case.setdefault(method, {})[subset] = dict(zip(ids, case_means(summary["cases"], "dice"), strict=True))
        ratios = [row["feedback_ratio"] for row in read_jsonl(folder / "metrics.jsonl") if "feedback_ratio" in row]
        rows.setdefault(method, {})[subset] = {
            "dice": _rounded(summary["mean"]["dice"]),
            "organs": {organ: _rounded(scores["dice"])["mean"] for organ, scores in summary["per_organ"].items()},
            "steps": settings.train.steps,
            "feedback ratio": round(float(np.mean(ratios)), 4) if ratios else None,
        } | ({"mirror pairs confused": confused} if (confused := confused_pairs(folder)) else {})
    baseline = by_case.get("supervised", {})
    for method, scores in by_case.items():
        common = [subset for subset in scores if subset in baseline]
        if common and method != "supervised":
            ids = sorted(scores[common[0]])
            first, second = _over_subsets(baseline, common, ids), _over_subsets(scores, common, ids)
            found = paired_difference(first, second, Draw(seed=0), method, samples=10_000).difference
            rows[method]["minus supervised"] = _rounded(found) | {"subsets": common, "cases": len(ids)}
    result = {"recipe": arguments.recipe.name, "torch": torch.__version__, "methods": rows}
    write_json(RESULTS / f"{arguments.recipe.stem}.json", result)
    print(json.dumps(result, indent=1))


def finished(arguments: argparse.Namespace) -> Iterator[tuple[str, str, Path]]:
    """Subset, method and folder of the runs that are scored."""
    for subset in arguments.subsets:
        for method in arguments.methods:
            folder = arguments.out / f"{subset}-{method}"
            if (folder / "summary.json").exists():
                yield subset, method, folder


def confused_pairs(run: Path) -> dict[str, float]:
    """For each mirror pair, the share of its predicted voxels that are the other one's in the reference."""
    labels = read_plan(run / "plan.toml").labels
    test = of_role(read_run_cases(run / "cases.jsonl"), "test")
    shares: dict[str, float] = {}
    for a, b in labels.mirror_pairs:
        wrong = predicted = 0
        for case in test:
            found, _ = read_label(run / "predictions" / f"{case.id}.nii.gz")
            reference, _ = read_label(Path(str(case.label)))
            swapped = ((found == a) & (reference == b)) | ((found == b) & (reference == a))
            wrong += int(swapped.sum())
            predicted += int(np.isin(found, (a, b)).sum())
        shares[f"{labels.names[a]}, {labels.names[b]}"] = round(wrong / max(1, predicted), 6)
    return shares


def _over_subsets(scores: dict[str, dict[str, float | None]], subsets: list[str], ids: list[str]) -> list[float | None]:
    """Each case's mean over the subsets; None where one has no score of it."""
    means: list[float | None] = []
    for case in ids:
        values = [value for subset in subsets if (value := scores[subset][case]) is not None]
        means.append(float(np.mean(values)) if len(values) == len(subsets) else None)
    return means


def _rounded(interval: Interval) -> dict[str, float | None]:
    """Mean and limits of an interval of scores; None where no case defines them."""
    limits = {"mean": interval["mean"], "low": interval["low"], "high": interval["high"]}
    return {key: None if value is None else round(value, 4) for key, value in limits.items()}


if __name__ == "__main__":
    main()
