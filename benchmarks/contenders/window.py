"""Task: the sliding window over 64 x 256 x 256 voxels, 9 tiles, same network and weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from measured import Contender, Work
from tile import TILE, checked_engine


def _semiseg(folder: Path, precision: str = "auto") -> Work:
    from semiseg.prediction.model import load_model
    from semiseg.prediction.sliding import sliding_window
    from semiseg.prediction.window import Window

    patch = load_model(folder / "model-32").plan.patch
    engine = checked_engine(folder, precision)
    image = np.load(folder / TILE)
    engine.run(image[None, :, :, :160, :160])
    return lambda: {
        "logits": sliding_window(image, engine, Window(patch=patch)),
        "engine": np.array(f"{engine.name} in {engine.precision}"),
    }


def _nnunet(folder: Path) -> Work:
    import nnunet
    import torch

    predictor = nnunet.predictor(folder / "model-32")
    image = torch.from_numpy(np.load(folder / TILE))
    with torch.inference_mode():
        predictor.network(image[None, :, :, :160, :160])
    return lambda: {"logits": predictor.predict_sliding_window_return_logits(image).float().numpy()}


def _monai(folder: Path) -> Work:
    import torch
    from monai.inferers import SlidingWindowInferer

    from semiseg.prediction.engines.torch_engine import load_network
    from semiseg.prediction.model import load_model

    model = load_model(folder / "model-32")
    network = load_network(model)
    image = torch.from_numpy(np.load(folder / TILE))[None]
    infer = SlidingWindowInferer(model.plan.patch, sw_batch_size=1, overlap=0.5, mode="gaussian")

    def work() -> dict[str, object]:
        with torch.inference_mode():
            return {"logits": infer(image, network)[0].numpy()}

    with torch.inference_mode():
        network(image[:, :, :, :160, :160])
    return work


CONTENDERS: dict[str, Contender] = {
    "semiseg": _semiseg,
    "semiseg float32": partial(_semiseg, precision="float32"),
    "semiseg int8": partial(_semiseg, precision="int8"),
    "nnU-Net": _nnunet,
    "MONAI": _monai,
}
