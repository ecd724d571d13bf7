"""The torch engine: any device, and what the other engines are held against."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from semiseg.errors import TrainingError
from semiseg.models.unet import UNet3d, build_unet, in_channels_last
from semiseg.predict.model import Model
from semiseg.types import FloatArray


class TorchEngine:
    """torch, eager, in channels-last layout, on any device."""

    name = "torch"

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        autocast: torch.dtype | None = None,
        *,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """say: told once when the device has no memory for a whole batch of tiles."""
        self.device, self.autocast = device, autocast
        self.network = network
        self.precision = "float32" if autocast is None else str(autocast).removeprefix("torch.")
        self._largest_batch: int | None = None
        self._say = say

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)

    def run(self, tiles: FloatArray) -> FloatArray:
        """As `Engine.run`. Where the device has no memory for all tiles they are computed in smaller batches.

        Raises `TrainingError` where it has none for a single one.
        """
        was_training = self.network.training
        self.network.eval()
        try:
            return self._run(tiles)
        finally:
            self.network.train(was_training)

    def _run(self, tiles: FloatArray) -> FloatArray:
        limit = self._largest_batch or len(tiles)
        if len(tiles) > limit:
            return np.concatenate([self._run(tiles[start : start + limit]) for start in range(0, len(tiles), limit)])
        try:
            return self._logits(tiles)
        except torch.OutOfMemoryError:
            if len(tiles) == 1:
                raise TrainingError(
                    f"no memory left on {self.device} for a tile of {tiles.shape[2:]}: use --device cpu."
                ) from None
        # Outside of the handler: the error holds what the failed batch had allocated.
        self._largest_batch = len(tiles) // 2
        if self._say:
            self._say(f"no memory on {self.device} for {len(tiles)} tiles at once: computing {self._largest_batch}")
        return self._run(tiles)

    def _logits(self, tiles: FloatArray) -> FloatArray:
        with torch.inference_mode(), self._autocast():
            batch = torch.from_numpy(np.ascontiguousarray(tiles)).to(self.device, memory_format=torch.channels_last_3d)
            logits = self.network(batch).float().cpu().numpy()
        return np.asarray(logits, dtype=np.float32)


def load_network(model: Model) -> UNet3d:
    """The model's network, for prediction; raises `ModelError` where its weights do not fit its plan."""
    plan = model.plan
    network = build_unet(model.sizes, channels=len(plan.channels), classes=plan.labels.count, seed=0)
    try:
        network.load_state_dict({name: torch.from_numpy(value) for name, value in model.weights().items()})
    except RuntimeError as error:
        raise model.misfit(error) from None
    return network.eval()


def torch_engine(model: Model, device: torch.device, *, say: Callable[[str], None] | None = None) -> TorchEngine:
    """The model's network on a device, batch norm folded into the convolutions."""
    network = load_network(model)
    for level in (*network.encoder, *network.decoder):
        assert isinstance(level, nn.Sequential)
        for index in (0, 3):
            convolution, norm = level[index], level[index + 1]
            assert isinstance(convolution, nn.Conv3d)
            assert isinstance(norm, nn.BatchNorm3d)
            level[index], level[index + 1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
    return TorchEngine(in_channels_last(network.to(device)), device, say=say)
