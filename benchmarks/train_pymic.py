"""PyMIC as a method of a study: trained on the same scans for minutes of one core, scored by the same scores.

    python benchmarks/train_pymic.py --results docs/benchmarks/hippocampus_by_minutes --data FOLDER --labelled 4 \\
        --minutes 5 --method UAMT

Needs `.pymic` (`make .pymic/installed`). The configuration is that of PyMIC's example of the left atrium, in 3D, or of
its example of ACDC, in 2D (PyMIC_examples, seg_semi_sup/AtriaSeg and seg_semi_sup/ACDC), in everything but what the
data and the minutes ask for: docs/lab/accuracy.md names each difference. Adds a run of method pymic_uamt
(pymic_uamt_20min for other minutes than the study's) to `results.json`; a run that is there is not made again, and one
that was cut off after training is predicted.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import nibabel

from peer_runs import PeerRun, add_arguments, add_to_study, peer_run, run_peer
from semiseg.data.roles import RunCase

PYMIC = Path(__file__).parents[1] / ".pymic" / "bin" / "python"
TRAINING = Path(__file__).parent / "contenders" / "pymic_training.py"
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "UAMT": {"semi_supervised_learning": {"ema_decay": 0.99}},
    "CPS": {"network": {"net_type": "[NETWORK, NETWORK]"}},
    "URPC": {"network": {"multiscale_pred": True}, "training": {"deep_supervise": True}},
    "MCNet": {
        "network": {"net_type": "MCNet2D"},
        "semi_supervised_learning": {"unsupervised_loss": "MSE", "temperature": 0.1},
    },
}
"""What the examples' files have of their own."""
ITERATIONS = {"atrium": 20_000, "acdc": 30_000}
"""Of the examples."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "runs/pymic")
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--example", choices=ITERATIONS, default="atrium")
    arguments = parser.parse_args()
    if (arguments.method, arguments.example) == ("MCNet", "atrium"):
        raise SystemExit("MCNet: PyMIC has no network of it in 3D. Give --example acdc.")
    run = peer_run(f"pymic_{arguments.method.lower()}", arguments)
    if run.known:
        print(f"{run.name}: is in {arguments.results}")
        return
    if len(run.dataset.channels) > 1:
        raise SystemExit(f"{arguments.data}: has several channels, and this benchmark writes lists of one.")
    if not (run.folder / "trained.json").exists():
        shutil.rmtree(run.folder, ignore_errors=True)
    lists = {"labelled": run.labelled, "unlabelled": run.unlabelled, "test": run.test}
    for role, cases in lists.items():
        _write_list(run.folder, role, cases)
    (run.folder / "model").mkdir(exist_ok=True)
    (run.folder / "pymic.cfg").write_text(configuration(run, arguments.method, arguments.example))
    peak = run_peer(run, [str(PYMIC), str(TRAINING), str(run.folder), str(arguments.minutes)], cores=1)
    print(json.dumps(add_to_study(run, peak)))


def _write_list(folder: Path, role: str, cases: Sequence[RunCase]) -> None:
    """Copies of the scans, and of labels that are given, and PyMIC's table of them."""
    (folder / role).mkdir(parents=True, exist_ok=True)
    lines = ["image,label" if role == "labelled" else "image"]
    for case in cases:
        names = [f"{role}/{case.id}.nii.gz"]
        shutil.copy(case.images[0], folder / names[0])
        if role == "labelled":
            names.append(f"{role}/{case.id}_label.nii.gz")
            shutil.copy(str(case.label), folder / names[1])
        lines.append(",".join(names))
    (folder / f"{role}.csv").write_text("\n".join(lines) + "\n")


