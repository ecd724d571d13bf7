"""Which device computes."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch.nn import functional

from semiseg.errors import ConfigError
from semiseg.prediction.byte_sizes import parse_bytes, show_bytes
from semiseg.processes import gpu_names


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA, or else the CPU: MPS, on which nothing was ever tested, has to be named. Raises `ConfigError` for
    a device that is not there."""
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
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


def gpus_to_share(name: str) -> list[str]:
    """The GPUs that processes share, one each, as `CUDA_VISIBLE_DEVICES` names them: all of the chosen one's kind where
    a setting leaves open which (auto or cuda), and there are several; else none."""
    if not torch.cuda.is_available() or name not in ("auto", "cuda"):
        return []
    kinds = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    chosen = kinds[torch.cuda.current_device()]
    alike = [gpu for gpu, kind in zip(gpu_names(len(kinds)), kinds, strict=True) if kind == chosen]
    return alike if len(alike) > 1 else []


def gpu_bytes(name: str) -> int:
    """The memory of the CUDA device that a setting names; 0 where it is none, or none is here."""
    if not torch.cuda.is_available() or not (name == "auto" or name.startswith("cuda")):
        return 0
    return int(torch.cuda.get_device_properties(choose_device(name)).total_memory)


def has_bfloat16(device: torch.device) -> bool:
    """Whether convolutions in bfloat16 are the GPU's own (NVIDIA: from compute capability 8.0 on); torch's own answer
    counts GPUs that only store it."""
    if device.type != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def require_bfloat16(device: torch.device, key: str) -> None:
    """Raise `ConfigError` where bfloat16 is asked of a GPU that does not have it. key: the setting that asks."""
    if device.type == "cuda" and not has_bfloat16(device):
        raise ConfigError(
            f"{key} = 'bfloat16', but {torch.cuda.get_device_name(device)} does not compute in it: use float32 or auto."
        )


def limit_gpu_memory(device: torch.device, most: str) -> int:
    """Keep the GPU's memory that is in use, by all programs together, below `most` (2048MiB, say); what is left for
    torch's allocator in bytes. An empty `most` lifts an earlier limit, as does another one, and gives 0.

    The whole device counts, as it does where the challenge samples it: the driver's reserve (where `nvidia-ml-py` is
    installed, to ask for it), its context, loaded libraries and other programs included, as they are now. Raises
    `ConfigError` where they leave nothing, or the device is no NVIDIA GPU.
    """
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    if not most:
        return 0
    if device.type != "cuda":
        raise ConfigError(
            f"max_gpu_memory = {most!r}, but prediction is on {device}: leave it out, or use --device cuda."
        )
    _load_libraries(device)
    torch.cuda.empty_cache()
    in_use, total = _memory(device)
    used = in_use - torch.cuda.memory_reserved(device)
    left = parse_bytes(most, "max_gpu_memory") - used
    if left <= 0:
        raise ConfigError(
            f"max_gpu_memory = {most!r}, but {show_bytes(used)} of {device} are in use already: give more, or end the "
            "other programs on it."
        )
    torch.cuda.set_per_process_memory_fraction(min(1.0, left / total), device)
    return left


def _memory(device: torch.device) -> tuple[int, int]:
    """Bytes of a GPU in use, and in all. torch leaves out what the driver reserves, NVML does not."""
    free, total = torch.cuda.mem_get_info(device)
    used = total - free
    with suppress(ImportError):
        import pynvml

        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
            used = max(used, int(pynvml.nvmlDeviceGetMemoryInfo(handle).used))
    return used, total


def _load_libraries(device: torch.device) -> None:
    """What the first convolutions on a device load takes memory for good."""
    for dtype in [torch.float32, *([torch.bfloat16] if has_bfloat16(device) else [])]:
        image = torch.zeros((1, 32, 8, 8, 8), device=device, dtype=dtype)
        image = image.contiguous(memory_format=torch.channels_last_3d)
        functional.conv3d(image, image.new_zeros((32, 32, 3, 3, 3)), padding=1)
        functional.conv_transpose3d(image, image.new_zeros((32, 16, 2, 2, 2)), stride=2)
