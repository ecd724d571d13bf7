"""What a study of runs comes to: pairing, intervals over cases and subsets, adjusted tests, the gap that is closed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from semiseg.errors import DataError
from semiseg.randomness import Draw
from semiseg.reporting.study import (
    NOTICED,
    compute_figures,
    efficiency_lines,
    forest_figure,
    most_different,
    noticed_table,
    study_markdown,
    study_tables,
    write_study_page,
)
from semiseg.scoring.label_efficiency import against_reference, organ_scores, points, verdict
from semiseg.scoring.statistics import Interval, crossed_interval, holm, signed_rank_p
from semiseg.scoring.study_results import Study, StudyRun, name_of, read_study, write_study


def a_run(
    method: str,
    labelled: int,
    dice: Sequence[float | None],
    *,
    subset: int | None = None,
    seed: int = 0,
    compute: float = 1.0,
) -> StudyRun:
    cases = {
        f"case{i}": {"liver": {"dice": v, "nsd": v}, "spleen": {"dice": v, "nsd": None}} for i, v in enumerate(dice)
    }
    return StudyRun(
        method=method,
        labelled=labelled,
        label_seed=subset,
        seed=seed,
        compute=compute,
        key=f"{method}{labelled}{subset}{seed}{compute}",
        steps=10,
        minutes=2.0 + labelled,
        peak_memory_mb=100.0 + seed,
        cases=cases,  # type: ignore[typeddict-item]
    )


def a_study(*runs: StudyRun, ceiling: int | None = None) -> Study:
    return Study(
        name="s",
        dataset="d",
        machine={},
        minutes=2.0,
        baseline="base",
        ceiling=ceiling,
        organs=["liver", "spleen"],
        tolerance_mm={"liver": 1.0, "spleen": 1.0},
        test_cases=6,
        runs=list(runs),
    )


BASE = (0.5, 0.6, 0.7, 0.8, 0.55, 0.65)
BETTER = (0.6, 0.65, 0.72, 0.83, 0.59, 0.71)


def test_what_runs_noticed_is_counted_by_method_and_labels() -> None:
    said = [a_run("base", 4, BASE, subset=n) | {"notices": {"steps": f"{n} steps."}} for n in (1, 2)]
    quiet = a_run("base", 4, BASE, subset=3) | {"notices": {}}
    unknown = a_run("base", 4, BASE, subset=4)  # made before this was kept
    title, header, rows = noticed_table(a_study(*said, quiet, unknown, a_run("other", 4, BASE)))  # type: ignore[arg-type]
    assert (title, header) == (NOTICED, ["labels", "method", "runs", "example"])
    assert rows == [["4", "base", "2 of 3", "1 steps."]]


def test_a_method_is_compared_on_the_runs_that_the_baseline_has_too() -> None:
    study = a_study(
        a_run("base", 4, BASE),
        a_run("base", 4, BASE, subset=1),
        a_run("mine", 4, BETTER),
        a_run("mine", 4, [v - 0.1 for v in BASE], subset=1),
        a_run("mine", 4, [1.0] * 6, subset=2),  # there is no such run of the baseline
    )
    base, mine = points(study)
    assert (base.method, base.runs, base.difference, base.better) == ("base", 2, {}, (0, 0))
    assert mine.runs == 3
    assert mine.values["dice"]["mean"] == pytest.approx(np.mean([*BETTER, *(v - 0.1 for v in BASE), *[1.0] * 6]))
    assert mine.difference["dice"]["mean"] == pytest.approx((np.mean(BETTER) - np.mean(BASE) - 0.1) / 2)
    assert mine.better == (1, 2)


def test_the_gap_is_what_the_ceiling_has_more_than_the_baseline() -> None:
    study = a_study(
        a_run("base", 4, BASE), a_run("mine", 4, BETTER), a_run("base", 100, [v + 0.2 for v in BASE]), ceiling=100
    )
    mine = next(point for point in points(study) if point.method == "mine")
    assert mine.gap_closed == pytest.approx((np.mean(BETTER) - np.mean(BASE)) / 0.2)


def test_an_organ_that_was_invented_counts_in_every_difference() -> None:
    """Three scans have the organ, three have not. `mine` invents it in these: its mean is over six scans, the other's
    over three, and over the three that both have they are equal."""
    right, wrong = [0.8, 0.8, 0.8, None, None, None, 0.8, 0.8, 0.8], [0.8, 0.8, 0.8, 0.0, 0.0, 0.0, 0.8, 0.8, 0.8]
    study = a_study(
        a_run("base", 4, right), a_run("mine", 4, wrong), a_run("mine", 4, right, subset=1),
        a_run("base", 4, right, subset=1), a_run("base", 100, [0.9] * 9), ceiling=100,
    )  # fmt: skip
    _, mine, _ = points(study)
    assert mine.difference["dice"]["mean"] == pytest.approx(-(3 / 9) / 2)  # in one of two subsets
    assert mine.values["dice"]["mean"] == pytest.approx((0.8 * 12 + 3) / 18)  # one subset left empty what is empty
    assert organ_scores(study, "mine", 4, "dice")["liver"].difference == pytest.approx(-3 / 15)
    assert mine.gap_closed is not None
    # The ceiling has 0.9 in all, labels alone 0.8 in six and 1 in three that are empty.
    assert mine.gap_closed == pytest.approx((-(3 / 9) / 2) / (0.9 - (0.8 * 6 + 3) / 9))


def test_p_is_of_cases_averaged_over_runs_and_adjusted_for_all_comparisons() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.5, 0.9, 12)
    mine, worse = base + rng.uniform(0.0, 0.1, 12), base - rng.normal(0.0, 0.05, 12)
    study = a_study(a_run("base", 4, list(base)), a_run("mine", 4, list(mine)), a_run("worse", 4, list(worse)))
    raw = [stats.wilcoxon(other - base).pvalue for other in (mine, worse)]
    found = {point.method: point.p_value for point in points(study)}
    assert found["base"] is None
    assert found["mine"] == pytest.approx(2 * raw[0])  # the smaller of two
    assert found["worse"] == pytest.approx(max(raw[1], 2 * raw[0]))


def test_over_cases_the_spread_of_subsets_does_not_count() -> None:
    """Two subsets on which all cases gain alike, by 0.2 and by nothing: the mean is sure for these networks alone."""
    mine = [a_run("mine", 4, [v + 0.2 for v in BASE]), a_run("mine", 4, BASE, subset=1)]
    study = a_study(a_run("base", 4, BASE), a_run("base", 4, BASE, subset=1), *mine)
    point = points(study)[1]
    assert point.over_cases is not None
    assert [point.over_cases[end] for end in ("mean", "low", "high")] == pytest.approx([0.1, 0.1, 0.1])
    # Student's t of one degree of freedom, 12.71, times 0.1: the standard error of (0.2, 0).
    assert point.difference["dice"]["low"] == pytest.approx(0.1 - 1.271, abs=1e-3)


def test_methods_with_fewer_labels_are_compared_with_the_reference() -> None:
    study = a_study(
        a_run("base", 4, BASE),
        a_run("mine", 4, BETTER),
        a_run("mine", 4, BASE, subset=1),
        a_run("mine", 16, [1.0] * 6),
        a_run("theirs", 16, [v + 0.1 for v in BASE]),
    )
    assert against_reference(study) == []
    study["reference"] = {"method": "theirs", "labelled": 16}
    base, mine = against_reference(study)
    assert (base.method, base.labelled, base.runs) == ("base", 4, 1)
    assert [base.over_cases[end] for end in ("mean", "low", "high")] == pytest.approx([-0.1, -0.1, -0.1])
    assert base.difference == base.over_cases  # of one subset
    gained = (np.mean(BETTER) - np.mean(BASE)) / 2
    assert mine.difference["mean"] == pytest.approx(gained - 0.1)
    assert mine.p_value == 2 * 0.03125  # all of six cases lie below: 2 / 2 ** 6, and two comparisons
    study["reference"] = {"method": "theirs", "labelled": 32}
    assert against_reference(study) == []  # it is not run yet
    study["runs"].append(a_run("theirs", 32, [0.5, 0.6]))
    with pytest.raises(DataError, match=r"^reference: theirs with 32 labels was scored on other cases than base-4-fir"):
        against_reference(study)


def test_holm_adjusts_as_published() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm (1979), by hand
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_an_interval_over_cases_and_subsets_is_wider_than_over_cases_alone() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0.8, 0.01, (1, 40)) + np.array([[-0.05], [0.0], [0.05]])
    draw = Draw(seed=0)
    over_both = crossed_interval(values, [0, 1, 2], draw, "x", samples=2000)
    over_cases = crossed_interval(values, [0, 0, 0], draw, "x", samples=2000)
    assert over_both["mean"] == pytest.approx(values.mean())
    assert over_cases["mean"] == pytest.approx(values.mean())
    assert over_both["low"] is not None
    assert over_cases["low"] is not None
    assert over_both["low"] < over_cases["low"] - 0.02
    # Of one subset the interval is the plain bootstrap's: the mean's standard error times 1.96, to a tenth.
    half = (float(over_cases["high"] or 0) - over_cases["low"]) / 2
    assert half == pytest.approx(1.96 * values.mean(axis=0).std() / 40**0.5, rel=0.1)


@pytest.mark.parametrize("subsets", [2, 3])
def test_intervals_hold_the_truth_as_often_as_they_say(subsets: int) -> None:
    """400 studies of which the truth, 0, is known: subsets and cases vary, both as much as is seen."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(400):
        values = rng.normal(0, 0.02, (subsets, 1)) + rng.normal(0, 0.05, (1, 40)) + rng.normal(0, 0.02, (subsets, 40))
        found = crossed_interval(values, list(range(subsets)), Draw(seed=0), "x", samples=400)
        held += float(found["low"] or 0) <= 0 <= float(found["high"] or 0)
    assert held >= 0.94 * 400  # 95 %, less one standard error of a count of 400


