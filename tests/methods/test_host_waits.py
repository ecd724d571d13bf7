"""A step asks for no number: on a GPU the host would wait until all that was queued there is done.

Looked at on a CPU, where the same calls are made.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_runs import rows
from networks import tiny_unet
from rank_runs import KINDS, SEEDS
from torch.utils._python_dispatch import TorchDispatchMode

from semiseg.augment.settings import Augmentation
from semiseg.augment.views import labelled_view, unlabelled_views
from semiseg.io.dataset import LabelScheme
from semiseg.methods import mpl
from semiseg.methods.feedback import dense_feedback
from semiseg.methods.phases import Phases
from semiseg.methods.settings import method_settings
from semiseg.randomness import Draw

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "bincount")
"""What torch does on a GPU only once the numbers are there."""


class Waits(TorchDispatchMode):
    """Counts what the host would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(x is not None and x.dtype is torch.bool for x in args[1])
        if name in WAITING or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_what_waits_is_seen() -> None:
    x = torch.ones(3)
    with Waits() as waits:
        float(x.sum())
        x[x > 0]
    assert waits.found == ["_local_scalar_dense", "index"]


# copy_paste looks for connected parts on the host; mpl's central differences are for CPUs alone.
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"copy_paste", "mpl"}))
def test_no_step_waits_for_the_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpl, "dense_feedback", lambda *a, **k: dense_feedback(*a, **k, derivative="forward"))
    cls, given = KINDS[kind]
    networks = {name: tiny_unet(SEEDS[name], torch.float32) for name in cls.learner_names}
    method = cls(networks, method_settings(kind.split()[0], **given), Phases.of_steps(2, 6, 6))
    with Waits() as waits:
        metrics = rows(method, 0, 6)
    assert waits.found == []
    assert all(isinstance(value, torch.Tensor) for row in metrics for value in row.values())


def test_no_augmentation_waits_for_the_device() -> None:
    always = {
        f"{one}_probability": 1.0
        for one in ("rotation", "zoom", "elastic", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma")
    }
    settings = Augmentation(mirror_axes=(0, 1, 2), inverted_gamma_probability=0.5, **always)
    scheme = LabelScheme(names={0: "background", 1: "left kidney", 2: "right kidney"}, ignore=7, mirror_pairs=((1, 2),))
    images, labels = torch.randn(2, 1, 8, 8, 8), torch.randint(0, 3, (2, 8, 8, 8))
    with Waits() as waits:
        labelled_view(images, labels, Draw(seed=1, step=2), settings, scheme)
        unlabelled_views(images, Draw(seed=1, step=2), settings, (labels, scheme))
    assert waits.found == []
