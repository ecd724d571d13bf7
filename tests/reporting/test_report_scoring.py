"""What is said about the scores: organs that were never found, the worst distance, tolerances beside voxel sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from semiseg.reporting.numbers import value
from semiseg.reporting.run_data import RunData, read_run
from semiseg.reporting.scoring import banner, tolerance_sentences, worst_distance
from semiseg.scoring.evaluator import EvaluateSettings, too_forgiving
from semiseg.scoring.summary import never_found, organs_never_found


@pytest.fixture
def data(built_run: Path) -> RunData:
    return read_run(built_run)


def test_an_organ_is_never_found_where_every_case_that_has_it_scores_zero(data: RunData) -> None:
    assert data.summary is not None
    assert organs_never_found(data.summary) == {}
    assert never_found(data.summary) == ""
    for number, case in enumerate(data.summary["cases"]):
        liver = case["organs"]["liver"]
        liver["dice"] = 0.0
        if number == 0:  # an organ that is not there cannot be found
            liver["reference_volume_ml"] = 0.0
    assert organs_never_found(data.summary) == {"liver": 6}
    assert never_found(data.summary) == "liver was never found in the 6 test cases that have it."
    assert banner(data) == ["liver was never found: Dice 0 in all 6 scored cases that have it."]
    told = replace(data, notices=("liver was never found in 6 test scans.",))
    assert banner(told) == ["liver was never found in 6 test scans."], "said once"
    data.summary["cases"][3]["organs"]["liver"]["dice"] = 0.01
    assert banner(data) == []


def test_a_tolerance_of_many_voxels_is_said() -> None:
    settings, run = EvaluateSettings(tolerance_mm=2.0), Path("runs/a")
    assert too_forgiving(settings, (0.4, 0.4, 0.1), run) == "", "five voxels"
    said = too_forgiving(settings, (0.03, 0.02, 0.02), run)
    assert said.startswith("NSD forgives 2 mm, which is 67 voxels of the plan's grid")
    assert "`semiseg run runs/a --set evaluate.tolerance_mm=0.03`" in said
    for other in (EvaluateSettings(rules="flare22"), EvaluateSettings(organ_tolerance_mm={"liver": 0.1})):
        assert too_forgiving(other, (0.03, 0.02, 0.02), run) == "", "the setting would change nothing, or not all"


def test_distances_keep_two_digits_below_a_millimetre() -> None:
    assert [value(mm, "hd95_mm") for mm in (0.0, 0.0141, 0.5, 3.14, 12.0)] == [
        "0.0 mm", "0.014 mm", "0.5 mm", "3.1 mm", "12.0 mm",
    ]  # fmt: skip


def test_several_organs_that_were_never_found_are_one_sentence(data: RunData) -> None:
    assert data.summary is not None
    for case in data.summary["cases"]:
        for organ in ("liver", "left kidney"):
            case["organs"][organ]["dice"] = 0.0
    (text,) = banner(data)
    assert text.startswith("2 of 3 organs were never found")
    assert text.endswith(": liver, left kidney.")


def test_the_worst_distance_is_an_organs_and_counts_what_it_is_over(data: RunData) -> None:
    assert data.summary is not None
    rows = data.summary["per_organ"]
    rows["liver"]["hd95_mm"] = {"mean": 44.0, "low": 40.0, "high": 50.0, "count": 5}
    rows["left kidney"]["hd95_mm"] = {"mean": None, "low": None, "high": None, "count": 0}
    worst = worst_distance(data.summary)
    assert worst is not None
    assert (worst.organ, worst.interval["count"], worst.there, worst.without) == ("liver", 5, 7, 1)
    for row in rows.values():
        row["hd95_mm"] = rows["left kidney"]["hd95_mm"]
    assert worst_distance(data.summary) is None
    assert worst_distance(None) is None


def test_a_tolerance_stands_beside_the_voxels_of_the_scans(data: RunData) -> None:
    assert data.summary is not None
    first, note = tolerance_sentences(data)
    assert first == "NSD tolerance: 2 mm; the scored scans: slices 5 mm apart, 3 mm in plane."
    assert note.startswith("In all scored scans a tolerance of 2 mm is less than a voxel in plane")
    data.summary["tolerance_mm"] = {"liver": 4.0, "right kidney": 4.0, "left kidney": 6.0}
    first, note = tolerance_sentences(data)
    assert "4 mm (liver, right kidney), 6 mm (left kidney)" in first
    assert "a tolerance of 4 mm is less than the distance between slices" in note
    data.summary["tolerance_mm"] = dict.fromkeys(data.summary["tolerance_mm"], 5.0)
    assert len(tolerance_sentences(data)) == 1


def test_without_the_references_the_tolerance_stands_alone(data: RunData) -> None:
    assert data.summary is not None
    for case in data.summary["cases"]:
        case["reference"] = "nowhere.nii.gz"
    assert tolerance_sentences(data) == ["NSD tolerance: 2 mm."]
