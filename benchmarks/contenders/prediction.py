"""Task: a CT predicted, file to file."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measured import Contender, Work

SCAN = "scan_0000.nii.gz"


def _semiseg(folder: Path, model: str = "model-32", **options: Any) -> Work:
    from semiseg import predict_run
    from semiseg.files import read_jsonl
    from semiseg.io.scans import read_label
    from semiseg.prediction.settings import PredictSettings

    output = folder / "predicted-by-semiseg"
    shutil.rmtree(output, ignore_errors=True)
    chosen: dict[str, Any] = {"engine": "openvino", "mirror": False} | options
    settings = PredictSettings(**chosen)

    def work() -> dict[str, Any]:
        predict_run.predict(folder / model, [folder / "scan"], output, settings=settings, quiet=True)
        (row,) = read_jsonl(output / "predictions.jsonl")
        engine = np.array(f"{row['engine']} in {row['precision']}")
        return {"labels": read_label(output / SCAN.replace("_0000", ""))[0], "engine": engine}

    return work


def _semiseg_gpu(folder: Path, **options: Any) -> Work:
    _start_gpu()
    return _semiseg(folder, engine="auto", device="cuda", **options)


def _start_gpu() -> None:
    """What CUDA takes to start is not what is measured."""
    import torch

    torch.zeros(1, device="cuda")


def _nnunet(folder: Path, device: str = "cpu") -> Work:
    import nnunet

    from semiseg.io.scans import read_label

    if device == "cuda":
        _start_gpu()
    predictor = nnunet.predictor(folder / "model-32", device)
    output = folder / "predicted-by-nnunet"
    output.mkdir(exist_ok=True)

    def work() -> dict[str, Any]:
        scan, target = str(folder / "scan" / SCAN), str(output / "scan")
        predictor.predict_from_files_sequential([[scan]], [target])
        return {"labels": read_label(Path(target + ".nii.gz"))[0]}

    return work


CONTENDERS: dict[str, Contender] = {
    "semiseg": _semiseg,
    "semiseg, all tiles": partial(_semiseg, skip_air=False),
    "semiseg float32": partial(_semiseg, precision="float32"),
    "semiseg int8": partial(_semiseg, precision="int8"),
    "semiseg compact": partial(_semiseg, model="model-16-coarse"),
    "nnU-Net": _nnunet,
    "semiseg GPU": _semiseg_gpu,
    "semiseg GPU float32": partial(_semiseg_gpu, precision="float32"),
    "semiseg GPU, 4 tiles at once": partial(_semiseg_gpu, tile_batch=4),
    "nnU-Net GPU": partial(_nnunet, device="cuda"),
}
