"""Bootstrap intervals and paired differences."""

from __future__ import annotations

import numpy as np
import pytest

from semiseg.randomness import Draw
from semiseg.scoring.statistics import is_range, mean_interval, paired_difference, signed_rank_p

DRAW = Draw(seed=1)


def test_undefined_values_are_left_out() -> None:
    assert mean_interval([None, None], DRAW, "a", samples=100) == {
        "mean": None,
        "low": None,
        "high": None,
        "count": 0,
    }
    assert mean_interval([0.5, None], DRAW, "a", samples=100) == {
        "mean": 0.5,
        "low": None,
        "high": None,
        "count": 1,
    }


def test_the_draws_depend_on_seed_and_purpose_only() -> None:
    values = list(np.linspace(0.1, 0.9, 40) ** 2)
    first = mean_interval(values, DRAW, "a", samples=500)
    assert first == mean_interval(values, DRAW, "a", samples=500)
    assert first != mean_interval(values, DRAW, "b", samples=500)
    assert first != mean_interval(values, Draw(seed=2), "a", samples=500)


def test_the_interval_is_that_of_the_normal_theory_for_many_cases() -> None:
    values = np.random.Generator(np.random.Philox(key=1)).normal(0.8, 0.1, 400)
    interval = mean_interval(list(values), DRAW, "a", samples=4000)
    half = 1.96 * values.std() / np.sqrt(values.size)
    # the ends of a percentile interval from 4000 draws scatter by about 3 % of its half width
    assert interval["low"] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval["high"] == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_intervals_cover_the_true_mean() -> None:
    rng = np.random.Generator(np.random.Philox(key=2))
    covered = 0
    for trial in range(200):
        interval = mean_interval(list(rng.normal(0.0, 1.0, 30)), Draw(seed=trial), "a", samples=400)
        assert interval["low"] is not None
        assert interval["high"] is not None
        covered += interval["low"] <= 0.0 <= interval["high"]
    # 95 % nominal, about 93 % for 30 cases (percentile method); below 176 of 200 has a probability under 0.5
    # %
    assert 176 <= covered < 200


def test_intervals_of_patients_cover_the_true_mean_where_those_of_their_scans_do_not() -> None:
    """Twenty patients with two scans each that differ little: 40 scans say hardly more than 20."""
    rng = np.random.Generator(np.random.Philox(key=3))
    patients = [f"P{n // 2}" for n in range(40)]
    covered = {"patients": 0, "scans": 0}
    for trial in range(200):
        values = list(np.repeat(rng.normal(0.0, 1.0, 20), 2) + rng.normal(0.0, 0.3, 40))
        for kind, whose in (("patients", patients), ("scans", None)):
            found = mean_interval(values, Draw(seed=trial), "a", samples=400, patients=whose)
            covered[kind] += float(found["low"] or 0) <= 0.0 <= float(found["high"] or 0)
    # Nominal 95 %. By the theory of 1.96 standard errors of 40 scans in place of 20 patients it is 84 % (168); that of
    # 20 patients is 92 % by the percentile method (184). Two standard errors of a count of 200 are 8 and 10.
    assert covered["patients"] >= 176 > 174 >= covered["scans"]


def test_a_patient_has_the_mean_of_all_scans_and_is_counted_once() -> None:
    found = mean_interval([0.2, 0.4, 0.9, None], DRAW, "a", samples=100, patients=["a", "a", "b", "c"])
    assert (found["mean"], found["count"], found["patients"]) == (pytest.approx(0.5), 3, 2)
    assert is_range(found)
    alone = mean_interval([0.2, 0.4], DRAW, "a", samples=100, patients=["a", "b"])
    assert "patients" not in alone
    many = np.repeat(np.linspace(0.1, 0.9, 5), 4)  # 20 scans of 5 patients
    assert signed_rank_p(many, [f"P{n // 4}" for n in range(20)]) is None
    assert signed_rank_p(many) is not None


def test_a_paired_difference_sees_what_the_means_hide() -> None:
    hard_to_easy = list(np.linspace(0.2, 0.9, 20))
    better = [value + 0.01 + 0.001 * (n % 3) for n, value in enumerate(hard_to_easy)]
    paired = paired_difference(hard_to_easy, better, DRAW, "a", samples=500)
    assert paired.difference["mean"] == pytest.approx(0.01095)
    assert paired.difference["low"] is not None
    assert paired.difference["low"] > 0.01
    assert paired.p_value is not None
    assert paired.p_value < 0.001
    alone = mean_interval(hard_to_easy, DRAW, "a", samples=500)
    assert alone["high"] is not None
    assert alone["high"] - (alone["mean"] or 0) > 0.05


def test_pairs_need_both_values() -> None:
    paired = paired_difference([0.5, None, 0.2], [0.6, 0.9, None], DRAW, "a", samples=100)
    assert paired.difference["count"] == 1
    assert paired.difference["mean"] == pytest.approx(0.1)
    assert paired.p_value is None


def test_runs_that_agree_everywhere_have_p_one() -> None:
    assert paired_difference([0.5, 0.7] * 3, [0.5, 0.7] * 3, DRAW, "a", samples=100).p_value == 1.0


def test_fewer_than_six_cases_have_a_range_and_no_p() -> None:
    before, after = [0.5, 0.6, 0.7, 0.8, 0.9], [0.6, 0.8, 0.75, 0.85, 0.95]
    five = paired_difference(before, after, DRAW, "a", samples=100)
    assert (five.difference["low"], five.difference["high"]) == pytest.approx((0.05, 0.2))
    assert is_range(five.difference)
    assert five.p_value is None
    six = paired_difference([*before, 0.4], [*after, 0.5], DRAW, "a", samples=100)
    assert six.difference["high"] < 0.2
    assert not is_range(six.difference)
    assert six.p_value == 0.03125  # all of six go one way: 2 / 2 ** 6


def test_some_equal_cases_are_no_trouble() -> None:
    paired = paired_difference([0.5] * 12, [0.5] * 3 + [0.6] * 5 + [0.7] * 4, DRAW, "a", samples=100)
    assert paired.p_value is not None
    assert 0 < paired.p_value < 0.05
