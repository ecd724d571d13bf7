"""Pseudo-labels by round: the table, which scans are shown, and where two labellings differ."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import numpy as np
import pytest

from semiseg.files import write_jsonl, write_text
from semiseg.io.store import StoredCase, write_case, write_labels
from semiseg.reporting import write_report
from semiseg.reporting.overlays import label_panels
from semiseg.reporting.pictures import spread_out
from semiseg.reporting.rounds import label_agreement, labelled_scans
from semiseg.reporting.run_data import read_run

SHAPE = (8, 12, 10)


def store(run: Path, case: str) -> None:
    meta = StoredCase(
        id=case,
        shape_zyx=SHAPE,
        spacing_mm=(5.0, 3.0, 3.0),
        source_shape_zyx=SHAPE,
        source_spacing_mm=(5.0, 3.0, 3.0),
        hash="0",
        labelled=False,
        channels=1,
        class_voxels={},
        class_locations={},
        body_locations=(),
    )
    image = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)
    write_case(run / "store" / case, image=image, label=None, meta=meta)


def labels(width: int) -> np.ndarray:
    array = np.zeros(SHAPE, dtype=np.uint8)
    array[2:6, 3:9, 1 : 1 + width] = 1
    return array


@pytest.fixture
def labelled_run(run_folder: Path) -> Path:
    """Five scans labelled twice: the n-th one's organ is n voxels wider in the later labelling."""
    for n in range(5):
        store(run_folder, f"u{n}")
        for folder, width in (("0123456789abcdef", 3), ("fedcba9876543210", 3 + n)):
            write_labels(run_folder / "scan_labels" / folder / f"u{n}.b2nd", labels(width))
    os.utime(run_folder / "scan_labels" / "0123456789abcdef", (1, 1))
    rows = [
        {"round": 1, "step": 500, "scans": 5, "agreement": None, "found": {"liver": 5},
         "trusted": False, "why": "First.", "unknown": [], "poses": [], "lying": {}},
        {"round": 2, "step": 900, "scans": 5, "agreement": 0.91, "found": {"liver": 5, "right kidney": 3},
         "trusted": True, "why": "", "unknown": [], "poses": [], "lying": {"Y flipped": 2}},
    ]  # fmt: skip
    write_jsonl(run_folder / "rounds.jsonl", rows)
    return run_folder


def test_the_section_shows_rounds_and_scans(labelled_run: Path) -> None:
    source = write_report(labelled_run).read_text()
    section = source.split('<section id="rounds">')[1].split("</section>")[0]
    assert section.count('<figure class="panel"') == 9
    assert section.count('class="map"') == 9
    assert 'class="pseudo" stroke="#56b4e9"' in section
    assert "First." in section
    assert 'class="loss">no<' in section
    assert section.count("<article") == 3
    assert "right kidney" in section
    assert section.count("lie otherwise") == section.count("2 lie otherwise than the labelled scans") == 1


def test_without_labels_of_scans_there_is_no_section(run_folder: Path) -> None:
    assert 'id="rounds"' not in write_report(run_folder).read_text()


def test_the_scans_that_agree_least_middlingly_and_best_are_shown(labelled_run: Path) -> None:
    found = labelled_scans(read_run(labelled_run))
    assert [(p.title, p.id) for p in found.pictures] == [
        ("Least agreement", "u4"),
        ("Median agreement", "u2"),
        ("Most agreement", "u0"),
    ]
    assert found.compared
    assert found.of == 5
    # 3 of 7 columns are in both: 2 · 3 / (3 + 7).
    assert found.pictures[0].score == "agreement 0.600"
    assert found.pictures[2].score == "agreement 1.000"


def test_without_an_earlier_labelling_scans_are_spread_out(labelled_run: Path) -> None:
    for file in (labelled_run / "scan_labels" / "0123456789abcdef").iterdir():
        file.unlink()
    found = labelled_scans(read_run(labelled_run))
    assert [p.id for p in found.pictures] == ["u0", "u2", "u4"]
    assert not found.compared
    assert found.pictures[0].panels[0].overlay_png is None


def test_a_damaged_scan_is_named_not_drawn(labelled_run: Path) -> None:
    for file in (labelled_run / "scan_labels" / "0123456789abcdef").iterdir():
        file.unlink()
    write_text(labelled_run / "scan_labels" / "fedcba9876543210" / "u2.b2nd", "torn")
    assert "This scan cannot be drawn." in labelled_scans(read_run(labelled_run)).pictures[1].problem


def test_a_round_without_one_before_has_no_agreement(labelled_run: Path) -> None:
    section = write_report(labelled_run).read_text().split('<section id="rounds">')[1]
    first, second = re.findall(
        r"<tr><td>(\d)</td><td>\d+</td><td>5</td><td>.*?>(.*?)</span></td>\s*<td>(.*?)</td>", section
    )
    assert first == ("1", "–", "–")
    assert second == ("2", "0.910", "2 of 3")


def test_slices_go_where_the_labels_differ() -> None:
    before, now = labels(4), labels(4)
    now[4, 5:8, 1:4] = 0
    panels = label_panels(np.zeros(SHAPE, np.float32), now, before, (5.0, 3.0, 3.0), organs={1: "liver"})
    assert panels[0].position == 5
    assert [c.kind for c in panels[0].contours] == ["pseudo"]
    assert panels[0].overlay_png is not None


def test_agreement_is_mean_dice_over_organs_of_either() -> None:
    a, b = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    assert math.isnan(label_agreement(a, b))  # as good as none: nothing is found by both
    a[0, 0, :4], b[0, 0, 2:6] = 1, 1
    assert label_agreement(a, b) == 0.5
    b[3] = 2
    assert label_agreement(a, b) == 0.25


def test_items_are_spread_evenly() -> None:
    items = [str(n) for n in range(7)]
    assert spread_out(items, 3) == ["0", "3", "6"]
    assert spread_out(items[:2], 3) == ["0", "1"]
    assert spread_out([], 3) == []
