"""What is said when the device's memory does not suffice for training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from semiseg.errors import TrainingError
from semiseg.training.inputs import Place


@contextmanager
def named_out_of_memory(place: Place) -> Iterator[None]:
    """Within: running out of the device's memory is a `TrainingError` that names the settings to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        plan = place.plan
        raise TrainingError(
            f"no memory left on {place.device} for a batch of {plan.batch} patches of {plan.patch}: lower plan.batch "
            "or plan.patch (or plan.memory_budget_gb, and prepare again). Finished checkpoints are kept."
        ) from error
