"""Tables of one run and of several side by side."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import pytest
from rich.console import Console

from semiseg.errors import DataError
from semiseg.scoring import Summary, compare_summaries, print_comparison, print_summary
from semiseg.scoring.metrics import OrganScores
from semiseg.scoring.summary import CaseScores, summarise

ORGANS = {1: "liver", 2: "spleen"}


def summary_of(dice: dict[str, Sequence[float | None]], *, tolerance_mm: float = 1.0) -> Summary:
    """A summary with the given Dice of liver and spleen per case; NSD is Dice, HD95 follows from it."""
    cases = []
    for case, values in dice.items():
        organs = {
            organ: OrganScores(
                dice=value,
                nsd=value,
                hd95_mm=None if value is None else 10 * (1 - value),
                volume_ml=1.0,
                reference_volume_ml=1.0,
            )
            for organ, value in zip(ORGANS.values(), values, strict=True)
        }
        cases.append(CaseScores(id=case, reference="r", prediction="p", image=None, organs=organs))
    return summarise(cases, ORGANS, dict.fromkeys(ORGANS.values(), tolerance_mm), "standard")


BASELINE = {"a": (0.80, 0.50), "b": (0.70, None), "c": (0.90, 0.60)}
BETTER = {"c": (0.95, 0.65), "a": (0.85, 0.55), "b": (0.75, None)}
SIX = {f"case{n}": (0.70 + 0.02 * n, 0.5) for n in range(6)}
SIX_BETTER = {case: (liver + 0.05, spleen) for case, (liver, spleen) in SIX.items()}


def printed(console_width: int = 60, *, terminal: bool = False) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=console_width, force_terminal=terminal, color_system=None), text


def test_runs_are_paired_by_case_not_by_order() -> None:
    comparison = compare_summaries(["Baseline", "Baseline + MPL"], [summary_of(BASELINE), summary_of(BETTER)])
    liver, spleen, mean = comparison.tables["dice"]
    assert [row.organ for row in (liver, spleen, mean)] == ["liver", "spleen", "mean"]
    assert [value["mean"] for value in liver.values] == pytest.approx([0.8, 0.85])
    assert liver.differences[0].difference["mean"] == pytest.approx(0.05)
    # every case gains 0.05: the interval of the difference has no width, whatever the spread of the cases
    assert liver.differences[0].difference["low"] == pytest.approx(0.05)
    assert spleen.differences[0].difference["count"] == 2
    assert mean.values[0]["mean"] == pytest.approx((0.65 + 0.70 + 0.75) / 3)
    assert comparison.case_count == 3


def test_the_tables_on_the_console() -> None:
    comparison = compare_summaries(
        ["Baseline", "Baseline + MPL"],
        [summary_of(SIX), summary_of(SIX_BETTER)],
        budgets=["4 labels, 10 min", "4 labels and 156 unlabelled, 10 min"],
    )
    console, text = printed()
    print_comparison(comparison, console)
    shown = text.getvalue()
    assert re.search(r"organ +Baseline +Baseline \+ MPL +difference \[95 %\] +p\n", shown)
    # not cut off at the width of a pipe
    assert re.search(r"liver +0\.7500 \[[0-9., ]+\] .* \+0\.0500 \[\+0\.0500, \+0\.0500\] +0\.031\n", shown)
    assert "range" not in shown
    assert shown.count("DSC") == shown.count("NSD") == 1
    assert "\nBaseline: 4 labels, 10 min\nBaseline + MPL: 4 labels and 156 unlabelled, 10 min\n" in shown


def test_fewer_than_six_cases_are_shown_with_their_range_and_without_p() -> None:
    comparison = compare_summaries(["Baseline", "Baseline + MPL"], [summary_of(BASELINE), summary_of(BETTER)])
    console, text = printed()
    print_comparison(comparison, console)
    assert re.search(r"organ +Baseline +Baseline \+ MPL +difference \(range\)\n", text.getvalue())
    values = ("0.8000 (0.7000 to 0.9000)", "0.8500 (0.7500 to 0.9500)", "+0.0500 (+0.0500 to +0.0500)")
    assert re.search(r"liver +" + " +".join(map(re.escape, values)) + "\n", text.getvalue())
    assert "fewer than 6 cases or patients: too few for" in text.getvalue()
    assert "95 %" not in text.getvalue()
    assert "Wilcoxon" not in text.getvalue()


def test_three_runs_have_a_difference_each() -> None:
    runs = [summary_of(SIX), summary_of(SIX_BETTER), summary_of(SIX)]
    comparison = compare_summaries(["supervised", "mpl", "again"], runs)
    assert [d.difference["mean"] for d in comparison.tables["dice"][0].differences] == pytest.approx([0.05, 0.0])
    assert comparison.tables["dice"][0].differences[1].p_value == 1.0
    console, text = printed()
    print_comparison(comparison, console)
    assert re.search(r"difference: mpl +p +difference: again +p\n", text.getvalue())


def test_an_organ_that_was_invented_counts_in_the_difference() -> None:
    """Half of the scans have no spleen; the second run finds one there."""
    right = {f"case{n}": (0.8, 0.7 if n < 3 else None) for n in range(6)}
    wrong = {case: (liver, spleen or 0.0) for case, (liver, spleen) in right.items()}
    comparison = compare_summaries(["right", "wrong"], [summary_of(right), summary_of(wrong)])
    for metric in ("dice", "nsd"):
        spleen = comparison.tables[metric][1].differences[0].difference
        assert (spleen["mean"], spleen["count"]) == (pytest.approx(-0.5), 6)
    assert comparison.tables["hd95_mm"][1].differences[0].difference["count"] == 3
    # Where neither finds one, the scan counts in neither.
    same = compare_summaries(["right", "right too"], [summary_of(right), summary_of(right)])
    assert same.tables["dice"][1].differences[0].difference["count"] == 3


def test_what_cannot_be_compared_is_refused() -> None:
    fewer = {case: BETTER[case] for case in ("a", "b")} | {"d": (0.5, 0.5)}
    with pytest.raises(DataError, match="only in x: c; only in y: d"):
        compare_summaries(["x", "y"], [summary_of(BASELINE), summary_of(fewer)])
    with pytest.raises(DataError, match="different NSD tolerances"):
        compare_summaries(["x", "y"], [summary_of(BASELINE), summary_of(BETTER, tolerance_mm=2.0)])
    with pytest.raises(DataError, match="two or more runs of different names"):
        compare_summaries(["x", "x"], [summary_of(BASELINE), summary_of(BETTER)])
    other = summary_of(BETTER)
    other["rules"] = "flare22"
    with pytest.raises(DataError, match="by the rules standard, y by flare22"):
        compare_summaries(["x", "y"], [summary_of(BASELINE), other])
    other = summary_of(BETTER)
    next(case for case in other["cases"] if case["id"] == "b")["organs"]["liver"]["reference_volume_ml"] = 2.0
    with pytest.raises(DataError, match="x and y were scored by different references: organs of b have other volumes"):
        compare_summaries(["x", "y"], [summary_of(BASELINE), other])


def test_the_summary_on_a_pipe_is_plain_and_whole() -> None:
    console, text = printed(console_width=20)
    print_summary(summary_of(BASELINE), console)
    lines = text.getvalue().splitlines()
    assert lines[0] == "3 cases, rules standard"
    assert lines[2].split()[:3] == ["liver", "1", "0.8000"]
    mean = next(line for line in lines if line.startswith("mean"))
    assert mean.endswith("3")
    assert lines[-1].startswith("(a to b) is the range")
    assert text.getvalue().isascii()


def test_the_summary_in_a_terminal() -> None:
    console, text = printed(120, terminal=True)
    print_summary(summary_of(BASELINE), console)
    assert "0.8000 (0.7000 to 0.9000)" in text.getvalue()
    assert "─" in text.getvalue()


def test_an_hd95_that_leaves_out_missed_organs_says_so() -> None:
    summary = summary_of(SIX)
    summary["cases"][0]["organs"]["spleen"] |= {"dice": 0.0, "nsd": 0.0, "hd95_mm": None}
    console, text = printed()
    print_summary(summary, console)
    assert "HD95 is over the 11 of 12 organs in cases that reference and prediction both have." in text.getvalue()


def test_mean_distances_are_compared_over_the_organs_that_every_run_has() -> None:
    """The second run misses a spleen that is far off in the first, which must not look like a gain."""
    first, second = summary_of(SIX), summary_of(SIX)
    first["cases"][0]["organs"]["spleen"]["hd95_mm"] = 90.0
    second["cases"][0]["organs"]["spleen"] |= {"dice": 0.0, "nsd": 0.0, "hd95_mm": None}
    comparison = compare_summaries(["a", "b"], [first, second])
    assert comparison.tables["hd95_mm"][-1].differences[0].difference["mean"] == 0.0
    assert comparison.distances == (11, 12)


def of_patients(summary: Summary, pattern: str) -> Summary:
    cases, organs = summary["cases"], {int(value): name for value, name in summary["organs"].items()}
    return summarise(cases, organs, summary["tolerance_mm"], summary["rules"], pattern)


TWO_EACH = {f"P{n // 2}_{n % 2}": (0.70 + 0.02 * n, 0.5) for n in range(12)}
TWO_BETTER = {case: (liver + 0.01 * n, spleen) for n, (case, (liver, spleen)) in enumerate(TWO_EACH.items())}


def test_patients_are_compared_whichever_run_knows_them() -> None:
    """Labels of another program know nothing of patients."""
    known, unknown = of_patients(summary_of(TWO_EACH), ".+(?=_)"), summary_of(TWO_BETTER)
    assert (known.get("patients"), unknown.get("patients")) == (".+(?=_)", None)
    assert known["mean"]["dice"].get("patients") == 6
    there = compare_summaries(["a", "b"], [known, unknown]).tables["dice"][0].differences[0]
    back = compare_summaries(["b", "a"], [unknown, known]).tables["dice"][0].differences[0]
    scans = compare_summaries(["a", "b"], [summary_of(TWO_EACH), unknown]).tables["dice"][0].differences[0]
    assert there.difference.get("patients") == back.difference.get("patients") == 6
    assert there.p_value == back.p_value
    assert there.p_value is not None
    assert scans.p_value is not None
    assert there.p_value > scans.p_value  # six say less than twelve
    assert there.difference["mean"] == pytest.approx(scans.difference["mean"])


def test_patients_stand_in_the_tables() -> None:
    summaries = [of_patients(summary_of(dice), ".+(?=_)") for dice in (TWO_EACH, TWO_BETTER)]
    console, text = printed(200)
    print_comparison(compare_summaries(["a", "b"], summaries), console)
    assert "12 cases of 6 patients" in text.getvalue()
    assert "bootstrap interval over patients" in text.getvalue()
    console, text = printed(200)
    print_summary(summaries[0], console)
    assert "12 cases of 6 patients, rules standard" in text.getvalue()


def test_runs_that_name_patients_otherwise_are_not_compared() -> None:
    summaries = [of_patients(summary_of(TWO_EACH), pattern) for pattern in (".+(?=_)", "P")]
    with pytest.raises(DataError, match=r"patients are named otherwise in the runs: a by '\.\+\(\?=_\)', b by 'P'"):
        compare_summaries(["a", "b"], summaries)