def patch_of(cases: Sequence[RunCase]) -> list[int]:
    """Four fifths of the median scan as it is stored, slices first, in multiples of 8: the network halves its maps
    three times."""
    shapes = [nibabel.Nifti1Image.from_filename(case.images[0]).shape for case in cases]
    return [max(8, int(0.8 * median(shape[axis] for shape in shapes)) // 8 * 8) for axis in (2, 1, 0)]


def configuration(run: PeerRun, method: str, example: str) -> str:
    """The example's settings as PyMIC reads them. What it gives in iterations is in thousandths of them here."""
    folder = run.folder.resolve()
    of_example = {"atrium": _atrium, "acdc": _acdc}[example](run)
    cropped = ["RandomCrop", "RandomFlip", "NormalizeWithMeanStd", "GammaCorrection"]
    augmented = {"atrium": [*cropped, "GaussianNoise"], "acdc": ["Pad", *cropped]}[example]
    whole = ["NormalizeWithMeanStd", "Pad"]
    sections: dict[str, dict[str, Any]] = {
        "dataset": {
            "tensor_type": "float",
            "task_type": "seg",
            "supervise_type": "semi_sup",
            "train_dir": folder,
            "train_csv": folder / "labelled.csv",
            "train_csv_unlab": folder / "unlabelled.csv",
            "valid_csv": folder / "labelled.csv",
            "test_csv": folder / "test.csv",
            "num_worker": 0,
            "train_transform": [*augmented, "LabelToProbability"],
            "train_transform_unlab": augmented,
            "valid_transform": [*whole, "LabelToProbability"],
            "test_transform": whole,
            "RandomCrop_foreground_focus": False,
            "RandomCrop_foreground_ratio": None,
            "RandomCrop_mask_label": None,
            "RandomFlip_flip_depth": example == "atrium" and method == "CPS",
            "RandomFlip_flip_height": True,
            "RandomFlip_flip_width": True,
            "NormalizeWithMeanStd_channels": [0],
            "GammaCorrection_channels": [0],
        },
        "network": {
            "class_num": len(run.dataset.labels.names),
            "in_chns": 1,
            "up_mode": 2,
            "multiscale_pred": False,
        },
        "training": {
            "gpus": [0],
            "loss_type": ["DiceLoss", "CrossEntropyLoss"],
            "loss_weight": [0.5, 0.5],
            "optimizer": "Adam",
            "learning_rate": "1e-3",
            "momentum": 0.9,
            "weight_decay": "1e-5",
            "lr_scheduler": "ReduceLROnPlateau",
            "lr_gamma": 0.5,
            "ckpt_dir": folder / "model",
            "iter_max": 1000,
            "iter_valid": 100,
            "iter_save": [1000],
        },
        "semi_supervised_learning": {"method_name": method, "regularize_w": 0.1},
        "testing": {"gpus": [0], "ckpt_mode": 0, "output_dir": folder / "predicted"},
    }
    for section, own in of_example.items():
        sections[section] |= own
    network = sections["network"]["net_type"]
    for section, own in METHODS[method].items():
        sections[section] |= own
    sections["network"]["net_type"] = sections["network"]["net_type"].replace("NETWORK", network)
    lines = []
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{key} = {_written(value)}" for key, value in values.items()), ""]
    return "\n".join(lines)


def _atrium(run: PeerRun) -> dict[str, dict[str, Any]]:
    return {
        "dataset": {
            "train_batch_size": 2,
            "train_batch_size_unlab": 2,
            "Pad_output_size": [8, 8, 8],
            "Pad_ceil_mode": True,
            "RandomCrop_output_size": patch_of(run.labelled),
            "GammaCorrection_gamma_min": 0.7,
            "GammaCorrection_gamma_max": 1.5,
            "GaussianNoise_channels": [0],
            "GaussianNoise_mean": 0,
            "GaussianNoise_std": 0.05,
            "GaussianNoise_probability": 0.5,
        },
        "network": {
            "net_type": "UNet3D",
            "feature_chns": [32, 64, 128, 256],
            "dropout": [0.0, 0.0, 0.5, 0.5],
        },
        "training": _in_thousandths("atrium", ReduceLROnPlateau_patience=2000, early_stop_patience=5000),
        "semi_supervised_learning": _in_thousandths("atrium", rampup_start=1000, rampup_end=15_000),
        "testing": {"post_process": None, "sliding_window_enable": False},
    }


def _acdc(run: PeerRun) -> dict[str, dict[str, Any]]:
    return {
        "dataset": {
            "train_batch_size": 4,
            "train_batch_size_unlab": 4,
            "Pad_output_size": [6, 256, 256],
            "Pad_ceil_mode": False,
            "RandomCrop_output_size": [4, 192, 192],
            "GammaCorrection_gamma_min": 0.8,
            "GammaCorrection_gamma_max": 1.2,
        },
        "network": {
            "net_type": "UNet2D",
            "feature_chns": [16, 32, 64, 128, 256],
            "dropout": [0.0, 0.0, 0.0, 0.5, 0.5],
        },
        "training": _in_thousandths("acdc", ReduceLROnPlateau_patience=4000, early_stop_patience=8000),
        "semi_supervised_learning": _in_thousandths("acdc", rampup_start=2000, rampup_end=20_000),
        "testing": {
            "post_process": "KeepLargestComponent",
            "sliding_window_enable": True,
            "sliding_window_size": [6, 192, 192],
            "sliding_window_stride": [6, 192, 192],
        },
    }


def _in_thousandths(example: str, **iterations: int) -> dict[str, float]:
    return {name: round(1000 * value / ITERATIONS[example], 3) for name, value in iterations.items()}


def _written(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


if __name__ == "__main__":
    main()
