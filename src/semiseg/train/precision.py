"""Which precision training passes use: decided once, by a trial on the machine, and kept in run.toml."""

from __future__ import annotations

import time
from typing import Literal

import torch
from torch import nn

Precision = Literal["float32", "bfloat16"]


def choose_precision(setting: str, device: torch.device) -> Precision:
    """bfloat16 on CUDA devices that have it, on a CPU where a trial shows it faster than float32; else float32."""
    if setting == "bfloat16":
        return "bfloat16"
    if setting == "float32" or device.type == "mps":
        return "float32"
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if _seconds(torch.bfloat16) < 0.8 * _seconds(torch.float32) else "float32"


def _seconds(dtype: torch.dtype) -> float:
    """The time of one small convolution, forward and back; the best of three, so that a busy moment does not count."""
    layer = nn.Conv3d(16, 16, 3, padding=1)
    image = torch.zeros(1, 16, 16, 16, 16).contiguous(memory_format=torch.channels_last_3d)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            layer(image).float().sum().backward()
        times.append(time.perf_counter() - start)
    return min(times)


def autocast_dtype(precision: str) -> torch.dtype | None:
    """What `torch.autocast` is given, None for plain float32."""
    return torch.bfloat16 if precision == "bfloat16" else None
