"""Task: Dice, surface Dice at 2 mm and HD95 of 13 organs in a CT of 512 x 512 x 100 voxels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from measured import Contender, Work

SPACING_MM = (2.5, 0.8, 0.8)
TOLERANCE_MM = 2.0


def _labels(folder: Path) -> tuple[Any, Any]:
    return np.load(folder / "reference.npy"), np.load(folder / "prediction.npy")


def _organs(reference: Any) -> list[int]:
    """Those that are there: surface-distance 0.1 cannot score an empty mask under NumPy 2."""
    return [int(value) for value in np.unique(reference) if value]


def _semiseg(folder: Path) -> Work:
    from semiseg.scoring.metrics import score_case

    reference, prediction = _labels(folder)
    names = {organ: str(organ) for organ in _organs(reference)}

    def work() -> dict[str, Any]:
        found = score_case(reference, prediction, SPACING_MM, names, dict.fromkeys(names.values(), TOLERANCE_MM))
        columns = ("dice", "nsd", "hd95_mm")
        return {"scores": np.array([[found[name][column] for column in columns] for name in names.values()])}  # type: ignore[literal-required]

    return work


def _surface_distance(folder: Path) -> Work:
    import surface_distance as sd

    reference, prediction = _labels(folder)

    def work() -> dict[str, Any]:
        rows = []
        for organ in _organs(reference):
            truth, guess = reference == organ, prediction == organ
            distances = sd.compute_surface_distances(truth, guess, SPACING_MM)
            nsd = sd.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM)
            hd95 = sd.compute_robust_hausdorff(distances, 95)
            rows.append([sd.compute_dice_coefficient(truth, guess), nsd, hd95])
        return {"scores": np.array(rows)}

    return work


def _monai(folder: Path) -> Work:
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

    reference, prediction = _labels(folder)

    def one_hot(labels: Any) -> Any:
        return torch.from_numpy(np.stack([labels == organ for organ in [0, *_organs(reference)]])[None])

    def work() -> dict[str, Any]:
        truth, guess = one_hot(reference), one_hot(prediction)
        columns = [
            compute_dice(guess, truth, include_background=False),
            compute_surface_dice(
                guess, truth, [TOLERANCE_MM] * len(_organs(reference)), spacing=SPACING_MM, use_subvoxels=True
            ),
            compute_hausdorff_distance(guess, truth, percentile=95, spacing=SPACING_MM),
        ]
        return {"scores": torch.stack([column[0] for column in columns], dim=1).numpy()}

    return work


def _medpy(folder: Path) -> Work:
    """No surface Dice."""
    from medpy.metric.binary import dc, hd95

    reference, prediction = _labels(folder)

    def work() -> dict[str, Any]:
        rows = []
        for organ in _organs(reference):
            truth, guess = reference == organ, prediction == organ
            rows.append([dc(guess, truth), np.nan, hd95(guess, truth, voxelspacing=SPACING_MM)])
        return {"scores": np.array(rows)}

    return work


CONTENDERS: dict[str, Contender] = {
    "semiseg": _semiseg,
    "surface-distance": _surface_distance,
    "MONAI": _monai,
    "medpy": _medpy,
}
