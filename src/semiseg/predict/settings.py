"""Settings of prediction."""

from __future__ import annotations

from dataclasses import dataclass

from semiseg.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """Section `[predict]` of a run file."""

    device: str = "auto"
    """auto (CUDA, then Apple's MPS, then CPU), cpu, cuda, cuda:1 or mps."""
    tile_step: float = 0.5
    """Distance of neighbouring tiles as a share of the patch; smaller is slower and a little better."""
    tile_batch: int = 1
    """Tiles computed together; more is faster on a GPU and takes more memory."""
    mirror: bool = False
    """Average over tiles mirrored along the axes that training mirrored: 2 to the power of their number times as long,
    often a little better."""
    probabilities: bool = False
    """Also write the class probabilities as CASE_probabilities.nii.gz (4D, float32)."""

    def __post_init__(self) -> None:
        if not 0 < self.tile_step <= 1:
            raise ConfigError(f"predict.tile_step = {self.tile_step}: give a number above 0 and up to 1.")
        if self.tile_batch < 1:
            raise ConfigError(f"predict.tile_batch = {self.tile_batch}: give 1 or more.")
