"""Whether the labels that a network gives to unlabelled scans may be learnt from yet. One rule for all sets.

What a run can see without true labels: two states of the network, some time apart, agree on scans that neither has
learnt from; and organs are found in sizes that the labelled scans know: in most of the scans what every labelled scan
has, and in one at least what most of them have. At least half of the organs have to be: then nothing is learnt of the
others. Of a left-right pair both count as not found where one is: mirrored, what is not found of it shows what the
other looks like.
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
    """agreement: mean Dice of two label maps of each scan; best: that of the scan where it is highest. Where a labelled
    scan has no organ, scans in which neither map has one do not count; if all are such, agreement is 0, and best 1,
    since others may tell. implausible: names of organs that scans lack, or have in sizes that no labelled scan has.
    organs: how many there are. partners: names of the other organs that mirroring left-right takes for one of these.
    Neither counts in any of this, unless it would be of nothing then. nothing_found: no map has an organ that counts.
    """

    agreement: float
    best: float
    implausible: tuple[str, ...]
    organs: int
    partners: tuple[str, ...] = ()
    nothing_found: bool = False

    @property
    def agreement_shown(self) -> float:
        """To three decimals, and rounded down: what is shown as enough is enough."""
        return math.floor(self.agreement * 1000) / 1000

    @property
    def unknown(self) -> tuple[str, ...]:
        """Of which organs nothing is learnt, where something is learnt of the others: at most half of all."""
        both = (*self.implausible, *self.partners)
        return both if 2 * len(both) <= self.organs else ()


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
    sizes_of = {value: labelled.voxels_of(value) for value in plan.labels.organs}
    for value, name in plan.labels.organs.items():
        sizes = sizes_of[value]
        there = sizes[sizes > 0]
        if 2 * there.size <= sizes.size:
            continue  # half of the labelled scans lack it, so others may
        low, high = there.min() / VOLUME_RANGE, there.max() * VOLUME_RANGE
        plausible = sum(low <= volume[value] <= high for volume in volumes)
        if not plausible or (there.size == sizes.size and 2 * plausible < len(volumes)):
            implausible[value] = name
    order = plan.labels.permutation()
    partners = {order[value]: plan.labels.names[order[value]] for value in implausible}
    partners = {value: name for value, name in partners.items() if value not in implausible}
    possible: tuple[list[int], ...] = ([*implausible, *partners], [*implausible], [])
    left_out = next(values for values in possible if len(values) < len(plan.labels.organs))
    compared = [(np.delete(overlap, left_out), np.delete(both, left_out)) for overlap, both in compared]
    with_organ = [pair for pair in compared if pair[1][1:].any()]
    counting = [sizes for value, sizes in sizes_of.items() if value not in left_out]
    if (np.sum(counting, axis=0) == 0).any():  # some labelled scans hold none of these, and both states may be right
        compared = with_organ
    agreements = [mean_dice(*pair) for pair in compared]
    names, organs = tuple(implausible.values()), len(plan.labels.organs)
    mean, best = float(np.mean(agreements or [0.0])), max(agreements, default=1.0)
    return Found(mean, best, names, organs, tuple(partners.values()), nothing_found=not with_organ)


TOO_EARLY = "nothing is learnt from unlabelled scans yet: training is too short for labelling any to be worth its time."


def verdict(found: Found) -> tuple[bool, str]:
    """Whether a round learns from unlabelled scans, and the sentence that says why."""
    said = f"two states of the network agree by {found.agreement_shown:.3f} (Dice) on unlabelled scans"
    organs, one = _named(found.implausible), len(found.implausible) == 1
    not_found = f"{'is' if one else 'are'} not found in them as in labelled ones"
    other = f"{'its' if one else 'their'} mirror image{'s' * (len(found.partners) != 1)}, {_named(found.partners)}"
    if found.implausible and not found.unknown:
        nor = f", and without {'it' if one else 'them'} nothing may be learnt of {other}" if found.partners else ""
        return False, f"nothing is learnt from unlabelled scans yet, since {organs} {not_found}{nor}."
    if found.nothing_found:
        aside = f", {_named(found.unknown)} left aside," if found.unknown else ""
        return False, f"nothing is learnt from unlabelled scans yet: no organ{aside} is found in those looked at."
    if found.agreement < LEAST_AGREEMENT:
        return False, f"nothing is learnt from unlabelled scans yet: {said}, and {LEAST_AGREEMENT} is needed."
    without = f", without {organs}, which {not_found}" if found.unknown else ""
    without += f", and without {other}" if found.partners else ""
    of = "of the other organs " if without else ""
    return True, f"unlabelled scans are learnt from{without}: {of}{said}."


def _named(organs: Sequence[str]) -> str:
    few = ", ".join(organs[:NAMED])
    return few if len(organs) <= NAMED else f"{len(organs)} organs ({few} and others)"
