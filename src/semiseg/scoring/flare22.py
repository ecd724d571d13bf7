"""The scoring rules of the FLARE 2022 challenge, equal to its script DSC_NSD_eval_fast.py to the four
decimals it prints.

Per organ, from the top:
1. The reference and the prediction are both empty: Dice and NSD 1. One of them is empty: both 0.
2. Aorta, inferior vena cava and oesophagus are scored only in slices `first` to `last - 1`, where first and
last are the
   reference's outermost labelled slices. That the last slice is left out is an oversight of the script (a
   half-open range with an inclusive bound); it is kept because the numbers are to be the challenge's. Where
   the reference has the organ in one slice only, the script's range is empty and it stops with an error; here
   that one slice is scored.
3. A Dice below 0.2 makes NSD 0.
4. Values are rounded to four decimals (numpy's rounding, which is what the script's `round` calls).

A slice is a plane of the third axis *as the file stores it*. For files whose third axis grows to the head
(RAS, LPS, LAS: the challenge's own) the slice left out is the topmost, otherwise whatever the file's last
slice is: the arrays come here in stored order, so the numbers equal the script's for any orientation. Voxel
sizes are the header's single precision `pixdim`, as in the script.

HD95 is no part of the challenge. It is computed by the standard rules on the masks that are scored, for
orientation. Volumes are of the whole masks.
"""

from __future__ import annotations

import numpy as np

from semiseg.io.flare22_labels import FLARE22_ORGANS
from semiseg.scoring.metrics import OrganMasks, OrganScores, organ_masks, score_organ, volume_ml
from semiseg.types import LabelArray, Spacing

FLARE22_TOLERANCE_MM: dict[str, float] = {
    "liver": 5.0,
    "right_kidney": 3.0,
    "spleen": 3.0,
    "pancreas": 5.0,
    "aorta": 2.0,
    "inferior_vena_cava": 2.0,
    "right_adrenal_gland": 2.0,
    "left_adrenal_gland": 2.0,
    "gallbladder": 2.0,
    "oesophagus": 3.0,
    "stomach": 5.0,
    "duodenum": 7.0,
    "left_kidney": 3.0,
}
_LABELLED_SLICES_ONLY = ("aorta", "inferior_vena_cava", "oesophagus")
_LEAST_DICE_FOR_NSD = 0.2


def score_case_flare22(reference: LabelArray, prediction: LabelArray, spacing_mm: Spacing) -> dict[str, OrganScores]:
    """Scores of the 13 organs by name; values above 13 are not looked at.

    reference, prediction: label maps in *stored* order, `(Z, Y, X)` with Z the file's third axis. spacing_mm:
    the header's voxel sizes in that order.
    """
    masks = organ_masks(reference, prediction, FLARE22_ORGANS)
    return {name: _score(name, masks[value], spacing_mm) for value, name in FLARE22_ORGANS.items()}


def _score(name: str, masks: OrganMasks, spacing_mm: Spacing) -> OrganScores:
    scored = masks
    if name in _LABELLED_SLICES_ONLY and masks.reference.any():
        labelled = np.flatnonzero(masks.reference.any(axis=(1, 2)))
        first, last = int(labelled[0]), int(labelled[-1])
        part = slice(first, max(last, first + 1))
        scored = OrganMasks(masks.reference[part], masks.prediction[part], None)
    scores = score_organ(scored, spacing_mm, FLARE22_TOLERANCE_MM[name])
    dice, nsd = scores["dice"], scores["nsd"] or 0.0
    if dice is None:  # both are empty
        dice = nsd = 1.0
    return OrganScores(
        dice=float(np.round(dice, 4)),
        nsd=float(np.round(nsd if dice >= _LEAST_DICE_FOR_NSD else 0.0, 4)),
        hd95_mm=scores["hd95_mm"],
        volume_ml=volume_ml(masks.prediction, spacing_mm),
        reference_volume_ml=volume_ml(masks.reference, spacing_mm),
    )
