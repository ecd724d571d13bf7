"""What is measured of labels: by hand, and once alone."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from view_server import save_label, serving

from semiseg.files import read_jsonl
from semiseg.view.measures import Measurer, Measures, centre, measure, usual_among
from semiseg.view.source import open_source


def test_an_organ_is_measured_by_hand() -> None:
    label = np.zeros((10, 12, 14), dtype=np.uint8)
    label[2:6, 3:5, 7:11] = 2
    label[8, 8, 8] = 2
    label[9, 9, 9] = 2  # touches at a corner: the same piece
    found, doubtful = measure(label, (5.0, 2.0, 1.0))
    assert doubtful == found["2"]["doubtful"]
    assert set(found) == {"2"}
    organ = found["2"]
    voxels = 4 * 2 * 4 + 2
    assert organ["volume_ml"] == pytest.approx(voxels * 10 / 1000)
    assert organ["fragments"] == 2
    assert organ["centroid"] == pytest.approx(np.argwhere(label == 2).mean(axis=0), abs=0.005)
    assert (organ["first"], organ["stop"]) == ((2, 3, 7), (10, 10, 11))
    assert organ["doubtful"][0] in range(2, 6)
    assert organ["doubtful"][1] in (3, 4)


def test_an_organ_of_tiny_voxels_has_a_volume() -> None:
    label = np.zeros((4, 4, 4), dtype=np.uint8)
    label[1:3, 1, 1] = 1
    assert measure(label, (1e-3, 1e-3, 1e-3))[0]["1"]["volume_ml"] == pytest.approx(2e-12, rel=1e-6, abs=0)


def test_the_longest_outline_is_counted_in_edges() -> None:
    label = np.zeros((5, 9, 9), dtype=np.uint8)
    label[1, 3:6, 3:6] = 1
    label[2, 2:7, 2:7] = 1
    label[3, 1:8, 1:8] = 1
    label[3, 3:6, 3:6] = 3  # a hole is an outline, too
    label[4, :, 2] = 1  # of 9 by 1: 20 edges
    found, doubtful = measure(label, (1.0, 1.0, 1.0))
    assert found["1"]["doubtful"][0] == doubtful[0] == 3
    label[3] = 0
    found, _ = measure(label, (1.0, 1.0, 1.0))
    assert found["1"]["doubtful"][0] == 2
    assert measure(np.zeros((5, 9, 7), dtype=np.uint8), (1.0, 1.0, 1.0)) == ({}, (2, 4, 3))


def test_noise_is_counted_too() -> None:
    label = np.zeros((82, 82, 82), dtype=np.uint8)
    label[::2, ::2, ::2] = 1
    assert measure(label, (1.0, 1.0, 1.0))[0]["1"]["fragments"] == 41**3 > 65535


def measured(volumes: list[float], pieces: int = 1) -> list[Measures]:
    organ = {"fragments": pieces, "centroid": (0, 0, 0), "first": (0, 0, 0), "stop": (1, 1, 1), "doubtful": (0, 0, 0)}
    return [
        Measures(
            version=2,
            sha256="",
            shape_zyx=(1, 1, 1),
            spacing_mm=(1, 1, 1),
            doubtful=(0, 0, 0),
            organs={"1": {"volume_ml": volume, **organ}} if volume else {},  # type: ignore[typeddict-item]
        )
        for volume in volumes
    ]


def test_outliers_are_told_by_ratios() -> None:
    volumes = [100.0, 90.0, 110.0, 120.0, 95.0, 105.0, 80.0, 125.0]
    usual = usual_among(measured(volumes, pieces=2))
    logs = np.log(volumes)
    deviation = 1.4826 * np.median(np.abs(logs - np.median(logs)))
    expected = np.exp([np.median(logs) - 3.5 * deviation, np.median(logs) + 3.5 * deviation])
    assert usual.volumes_ml["1"] == pytest.approx(tuple(expected))
    assert (usual.common, usual.pieces) == ({"1"}, {"1": 2})


def test_few_cases_tell_nothing_unusual() -> None:
    usual = usual_among(measured([1.0, 1000.0, 0, 0, 0]))
    assert (usual.volumes_ml, usual.common) == ({}, set())


def test_all_but_equal_volumes_have_no_outliers_for_that() -> None:
    low, high = usual_among(measured([100.0] * 20)).volumes_ml["1"]
    assert 60 < low < 80
    assert 120 < high < 160


def test_a_strip_goes_through_the_organs() -> None:
    label = np.zeros((10, 12, 14), dtype=np.uint8)
    label[1, 1, 1] = 1
    label[5:9, 7:11, 9:13] = 2
    found, doubtful = measure(label, (1.0, 1.0, 1.0))
    assert [at in range(start, start + 4) for at, start in zip(doubtful, (5, 7, 9), strict=True)] == [True] * 3
    assert centre((10, 12, 14), found["1"], found) == (1, 1, 1)
    assert centre((10, 12, 14), None, found) == (6, 8, 10)
    assert centre((10, 12, 14), None, {}) == (5, 6, 7)


def wait_until_measured(measurer: Measurer) -> None:
    end = time.monotonic() + 30
    while measurer.share < 1:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_labels_are_measured_once_and_again_where_they_change(
    label_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = open_source(label_folder)
    first = Measurer(source)
    first.start()
    wait_until_measured(first)
    first.stop()
    kept = source.cache / "measures.jsonl"
    different = len({one["sha256"] for one in read_jsonl(kept)})
    assert different == len(read_jsonl(kept)) <= 12
    assert first.all().keys() == source.contents().cases.keys()

    second = Measurer(source)
    second.start()
    wait_until_measured(second)
    assert len(read_jsonl(kept)) == different
    assert second.all() == first.all()
    label = np.zeros((12, 20, 24), dtype=np.uint8)
    label[:2] = 1
    save_label(label_folder / "case_1.nii.gz", label)
    found = second.now(source.contents().cases["case_1"])
    second.stop()
    assert found is not None
    assert found["organs"]["1"]["volume_ml"] == pytest.approx(2 * 20 * 24 * 2 / 1000)
    assert len(read_jsonl(kept)) == different + 1


VERSION_1 = (
    b'{"sha256": "a", "shape_zyx": [1, 1, 1], "spacing_mm": [1, 1, 1], "doubtful": [0, 0, 0], "organs": {"1": '
    b'{"volume_ml": 0.001, "fragments": 1, "centroid": [0, 0, 0], "first": [0, 0, 0], "stop": [1, 1, 1], '
    b'"doubtful": [0, 0, 0]}}}\n'
)


@pytest.mark.parametrize("damage", [b"{}\n", b"no json\n", b'{"sha256": 1}\n', VERSION_1])
def test_damaged_measures_are_made_again(
    label_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = open_source(label_folder)
    source.cache.mkdir(parents=True)
    (source.cache / "measures.jsonl").write_bytes(damage)
    measurer = Measurer(source)
    assert measurer.now(source.contents().cases["case_1"]) is not None
    assert len(read_jsonl(source.cache / "measures.jsonl")) == 1


def test_a_damaged_label_stops_no_other(label_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    whole = (label_folder / "case_4.nii.gz").read_bytes()
    (label_folder / "case_4.nii.gz").write_bytes(whole[: len(whole) // 2])
    with serving(label_folder) as served:
        wait_until_measured(served.pages.measurer)
        rows = served.json("/api/cases")["rows"]
        assert [row["id"] for row in rows if row["volume_ml"] is None] == ["case_4"]
        answer = served.get("/api/cases/case_4")
        assert answer.status_code == 422
        assert "case_4.nii.gz" in answer.json()["error"]
