"""Means with bootstrap intervals over cases, alone and paired. The case is the unit that is drawn; the patient is where
patients have several cases, since these are no independent evidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit
from typing_extensions import TypedDict

from semiseg.randomness import Draw
from semiseg.types import BoolArray, DoubleArray

_LEVEL = 0.95
BOOTSTRAP_SAMPLES = 2000
"""Draws of the cases behind each 95 % interval; at 2000 its ends are stable to about a hundredth of its width."""
FEWEST_CASES = 6
"""Below it no interval and no p is given: with five cases that all go one way, the smallest two-sided p that the
signed-rank test can give is 0.0625, and a bootstrap of so few draws intervals that are too narrow."""


class Interval(TypedDict):
    """A mean over `count` cases with its 95 % bootstrap interval.

    patients: whose cases these are, where some have several; it then counts in the place of the cases. mean is None
    without a case. Below six cases low and high are the smallest and the largest case instead
    (`is_range`); below two they are None, since one case says nothing about the spread. `crossed_interval` gives None
    below six.
    """

    mean: float | None
    low: float | None
    high: float | None
    count: int
    patients: NotRequired[int]


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """A mean difference over the same cases, its 95 % bootstrap interval, and the Wilcoxon signed-rank p-value.

    p_value is two-sided; None below six cases.
    """

    difference: Interval
    p_value: float | None


def is_range(interval: Interval) -> bool:
    """Whether the ends are those of the cases, too few for an interval, and not of a 95 % interval."""
    return independent(interval) < FEWEST_CASES


def independent(interval: Interval) -> int:
    """How many cases, or patients where some have several, the mean is of."""
    return interval.get("patients", interval["count"])


Scores = Sequence[float | None] | DoubleArray
"""One value a case; None or NaN where it is not defined."""
Patients = Sequence[str] | None
"""Whose each case is; None where each case is of another patient."""


def mean_interval(values: Scores, draw: Draw, purpose: str, *, samples: int, patients: Patients = None) -> Interval:
    """Mean and percentile bootstrap interval (Efron 1979) of the defined values, one value per case; below six of them
    their range. Where a patient has several cases, patients are drawn, each with all cases (the cluster bootstrap,
    Davison and Hinkley 1997, 3.8).

    samples: number of bootstrap draws. purpose: names the draws, so that each interval has its own.
    """
    defined, units = _with_units(as_numbers(values), patients)
    count = int(units.max(initial=-1)) + 1
    ends: tuple[float | None, float | None] = (None, None)
    if count >= FEWEST_CASES:
        ends = _bootstrap(defined, units, draw, purpose, samples)
    elif defined.size > 1:
        ends = float(defined.min()), float(defined.max())
    mean = float(defined.mean()) if defined.size else None
    return _interval(mean, ends, defined.size, count)


def _interval(mean: float | None, ends: tuple[float | None, float | None], cases: int, patients: int) -> Interval:
    found = Interval(mean=mean, low=ends[0], high=ends[1], count=cases)
    if patients < cases:
        found["patients"] = patients
    return found


def _with_units(values: DoubleArray, patients: Patients) -> tuple[DoubleArray, NDArray[np.intp]]:
    """The finite values, and the number of each one's patient."""
    defined = np.isfinite(values)
    names = np.arange(values.size) if patients is None else np.array(patients)
    return values[defined], np.unique(names[defined], return_inverse=True)[1]


def as_numbers(scores: Scores | Sequence[Scores]) -> DoubleArray:
    """The same, NaN where a score is None."""
    return np.array(scores, dtype=np.float64)


def with_empty_as_right(scores: DoubleArray, empty: BoolArray) -> DoubleArray:
    """Scores of one metric `(runs, cases)` from 0 to 1, in which a case that is compared has a value in every run.

    empty: where neither reference nor prediction has anything: undefined, and no part of a run's own mean. It is 1
    here where another run found something in that case: else the other's error would be compared with nothing.
    """
    return np.where(empty & ~empty.all(axis=0), 1.0, scores)


def paired_difference(
    first: Scores,
    second: Scores,
    draw: Draw,
    purpose: str,
    *,
    samples: int,
    patients: Patients = None,
) -> PairedDifference:
    """`second - first` over the cases in which both are defined; entry i of both is the same case."""
    differences = as_numbers(second) - as_numbers(first)
    return PairedDifference(
        difference=mean_interval(differences, draw, purpose, samples=samples, patients=patients),
        p_value=signed_rank_p(differences, patients),
    )


def crossed_interval(
    values: DoubleArray,
    subsets: Sequence[int],
    draw: Draw,
    purpose: str,
    *,
    samples: int,
    patients: Patients = None,
) -> Interval:
    """Mean of `(runs, cases)` with a 95 % interval for other cases and other label subsets.

    subsets: the number of each run's label subset; its seeds are averaged first, and the mean is over subsets. The half
    width is that over cases (bootstrap) and that over subsets (Student's t of their means) in quadrature: subsets are
    too few to be drawn from. With a single one the interval is over cases alone. Cases that are NaN in a run are left
    out; count is of the others. Below six of them there is no interval, and no range either.
    """
    averaged = by_subset(values, subsets)
    defined, units = _with_units(averaged.mean(axis=0), patients)
    if not defined.size:
        return Interval(mean=None, low=None, high=None, count=0)
    averaged = averaged[:, np.isfinite(averaged).all(axis=0)]
    count, cases = averaged.shape
    mean, drawn = float(averaged.mean()), int(units.max()) + 1
    if drawn < FEWEST_CASES:
        return _interval(mean, (None, None), cases, drawn)
    low, high = _bootstrap(defined, units, draw, purpose, samples)
    over_subsets = 0.0
    if count > 1:
        deviation = float(averaged.mean(axis=1).std(ddof=1))
        over_subsets = float(stdtrit(count - 1, (1 + _LEVEL) / 2)) * deviation / count**0.5
    ends = mean - math.hypot(mean - low, over_subsets), mean + math.hypot(high - mean, over_subsets)
    return _interval(mean, ends, cases, drawn)


def by_subset(values: DoubleArray, subsets: Sequence[int]) -> DoubleArray:
    """`(runs, cases)` averaged over the seeds of each label subset, `(subsets, cases)`: every subset counts alike,
    however many of its runs are made. subsets: the number of each run's."""
    return np.stack([values[np.array(subsets) == s].mean(axis=0) for s in sorted(set(subsets))])


def signed_rank_p(differences: DoubleArray, patients: Patients = None) -> float | None:
    """Two-sided p of the Wilcoxon signed-rank test that differences, one a case, or the mean of a patient's, lie around
    0; None below six of them."""
    defined, units = _with_units(differences, patients)
    defined = np.bincount(units, defined) / np.bincount(units)
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


def _bootstrap(
    values: DoubleArray, units: NDArray[np.intp], draw: Draw, purpose: str, samples: int
) -> tuple[float, float]:
    """units: the number of each value's patient, who is drawn with all values."""
    sums, counts = np.bincount(units, values), np.bincount(units)
    chosen = draw.generator(f"bootstrap/{purpose}").integers(0, sums.size, size=(samples, sums.size))
    means = sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)
