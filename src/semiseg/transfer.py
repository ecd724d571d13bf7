"""numpy arrays on their way to a device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from semiseg.types import AnyArray


def to_device(array: AnyArray, device: torch.device) -> Tensor:
    """The array as a tensor on the device, of the same dtype; on a CPU it shares the array's memory.

    To a GPU it goes from pinned memory: from any other, the copy would wait until the GPU has done all that it was
    told before.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
