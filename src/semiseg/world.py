"""Many processes that train one network together, each on its part of every batch: sums over all of them.

A process is a rank, as `torchrun` starts it. In a process by itself everything here gives back what it is given, so
that nothing changes there.

Convention: `total`, `mean` and `share` make every rank compute the loss of the whole batch from its own part, and
`mean_over_ranks` makes the gradient of it from those of the parts. (With J that loss on each of N ranks, the backward
pass of `total` adds up N times dJ/dy, and the mean over ranks divides by N.) torch's DistributedDataParallel does not
work with `torch.autograd.grad`, nor its SyncBatchNorm in forward mode (docs/decisions/0027).
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from semiseg.errors import ConfigError, TrainingError
from semiseg.processes import asked_ranks

T = TypeVar("T")
PATIENCE_SECONDS = 12 * 3600.0
"""For which ranks wait for each other: longer than the longest that one works while the others wait."""

_alone: list[bool] = []


def size() -> int:
    """How many ranks there are."""
    return distributed.get_world_size() if _is_joined() and not _alone else 1


def rank() -> int:
    """Which one this is, from 0."""
    return distributed.get_rank() if _is_joined() and not _alone else 0


def is_first() -> bool:
    """Whether this is the rank that writes files and speaks; true within `alone`, too, for whichever works there."""
    return rank() == 0


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Within, the processes that `torchrun` started work together: by NCCL on GPUs, by gloo on CPUs. They do not part
    where one fails, which is to end."""
    if asked_ranks() == 1 or _is_joined():
        yield
        return
    seconds = float(os.environ.get("SEMISEG_PATIENCE_SECONDS", PATIENCE_SECONDS))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(seconds=seconds))
    yield
    # Not after an error, which others know nothing of: NCCL would wait for what they still add up. As this process
    # ends with its message, `torchrun` ends them.
    distributed.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """The GPU of this rank where `torchrun` started several on a machine; the device itself otherwise.

    Raises `ConfigError` where a machine has fewer GPUs than ranks.
    """
    if device.type != "cuda" or asked_ranks() == 1:
        return device
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise ConfigError(
            f"torchrun started {local + 1} ranks or more on a machine with {torch.cuda.device_count()} GPUs. Give "
            f"--nproc-per-node {torch.cuda.device_count()}."
        )
    return torch.device("cuda", local)


@contextmanager
def alone() -> Iterator[None]:
    """Within, a rank computes by itself: it has the size 1, and must not wait for the others."""
    _alone.append(True)
    try:
        yield
    finally:
        _alone.pop()


class _Total(torch.autograd.Function):
    """The sum over ranks; also differentiable in forward mode, and twice."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        summed = x.contiguous().clone()
        distributed.all_reduce(summed)
        return summed

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return total(tangent)


def total(x: Tensor) -> Tensor:
    """The sum of `x`, of one shape on all ranks, over ranks; with gradients and tangents."""
    if size() == 1:
        return x
    summed: Tensor = _Total.apply(x)  # type: ignore[no-untyped-call]
    return summed


def share(sums: Tensor, count: float | Tensor) -> Tensor:
    """A sum over the voxels of this rank's part as a mean over those of all parts. count: of this rank's part; a
    tensor may be 0."""
    if size() == 1:
        return sums / (count.clamp_min(1) if isinstance(count, Tensor) else count)
    both = total(torch.stack([sums, torch.as_tensor(count, dtype=sums.dtype, device=sums.device)]))
    return both[0] / both[1].clamp_min(1.0)


def mean(values: Tensor) -> Tensor:
    """The mean of all ranks' values, of which there may be none here."""
    return values.mean() if size() == 1 else share(values.sum(), values.numel())


@torch.no_grad()
def mean_over_ranks(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor's mean over ranks, by one sum of all of them."""
    if size() == 1:
        return gradients
    flat = torch.cat([value.reshape(-1) for value in gradients.values()])
    distributed.all_reduce(flat)
    flat /= size()
    parts = torch.split(flat, [value.numel() for value in gradients.values()])
    pairs = zip(gradients.items(), parts, strict=True)  # in the layout in memory that they had
    return {name: torch.empty_like(value).copy_(part.view(value.shape)) for (name, value), part in pairs}


def agree(value: T) -> T:
    """What the first rank says."""
    if size() == 1:
        return value
    said = [value]
    distributed.broadcast_object_list(said, src=0)
    return said[0]


def first_alone(work: Callable[[], T]) -> T:
    """What the first rank finds by work that the others wait for; what it raises all raise."""
    if size() == 1:
        return work()
    found: list[T] = []
    failure: BaseException | None = None
    if rank() == 0:
        try:
            with alone():
                found = [work()]
        except Exception as error:  # noqa: BLE001 (the others would wait for ever)
            failure = error
    try:
        pickle.dumps(failure)
        told = failure
    except Exception:  # noqa: BLE001 (whatever its class does)
        told = TrainingError(f"the first rank failed: {type(failure).__name__}: {failure}")
    found, told = agree((found, told))
    if failure is not None:
        raise failure
    if told is not None:
        raise told
    return found[0]


def own_part(cases: Sequence[T]) -> Sequence[T]:
    """This rank's part of cases that are worked on side by side."""
    return cases[rank() :: size()]


def gathered(found: dict[str, T]) -> dict[str, T]:
    """What all ranks have found, together; also where all ranks wait until the last has done its part."""
    if size() == 1:
        return found
    parts: list[dict[str, T]] = [{} for _ in range(size())]
    distributed.all_gather_object(parts, found)
    return {key: value for part in parts for key, value in part.items()}


def first_sample(batch: int) -> int:
    """The index in the whole batch of this rank's first sample, of so many that each rank has."""
    return rank() * batch


def _is_joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()
