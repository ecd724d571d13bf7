"""Task: from logits of 14 classes on the plan's grid, 2.5 x 1 x 1 mm, to labels on the scan's, 0.8 mm in plane."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from measured import Contender, Work

FROM_MM, TO_MM = (2.5, 1.0, 1.0), (2.5, 0.8, 0.8)


def _shape(logits: Any) -> tuple[int, int, int]:
    return (logits.shape[1], 512, 512)


def _semiseg(folder: Path) -> Work:
    from semiseg.prediction.export import LabelExport
    from semiseg.processes import usable_cores

    logits = np.load(folder / "logits.npy")

    def work() -> dict[str, Any]:
        export = LabelExport(logits.shape[1:], _shape(logits), len(logits), threads=usable_cores())
        export.add(logits)
        return {"labels": export.labels}

    return work


def _nnunet(folder: Path) -> Work:
    import torch
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    logits = np.load(folder / "logits.npy")

    def work() -> dict[str, Any]:
        resampled = resample_data_or_seg_to_shape(
            logits, _shape(logits), FROM_MM, TO_MM, is_seg=False, order=1, order_z=0, force_separate_z=None
        )
        return {"labels": torch.from_numpy(resampled).argmax(0).numpy().astype(np.uint8)}

    return work


def _monai(folder: Path) -> Work:
    import torch
    from monai.data import MetaTensor
    from monai.transforms import AsDiscrete, SpatialResample

    logits = np.load(folder / "logits.npy")
    source = MetaTensor(torch.from_numpy(logits), affine=torch.diag(torch.tensor([*FROM_MM, 1.0], dtype=torch.float64)))
    # Cells, not centres, coincide: the first voxel's centre moves by half the difference in size.
    target = np.diag([*TO_MM, 1.0])
    target[:3, 3] = (np.array(TO_MM) - np.array(FROM_MM)) / 2

    def work() -> dict[str, Any]:
        resampled = SpatialResample(mode="bilinear", padding_mode="border")(source, target, _shape(logits))
        return {"labels": AsDiscrete(argmax=True)(resampled)[0].numpy().astype(np.uint8)}

    return work


CONTENDERS: dict[str, Contender] = {"semiseg": _semiseg, "nnU-Net": _nnunet, "MONAI": _monai}
