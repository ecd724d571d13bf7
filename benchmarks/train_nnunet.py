"""nnU-Net v2 as a method of a study: trained on the same labels for the same minutes, scored by the same scores.

    python benchmarks/train_nnunet.py --results docs/benchmarks/hippocampus --data FOLDER --labelled 4 --minutes 8
    python benchmarks/train_nnunet.py --results docs/benchmarks/hippocampus --data FOLDER --labelled 16 --minutes 80

Minutes are of 2 cores; `--cores 1` trains twice as long on one, as the runs of a study with `--jobs 2` do. Needs
`.peers` (see against_peers.py) and those cores to itself. Adds a run of method nnunet (nnunet_80min for other minutes
than the study's) to `results.json`, with whose test cases and tolerances it must agree; a run that is there is not made
again, and one that was cut off after training goes on with the scans that are not predicted yet.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from semiseg.data.roles import DataSettings, assign_roles, of_role
from semiseg.files import read_json, write_json
from semiseg.io.layouts import read_dataset
from semiseg.scoring import EvaluateSettings, evaluate_folder
from semiseg.scoring.label_efficiency import StudyRun, name_of, read_study, run_name, scores_of, write_study

PEERS = Path(__file__).parents[1] / ".peers" / "bin" / "python"
TRAINING = Path(__file__).parent / "contenders" / "nnunet_training.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--labelled", type=int, required=True)
    parser.add_argument("--label-seed", type=int, default=None, help="a drawn subset; by default the first labels")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--cores", type=int, choices=(1, 2), default=2)
    parser.add_argument("--development", type=int, default=0, help="as data.development of the study")
    parser.add_argument("--out", type=Path, default=Path("runs/nnunet"))
    arguments = parser.parse_args()
    file = arguments.results / "results.json"
    study = read_study(file)
    method = "nnunet" if arguments.minutes == study["minutes"] else f"nnunet_{arguments.minutes:g}min"
    name = run_name(method, arguments.labelled, arguments.label_seed, 0)
    if any(name_of(run) == name for run in study["runs"]):
        print(f"{name}: is in {file}")
        return
    dataset = read_dataset(arguments.data)
    settings = DataSettings(
        labelled=arguments.labelled, label_seed=arguments.label_seed, development=arguments.development
    )
    cases = assign_roles(dataset, settings, validation_fraction=0, seed=0)
    labelled = of_role(cases, "labelled")
    test = [case for case in of_role(cases, "test") if case.label]
    scored = sorted(study["runs"][0]["cases"]) if study["runs"] else []
    if scored and scored != sorted(case.id for case in test):
        raise SystemExit(f"{file}: was scored on other cases. Is --development that of the study?")
    folder = arguments.out / study["name"] / name
    raw = folder / "raw" / "Dataset001_Study"
    if not (folder / "trained.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
    for part in (raw / "imagesTr", raw / "labelsTr", folder / "test"):
        part.mkdir(parents=True, exist_ok=True)
    for case in labelled:
        _copy_channels(case.images, raw / "imagesTr" / case.id)
        shutil.copy(str(case.label), raw / "labelsTr" / f"{case.id}.nii.gz")
    for case in test:
        _copy_channels(case.images, folder / "test" / case.id)
    description = {
        "channel_names": {str(n): name for n, name in enumerate(dataset.channels)},
        "labels": {name: value for value, name in dataset.labels.names.items()},
        "numTraining": len(labelled),
        "file_ending": ".nii.gz",
    }
    write_json(raw / "dataset.json", description)

    began = time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
        command = [str(PEERS), str(TRAINING), str(folder), str(arguments.minutes * 2 / arguments.cores)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name}: failed. Read {folder}/log.txt")
    print(f"{name}: {(time.perf_counter() - began) / 60:.1f} minutes with preparation and prediction", flush=True)
    references = [(case.id, Path(str(case.label)), Path(case.images[0])) for case in test]
    scoring = EvaluateSettings(organ_tolerance_mm=study["tolerance_mm"])
    summary = evaluate_folder(folder / "predicted", references, dataset.labels, settings=scoring)
    trained = read_json(folder / "trained.json")
    study = read_study(file)  # the study may have grown meanwhile
    study["runs"].append(
        StudyRun(
            method=method,
            labelled=arguments.labelled,
            label_seed=arguments.label_seed,
            seed=0,
            key=name,
            steps=trained["steps"],
            minutes=trained["minutes"],
            peak_memory_mb=round(usage.ru_maxrss * 1024 / 1e6, 1),
            cases=scores_of(summary),
        )
    )
    write_study(file, study)
    print(json.dumps(trained | {"dice": summary["mean"]["dice"]}))


def _copy_channels(images: Sequence[str], stem: Path) -> None:
    for n, image in enumerate(images):
        shutil.copy(image, stem.with_name(f"{stem.name}_{n:04d}.nii.gz"))


if __name__ == "__main__":
    main()
