"""Which device computes."""

from __future__ import annotations

import torch

from semiseg.errors import ConfigError
from semiseg.predict.byte_sizes import parse_bytes, show_bytes


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA, then MPS, then CPU; raises `ConfigError` for a device that is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
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
    if name == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device = {name!r}, but this machine has no MPS: use cpu or auto.")
    return device


def limit_gpu_memory(device: torch.device, most: str) -> int:
    """Keep the GPU's memory that is in use, by all programs together, below `most` (2048MiB, say); what is left for
    torch's allocator in bytes.

    The whole device counts, as it does where the challenge samples it: the driver's context, loaded libraries and other
    programs included, as they are now. Raises `ConfigError` where they leave nothing, or the device is no NVIDIA GPU.
    """
    if device.type != "cuda":
        raise ConfigError(
            f"max_gpu_memory = {most!r}, but prediction is on {device}: leave it out, or use --device cuda."
        )
    lift_gpu_limit(device)
    _load_libraries(device)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    used = total - free - torch.cuda.memory_reserved(device)
    left = parse_bytes(most, "max_gpu_memory") - used
    if left <= 0:
        raise ConfigError(
            f"max_gpu_memory = {most!r}, but {show_bytes(used)} of {device} are in use already: give more, or end the "
            "other programs on it."
        )
    torch.cuda.set_per_process_memory_fraction(min(1.0, left / total), device)
    return left


def _load_libraries(device: torch.device) -> None:
    """What the first convolution on a device loads takes memory for good."""
    image, kernel = torch.zeros((1, 1, 4, 4, 4), device=device), torch.zeros((1, 1, 3, 3, 3), device=device)
    torch.nn.functional.conv3d(image, kernel)


def lift_gpu_limit(device: torch.device) -> None:
    """Let torch have all of a GPU's memory again."""
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0, device)
