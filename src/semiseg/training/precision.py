"""Which precision training passes use: decided once, by a trial on the machine, and kept in settled.toml."""

from __future__ import annotations

import time
from typing import Literal

import torch
from torch import Tensor, nn

from semiseg.prediction.device import has_bfloat16, require_bfloat16

LARGEST_ERROR = 0.05
"""Of bfloat16's gradient relative to float32's: rounding to 8 bits gives below 0.01, a wrong kernel about 1."""
Precision = Literal["float32", "bfloat16"]


def choose_precision(setting: str, device: torch.device) -> Precision:
    """bfloat16 on CUDA devices that have it, on a CPU where a trial shows it right and faster; else float32.

    Raises `ConfigError` where bfloat16 is asked of a GPU that does not have it.
    """
    if setting == "bfloat16":
        require_bfloat16(device, "train.precision")
        return "bfloat16"
    if setting == "float32" or device.type == "mps":
        return "float32"
    if device.type == "cuda":
        return "bfloat16" if has_bfloat16(device) else "float32"
    (half_seconds, half), (seconds, gradient) = _trial(torch.bfloat16), _trial(torch.float32)
    wrong = float((half - gradient).norm() / gradient.norm())
    return "bfloat16" if half_seconds < 0.8 * seconds and wrong < LARGEST_ERROR else "float32"


def _trial(dtype: torch.dtype) -> tuple[float, Tensor]:
    """Seconds and weight gradient of one small convolution, forward and back; the best time of three, so that a busy
    moment does not count."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Conv3d(16, 16, 3, padding=1)
        image = torch.randn(1, 16, 16, 16, 16).contiguous(memory_format=torch.channels_last_3d)
    times = []
    for _ in range(3):
        layer.zero_grad()
        start = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            layer(image).float().square().mean().backward()
        times.append(time.perf_counter() - start)
    assert layer.weight.grad is not None
    return min(times), layer.weight.grad


def autocast_dtype(precision: str) -> torch.dtype | None:
    """What `torch.autocast` is given, None for plain float32."""
    return torch.bfloat16 if precision == "bfloat16" else None
