"""Engines: tiles in, logits out. The rest of prediction does not know what computes them."""

from __future__ import annotations

from typing import Protocol

from semiseg.types import FloatArray


class Engine(Protocol):
    """Computes logits of a batch of tiles; interchangeable."""

    name: str
    precision: str

    def run(self, tiles: FloatArray) -> FloatArray:
        """Tiles `(N, C, D, H, W)` float32 to logits `(N, K, D, H, W)` float32."""
        ...
