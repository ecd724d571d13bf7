"""Counter-based random numbers: every draw is keyed by (seed, step, sample, purpose), and nothing else draws.

Because a draw depends on its key only, there is no generator state to save: a resumed run, a run on two devices and a
run that loads its batches in another order all see the same numbers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Draw:
    """The key of one family of draws.

    seed: of the run. step: training step, from 0. sample: global index of the sample in the batch over all devices.
    """

    seed: int
    step: int = 0
    sample: int = 0

    def at(self, *, sample: int) -> Draw:
        """The same key for another sample of the batch."""
        return Draw(seed=self.seed, step=self.step, sample=sample)

    def key(self, purpose: str) -> int:
        """A 128-bit key for a purpose, the same on every machine and Python version."""
        text = f"{self.seed}/{self.step}/{self.sample}/{purpose}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")

    def generator(self, purpose: str) -> np.random.Generator:
        """A fresh generator for a purpose; two calls with the same key give the same numbers."""
        return np.random.Generator(np.random.Philox(key=self.key(purpose)))

    def torch_seed(self, purpose: str) -> int:
        """A seed for `torch.Generator.manual_seed`, for noise that is made on the device."""
        return self.key(purpose) % (1 << 63)