def test_seeds_of_a_subset_weigh_as_one() -> None:
    values = np.array([[0.2, 0.2], [0.4, 0.4], [0.9, 0.9]])
    assert crossed_interval(values, [0, 0, 1], Draw(seed=0), "x", samples=100)["mean"] == pytest.approx(0.6)


def test_cases_without_a_score_are_left_out() -> None:
    values = np.array([[0.5, np.nan, 0.7], [0.6, np.nan, 0.8]])
    found = crossed_interval(values, [0, 1], Draw(seed=0), "x", samples=100)
    assert (found["mean"], found["count"]) == (pytest.approx(0.65), 2)
    nothing = crossed_interval(np.full((1, 2), np.nan), [0], Draw(seed=0), "x", samples=100)
    assert nothing == {"mean": None, "low": None, "high": None, "count": 0}
    assert signed_rank_p(np.array([0.1, np.nan])) is None


def test_fewer_than_six_cases_have_no_interval(tmp_path: Path) -> None:
    """Over cases and subsets, nor over cases alone: a bootstrap of five is too narrow. Tables leave the place empty."""
    five = [a_run(method, 4, dice[:5], subset=n) for n in (0, 1) for method, dice in (("base", BASE), ("mine", BETTER))]
    study = a_study(*five) | {"test_cases": 5, "reference": {"method": "base", "labelled": 8}}
    study["runs"].append(a_run("base", 8, BASE[:5]))
    mine = points(study)[1]
    gained = pytest.approx(np.mean(BETTER[:5]) - np.mean(BASE[:5]))
    for found in (mine.difference["dice"], mine.over_cases, against_reference(study)[1].difference):
        assert found == {"mean": gained, "low": None, "high": None, "count": 5}
    assert verdict(mine.difference["dice"]) == "open"
    (_, header, rows), (_, _, against), *_ = study_tables(study)
    row = dict(zip(header, rows[1], strict=True))
    assert (row["DSC [95 %]"], row["DSC - base [95 %]"], row["over cases [95 %]"]) == ("0.6780", "+0.0480", "")
    assert against[1][3:5] == ["+0.0480", ""]
    assert "5 cases scored, 2 minutes a run. Machine: . Fewer than 6 cases are too few for" in study_markdown(study)
    page = write_study_page(study, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Fewer than 6 cases are too few for intervals, a p and a verdict." in page
    assert "95&#8239;%" not in page
    assert "– to –" not in page
    assert forest_figure(study, points(study)) == ""
    six = a_study(*(a_run(method, 4, dice) for method, dice in (("base", BASE), ("mine", BETTER))))
    assert points(six)[1].difference["dice"]["low"] is not None
    assert "Fewer than" not in study_markdown(six)


def test_organs_are_averaged_over_cases_and_runs() -> None:
    study = a_study(a_run("base", 4, [0.5, None, 0.7]), a_run("base", 4, [0.6, 0.8, 1.0], subset=1))
    liver = organ_scores(study, "base", 4, "dice")["liver"]
    assert (liver.mean, liver.difference) == (pytest.approx(np.mean([0.5, 0.7, 0.6, 0.8, 1.0])), None)
    assert organ_scores(study, "base", 4, "nsd")["spleen"].mean is None


def test_an_organ_is_compared_on_the_runs_of_both() -> None:
    study = a_study(a_run("base", 4, BASE), a_run("mine", 4, BETTER), a_run("mine", 4, [1.0] * 6, subset=1))
    liver = organ_scores(study, "mine", 4, "dice")["liver"]
    assert liver.difference == pytest.approx(np.mean(BETTER) - np.mean(BASE))
    assert liver.mean == pytest.approx((np.mean(BETTER) + 1.0) / 2)
    assert organ_scores(study, "mine", 4, "nsd")["spleen"].difference is None


def test_the_table_has_the_difference_of_both_metrics_and_what_a_gpu_had() -> None:
    study = a_study(a_run("base", 4, BASE), a_run("mine", 4, [v + 0.1 for v in BASE]))
    (_, header, rows), *_ = study_tables(study)
    # Of one subset all cases gain alike: the interval has no width. NSD is Dice here.
    gains = [row[header.index(f"{metric} - base [95 %]")] for metric in ("DSC", "NSD") for row in rows]
    assert gains == ["", "+0.1000 [+0.1000, +0.1000]"] * 2
    assert "GPU MB" not in header
    study["runs"].append(a_run("mine", 4, BASE, subset=1) | {"gpu_peak_mb": 900.0})
    study["runs"].append(a_run("mine", 4, BASE, subset=2) | {"gpu_peak_mb": 800.0})
    (_, header, rows), *_ = study_tables(study)
    assert (header[-1], [row[-1] for row in rows]) == ("GPU MB", ["", "900"])


def test_runs_on_other_cases_are_refused() -> None:
    study = a_study(a_run("base", 4, BASE), a_run("mine", 4, BASE[:2]))
    with pytest.raises(DataError, match="scored on other cases"):
        points(study)


def test_the_file_comes_back_and_damage_is_named(tmp_path: Path) -> None:
    study = a_study(a_run("base", 4, BASE), a_run("mine", 4, BETTER, subset=3))
    write_study(tmp_path / "results.json", study)
    assert read_study(tmp_path / "results.json") == study
    assert [name_of(run) for run in study["runs"]] == ["base-4-first-seed0", "mine-4-labels3-seed0"]
    (tmp_path / "results.json").write_text('{"name": 3}')
    with pytest.raises(DataError, match=r"results\.json: name: .*string.*delete it to begin anew"):
        read_study(tmp_path / "results.json")


def test_the_curve_has_each_methods_budgets_in_order_and_no_ceiling() -> None:
    study = a_study(
        a_run("mine", 8, BETTER),
        a_run("mine", 4, BASE),
        a_run("mine", 4, BETTER, subset=1),
        a_run("base", 4, BASE),
        a_run("base", 100, [1.0] * 6),
        ceiling=100,
    )
    found = points(study)
    lines = dict(efficiency_lines(study, found, "dice"))
    assert [row[0] for row in lines["mine"]] == [4, 8]
    assert [row[0] for row in lines["base"]] == [4]
    assert lines["mine"][0][1] == pytest.approx(np.mean([*BASE, *BETTER]))
    for _, mean, low, high in lines["mine"]:
        assert low < mean < high


def test_cases_that_the_methods_differ_most_on_come_first() -> None:
    group = [
        a_run("base", 4, [0.5, 0.5, 0.5, None, 0.5]),
        a_run("mine", 4, [0.6, 0.1, 0.5, None, 0.7]),
        a_run("other", 4, [0.5, 0.5, 0.5, None, 0.9]),
    ]
    # Spreads of 0.1, 0.4, 0, none and 0.4; of equal ones the name decides.
    assert most_different(group) == ["case1", "case4", "case0", "case2", "case3"]


# Compute.


def a_ladder() -> Study:
    """The baseline gains nothing by more steps, the other method 0.02 each time."""
    runs = [a_run("base", 4, BASE, compute=times) for times in (1.0, 2.0, 4.0)]
    runs += [a_run("mine", 4, [v + 0.02 * n for v in BASE], compute=2.0**n) for n in range(3)]
    return a_study(*runs, a_run("base", 100, [v + 0.1 for v in BASE], compute=4.0), ceiling=100)


def test_methods_are_compared_at_equal_compute() -> None:
    study = a_ladder()
    found = {(point.method, point.compute): point for point in points(study) if point.labelled == 4}
    gains = [found["mine", times].difference["dice"]["mean"] for times in (1.0, 2.0, 4.0)]
    assert gains == pytest.approx([0.0, 0.02, 0.04])
    assert found["mine", 4.0].gap_closed == pytest.approx(0.4)
    (_, header, rows), *_ = study_tables(study)
    told = [(row[header.index("compute")], row[header.index("verdict")]) for row in rows if row[2] == "mine"]
    assert told == [("1 x", "level"), ("2 x", "ahead"), ("4 x", "ahead")]


def test_the_page_draws_dice_against_compute_and_every_difference() -> None:
    study = a_ladder()
    found = points(study)
    ((title, svg),) = compute_figures(study, found)
    assert title == "4 labelled scans"
    assert 'aria-label="Dice by times the compute"' in svg
    assert all(f"mine, 4 labels, {times} x" in forest_figure(study, found) for times in (1, 2, 4))
    assert [row[:2] for row in dict(efficiency_lines(study, found, "dice"))["mine"]] == [
        (4, pytest.approx(np.mean(BASE) + 0.04))  # of the most compute
    ]
    once = a_study(a_run("base", 4, BASE))
    assert (compute_figures(once, points(once)), forest_figure(once, points(once))) == ([], "")


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.001, 0.02, "ahead"),
        (-0.02, -0.001, "behind"),
        (-0.002, 0.003, "level"),
        (0.001, 0.002, "level"),
        (-0.01, 0.02, "open"),
        (None, None, "open"),
    ],
)
def test_a_verdict_is_of_the_whole_interval(low: float | None, high: float | None, said: str) -> None:
    assert verdict(Interval(mean=0.0, low=low, high=high, count=40)) == said


def test_a_study_of_patients_counts_each_once() -> None:
    """Twelve cases, two of a patient: the mean is theirs, the interval and p are of six."""
    base, mine = ([0.5 + 0.02 * n for n in range(12)], [0.5 + 0.02 * n + 0.005 * (n // 2) + 0.01 for n in range(12)])
    study = a_study(a_run("base", 4, base), a_run("mine", 4, mine))
    study["test_cases"] = 12
    scans = next(point for point in points(study) if point.method == "mine")
    study["patients"] = "case[0-9]"  # case1, case10 and case11 are one
    mine_of = next(point for point in points(study) if point.method == "mine")
    assert mine_of.difference["dice"]["mean"] == pytest.approx(scans.difference["dice"]["mean"])
    assert mine_of.difference["dice"].get("patients") == 10
    assert mine_of.over_cases is not None
    assert mine_of.over_cases.get("patients") == 10
    assert mine_of.p_value is not None
    assert scans.p_value is not None
    assert mine_of.p_value > scans.p_value
    assert "12 cases of 10 patients scored (intervals and p are over patients)" in study_markdown(study)
    study["patients"] = "case"
    assert "Fewer than 6 patients are too few" in study_markdown(study)
