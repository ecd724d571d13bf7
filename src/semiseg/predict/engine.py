"""Engines: tiles in, logits out. The rest of prediction does not know what computes them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch
from torch import nn

from semiseg.errors import TrainingError
from semiseg.types import FloatArray


class Engine(Protocol):
    """Computes logits of a batch of tiles; interchangeable."""

    name: str
    precision: str

    def run(self, tiles: FloatArray) -> FloatArray:
        """Tiles `(N, C, D, H, W)` float32 to logits `(N, K, D, H, W)` float32."""
        ...


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
