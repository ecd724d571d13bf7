"""The list of cases, decisions on them, and what becomes stale: asked of a real server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from view_server import Served, label_maps, save_label, serving, wait_until_measured

from semiseg.decisions import DecisionLog, read_decisions
from semiseg.io.scans import read_label
from semiseg.view.contents import ViewCase
from semiseg.view.measures import FILE


@pytest.fixture
def served(label_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving(label_folder) as found:
        wait_until_measured(found)
        yield found


def ids(served: Served, **query: object) -> list[str]:
    return [row["id"] for row in served.json("/api/cases", **query)["rows"]]


def test_the_list_is_sorted_and_paged(served: Served) -> None:
    everything = ids(served)
    assert everything == sorted(f"case_{number}" for number in range(12))
    assert ids(served, offset=3, limit=4) == everything[3:7]
    assert served.json("/api/cases", ids=1, descending=1, limit=2) == {"ids": everything[::-1]}
    assert served.json("/api/cases", limit=1)["total"] == 12
    assert ids(served, descending=1, sort="id") == everything[::-1]
    volumes = [row["volume_ml"] for row in served.json("/api/cases", sort="volume", descending=1)["rows"]]
    assert volumes == sorted(volumes, reverse=True)
    assert ids(served, sort="volume", descending=1, organ="spleen")[0] == "case_5"
    assert ids(served, search="CASE_1") == ["case_1", "case_10", "case_11"]
    assert ids(served, role="test") == []


def test_rows_are_kept_until_something_changes(served: Served) -> None:
    table = served.pages.table
    served.decide("case_2", "accept")  # makes the file, by which the folder has changed
    before = table.rows()
    assert table.rows() is before
    served.decide("case_1", "accept")
    after = table.rows()
    assert after is not before
    assert [a is b for a, b in zip(after, before, strict=True)].count(False) == 1


def test_what_is_odd_is_found(served: Served) -> None:
    assert ids(served, filter="missing") == ["case_3"]
    assert ids(served, filter="outlier") == ["case_5"]
    assert ids(served, filter="fragments") == ["case_7"]
    assert ids(served, filter="outlier", organ="liver") == []
    row = served.json("/api/cases", filter="missing")["rows"][0]
    assert row["missing"] == ["spleen"]
    organs = {organ["name"]: organ for organ in served.json("/api/cases/case_5")["organs"]}
    assert (organs["spleen"]["outlier"], organs["liver"]["outlier"]) == (True, False)
    assert organs["spleen"]["volume_ml"] == pytest.approx(10 * 8 * 10 * 2 / 1000)


def test_organs_of_tiny_voxels_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving(label_maps(tmp_path / "maps", (0.02, 0.02, 0.02))) as served:
        wait_until_measured(served)
        assert ids(served, filter="outlier") == ["case_5"]
        rows = served.json("/api/cases", sort="volume")["rows"]
        assert [row["id"] for row in rows[:2]] == ["case_3", "case_11"]
        assert rows[0]["volume_ml"] == pytest.approx((6 * 8 * 8 - 3) * 8e-9, rel=1e-6)


def test_decisions_are_shown_by_case_and_by_organ(served: Served) -> None:
    assert served.decide("case_1", "accept").json()["number"] == 1
    served.decide("case_2", "set_aside", organ="spleen")
    served.decide("case_4", "accept")
    served.decide("case_4", "unsure", organ="liver")
    decided = {row["id"]: row["decision"] for row in served.json("/api/cases")["rows"] if row["decision"]}
    assert decided == {"case_1": "accept", "case_4": "mixed"}
    assert ids(served, filter="accept") == ["case_1", "case_4"]
    assert ids(served, filter="set_aside") == ["case_2"]
    assert ids(served, filter="unsure", organ="liver") == ["case_4"]
    assert len(ids(served, filter="undecided")) == 10
    organs = {organ["name"]: organ["decision"] for organ in served.json("/api/cases/case_4")["organs"]}
    assert organs == {"liver": "unsure", "spleen": "accept"}
    lines = read_decisions(served.pages.source.decisions)
    assert [(line["case"], line["organ"], line["reviewer"]) for line in lines][1] == ("case_2", "spleen", "ann")


def test_undo_goes_back_step_by_step(served: Served) -> None:
    shown = [served.json("/api/cases")["rows"]]
    for number, decision in enumerate(("accept", "set_aside", "label", "unsure", "accept")):
        served.decide(f"case_{number % 2}", decision, organ=(None, "liver")[number % 3 == 1])
        shown.append(served.json("/api/cases")["rows"])
    for before in reversed(shown[:-1]):
        assert served.post("/api/decisions/undo").status_code == 200
        assert served.json("/api/cases")["rows"] == before
    served.decide("case_2", "set_aside", organ="liver")
    answer = served.post("/api/decisions/undo", case="case_1")
    assert answer.status_code == 412, "not in sight of case_1"
    assert answer.json()["error"] == "Your last decision is on liver of case_2: set aside."
    assert served.post("/api/decisions/undo", case="case_2").status_code == 200
    assert served.post("/api/decisions/undo").status_code == 409


def test_a_label_that_changed_makes_its_decision_stale(served: Served, label_folder: Path) -> None:
    before = served.json("/api/cases/case_1")["label_sha256"]
    served.decide("case_1", "accept")
    assert not served.json("/api/cases/case_1")["stale"]
    label = read_label(label_folder / "case_1.nii.gz")[0]
    label[0, 0, 0] = 1
    save_label(label_folder / "case_1.nii.gz", label)
    assert served.json("/api/cases/case_1")["stale"]
    assert ids(served, filter="stale") == ["case_1"]
    assert "case_1" in served.json("/api/review")["queue"]
    answer = served.post("/api/decisions", case="case_1", decision="accept", label_sha256=before)
    assert answer.status_code == 409
    assert "changed" in answer.json()["error"]
    served.decide("case_1", "accept")
    assert ids(served, filter="stale") == []


def test_the_list_notices_a_change_by_itself(served: Served, label_folder: Path) -> None:
    served.decide("case_1", "accept")
    save_label(label_folder / "case_1.nii.gz", read_label(label_folder / "case_2.nii.gz")[0])
    end = time.monotonic() + 30
    while ids(served, filter="stale") != ["case_1"]:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_what_another_reviewer_decided_is_seen(served: Served) -> None:
    served.json("/api/cases")
    DecisionLog(served.pages.source.decisions).add("case_9", "set_aside", reviewer="bob", label_sha256="b" * 64)
    assert ids(served, filter="set_aside") == ["case_9"]
    assert served.post("/api/decisions/undo").status_code == 409


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"case": "case_99"}, 404),
        ({"organ": "heart"}, 400),
        ({"decision": "undo"}, 400),
        ({"decision": None}, 400),
        ({"seconds": -1}, 400),
        ({"seconds": True}, 400),
        ({"seconds": "3"}, 400),
        ({"audit": 1}, 400),
        ({"label_sha256": None}, 400),
        ({"label_sha256": "c" * 64}, 409),
    ],
)
def test_a_wrong_decision_is_not_written(served: Served, wrong: dict[str, object], status: int) -> None:
    digest = served.json("/api/cases/case_1")["label_sha256"]
    right = {"case": "case_1", "decision": "accept", "label_sha256": digest, "seconds": 1.5}
    answer = served.post("/api/decisions", **(right | wrong))
    assert answer.status_code == status
    assert answer.json()["error"]
    assert read_decisions(served.pages.source.decisions) == []


def test_pictures_are_not_sent_twice(served: Served) -> None:
    for path in ("thumbnail.png", "strip.png", "slice.png"):
        first = served.get(f"/api/cases/case_1/{path}")
        assert first.headers["content-type"] == "image/png"
        again = served.client.get(f"/api/cases/case_1/{path}", headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert len(list((served.pages.source.cache / "thumbnails").iterdir())) == 1
    assert (served.pages.source.cache / FILE).is_file()


def test_thumbnails_keep_no_case_waiting(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the thumbnails of a list are made, however many, the case that somebody opens is answered."""
    going_on = threading.Event()

    def slow(case: ViewCase) -> bytes:
        assert going_on.wait(60)
        return b""

    monkeypatch.setattr(served.pages.drawing, "thumbnail", slow)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(served.get, f"/api/cases/case_{number}/thumbnail.png") for number in range(4)]
        try:
            assert served.get("/api/cases/case_5/slice.png").status_code == 200  # the client gives up after 30 s
            assert not any(one.done() for one in waiting)
        finally:
            going_on.set()
        assert [one.result().status_code for one in waiting] == [200] * 4


def test_a_strip_shows_and_hides_the_label(served: Served) -> None:
    shown, hidden, organ = (
        served.get("/api/cases/case_5/strip.png", **query).content
        for query in ({"style": "fill"}, {"overlay": 0}, {"organ": "spleen", "style": "fill"})
    )
    assert len({shown, hidden, organ}) == 3
