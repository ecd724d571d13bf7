"""nnU-Net v2 trained for some minutes on the cases of a folder, and its predictions. Run by the peers' Python.

    .peers/bin/python nnunet_training.py FOLDER MINUTES

FOLDER holds `raw/Dataset001_Study` (nnU-Net's form), `test/ID_0000.nii.gz` and perhaps `unlabelled/ID_0000.nii.gz`;
what is made goes into `preprocessed`, `results`, `predicted` and `teacher_labels`. nnU-Net's own fingerprint, plan,
preprocessing, network, augmentation, optimiser, loss, schedule, sliding window and mirroring; trained on all cases
(fold "all"). Of its trainer only the loop is not used: the number of epochs is set from the time of the first ones, so
that the learning rate reaches zero when the minutes end, and nothing is validated or written in between. A network that
is trained is not trained again (`network.pt`), and a scan that is predicted not predicted again.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ITERATIONS = 5
"""Of an epoch, which is short so that the minutes are kept: the learning rate is set anew in each."""
WARM, TIMED = 1, 2
"""Epochs that are not timed (files are read, memory is found), and those that are."""


def main() -> None:
    folder, minutes = Path(sys.argv[1]).resolve(), float(sys.argv[2])
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    os.environ["nnUNet_n_proc_DA"] = "1"  # noqa: SIM112 (nnU-Net's name)
    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    prepared = folder / "preprocessed" / "Dataset001_Study"
    if not (folder / "trained.json").exists():
        extract_fingerprints([1], num_processes=1, show_progress_bar=False)
        plan_experiments([1])
        preprocess([1], configurations=("3d_fullres",), num_processes=(1,), show_progress_bar=False)
    plans = json.loads((prepared / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    description = json.loads((prepared / "dataset.json").read_text())
    torch.manual_seed(0)
    trainer = nnUNetTrainer(plans, "3d_fullres", "all", description, device=torch.device("cpu"))
    network, facts_file = folder / "network.pt", folder / "trained.json"
    if facts_file.exists():
        trainer.initialize()
        trainer.network.load_state_dict(torch.load(network, weights_only=True))
    else:
        began = time.perf_counter()
        steps = train(trainer, 60 * minutes)
        trained_minutes = round((time.perf_counter() - began) / 60, 2)
        torch.save(trainer.network.state_dict(), network)
        configuration = trainer.configuration_manager
        facts = {
            "steps": steps,
            "minutes": trained_minutes,
            "patch": list(configuration.patch_size),
            "batch": configuration.batch_size,
        }
        facts_file.write_text(json.dumps(facts))
    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        description,
        "nnUNetTrainer",
        trainer.inference_allowed_mirroring_axes,
    )
    for source, target in (("test", "predicted"), ("unlabelled", "teacher_labels")):
        if scans := sorted((folder / source).glob("*_0000.nii.gz")):
            (folder / target).mkdir(exist_ok=True)
            targets = [str(folder / target / scan.name.removesuffix("_0000.nii.gz")) for scan in scans]
            predictor.predict_from_files_sequential([[str(scan)] for scan in scans], targets, overwrite=False)


def train(trainer: Any, seconds: float) -> int:
    """Train for so many seconds and return the number of steps."""
    trainer.on_train_start()
    began = time.perf_counter()
    epoch, epochs = 0, WARM + TIMED
    timed_from = began
    while epoch < epochs:
        trainer.current_epoch = epoch
        if epoch == WARM:
            timed_from = time.perf_counter()
        trainer.on_train_epoch_start()
        for _ in range(ITERATIONS):
            trainer.train_step(next(trainer.dataloader_train))
        epoch += 1
        if epoch == WARM + TIMED:
            an_epoch = (time.perf_counter() - timed_from) / TIMED
            epochs = epoch + max(1, round((seconds - (time.perf_counter() - began)) / an_epoch))
            trainer.lr_scheduler.max_steps = epochs
    print(f"{epoch * ITERATIONS} steps in {time.perf_counter() - began:.0f} s", flush=True)
    trainer.disable_checkpointing = True
    trainer.on_train_end()
    return epoch * ITERATIONS


if __name__ == "__main__":
    main()
