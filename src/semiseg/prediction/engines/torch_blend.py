"""Tiles blended on the device that computes them. C channels, K classes; rows in the window's order of axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from semiseg.errors import TrainingError
from semiseg.ops.tiles import gaussian_importance
from semiseg.prediction.blending import Rows
from semiseg.prediction.window import BACKGROUND_LOGIT, Columns, Window, mirrored_logits, roll, turned
from semiseg.transfer import to_device
from semiseg.types import FloatArray, Shape


class DeviceBlend:
    """Blends on a device: each row of the image goes there once, and its blended logits come back once, or stay.

    On a GPU nothing is waited for until rows are read, so that the next rows of the image are made, and the last ones
    resampled to the scan's grid, while tiles are being computed. Where the GPU has no memory left, sums and weights go
    on in main memory.
    """

    runs_ahead = True

    def __init__(
        self,
        run: Callable[[Tensor], Tensor],
        device: torch.device,
        classes: int,
        window: Window,
        size: Shape,
        *,
        short: Callable[[], None] = lambda: None,
    ) -> None:
        """run: canonical tiles `(N, C, D, H, W)`, wherever they are, to logits `(N, K, D, H, W)` on the device. short:
        told where the device has no memory left."""
        self._run, self._device, self._window, self._short = run, device, window, short
        self.classes = classes
        rows = turned(window.patch, window.axes)[0]
        importance = np.ascontiguousarray(gaussian_importance(window.patch).transpose(window.axes))
        self._importance = to_device(importance, device)
        self._total = torch.zeros((classes, rows, *size[1:]), device=device)
        self._weights = torch.zeros((rows, *size[1:]), device=device)
        self._seen: FloatArray | None = None
        self._slab = self._weights
        self._host: Tensor | None = None
        self._moved = False

    @torch.inference_mode()
    def add(self, slab: FloatArray, columns: Sequence[Columns]) -> None:
        """As `Blend.add`."""
        logits = self._with_room(lambda: self._logits(slab, columns))
        for where, tile in zip(columns, logits, strict=True):  # in place, which takes no memory
            self._total[:, :, *where].addcmul_(tile, self._importance)
            self._weights[:, *where] += self._importance

    def _with_room(self, compute: Callable[[], Tensor]) -> Tensor:
        """What is computed; where the device has no room for it, once more with all else in main memory."""
        try:
            return compute()
        except (torch.OutOfMemoryError, TrainingError):  # the latter where it is a single tile
            if self._moved:
                raise
        # Outside of the handler: the error holds what was allocated.
        self._move_to_main_memory()
        self._short()
        return compute()

    def _move_to_main_memory(self) -> None:
        self._total, self._weights, self._importance = self._total.cpu(), self._weights.cpu(), self._importance.cpu()
        self._seen, self._slab, self._host = None, self._weights, None
        self._device, on_device, self._moved = torch.device("cpu"), self._run, True
        self._run = lambda tiles: on_device(tiles).cpu()

    def _logits(self, slab: FloatArray, columns: Sequence[Columns]) -> Tensor:
        """Of the tiles at these columns, axes in the window's order."""
        if slab is not self._seen:
            self._seen, self._slab = slab, to_device(slab, self._device)
        order = (0, 1, *(axis + 2 for axis in self._window.axes))
        back = tuple(int(axis) for axis in np.argsort(order))
        tiles = torch.stack([self._slab[:, :, *where] for where in columns]).permute(back)
        return mirrored_logits(tiles, self._run, torch.flip, self._window).permute(order)

    @torch.inference_mode()
    def finish(self, rows: int) -> Rows:
        """As `Blend.finish`; the rows are on their way when it returns."""
        empty = self._with_room(lambda: self._weights[:rows] == 0)
        self._total[0, :rows].masked_fill_(empty, BACKGROUND_LOGIT)
        self._total[:, :rows] /= self._weights[:rows].masked_fill_(empty, 1.0)
        if self._window.rows_stay:
            stayed = self._with_room(lambda: self._total[:, :rows].clone())
            roll(self._total, rows)
            roll(self._weights[None], rows)
            return lambda: stayed
        shape = (self.classes, rows, *self._total.shape[2:])
        if self._host is None or self._host.numel() < prod(shape):
            self._host = torch.empty(prod(shape), pin_memory=self._device.type == "cuda")
        host = self._host[: prod(shape)].view(shape)  # the same memory at each call
        for value in range(self.classes):  # class by class both sides are contiguous, so that none is waited for
            host[value].copy_(self._total[value, :rows], non_blocking=True)
        copied = torch.cuda.Event() if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if copied:
            copied.record(torch.cuda.current_stream(self._device))
        roll(self._total, rows)
        roll(self._weights[None], rows)

        def finished() -> FloatArray:
            if copied:
                copied.synchronize()
            return np.asarray(host.numpy())

        return finished


def device_blend_bytes(classes: int, channels: int, window: Window, size: Shape) -> int:
    """What a blend takes on its device besides the engine: sums, weights, importance, two slabs of the image, the mask
    of what is empty, and a batch of tiles with their logits (turned, mirrored and joined: three times). Where rows
    stay, twice the sums more: those of the last row and of this one."""
    patch = turned(window.patch, window.axes)
    plane = prod(size[1:])
    copies = 3 if window.rows_stay else 1
    rows = patch[0] * plane * (copies * classes + 2 + 2 * channels) + prod(patch)
    return 4 * (rows + window.tile_batch * prod(patch) * (channels + 3 * classes))
