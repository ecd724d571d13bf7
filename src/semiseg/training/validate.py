"""Validation by sliding window on held-out labelled cases, on the plan's grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from semiseg.data.plan import Plan
from semiseg.geometry import Box
from semiseg.io.store import open_case
from semiseg.losses import supervised_loss
from semiseg.prediction.engines.base import Engine
from semiseg.prediction.sliding import sliding_window
from semiseg.prediction.window import Window
from semiseg.training.scan_labels import TILE_STEP, scan_tile
from semiseg.world import alone, own_part, size, total


def validate(cases: Sequence[Path], engine: Engine, plan: Plan) -> dict[str, float]:
    """`validation_loss`, and Dice of each organ (voxels of all cases pooled) and their mean, by name for metrics.jsonl.

    Ranks share the cases. Voxels of the ignore value count in nothing.
    """
    classes = plan.labels.count
    overlap, sizes = np.zeros(classes), np.zeros(classes)
    losses = []
    for case in map(open_case, own_part(cases)):
        box = Box((0, 0, 0), case.meta.shape_zyx)
        label = case.read_label(box).astype(np.int64)
        logits = torch.from_numpy(
            sliding_window(
                case.read_image(box), engine, Window(patch=scan_tile(case.meta.shape_zyx, plan), step=TILE_STEP)
            )
        )
        with alone():  # the loss of this case, which other ranks do not have
            loss = supervised_loss(torch.from_numpy(label)[None], logits[None], ignore=plan.labels.ignore)
        losses.append(float(loss))
        predicted = logits.argmax(dim=0).numpy()  # torch takes all cores
        counted = np.ones(label.shape, dtype=bool) if plan.labels.ignore is None else label != plan.labels.ignore
        for value in plan.labels.organs:
            a, b = (predicted == value) & counted, (label == value) & counted
            overlap[value] += np.count_nonzero(a & b)
            sizes[value] += np.count_nonzero(a) + np.count_nonzero(b)
    if size() > 1:
        sums = total(torch.from_numpy(np.concatenate([overlap, sizes, [sum(losses), len(losses)]])))
        overlap, sizes = sums[:classes].numpy(), sums[classes:-2].numpy()
        losses = [float(sums[-2] / sums[-1])]
    dice = {name: 2 * overlap[value] / sizes[value] for value, name in plan.labels.organs.items() if sizes[value]}
    rows = {f"validation_dice/{name}": float(value) for name, value in dice.items()}
    rows["validation_loss"] = float(np.mean(losses))
    if dice:
        rows["validation_dice"] = float(np.mean(list(dice.values())))
    return rows
