"""Which device computes, and how much of a GPU it may take. The GPU is made up: torch's answers are known."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from semiseg.errors import ConfigError
from semiseg.prediction import device as devices
from semiseg.prediction.device import choose_device, limit_gpu_memory

GB = 10**9
GPU = torch.device("cuda", 0)


@pytest.fixture
def fractions(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A GPU of 10 GB with 6 GB free, of which torch holds 1 GB in its cache; notes what torch is allowed."""
    allowed: list[float] = []
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    monkeypatch.setattr(devices, "_load_libraries", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6 * GB, 10 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1 * GB)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: allowed.append(share))
    return allowed


def test_what_others_hold_counts_and_torchs_own_does_not(fractions: list[float]) -> None:
    assert limit_gpu_memory(GPU, "5GB") == 2 * GB  # 3 GB are others'
    assert fractions == [1.0, pytest.approx(0.2)]  # an earlier limit is lifted first
    assert limit_gpu_memory(GPU, "50GB") == 47 * GB
    assert fractions[-1] == 1.0
    with pytest.raises(ConfigError, match=r"max_gpu_memory = '3GB', but 3\.00GB of cuda:0 are in use already"):
        limit_gpu_memory(GPU, "3GB")
    with pytest.raises(ConfigError, match="max_gpu_memory = 'much': give a number with its unit"):
        limit_gpu_memory(GPU, "much")


def test_what_the_driver_reserves_counts_where_it_can_be_asked(
    fractions: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = SimpleNamespace(
        NVMLError=OSError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-123": "handle"}[uuid],
        nvmlDeviceGetMemoryInfo=lambda handle: {"handle": SimpleNamespace(used=4.5 * GB)}[handle],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="123"))
    assert limit_gpu_memory(GPU, "5GB") == 1.5 * GB

    def fails(handle: str) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(nvml, "nvmlDeviceGetMemoryInfo", fails)
    assert limit_gpu_memory(GPU, "5GB") == 2 * GB


def test_a_gpu_is_named_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch sets no limit on a device without one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    assert choose_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ConfigError, match=r"device = 'cuda:2', but torch .* sees 2 CUDA devices"):
        choose_device("cuda:2")


@pytest.mark.parametrize(
    ("asked", "kinds", "shared"),
    [
        ("auto", "AAA", ["0", "1", "2"]),
        ("cuda", "AA", ["0", "1"]),
        ("auto", "ABA", ["0", "2"]),  # an old card for the display says nothing of the others
        ("auto", "AB", []),
        ("cuda:1", "AA", []),
        ("auto", "A", []),
        ("cpu", "AA", []),
    ],
)
def test_gpus_are_shared_where_none_is_named(
    monkeypatch: pytest.MonkeyPatch, asked: str, kinds: str, shared: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(kinds))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: kinds[number])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices.gpus_to_share(asked) == shared
