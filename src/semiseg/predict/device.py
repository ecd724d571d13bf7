"""Which device computes."""

from __future__ import annotations

import torch

from semiseg.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA, then MPS, then CPU; raises `ConfigError` for a device that is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device = {name!r}: choose auto, cpu, cuda, cuda:N or mps.") from None
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"device = {name!r}, but torch {torch.__version__} sees {count} CUDA devices: use cpu or auto."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device = {name!r}, but this machine has no MPS: use cpu or auto.")
    return device
