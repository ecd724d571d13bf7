"""The 13 organs of the FLARE 2022 challenge with the challenge's own numbers."""

from __future__ import annotations

from semiseg.io.dataset import LabelScheme

FLARE22_ORGANS: dict[int, str] = {
    1: "liver",
    2: "right_kidney",
    3: "spleen",
    4: "pancreas",
    5: "aorta",
    6: "inferior_vena_cava",
    7: "right_adrenal_gland",
    8: "left_adrenal_gland",
    9: "gallbladder",
    10: "oesophagus",
    11: "stomach",
    12: "duodenum",
    13: "left_kidney",
}

FLARE22_MIRROR_PAIRS: tuple[tuple[int, int], ...] = ((2, 13), (7, 8))
"""Right and left kidney, right and left adrenal gland."""

FLARE22_LABELS = LabelScheme(names={0: "background", **FLARE22_ORGANS}, mirror_pairs=FLARE22_MIRROR_PAIRS)
