"""The challenge's figures from samples, and the true ones beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from semiseg.measure.sampler import INTERVAL_SECONDS, Sample

FREE_GPU_MB = 2048
"""GPU memory that the challenge does not count against a method."""
RARE = 0.02
"""A value in no more than this share of the samples is a spike, and not the challenge's maximum."""


def summarise(samples: Sequence[Sample], seconds: float) -> dict[str, Any]:
    """Running time and, from the samples, areas under the curves (sum x 0.1 s), maxima and means.

    GPU figures are None without a GPU. The challenge's maximum of GPU memory is the largest whole number of MB that
    occurs in more than 2 % of the samples; the true maximum is beside it.
    """
    gpu = [sample.gpu_mb for sample in samples if sample.gpu_mb is not None]
    tree_gpu = [sample.tree_gpu_mb for sample in samples if sample.tree_gpu_mb is not None]
    cpu = [sample.cpu_percent for sample in samples]
    return {
        "seconds": round(seconds, 3),
        "samples": len(samples),
        "gpu_mb_seconds": _area(gpu),
        "gpu_mb_seconds_over_2048": _area([max(0.0, value - FREE_GPU_MB) for value in gpu]),
        "gpu_mb_max_challenge": challenge_maximum(gpu),
        "gpu_mb_max": _largest(gpu),
        "cpu_percent_seconds": _area(cpu),
        "cpu_percent_mean": round(sum(cpu) / len(cpu), 2) if cpu else None,
        "ram_mb_max": _largest([sample.ram_mb for sample in samples]),
        "tree_gpu_mb_max": _largest(tree_gpu),
        "tree_cpu_percent_seconds": _area([sample.tree_cpu_percent for sample in samples]),
        "tree_ram_mb_max": _largest([sample.tree_ram_mb for sample in samples]),
    }


def challenge_maximum(values: Sequence[float]) -> int | None:
    """The largest whole number of MB in more than 2 % of the samples; None where no value is that frequent."""
    counts = Counter(int(value) for value in values)
    return max((value for value, count in counts.items() if count > RARE * len(values)), default=None)


def _area(values: Sequence[float]) -> float | None:
    return round(sum(values) * INTERVAL_SECONDS, 3) if values else None


def _largest(values: Sequence[float]) -> float | None:
    return round(max(values), 1) if values else None
