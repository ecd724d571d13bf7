"""For the report: what dense feedback tells the teacher about its labels, drawn on some unlabelled scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from semiseg.files import atomic_file
from semiseg.geometry import Box
from semiseg.io.store import OpenCase, open_case
from semiseg.methods.base import Batch, Method
from semiseg.training.inputs import Place, TrainingData
from semiseg.types import Shape

FEEDBACK_CASES = 3
"""Unlabelled scans for which the feedback is mapped for the report."""


def write_feedback_maps(folder: Path, method: Method, data: TrainingData, place: Place, *, step: int) -> None:
    """Write `folder/ID.npz`: the middle of an unlabelled scan, the teacher's labels and the feedback on them, measured
    on the labelled batch of a step. Nothing for a method without such feedback."""
    images, labels = data.source.labelled(step)
    labelled = Batch(torch.from_numpy(images).to(place.device), torch.from_numpy(labels).to(place.device))
    for case in map(open_case, data.unlabelled[:FEEDBACK_CASES]):
        patch = case.read_image(_middle(case, place.plan.patch))
        measured = method.feedback_map(labelled, torch.from_numpy(patch)[None].to(place.device))
        if measured is None:
            return
        given, feedback = measured
        with atomic_file(folder / f"{case.meta.id}.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                image=patch[0],
                pseudo_label=given[0].cpu().numpy().astype(np.uint8),
                feedback=feedback[0].float().cpu().numpy(),
                spacing_mm=np.array(place.plan.spacing_mm),
            )


def _middle(case: OpenCase, patch: Shape) -> Box:
    z, y, x = ((n - p) // 2 for n, p in zip(case.meta.shape_zyx, patch, strict=True))
    return Box((z, y, x), (z + patch[0], y + patch[1], x + patch[2]))
