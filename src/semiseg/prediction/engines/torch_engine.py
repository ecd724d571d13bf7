"""The torch engine: any device, and what the other engines are held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from semiseg.errors import ModelError, TrainingError
from semiseg.models.build import build_network, in_channels_last, shapes_of
from semiseg.models.layers import Network
from semiseg.prediction.device import limit_gpu_memory
from semiseg.prediction.engines.torch_blend import DeviceBlend, device_blend_bytes
from semiseg.prediction.model import Model
from semiseg.prediction.window import Window
from semiseg.types import FloatArray, Shape


class TorchEngine:
    """torch, eager, in channels-last layout, on any device."""

    name = "torch"

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        autocast: torch.dtype | None = None,
        *,
        most_bytes: int = 0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """most_bytes: of a GPU's memory, for torch's allocator; 0 is all that is free. say: told once when the device
        has no memory for a whole batch of tiles."""
        self.device, self.autocast = device, autocast
        self.network = network
        self._most_bytes = most_bytes
        self.precision = "float32" if autocast is None else str(autocast).removeprefix("torch.")
        self._largest_batch: int | None = None
        self._blends = True
        self._peaks: dict[tuple[int, ...], int] = {}
        self._say = say

    def __getstate__(self) -> dict[str, Any]:
        """In another process it says nothing: what there is to say is said here. It compiles what was compiled."""
        return vars(self) | {"_say": None, "compiled": self.network._compiled_call_impl is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        compiled = state.pop("compiled")
        vars(self).update(state)
        if compiled:
            self.network.compile()

    def run(self, tiles: FloatArray) -> FloatArray:
        """As `Engine.run`. Where the device has no memory for all tiles they are computed in smaller batches.

        Raises `TrainingError` where it has none for a single one.
        """
        batch = torch.from_numpy(np.ascontiguousarray(tiles))
        with self._predicting():
            return np.concatenate([logits.cpu().numpy() for logits in self._in_batches(batch)])

    def blend(self, window: Window, size: Shape) -> DeviceBlend | None:
        """As `BlendsItself.blend`: on a GPU, where it has the memory besides that of the tiles."""
        if self.device.type != "cuda" or not self._blends:
            return None
        assert isinstance(self.network, Network)
        shape = (window.tile_batch, self.network.channels, *window.patch)
        if shape not in self._peaks:  # a first batch shows what the tiles take
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            self.run(np.zeros(shape, dtype=np.float32))
            self._peaks[shape] = torch.cuda.max_memory_reserved(self.device)
        free, _ = torch.cuda.mem_get_info(self.device)
        most = self._most_bytes or free + torch.cuda.memory_reserved(self.device)
        needed = device_blend_bytes(self.network.classes, self.network.channels, window, size)
        if self._peaks[shape] + needed > most:
            return None

        def run(tiles: Tensor) -> Tensor:
            with self._predicting():
                return torch.cat(list(self._in_batches(tiles)))

        try:
            return DeviceBlend(run, self.device, self.network.classes, window, size, short=self._stop_blending)
        except torch.OutOfMemoryError:
            pass
        self._stop_blending()
        return None

    def _stop_blending(self) -> None:
        """Of scans to come, tiles are blended in main memory."""
        self._blends = False
        torch.cuda.empty_cache()

    @contextmanager
    def _predicting(self) -> Iterator[None]:
        """Within: no gradients, running statistics, the precision."""
        was_training = self.network.training
        self.network.eval()
        try:
            with (
                torch.inference_mode(),
                torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None),
            ):
                yield
        finally:
            self.network.train(was_training)

    def _in_batches(self, tiles: Tensor) -> Iterator[Tensor]:
        """Logits on the device, of as many tiles at a time as it has memory for."""
        start = 0
        while start < len(tiles):
            count = min(self._largest_batch or len(tiles), len(tiles) - start)
            try:
                yield self._logits(tiles[start : start + count])
                start += count
                continue
            except torch.OutOfMemoryError:
                if count == 1:
                    raise TrainingError(
                        f"no memory left on {self.device} for a tile of {tuple(tiles.shape[2:])}: use --device cpu."
                    ) from None
            # Outside of the handler: the error holds what the failed batch had allocated.
            self._largest_batch = count // 2
            if self.device.type == "cuda":  # what the failed batch took says nothing of the smaller ones
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(self.device)
            if self._say:
                self._say(f"no memory on {self.device} for {count} tiles at once: computing {self._largest_batch}")

    def _logits(self, tiles: Tensor) -> Tensor:
        batch = tiles.to(self.device, memory_format=torch.channels_last_3d)
        return cast(Tensor, self.network(batch)).float()


def load_network(model: Model) -> Network:
    """The model's network, for prediction; raises `ModelError` where its weights do not fit its plan."""
    plan, sizes = model.plan, {"channels": len(model.plan.channels), "classes": model.plan.labels.count}
    weights = model.weights()
    try:
        # Before there is memory for it: a plan may ask for any.
        fits = shapes_of(model.sizes, **sizes) == {name: value.shape for name, value in weights.items()}
    except RuntimeError:  # more than can be counted
        fits = False
    if not fits:
        file = model.folder / "weights.safetensors"
        raise ModelError(f"{file}: does not fit plan.toml. Copy the folder again.")
    network = build_network(model.sizes, channels=len(plan.channels), classes=plan.labels.count, seed=0)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return network.eval()


def torch_engine(
    model: Model,
    device: torch.device,
    *,
    autocast: torch.dtype | None = None,
    max_gpu_memory: str = "",
    compiled: bool = False,
    say: Callable[[str], None] | None = None,
) -> TorchEngine:
    """The model's network on a device, batch norm folded into the convolutions.

    max_gpu_memory: what all programs together may hold on the GPU, such as 2048MiB. compiled: by `torch.compile`.
    Raises `ConfigError` where that cannot be.
    """
    most_bytes = limit_gpu_memory(device, max_gpu_memory)
    network = load_network(model)
    for level in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for index, (convolution, norm) in enumerate(pairwise(level)):
            if isinstance(convolution, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
                level[index], level[index + 1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
    network = in_channels_last(network.to(device))
    if compiled:
        network.compile()
    return TorchEngine(network, device, autocast, most_bytes=most_bytes, say=say)
