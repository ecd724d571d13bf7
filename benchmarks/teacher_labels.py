"""Labels of another program as teacher, the whole way: label maps in nnU-Net's form, with numbers of its own.

    python benchmarks/teacher_labels.py --run RUN --output FOLDER [--steps 500]
    python benchmarks/teacher_labels.py --run RUN --labels FOLDER --output FOLDER

RUN is a trained run whose unlabelled scans were labelled (`semiseg predict RUN --unlabelled`): its label maps stand for
those of nnU-Net, written with other numbers and the dataset.json that nnU-Net writes. With `--labels` they are those of
another program, nnU-Net say (`train_nnunet.py --unlabelled`), and RUN need only be prepared.

One run has RUN's labels alone. Two learn from the maps, too: one from all organs, one from the first organ alone. All
are of as many steps, and of RUN's plan settings. Prints Dice of the maps against hidden labels, and of each run on the
test cases; a run whose test cases are predicted is not made again.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from few_labels import made_run
from semiseg.data.plan import read_plan
from semiseg.data.reviews import PSEUDO_LABELS
from semiseg.data.roles import of_role, read_run_cases
from semiseg.files import read_json, write_json
from semiseg.io.file_kinds import label_map
from semiseg.io.layouts import read_dataset
from semiseg.io.scans import read_label, write_label
from semiseg.methods.settings import SupervisedSettings
from semiseg.run_folder import prepared_settings
from semiseg.scoring.metrics import dice
from semiseg.settings import RunSettings
from semiseg.words import counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--labels", type=Path, help="label maps of another program, with nnU-Net's dataset.json")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    settings = prepared_settings(arguments.run)
    settings = replace(
        settings, method=SupervisedSettings(), train=replace(settings.train, steps=arguments.steps, threads=1)
    )
    organs = read_plan(arguments.run / "plan.toml").labels.organs
    everything = arguments.labels or as_of_nnunet(arguments.run, arguments.output / "nnunet", organs)
    everything = everything.resolve()
    print_agreement(everything, settings.data.root, organs)
    names = arguments.output / "first_organ.json"
    first = next(iter(organs))
    write_json(names, {organs[first]: read_json(everything / "dataset.json")["labels"][organs[first]]})
    ways: dict[str, dict[str, Any]] = {
        "own labels alone": {},
        "taught, all organs": {"teacher_labels": str(everything)},
        f"taught, {organs[first]} alone": {"teacher_labels": str(everything), "teacher_names": str(names)},
    }
    for number, (way, data) in enumerate(ways.items()):
        run = arguments.output / f"run_{number}_{arguments.steps}_steps"
        scores = trained(run, replace(settings, data=replace(settings.data, **data)))
        print(f"{way:32} {as_text(scores)}", flush=True)


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


def print_agreement(labels: Path, root: str, organs: dict[int, str]) -> None:
    """Dice of the maps against the labels that the dataset has of these scans."""
    values = read_json(labels / "dataset.json")["labels"]
    pairs = [
        (label_map(labels, case.id), case.label)
        for case in read_dataset(Path(root)).cases
        if case.label and label_map(labels, case.id).exists()
    ]
    scores = mean_dice(pairs, {name: (values[name], value) for value, name in organs.items()})
    print(f"{'labels of ' + counted(len(pairs), 'scan'):32} " + as_text(scores), flush=True)


def trained(run: Path, settings: RunSettings) -> dict[str, float]:
    """Dice by organ on the test cases, and its mean."""
    scores = made_run(run, settings).values()
    means = {
        name: float(np.mean([one for case in scores if (one := case[value]) is not None]))
        for value, name in read_plan(run / "plan.toml").labels.organs.items()
    }
    return means | {"mean": float(np.mean(list(means.values())))}


def as_text(scores: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in scores.items())


def mean_dice(pairs: list[tuple[Path, Path]], organs: dict[str, tuple[int, int]]) -> dict[str, float]:
    """Dice by organ over pairs of label maps, and its mean; organs: the value of each in the first and the second."""
    found: dict[str, list[float]] = {}
    for given_file, true_file in pairs:
        given, true = read_label(given_file)[0], read_label(true_file)[0]
        for name, (given_value, true_value) in organs.items():
            if (score := dice(true == true_value, given == given_value)) is not None:
                found.setdefault(name, []).append(score)
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return means | {"mean": float(np.mean(list(means.values())))}


if __name__ == "__main__":
    main()
