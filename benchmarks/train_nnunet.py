"""nnU-Net v2 as a method of a study: trained on the same labels for the same minutes, scored by the same scores.

    python benchmarks/train_nnunet.py --results docs/benchmarks/hippocampus --data FOLDER --labelled 4 --minutes 8
    python benchmarks/train_nnunet.py --results docs/benchmarks/hippocampus --data FOLDER --labelled 16 --minutes 80
    python benchmarks/train_nnunet.py --results docs/benchmarks/hippocampus_elastic --data FOLDER --labelled 4 \\
        --minutes 10 --cores 1 --unlabelled 60

Minutes are of 2 cores; `--cores 1` trains twice as long on one, as the runs of a study with `--jobs 2` do. Needs
`.peers` (see against_peers.py) and those cores to itself. Adds a run of method nnunet (nnunet_80min for other minutes
than the study's) to `results.json`, with whose test cases and tolerances it must agree; a run that is there is not made
again, and one that was cut off after training goes on with the scans that are not predicted yet. With `--unlabelled`
the first of the unlabelled training scans are labelled, too, into OUT/STUDY/RUN/teacher_labels, as nnU-Net writes
predictions: what teacher_labels.py learns from. They are labelled after the test cases, also where the run is there.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from peer_runs import add_arguments, add_to_study, peer_run, run_peer
from semiseg.files import write_json

PEERS = Path(__file__).parents[1] / ".peers" / "bin" / "python"
TRAINING = Path(__file__).parent / "contenders" / "nnunet_training.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "runs/nnunet")
    parser.add_argument("--cores", type=int, choices=(1, 2), default=2)
    parser.add_argument("--unlabelled", type=int, default=0, help="label so many unlabelled scans, too")
    arguments = parser.parse_args()
    run = peer_run("nnunet", arguments)
    if run.known and not arguments.unlabelled:
        print(f"{run.name}: is in {arguments.results}")
        return
    raw = run.folder / "raw" / "Dataset001_Study"
    if not (run.folder / "trained.json").exists():
        shutil.rmtree(run.folder, ignore_errors=True)
    for part in (raw / "imagesTr", raw / "labelsTr", run.folder / "test", run.folder / "unlabelled"):
        part.mkdir(parents=True, exist_ok=True)
    for case in run.labelled:
        _copy_channels(case.images, raw / "imagesTr" / case.id)
        shutil.copy(str(case.label), raw / "labelsTr" / f"{case.id}.nii.gz")
    for case in run.test:
        _copy_channels(case.images, run.folder / "test" / case.id)
    for case in run.unlabelled[: arguments.unlabelled]:
        _copy_channels(case.images, run.folder / "unlabelled" / case.id)
    description = {
        "channel_names": {str(n): name for n, name in enumerate(run.dataset.channels)},
        "labels": {name: value for value, name in run.dataset.labels.names.items()},
        "numTraining": len(run.labelled),
        "file_ending": ".nii.gz",
    }
    write_json(raw / "dataset.json", description)
    command = [str(PEERS), str(TRAINING), str(run.folder), str(arguments.minutes * 2 / arguments.cores)]
    peak = run_peer(run, command, arguments.cores)
    if not run.known:
        print(json.dumps(add_to_study(run, peak)))


def _copy_channels(images: Sequence[str], stem: Path) -> None:
    for n, image in enumerate(images):
        shutil.copy(image, stem.with_name(f"{stem.name}_{n:04d}.nii.gz"))


if __name__ == "__main__":
    main()
