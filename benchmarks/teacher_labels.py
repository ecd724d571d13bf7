"""Labels of another program as teacher, the whole way: label maps in nnU-Net's form, with numbers of its own.

    python benchmarks/teacher_labels.py --run RUN --output FOLDER [--steps 500]

RUN is a trained run whose unlabelled scans were labelled (`semiseg predict RUN --unlabelled`): its label maps stand for
those of nnU-Net, written with other numbers and the dataset.json that nnU-Net writes. Two runs learn from them with
RUN's own labels: one from all organs, one from the first organ alone. A third one has RUN's labels alone. All are of as
many steps, and of RUN's plan settings. Prints mean Dice on the test cases.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from semiseg import predict_run, prepare_run, train_run
from semiseg.data.plan import read_plan
from semiseg.data.reviews import PSEUDO_LABELS
from semiseg.data.roles import of_role, read_run_cases
from semiseg.files import write_json
from semiseg.io.file_kinds import label_map
from semiseg.io.scans import read_label, write_label
from semiseg.methods.settings import SupervisedSettings
from semiseg.run_folder import prepared_settings
from semiseg.scoring.metrics import dice
from semiseg.settings import RunSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    settings = prepared_settings(arguments.run)
    settings = replace(
        settings, method=SupervisedSettings(), train=replace(settings.train, steps=arguments.steps, threads=1)
    )
    organs = read_plan(arguments.run / "plan.toml").labels.organs
    everything = as_of_nnunet(arguments.run, arguments.output / "nnunet", organs)
    names = arguments.output / "first_organ.json"
    first = next(iter(organs))
    write_json(names, {organs[first]: len(organs) + 1 - first})
    ways: dict[str, dict[str, Any]] = {
        "own labels alone": {},
        "taught, all organs": {"teacher_labels": str(everything)},
        f"taught, {organs[first]} alone": {"teacher_labels": str(everything), "teacher_names": str(names)},
    }
    for number, (way, data) in enumerate(ways.items()):
        run = arguments.output / f"run_{number}"
        scores = trained(run, replace(settings, data=replace(settings.data, **data)))
        print(f"{way:32} " + "  ".join(f"{name} {value:.4f}" for name, value in scores.items()), flush=True)


def as_of_nnunet(run: Path, folder: Path, organs: dict[int, str]) -> Path:
    """The run's label maps with their values in the other order, and nnU-Net's list of names."""
    write_json(
        folder / "dataset.json",
        {
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0} | {name: len(organs) + 1 - value for value, name in organs.items()},
            "file_ending": ".nii.gz",
        },
    )
    for case in of_role(read_run_cases(run / "cases.jsonl"), "unlabelled"):
        label, grid = read_label(label_map(run / PSEUDO_LABELS, case.id))
        turned = np.where(label == 0, 0, len(organs) + 1 - label.astype(np.int64))
        write_label(label_map(folder, case.id), turned.astype(np.uint8), grid, Path(case.images[0]))
    return folder


def trained(run: Path, settings: RunSettings) -> dict[str, float]:
    """Dice by organ on the test cases, and its mean."""
    prepare_run.prepare(run, settings, quiet=True)
    train_run.train(run, quiet=True)
    predict_run.predict_test_cases(run, quiet=True)
    found: dict[str, list[float]] = {}
    for case in of_role(read_run_cases(run / "cases.jsonl"), "test"):
        given, true = read_label(label_map(run / "predictions", case.id))[0], read_label(Path(case.label or ""))[0]
        for value, name in read_plan(run / "plan.toml").labels.organs.items():
            if (score := dice(true == value, given == value)) is not None:
                found.setdefault(name, []).append(score)
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return means | {"mean": float(np.mean(list(means.values())))}


if __name__ == "__main__":
    main()
