"""Means with bootstrap intervals over cases, alone and paired. The case is the unit that is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit
from typing_extensions import TypedDict

from semiseg.randomness import Draw
from semiseg.types import DoubleArray

_LEVEL = 0.95
BOOTSTRAP_SAMPLES = 2000
"""Draws of the cases behind each 95 % interval; at 2000 its ends are stable to about a hundredth of its width."""
FEWEST_CASES = 6
"""Below it no interval and no p is given: with five cases that all go one way, the smallest two-sided p that the
signed-rank test can give is 0.0625, and a bootstrap of so few draws intervals that are too narrow."""


class Interval(TypedDict):
    """A mean over `count` cases with its 95 % bootstrap interval.

    mean is None without a case. Below six cases low and high are the smallest and the largest case instead
    (`is_range`); below two they are None, since one case says nothing about the spread.
    """

    mean: float | None
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """A mean difference over the same cases, its 95 % bootstrap interval, and the Wilcoxon signed-rank p-value.

    p_value is two-sided; None below six cases.
    """

    difference: Interval
    p_value: float | None


def is_range(interval: Interval) -> bool:
    """Whether the ends are those of the cases, too few for an interval, and not of a 95 % interval."""
    return interval["count"] < FEWEST_CASES


def mean_interval(values: Sequence[float | None], draw: Draw, purpose: str, *, samples: int) -> Interval:
    """Mean and percentile bootstrap interval (Efron 1979) of the defined values, one value per case; below six of them
    their range.

    samples: number of bootstrap draws. purpose: names the draws, so that each interval has its own.
    """
    defined = np.array([value for value in values if value is not None], dtype=np.float64)
    mean = float(defined.mean()) if defined.size else None
    ends: tuple[float | None, float | None] = (None, None)
    if defined.size >= FEWEST_CASES:
        ends = _bootstrap(defined, draw, purpose, samples)
    elif defined.size > 1:
        ends = float(defined.min()), float(defined.max())
    return Interval(mean=mean, low=ends[0], high=ends[1], count=int(defined.size))


def paired_difference(
    first: Sequence[float | None], second: Sequence[float | None], draw: Draw, purpose: str, *, samples: int
) -> PairedDifference:
    """`second - first` over the cases in which both are defined; entry i of both is the same case."""
    differences = [b - a for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return PairedDifference(
        difference=mean_interval(differences, draw, purpose, samples=samples),
        p_value=signed_rank_p(np.array(differences, dtype=np.float64)),
    )


def crossed_interval(
    values: DoubleArray, subsets: Sequence[int], draw: Draw, purpose: str, *, samples: int
) -> Interval:
    """Mean of `(runs, cases)` with a 95 % interval for other cases and other label subsets.

    subsets: the number of each run's label subset; its seeds are averaged first, and the mean is over subsets. The half
    width is that over cases (bootstrap) and that over subsets (Student's t of their means) in quadrature: subsets are
    too few to be drawn from. With a single one the interval is over cases alone. Cases that are NaN in a run are left
    out; count is of the others.
    """
    values = values[:, np.isfinite(values).all(axis=0)]
    if not values.size:
        return Interval(mean=None, low=None, high=None, count=0)
    averaged = by_subset(values, subsets)
    count, cases = averaged.shape
    mean = float(averaged.mean())
    if cases < 2:
        return Interval(mean=mean, low=None, high=None, count=cases)
    low, high = _bootstrap(averaged.mean(axis=0), draw, purpose, samples)
    over_subsets = 0.0
    if count > 1:
        deviation = float(averaged.mean(axis=1).std(ddof=1))
        over_subsets = float(stdtrit(count - 1, (1 + _LEVEL) / 2)) * deviation / count**0.5
    return Interval(
        mean=mean,
        low=mean - math.hypot(mean - low, over_subsets),
        high=mean + math.hypot(high - mean, over_subsets),
        count=cases,
    )


def by_subset(values: DoubleArray, subsets: Sequence[int]) -> DoubleArray:
    """`(runs, cases)` averaged over the seeds of each label subset, `(subsets, cases)`: every subset counts alike,
    however many of its runs are made. subsets: the number of each run's."""
    return np.stack([values[np.array(subsets) == s].mean(axis=0) for s in sorted(set(subsets))])


def signed_rank_p(differences: DoubleArray) -> float | None:
    """Two-sided p of the Wilcoxon signed-rank test that differences, one a case, lie around 0; None below six cases."""
    defined = differences[np.isfinite(differences)]
    if defined.size < FEWEST_CASES:
        return None
    if not np.any(defined):  # which the test itself leaves undefined
        return 1.0
    from scipy import stats  # here, since it takes a second, which most commands need not wait

    return float(stats.wilcoxon(defined, zero_method="wilcox").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number by Holm's step-down rule (1979), in their order."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _bootstrap(values: DoubleArray, draw: Draw, purpose: str, samples: int) -> tuple[float, float]:
    chosen = draw.generator(f"bootstrap/{purpose}").integers(0, values.size, size=(samples, values.size))
    low, high = np.quantile(values[chosen].mean(axis=1), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)
