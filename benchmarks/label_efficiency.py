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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

METHODS = {
    "supervised": ["method.name=supervised"],
    "pseudo_label": ["method.name=pseudo_label", "method.teacher_every=0"],
    "mpl_scalar": ["method.name=mpl", "method.feedback=scalar"],
    "mpl_dense": ["method.name=mpl", "method.feedback=dense"],
}
SUBSETS: dict[str, list[str]] = {"first": [], "seed1": ["data.label_seed=1"], "seed2": ["data.label_seed=2"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["calibrate", "run", "develop", "table"])
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--subsets", nargs="+", default=list(SUBSETS), choices=list(SUBSETS))
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    {"calibrate": calibrate, "run": run, "develop": develop, "table": table}[arguments.action](arguments)


def calibrate(arguments: argparse.Namespace) -> None:
    """Write steps by method to `out/steps.json`."""
    from dataclasses import replace

    import torch

    from semiseg import workflows
    from semiseg.config import load_settings
    from semiseg.train.session import calibrate as session_steps

    steps: dict[str, int] = {}
    run = arguments.out / "calibration"
    for name in arguments.methods:
        settings = load_settings(arguments.recipe, [f'data.root="{arguments.data.resolve()}"', *METHODS[name]])
        base = replace(settings, method=load_settings(arguments.recipe).method)
        workflows.prepare(run, base, quiet=True)
        settings = replace(settings, train=replace(settings.train, precision="float32"))
        steps[name] = session_steps(workflows.open_session(run, settings, torch.device("cpu")))
        print(f"{name}: {steps[name]} steps in {settings.train.budget_minutes:g} minutes", flush=True)
    (arguments.out / "steps.json").write_text(json.dumps(steps, indent=1) + "\n")


def run(arguments: argparse.Namespace) -> None:
    """Train, predict and score every method on every subset."""
    steps = json.loads((arguments.out / "steps.json").read_text())
    jobs = [(subset, method) for subset in arguments.subsets for method in arguments.methods]

    def one(job: tuple[str, str]) -> None:
        subset, method = job
        folder = arguments.out / f"{subset}-{method}"
        if (folder / "summary.json").exists():
            return
        extra = ["train.budget_minutes=0", f"train.steps={steps[method]}", "train.precision=float32", "train.threads=1"]
        flags = [flag for value in (*METHODS[method], *SUBSETS[subset], *extra) for flag in ("--set", value)]
        command = [sys.executable, "-m", "semiseg", "run", str(folder), "--recipe", str(arguments.recipe)]
        log = (arguments.out / f"{subset}-{method}.log").open("a")
        subprocess.run([*command, "--data", str(arguments.data), *flags], stdout=log, stderr=log, check=True)
        print(f"{subset} {method}: done", flush=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(one, jobs))


def develop(arguments: argparse.Namespace) -> None:
    """Print the mean Dice on every third training case whose label the run was not shown."""
    from semiseg import workflows
    from semiseg.data.plan import read_plan
    from semiseg.data.roles import of_role, read_run_cases
    from semiseg.evaluate import evaluate_folder
    from semiseg.io.layouts import read_dataset
    from semiseg.settings import read_settings

    labels = {case.id: case.label for case in read_dataset(arguments.data).cases}
    for run in sorted(arguments.out.glob("*-*/model")):
        folder, output = run.parent, run.parent / "development"
        settings = read_settings(folder / "run.toml")
        cases = [case for case in of_role(read_run_cases(folder / "cases.jsonl"), "unlabelled") if labels[case.id]][::3]
        workflows.predict(run, [Path(case.images[0]) for case in cases], output, quiet=True)
        references = [(case.id, Path(str(labels[case.id])), Path(case.images[0])) for case in cases]
        plan = read_plan(folder / "plan.toml")
        summary = evaluate_folder(output, references, plan.labels, settings=settings.evaluate)
        means = "  ".join(f"{organ} {scores['dice']['mean']:.4f}" for organ, scores in summary["per_organ"].items())
        print(f"{folder.name:24} {len(cases)} cases  mean {summary['mean']['dice']['mean']:.4f}  {means}", flush=True)


def table(arguments: argparse.Namespace) -> None:
    """Mean Dice by method and subset, and differences to supervised paired over cases and subsets."""
    from semiseg.randomness import Draw

    organs: list[str] = []
    scores: dict[str, dict[str, np.ndarray]] = {}
    per_organ: dict[str, dict[str, dict[str, float]]] = {}
    for subset in arguments.subsets:
        for method in arguments.methods:
            file = arguments.out / f"{subset}-{method}" / "summary.json"
            if not file.exists():
                continue
            summary = json.loads(file.read_text())
            organs = list(summary["organs"].values())
            cases = sorted(summary["cases"], key=lambda case: case["id"])
            values = [np.mean([case["organs"][o]["dice"] or 0.0 for o in organs]) for case in cases]
            scores.setdefault(method, {})[subset] = np.array(values)
            means = {o: summary["per_organ"][o]["dice"]["mean"] for o in organs}
            per_organ.setdefault(method, {})[subset] = means
    rows = {}
    for method, by_subset in scores.items():
        row: dict[str, object] = {s: round(float(v.mean()), 4) for s, v in by_subset.items()}
        common = [s for s in by_subset if s in scores.get("supervised", {})]
        if common and method != "supervised":
            # A case is drawn with all its subsets: its differences under different labels are not independent.
            difference = np.mean([by_subset[s] - scores["supervised"][s] for s in common], axis=0)
            generator = Draw(seed=0).generator("paired bootstrap")
            picks = generator.integers(0, len(difference), (10_000, len(difference)))
            low, high = np.quantile(difference[picks].mean(axis=1), [0.025, 0.975])
            row["minus supervised"] = [round(float(v), 4) for v in (difference.mean(), low, high)]
        row["organs"] = per_organ[method]
        rows[method] = row
    steps = json.loads((arguments.out / "steps.json").read_text())
    result = {"recipe": arguments.recipe.name, "steps": steps, "organs": organs, "dice": rows}
    target = Path(__file__).parent / "results" / f"{arguments.recipe.stem}.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
