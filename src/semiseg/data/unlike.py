"""Scans that look unlike the others of their set: by their intensities, where these have no unit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from semiseg.io.store import StoredCase

FEWEST = 6
"""Of fewer scans none is unlike the others."""
FAR = 6.0
"""So many deviations off the median, by the median over the quantiles, is unlike: of normal draws one in 10^9 is."""


def unlike_others(cases: Sequence[StoredCase], channels: Sequence[int]) -> list[str]:
    """Ids of the stored cases of which a channel's quantiles lie far off those of the set, the farthest first.

    Deviations are robust: 1.4826 times the median distance from the median (Rousseeuw and Croux 1993).
    """
    if len(cases) < FEWEST:
        return []
    distance = np.zeros(len(cases))
    for channel in channels:
        values = np.array([case.channel_quantiles[channel] for case in cases])
        off = np.abs(values - np.median(values, axis=0))
        deviation = 1.4826 * np.median(off, axis=0)
        distance = np.maximum(distance, np.median(off / np.maximum(deviation, 1e-6), axis=1))
    order = np.argsort(-distance, kind="stable")
    return [cases[int(index)].id for index in order if distance[index] > FAR]
