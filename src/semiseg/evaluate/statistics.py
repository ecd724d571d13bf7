"""Means with bootstrap intervals over cases, alone and paired. The case is the unit that is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from typing_extensions import TypedDict

from semiseg.randomness import Draw
from semiseg.types import DoubleArray

_LEVEL = 0.95


class Interval(TypedDict):
    """A mean over `count` cases with its 95 % bootstrap interval.

    mean is None without a case; low and high are None below two, since one case says nothing about the
    spread.
    """

    mean: float | None
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """A mean difference over the same cases, its 95 % bootstrap interval, and the Wilcoxon signed-rank
    p-value.

    p_value is two-sided; None below two cases.
    """

    difference: Interval
    p_value: float | None


def mean_interval(values: Sequence[float | None], draw: Draw, purpose: str, *, samples: int) -> Interval:
    """Mean and percentile bootstrap interval (Efron 1979) of the defined values, one value per case.

    samples: number of bootstrap draws. purpose: names the draws, so that each interval has its own.
    """
    defined = np.array([value for value in values if value is not None], dtype=np.float64)
    if defined.size == 0:
        return Interval(mean=None, low=None, high=None, count=0)
    mean = float(defined.mean())
    if defined.size == 1:
        return Interval(mean=mean, low=None, high=None, count=1)
    low, high = _bootstrap(defined, draw, purpose, samples)
    return Interval(mean=mean, low=low, high=high, count=int(defined.size))


def paired_difference(
    first: Sequence[float | None], second: Sequence[float | None], draw: Draw, purpose: str, *, samples: int
) -> PairedDifference:
    """`second - first` over the cases in which both are defined; entry i of both is the same case."""
    differences = [b - a for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return PairedDifference(
        difference=mean_interval(differences, draw, purpose, samples=samples),
        p_value=_wilcoxon(np.array(differences)) if len(differences) > 1 else None,
    )


def _bootstrap(values: DoubleArray, draw: Draw, purpose: str, samples: int) -> tuple[float, float]:
    chosen = draw.generator(f"bootstrap/{purpose}").integers(0, values.size, size=(samples, values.size))
    low, high = np.quantile(values[chosen].mean(axis=1), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def _wilcoxon(differences: DoubleArray) -> float:
    """Two-sided p-value; 1 where no case differs, which the test itself leaves undefined."""
    if not np.any(differences):
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="wilcox").pvalue)
