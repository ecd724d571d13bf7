"""Whether the labels that a network gives to unlabelled scans may be learnt from yet. One rule for all sets.

What a run can see without true labels: two states of the network, some time apart, agree on scans that neither has
learnt from; and organs that every labelled scan has are found in sizes that the labelled scans know. At least half
of them have to be: then nothing is learnt of the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semiseg.data.plan import Plan
from semiseg.io.store import open_labels, read_case_meta
from semiseg.io.store_index import IndexedCases
from semiseg.training.scan_labels import label_file, mean_dice, overlap_and_sizes

LOOKED_AT = 4
"""Scans that are labelled to know; the others of a round only if these are trusted."""
FIRST_LOOK, HOPELESS = 2, 0.7
"""Of these the scans that are labelled first, and the agreement on the better of them below which the others need not
be: labelling large scans takes long. On one it may be low because the scan lies otherwise than the labelled ones."""
LEAST_AGREEMENT = 0.9
"""Mean Dice of the two states' labels: docs/lab/first_hour.md."""
NAMED = 3
"""So many organs are named in a sentence."""
VOLUME_RANGE = 3.0
"""An organ may be so many times smaller or larger than in any labelled scan."""


@dataclass(frozen=True)
class Found:
    """agreement: mean Dice of two label maps of each scan; best: that of the scan where it is highest. implausible:
    names of organs that most scans lack, or have in sizes that no labelled scan has: these do not count in the
    agreement, unless all are. organs: how many there are."""

    agreement: float
    best: float
    implausible: tuple[str, ...]
    organs: int

    @property
    def agreement_shown(self) -> float:
        """To three decimals, and rounded down: what is shown as enough is enough."""
        return math.floor(self.agreement * 1000) / 1000

    @property
    def unknown(self) -> tuple[str, ...]:
        """Of which organs nothing is learnt, where something is learnt of the others: at most half of all."""
        return self.implausible if 2 * len(self.implausible) <= self.organs else ()


def looked_at(cases: Sequence[Path], folders: Sequence[Path], plan: Plan, labelled: IndexedCases) -> Found:
    """What the labels of stored scans in two folders, the later state's first, say. labelled: stored cases whose labels
    are true."""
    compared, volumes = [], []
    for path in cases:
        meta = read_case_meta(path)
        maps = [np.asarray(open_labels(label_file(folder, meta.id), meta.shape_zyx)[:]) for folder in folders]
        compared.append(overlap_and_sizes(*maps, classes=plan.labels.count))
        volumes.append(np.bincount(maps[0].ravel(), minlength=plan.labels.count))
    implausible = {}
    for value, name in plan.labels.organs.items():
        sizes = labelled.voxels_of(value)
        if not sizes.size or sizes.min() == 0:
            continue  # a labelled scan lacks it, so others may
        low, high = sizes.min() / VOLUME_RANGE, sizes.max() * VOLUME_RANGE
        plausible = sum(low <= volume[value] <= high for volume in volumes)
        if 2 * plausible < len(volumes):
            implausible[value] = name
    left_out = list(implausible) if len(implausible) < len(plan.labels.organs) else []
    agreements = [mean_dice(*(np.delete(counts, left_out) for counts in pair)) for pair in compared]
    names = tuple(implausible.values())
    return Found(float(np.mean(agreements)), max(agreements), names, len(plan.labels.organs))


TOO_EARLY = "nothing is learnt from unlabelled scans yet: training is too short for labelling any to be worth its time."


def verdict(found: Found) -> tuple[bool, str]:
    """Whether a round learns from unlabelled scans, and the sentence that says why."""
    said = f"two states of the network agree by {found.agreement_shown:.3f} (Dice) on unlabelled scans"
    few, count = found.implausible[:NAMED], len(found.implausible)
    organs = ", ".join(few) if count <= NAMED else f"{count} organs ({', '.join(few)} and others)"
    not_found = f"{'is' if count == 1 else 'are'} not found in them as in labelled ones"
    if found.implausible and not found.unknown:
        return False, f"nothing is learnt from unlabelled scans yet, since {organs} {not_found}."
    if found.agreement < LEAST_AGREEMENT:
        return False, f"nothing is learnt from unlabelled scans yet: {said}, and {LEAST_AGREEMENT} is needed."
    without = f", without {organs}, which {not_found}" if found.unknown else ""
    return True, f"unlabelled scans are learnt from{without}: {said}."
