"""Task: the logits of one 64 x 160 x 160 tile by the paper's network."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from measured import Contender, Work

if TYPE_CHECKING:
    from semiseg.prediction.engines.base import Engine

TILE = "window.npy"


def checked_engine(folder: Path, precision: str) -> Engine:
    """The engine that prediction uses, after its check. precision: `auto` is the fastest that passed."""
    from semiseg.prediction.engine_choice import choose_engine
    from semiseg.prediction.inputs import find_scans
    from semiseg.prediction.model import load_model
    from semiseg.prediction.settings import PredictSettings

    model, scans = load_model(folder / "model-32"), find_scans([folder / "scans-to-check"])
    settings = PredictSettings(engine="openvino", precision=precision)  # type: ignore[arg-type]
    return choose_engine(model, scans, folder / "none", settings, say=print)


def _semiseg(folder: Path, precision: str = "auto") -> Work:
    engine = checked_engine(folder, precision)
    tile = np.load(folder / TILE)[None, :, :, :160, :160]
    engine.run(tile)
    return lambda: {"logits": engine.run(tile)[0], "engine": np.array(f"{engine.name} in {engine.precision}")}


def _torch(folder: Path) -> Work:
    """Our network and weights as most research codes would run them."""
    import torch

    from semiseg.prediction.engines.torch_engine import load_network
    from semiseg.prediction.model import load_model

    network = load_network(load_model(folder / "model-32"))
    tile = torch.from_numpy(np.load(folder / TILE)[None, :, :, :160, :160])

    def work() -> dict[str, object]:
        with torch.inference_mode():
            return {"logits": network(tile)[0].numpy()}

    work()
    return work


def _nnunet(folder: Path) -> Work:
    """nnU-Net's own network class at the same sizes, with its instance norm and leaky ReLU, weights at random."""
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    features = (32, 64, 128, 256, 512)
    network = PlainConvUNet(
        1, len(features), features, torch.nn.Conv3d, 3, (1, 2, 2, 2, 2), 2, 14, 2,
        conv_bias=True, norm_op=torch.nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    ).eval()  # fmt: skip
    tile = torch.from_numpy(np.load(folder / TILE)[None, :, :, :160, :160])

    def work() -> dict[str, object]:
        with torch.inference_mode():
            network(tile)
        return {}

    work()
    return work


CONTENDERS: dict[str, Contender] = {
    "semiseg": _semiseg,
    "semiseg float32": partial(_semiseg, precision="float32"),
    "semiseg int8": partial(_semiseg, precision="int8"),
    "nnU-Net": _nnunet,
    "torch": _torch,
}
