"""The queue, the pace, and the second look at what was accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest
from view_server import Served, serving, wait_until_measured

from semiseg.decisions import Decision, DecisionLog
from semiseg.files import write_text
from semiseg.view.review import AUDIT_AFTER, audit, ordered, pace, wilson
from semiseg.view.table import Row


def row(id: str, doubt: float | None = None, missing: int = 0) -> Row:
    return Row(
        id=id,
        role="unlabelled",
        score=None,
        doubt=doubt,
        volume_ml=1.0,
        fragments=1,
        missing=["x"] * missing,
        outliers=[],
        torn=[],
        misfit="",
        decision=None,
        stale=False,
        corrected=False,
    )


def line(number: int, case: str, **more: Any) -> Decision:
    usual = {
        "organ": None,
        "decision": "accept",
        "undoes": None,
        "reviewer": "ann",
        "label_sha256": "a",
        "audit": False,
    }
    return {"number": number, "time": "", "case": case, "seconds": 2.0} | usual | more  # type: ignore[return-value]


def test_the_most_doubtful_come_first_and_unknown_ones_last() -> None:
    rows = [row("a", 0.1), row("b", 0.9), row("c"), row("d", missing=1), row("e", 0.5)]
    assert ordered(rows, "doubt") == ["b", "e", "a", "d", "c"]


def test_random_stays_as_it_was_drawn() -> None:
    rows = [row(f"case_{number}", number / 100) for number in range(100)]
    drawn = ordered(rows, "random")
    assert sorted(drawn) == sorted(one["id"] for one in rows)
    assert drawn == ordered(rows[::-1], "random")
    assert drawn != ordered(rows, "doubt")
    assert drawn != ordered(rows, "random", "bob") == ordered(rows[::-1], "random", "bob")
    less = [one for one in rows if one["id"] != drawn[0]]
    assert ordered(less, "random") == drawn[1:]


def test_strata_take_turns() -> None:
    rows = [row(f"case_{number:02}", number / 23) for number in range(23)]
    found = ordered(rows, "stratified")
    assert sorted(found) == sorted(one["id"] for one in rows)
    fifths = [min(4, (22 - int(id[-2:])) // 5) for id in found[:20]]
    assert fifths == [0, 1, 2, 3, 4] * 3 + [0, 1, 2, 3, 0] or fifths[:15] == [0, 1, 2, 3, 4] * 3
    assert ordered([], "stratified") == []


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (9, 10), (48, 50), (0, 200), (200, 200)])
def test_wilson_is_scipys(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right, count) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_the_audit_counts_the_last_look_at_each() -> None:
    lines = [
        line(1, "a"),
        line(2, "b"),
        line(3, "a", audit=True),
        line(4, "b", audit=True, decision="unsure"),
        line(5, "b", audit=True, decision="accept"),
        line(6, "c", audit=True, decision="set_aside"),
    ]
    found = audit(lines)
    assert (found["looked_at"], found["right"]) == (3, 2)
    assert (found["low"], found["high"]) == wilson(2, 3)
    assert audit(lines[:2])["low"] is None


def test_the_pace_is_ones_own_and_breaks_do_not_count() -> None:
    lines = [line(n, "a", seconds=s) for n, s in enumerate((2.0, 4.0, 6.0, 5000.0, 0.0))]
    assert pace([*lines, line(9, "a", reviewer="bob", seconds=90.0)], "ann") == 4.0
    assert pace([], "ann") is None


@pytest.fixture
def served(label_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving(label_folder) as found:
        wait_until_measured(found)
        yield found


def test_the_queue_empties_as_one_decides(served: Served) -> None:
    first = served.json("/api/review")
    assert (len(first["queue"]), first["left"], first["done"]) == (12, 12, 0)
    assert first["minutes_left"] is None
    for done, id in enumerate(first["queue"], start=1):
        assert served.decide(id, "set_aside", seconds=3.0).status_code == 200
        now = served.json("/api/review")
        assert (now["done"], now["left"]) == (done, 12 - done)
        assert now["queue"] == first["queue"][done:]
        assert now["minutes_left"] == pytest.approx((12 - done) * 3 / 60, abs=0.06)


def test_what_another_decided_meanwhile_is_not_overruled_unseen(served: Served) -> None:
    log, shown = DecisionLog(served.pages.source.decisions), served.json("/api/cases/case_1")
    given = {"case": "case_1", "decision": "accept", "label_sha256": shown["label_sha256"]}
    log.add("case_1", "set_aside", reviewer="bob", label_sha256=shown["label_sha256"])
    for organ in (None, "liver"):
        refused = served.post("/api/decisions", **given, organ=organ, decisions=shown["decisions"])
        assert refused.status_code == 409
        assert refused.json()["error"].startswith("bob set it aside")
    seen = served.json("/api/cases/case_1")["decisions"]
    log.add("case_1", "unsure", organ="spleen", reviewer="bob", label_sha256=shown["label_sha256"])
    assert served.post("/api/decisions", **given, organ="liver", decisions=seen).status_code == 200
    assert served.post("/api/decisions", **given, decisions=seen).status_code == 409


def test_an_organ_has_a_queue_of_its_own(served: Served) -> None:
    served.decide("case_1", "accept", organ="liver")
    assert "case_1" not in served.json("/api/review", organ="liver")["queue"]
    assert "case_1" in served.json("/api/review", organ="spleen")["queue"]
    assert "case_1" in served.json("/api/review")["queue"]
    served.decide("case_1", "accept", organ="spleen")
    assert "case_1" not in served.json("/api/review")["queue"]


def test_some_accepted_ones_come_again_and_their_outcome_counts(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semiseg.view.review.AUDIT_SHARE", 1.0)
    order = served.json("/api/review")["queue"]
    for number, id in enumerate(order[:-1]):
        audits = served.json("/api/review")["audits"]
        assert audits == sorted(order[: max(0, number - AUDIT_AFTER)])
        served.decide(id, "accept")
    now = served.json("/api/review")
    assert now["audits"]
    assert set(now["queue"]) == {order[-1], *now["audits"]}
    wrong = now["audits"][0]
    served.decide(wrong, "set_aside", audit=True)
    after = served.json("/api/review")
    assert (after["audit"]["looked_at"], after["audit"]["right"]) == (1, 0)
    assert wrong not in after["queue"]
    assert wrong in [row["id"] for row in served.json("/api/cases", filter="set_aside")["rows"]]
    served.post("/api/decisions/undo")
    assert served.json("/api/review")["audit"]["looked_at"] == 0
    for id in (order[-1], *order[:-1]):
        served.decide(id, "accept", audit=id != order[-1])
    last = served.json("/api/review")
    assert (last["audit"]["looked_at"], last["audit"]["right"]) == (11, 11)


def test_a_run_is_reviewed_in_the_order_of_doubt(run: Path) -> None:
    ids = sorted(path.name.removesuffix(".nii.gz") for path in (run / "pseudo_labels").iterdir())
    write_text(
        run / "ranking.csv",
        "id,entropy,disagreement,organs,organ_voxels\n"
        + "".join(f"{id},0.1,{0.2 + n},2,9\n" for n, id in enumerate(ids)),
    )
    with serving(run) as served:
        assert served.json("/api/review", order="doubt")["queue"] == ids[::-1]
        assert served.json("/api/info")["label_reviewed"] == "pseudo_labels"
        rows = {one["id"]: one["doubt"] for one in served.json("/api/cases", role="unlabelled")["rows"]}
        assert rows == {id: pytest.approx(0.2 + n) for n, id in enumerate(ids)}
        assert served.json(f"/api/cases/{ids[0]}")["reviewed_layer"] == "pseudo_label"
        labelled = served.json("/api/cases", role="labelled")["rows"][0]["id"]
        answer = served.decide(labelled, "accept", label_sha256="a" * 64)
        assert answer.status_code == 409
