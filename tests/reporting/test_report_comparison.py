"""The comparison page: two runs side by side, differences signed and coloured by what they show."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from semiseg.errors import ConfigError, DataError
from semiseg.files import read_json, write_json
from semiseg.reporting import write_comparison_report
from semiseg.reporting.comparison import difference
from semiseg.scoring.statistics import Interval, PairedDifference


@pytest.fixture
def baseline(run_folder: Path) -> Path:
    """A second run on the same cases, each organ 0.1 Dice worse, with a name that is no markup."""
    folder = Path(shutil.copytree(run_folder, run_folder.with_name("a <b>baseline<∕b>")))
    summary = read_json(folder / "summary.json")
    for case in summary["cases"]:
        for score in case["organs"].values():
            score["dice"] -= 0.1
    write_json(folder / "summary.json", summary)
    return folder


def test_two_runs_stand_side_by_side(run_folder: Path, baseline: Path, tmp_path: Path) -> None:
    path = write_comparison_report([baseline, run_folder], tmp_path / "comparison.html")
    page = path.read_text()
    assert write_comparison_report([baseline, run_folder], path) == path  # our own is written anew
    (thesis := tmp_path / "thesis.html").write_text("<p>mine")
    with pytest.raises(ConfigError, match=r"thesis.html: is not ours, and would be written over"):
        write_comparison_report([baseline, run_folder], thesis)
    assert page.count('<section id="') == 5
    assert "Meta Pseudo Labels, dense feedback. Trained on 4 labelled and 24 unlabelled scans" in page
    # Every case gains 0.1 in every organ, so that each interval is a point: three organs and the mean.
    assert page.count('<span class="gain">+0.100</span>') == 4
    assert "<b>baseline" not in page
    assert "&lt;b&gt;baseline" in page
    assert "://" not in page


def test_runs_that_were_not_evaluated_or_differ_are_refused(run_folder: Path, baseline: Path, tmp_path: Path) -> None:
    summary = read_json(baseline / "summary.json")
    write_json(baseline / "summary.json", summary | {"cases": summary["cases"][:-1]})
    with pytest.raises(DataError, match="different cases"):
        write_comparison_report([baseline, run_folder], tmp_path / "comparison.html")
    (baseline / "summary.json").unlink()
    with pytest.raises(DataError, match="semiseg evaluate"):
        write_comparison_report([baseline, run_folder], tmp_path / "comparison.html")


@pytest.mark.parametrize(
    ("metric", "low", "high", "kind"),
    [
        ("dice", 0.01, 0.03, "gain"),
        ("dice", -0.03, -0.01, "loss"),
        ("dice", -0.01, 0.03, "val"),
        ("hd95_mm", -3.0, -1.0, "gain"),
        ("hd95_mm", 1.0, 3.0, "loss"),
    ],
)
def test_a_difference_is_coloured_only_where_its_interval_leaves_out_zero(
    metric: str, low: float, high: float, kind: str
) -> None:
    found = Interval(mean=(low + high) / 2, low=low, high=high, count=9)
    assert f'class="{kind}"' in difference(PairedDifference(difference=found, p_value=0.04), metric)


def test_the_same_slice_of_each_run_is_drawn(run_folder: Path, baseline: Path, tmp_path: Path) -> None:
    summary = read_json(baseline / "summary.json")
    for score in summary["cases"][2]["organs"].values():
        score["dice"] = 0.0
    write_json(baseline / "summary.json", summary)
    (run_folder / "predictions" / "case_05.nii.gz").unlink()
    page = write_comparison_report([baseline, run_folder], tmp_path / "comparison.html").read_text()
    section = page.split('<section id="cases">')[1]
    assert "The runs differ most" in section
    assert section.index("case_02") < section.index("In the middle")
    assert section.count('<figure class="panel"') == 4
    slices = re.findall(r"<span>([a-z]+ slice \d+ of \d+)</span>", section)
    assert slices[0] == slices[1]
    assert "://" not in page


def test_a_case_whose_prediction_is_gone_is_named(run_folder: Path, baseline: Path, tmp_path: Path) -> None:
    for file in (baseline / "predictions").glob("*.nii.gz"):
        file.unlink()
    page = write_comparison_report([baseline, run_folder], tmp_path / "comparison.html").read_text()
    assert page.count("This case cannot be drawn.") == 2


def test_a_difference_of_fewer_than_six_cases_claims_nothing() -> None:
    found = Interval(mean=0.02, low=0.01, high=0.03, count=5)
    text = difference(PairedDifference(difference=found, p_value=None), "dice")
    assert 'class="val">+0.020' in text
    assert "range +0.010 to +0.030, 5 cases" in text


def test_an_undefined_difference_is_a_dash() -> None:
    nothing = Interval(mean=None, low=None, high=None, count=0)
    assert difference(PairedDifference(difference=nothing, p_value=None), "dice") == "–"
