"""Validation by sliding window on held-out labelled cases, on the plan's grid."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from semiseg.data.plan import Plan
from semiseg.geometry import Box
from semiseg.io.store import OpenCase, open_case
from semiseg.losses import LossSums
from semiseg.prediction.engines.base import Engine
from semiseg.prediction.window import Window
from semiseg.training.scan_labels import TILE_STEP, scan_logits, scan_tile
from semiseg.transfer import to_device
from semiseg.world import own_part, total

ROWS = 8
"""At a time: losses take several times the memory of their logits."""


def validate(cases: Sequence[Path], engine: Engine, plan: Plan, device: torch.device) -> dict[str, float]:
    """`validation_loss`, and Dice of each organ (voxels of all cases pooled) and their mean, by name for metrics.jsonl.

    Ranks share the cases. Voxels of the ignore value count in nothing.
    """
    classes = plan.labels.count
    overlap, sizes = (torch.zeros(classes, dtype=torch.int64, device=device) for _ in range(2))
    summed_on = torch.device("cpu") if device.type == "mps" else device  # which has no float64
    losses = torch.zeros(2, dtype=torch.float64, device=summed_on)
    for case in map(open_case, own_part(cases)):
        parts = []
        for labels, logits in _rows(case, engine, plan, device):
            parts.append(LossSums.of(labels, logits, plan.labels.ignore))
            counted = labels != (-1 if plan.labels.ignore is None else plan.labels.ignore)
            predicted, true = logits.argmax(dim=1)[counted], labels[counted]
            overlap += predicted[predicted == true].bincount(minlength=classes)
            sizes += predicted.bincount(minlength=classes) + true.bincount(minlength=classes)
        loss = reduce(operator.add, parts).loss()
        losses += torch.stack([loss, torch.ones_like(loss)]).to(summed_on)
    counts = torch.cat([overlap, sizes]).to(summed_on).double()
    sums = total(torch.cat([counts, losses])).tolist()  # the device is waited for once
    overlaps, both, (loss, count) = sums[:classes], sums[classes:-2], sums[-2:]
    dice = {name: 2 * overlaps[value] / both[value] for value, name in plan.labels.organs.items() if both[value]}
    rows = {f"validation_dice/{name}": value for name, value in dice.items()}
    rows["validation_loss"] = loss / count
    if dice:
        rows["validation_dice"] = sum(dice.values()) / len(dice)
    return rows


def _rows(case: OpenCase, engine: Engine, plan: Plan, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Labels `(1, rows, Y, X)` and logits `(1, K, rows, Y, X)`, a few rows at a time: those of a scan would be a GB."""
    _, high, wide = case.meta.shape_zyx
    window = Window(patch=scan_tile(case.meta.shape_zyx, plan), step=TILE_STEP)
    start = 0
    for blended in scan_logits(case, engine, window):
        for first in range(0, blended.shape[1], ROWS):
            rows = blended[:, first : first + ROWS]
            if isinstance(rows, np.ndarray):
                rows = to_device(rows, device)
            stop = start + rows.shape[1]
            labels = case.read_label(Box((start, 0, 0), (stop, high, wide))).astype(np.int64)
            yield to_device(labels, device)[None], rows.to(device)[None]
            start = stop
