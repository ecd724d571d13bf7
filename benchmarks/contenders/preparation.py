"""Task: a CT and its labels, normalised and resampled from 1 x 0.8 x 0.8 mm to 1.25 x 1 x 1 mm, array to array.

nnU-Net and semiseg interpolate by cubic splines; MONAI, SimpleITK and TorchIO as their tutorials do, linearly, and
labels by the nearest voxel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from measured import Contender, Work

FROM_MM, TO_MM = (1.0, 0.8, 0.8), (1.25, 1.0, 1.0)
LOW, HIGH, MEAN, DEVIATION = -150.0, 300.0, 70.0, 90.0


def _inputs(folder: Path) -> tuple[Any, Any, tuple[int, int, int]]:
    image, label = np.load(folder / "scan.npy"), np.load(folder / "scan-label.npy")
    z, y, x = (round(n * old / new) for n, old, new in zip(image.shape, FROM_MM, TO_MM, strict=True))
    return image, label, (z, y, x)


def _semiseg(folder: Path) -> Work:
    from semiseg.data.plan import ChannelNormalisation
    from semiseg.data.scan_rows import ScanRows
    from semiseg.io.scans import RawChannel
    from semiseg.ops.resample import resample_label
    from semiseg.prediction.model import load_model

    image, label, shape = _inputs(folder)
    plan = load_model(folder / "model-32").plan
    normalisation = ChannelNormalisation(scheme="ct", low=LOW, high=HIGH, mean=MEAN, deviation=DEVIATION)
    from dataclasses import replace

    plan = replace(plan, spacing_mm=TO_MM, normalisation=(normalisation,))

    def work() -> dict[str, Any]:
        scan = ScanRows([RawChannel(image)], FROM_MM, plan)
        return {"image": scan.rows(0, shape[0])[0], "label": resample_label(label, shape)}

    return work


def _nnunet(folder: Path) -> Work:
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    image, label, shape = _inputs(folder)
    statistics = {"percentile_00_5": LOW, "percentile_99_5": HIGH, "mean": MEAN, "std": DEVIATION}
    options: dict[str, Any] = {"order_z": 0, "force_separate_z": None}

    def work() -> dict[str, Any]:
        data = image.astype(np.float32)
        data = CTNormalization(use_mask_for_norm=False, intensityproperties=statistics).run(data)[None]
        data = resample_data_or_seg_to_shape(data, shape, FROM_MM, TO_MM, is_seg=False, order=3, **options)
        seg = resample_data_or_seg_to_shape(label[None], shape, FROM_MM, TO_MM, is_seg=True, order=1, **options)
        return {"image": data[0], "label": seg[0].astype(np.uint8)}

    return work


def _monai(folder: Path) -> Work:
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Compose, NormalizeIntensityd, ScaleIntensityRanged, Spacingd

    image, label, _ = _inputs(folder)
    affine = torch.diag(torch.tensor([*FROM_MM, 1.0], dtype=torch.float64))
    chain = Compose(
        [
            ScaleIntensityRanged("image", LOW, HIGH, LOW, HIGH, clip=True),
            NormalizeIntensityd("image", subtrahend=MEAN, divisor=DEVIATION),
            Spacingd(("image", "label"), pixdim=TO_MM, mode=("bilinear", "nearest")),
        ]
    )

    def work() -> dict[str, Any]:
        arrays = {"image": image.astype(np.float32), "label": label}
        chain({name: MetaTensor(torch.from_numpy(array[None]), affine=affine) for name, array in arrays.items()})
        return {}

    return work


def _simpleitk(folder: Path) -> Work:
    import SimpleITK

    image, label, shape = _inputs(folder)

    def resampled(array: Any, interpolator: int) -> Any:
        volume = SimpleITK.GetImageFromArray(array)
        volume.SetSpacing(FROM_MM[::-1])
        return SimpleITK.GetArrayFromImage(
            SimpleITK.Resample(volume, shape[::-1], SimpleITK.Transform(), interpolator, (0.0, 0.0, 0.0), TO_MM[::-1])
        )

    def work() -> dict[str, Any]:
        data = (np.clip(image.astype(np.float32), LOW, HIGH) - np.float32(MEAN)) / np.float32(DEVIATION)
        resampled(data, SimpleITK.sitkLinear)
        resampled(label, SimpleITK.sitkNearestNeighbor)
        return {}

    return work


def _torchio(folder: Path) -> Work:
    import torch
    import torchio

    image, label, _ = _inputs(folder)
    affine = np.diag([*FROM_MM, 1.0])
    chain = torchio.Compose([torchio.Clamp(LOW, HIGH), torchio.ZNormalization(), torchio.Resample(TO_MM)])

    def work() -> dict[str, Any]:
        chain(
            torchio.Subject(
                image=torchio.ScalarImage(tensor=torch.from_numpy(image.astype(np.float32)[None]), affine=affine),
                label=torchio.LabelMap(tensor=torch.from_numpy(label[None]), affine=affine),
            )
        )
        return {}

    return work


CONTENDERS: dict[str, Contender] = {
    "semiseg": _semiseg,
    "nnU-Net": _nnunet,
    "MONAI": _monai,
    "SimpleITK": _simpleitk,
    "TorchIO": _torchio,
}
