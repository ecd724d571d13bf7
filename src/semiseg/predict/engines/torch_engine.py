"""The torch engine: any device, and what the other engines are held against."""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import nn

from semiseg.errors import TrainingError
from semiseg.models.unet import build_unet, in_channels_last
from semiseg.predict.model import Model
from semiseg.types import FloatArray


class TorchEngine:
    """torch, eager, in channels-last layout, on any device."""

    name = "torch"

    def __init__(self, network: nn.Module, device: torch.device, autocast: torch.dtype | None = None) -> None:
        self.device, self.autocast = device, autocast
        self.network = network
        self.precision = "float32" if autocast is None else str(autocast).removeprefix("torch.")

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)

    def run(self, tiles: FloatArray) -> FloatArray:
        """Raises `TrainingError` where the device has no memory left for the tiles."""
        was_training = self.network.training
        self.network.eval()
        try:
            with torch.inference_mode(), self._autocast():
                batch = torch.from_numpy(np.ascontiguousarray(tiles)).to(
                    self.device, memory_format=torch.channels_last_3d
                )
                logits = self.network(batch).float().cpu().numpy()
        except torch.OutOfMemoryError:
            raise TrainingError(
                f"no memory left on {self.device} for a batch of {len(tiles)} tiles of {tiles.shape[2:]}: "
                "lower predict.tile_batch, or use --device cpu."
            ) from None
        finally:
            self.network.train(was_training)
        return np.asarray(logits, dtype=np.float32)


def torch_engine(model: Model, device: torch.device) -> TorchEngine:
    """The model's network on a device; raises `ModelError` where its weights do not fit its plan."""
    plan = model.plan
    network = build_unet(model.sizes, channels=len(plan.channels), classes=plan.labels.count, seed=0)
    weights = {name: torch.from_numpy(value) for name, value in model.weights().items()}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise model.misfit(error) from None
    return TorchEngine(in_channels_last(network.eval().to(device)), device)
