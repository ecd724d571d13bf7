"""What the next run makes of decisions and corrections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from semiseg.data.reviews import (
    CORRECTIONS,
    PSEUDO_LABELS,
    REVIEWED_LABELS,
    Review,
    count_roles,
    made_review,
    read_review,
    write_review,
)
from semiseg.data.roles import RunCase
from semiseg.decisions import DecisionLog, label_sha256
from semiseg.errors import ConfigError, DataError
from semiseg.files import write_json
from semiseg.io.dataset import LabelScheme
from semiseg.io.scans import read_label

LABELS = LabelScheme(names={0: "background", 1: "liver", 2: "spleen"})
IGNORE = 3
SHAPE = (6, 8, 10)


def save(path: Path, array_zyx: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(np.ascontiguousarray(array_zyx.T), np.diag((1.0, 1.0, 2.0, 1.0)))
    nibabel.save(image, path)
    return path


def pseudo_label() -> np.ndarray:
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[2:4, 2:4, 2:4], label[2:4, 2:4, 6:8] = 1, 2
    return label


@pytest.fixture
def reviewed(tmp_path: Path) -> tuple[Path, list[RunCase], DecisionLog]:
    """A run with pseudo-labels of five scans, of which nothing was decided yet."""
    run, cases = tmp_path / "first", []
    for name in "abcde":
        image = save(tmp_path / "images" / f"{name}.nii.gz", np.zeros(SHAPE, dtype=np.int16))
        save(run / PSEUDO_LABELS / f"{name}.nii.gz", pseudo_label())
        cases.append(RunCase(id=name, images=(str(image),), label=None, split="train", role="unlabelled"))
    return run, cases, DecisionLog(run / "decisions.jsonl")


Decide = Callable[..., None]


@pytest.fixture
def decide(reviewed: tuple[Path, list[RunCase], DecisionLog]) -> Decide:
    run, _, log = reviewed

    def add(case: str, decision: Any, organ: str | None = None, file: Path | None = None) -> None:
        sha256 = label_sha256(file or run / PSEUDO_LABELS / f"{case}.nii.gz")
        log.add(case, decision, organ=organ, reviewer="r", label_sha256=sha256)

    return add


def next_run(reviewed: Path, cases: list[RunCase], name: str = "second") -> tuple[Review, dict[str, RunCase]]:
    run = reviewed.parent / name
    run.mkdir()
    review = made_review(run, str(reviewed), cases, LABELS)
    write_review(run, review)
    assert read_review(run) == review
    return review, {case.id: case for case in review.applied(cases, run)}


def label_of(case: RunCase) -> np.ndarray:
    assert case.label is not None
    return read_label(Path(case.label))[0]


def test_accepted_labels_are_learnt_from_and_what_was_set_aside_is_not(reviewed: Any, decide: Decide) -> None:
    run, cases, log = reviewed
    for case, decision in zip("abcd", ("accept", "set_aside", "unsure", "label"), strict=True):
        decide(case, decision)
    decide("e", "accept")
    log.undo("r")
    review, now = next_run(run, cases)
    assert [case.role for case in now.values()] == ["accepted", "set_aside", "unlabelled", "unlabelled", "unlabelled"]
    assert [case.label is not None for case in now.values()] == [True, False, False, False, False]
    assert label_sha256(Path(now["a"].label or "")) == label_sha256(run / PSEUDO_LABELS / "a.nii.gz")
    assert not review.ignores
    assert count_roles(list(now.values())) == "1 accepted, 3 unlabelled; 1 set aside"


def test_organs_that_were_set_aside_or_not_judged_are_ignored(reviewed: Any, decide: Decide) -> None:
    run, cases, _ = reviewed
    decide("a", "accept")
    decide("a", "set_aside", "spleen")
    decide("b", "accept", "liver")
    decide("c", "set_aside", "spleen")
    for organ in ("liver", "spleen"):
        decide("d", "set_aside", organ)
    review, now = next_run(run, cases)
    assert [case.role for case in now.values()] == ["accepted", "accepted", "unlabelled", "set_aside", "unlabelled"]
    assert review.ignores
    assert review.cases["a"].without == review.cases["b"].without == ("spleen",)
    before = pseudo_label()
    for case in "ab":
        label = label_of(now[case])
        assert (label[before == 2] == IGNORE).all()
        assert (label[before == 1] == 1).all()
        assert label[2, 2, 5] == IGNORE  # background beside it
        assert label[5, 7, 0] == 0
    assert "a, b" in review.sentences()[0]


def test_decisions_on_a_label_that_changed_do_not_count_and_are_named(reviewed: Any, decide: Decide) -> None:
    run, cases, _ = reviewed
    for case in "abc":
        decide(case, "accept")
    save(run / PSEUDO_LABELS / "a.nii.gz", pseudo_label()[:, ::-1])
    (run / PSEUDO_LABELS / "b.nii.gz").unlink()
    review, now = next_run(run, cases)
    assert [now[case].role for case in "abc"] == ["unlabelled", "unlabelled", "accepted"]
    assert review.stale == ("a", "b")
    assert "a, b. Judge them again" in review.sentences()[0]


def test_the_next_round_keeps_what_came_of_the_last_until_it_is_judged_anew(reviewed: Any, decide: Decide) -> None:
    run, cases, _ = reviewed
    decide("a", "accept")
    decide("a", "set_aside", "spleen")
    decide("b", "set_aside")
    decide("c", "set_aside")
    _, second = next_run(run, cases)
    again = run.parent / "second"
    file = save(again / PSEUDO_LABELS / "b.nii.gz", pseudo_label())
    DecisionLog(again / "decisions.jsonl").add("b", "accept", reviewer="r", label_sha256=label_sha256(file))
    review, third = next_run(again, cases, "third")
    assert [third[case].role for case in "abc"] == ["accepted", "accepted", "set_aside"]
    assert review.cases["a"].without == ("spleen",)
    assert (label_of(third["a"]) == label_of(second["a"])).all()
    assert Path(third["a"].label or "").parent == run.parent / "third" / REVIEWED_LABELS


def correct(run: Path, case: str, label: np.ndarray, slices: dict[str, Any] | None = None) -> None:
    save(run / CORRECTIONS / f"{case}.nii.gz", label)
    write_json(run / CORRECTIONS / f"{case}.json", {"slices": slices, "source_sha256": None})


def test_corrected_labels_win_and_slices_are_learnt_from_alone(reviewed: Any, decide: Decide) -> None:
    run, cases, _ = reviewed
    mended = np.full(SHAPE, 2, dtype=np.uint8)
    decide("a", "accept")
    decide("b", "set_aside")
    decide("c", "accept")
    for case, slices in (("a", None), ("b", None), ("c", 2), ("d", 2)):
        correct(run, case, mended, slices and {"axis": 1, "indices": [slices, 5]})
    _, now = next_run(run, cases)
    assert [now[case].role for case in "abcde"] == [*["corrected"] * 4, "unlabelled"]
    assert (label_of(now["a"]) == 2).all()
    assert (label_of(now["b"]) == 2).all()
    rest = [0, 1, 3, 4, 6, 7]
    for case, elsewhere in (("c", pseudo_label()[:, rest]), ("d", np.full_like(mended, IGNORE)[:, rest])):
        assert (label_of(now[case])[:, [2, 5]] == 2).all()
        assert (label_of(now[case])[:, rest] == elsewhere).all()


def test_a_labelled_case_stays_one_without_the_organs_that_were_set_aside(reviewed: Any, decide: Decide) -> None:
    run, cases, _ = reviewed
    own = save(run.parent / "labels" / "a.nii.gz", pseudo_label())
    cases[0] = replace(cases[0], label=str(own), role="labelled")
    held = replace(cases[1], label=str(save(run.parent / "labels" / "b.nii.gz", pseudo_label())), role="test")
    cases[1] = held
    decide("a", "set_aside", "liver", own)
    decide("b", "set_aside", "liver", Path(held.label or ""))
    decide("c", "accept")
    review, now = next_run(run, cases)
    assert [now[case].role for case in "abc"] == ["labelled", "test", "accepted"]  # a fold holds b back
    assert (label_of(now["a"])[pseudo_label() == 1] == IGNORE).all()
    assert review.stale == ()
    save(own, pseudo_label()[:, ::-1])  # mended by hand since: the next round believes it
    _, later = next_run(run.parent / "second", cases, "third")
    assert later["a"].label == str(own)


def test_test_cases_are_left_alone_and_strange_ones_named(reviewed: Any, decide: Decide) -> None:
    run, cases, _ = reviewed
    for case in "ab":
        decide(case, "set_aside")
    cases[0] = replace(cases[0], split="test", role="test")
    review, now = next_run(run, [cases[0], *cases[2:]])
    assert now["a"].role == "test"
    assert review.foreign == ("b",)


def test_a_folder_without_a_review_is_refused(reviewed: Any) -> None:
    run, cases, _ = reviewed
    with pytest.raises(ConfigError, match=r"nothing was decided or corrected there.*semiseg view"):
        made_review(run.parent / "second", str(run), cases, LABELS)


def test_a_corrected_label_on_another_grid_is_refused(reviewed: Any) -> None:
    run, cases, _ = reviewed
    correct(run, "a", np.ones((6, 8, 9), dtype=np.uint8))
    correct(run, "b", np.full(SHAPE, 9, dtype=np.uint8))
    with pytest.raises(DataError, match=r"(?s)2 labels of the review cannot be used.*not on the grid.*value 9"):
        next_run(run, cases)


def test_workers_read_a_review_alike(reviewed: Any, decide: Decide) -> None:
    run, cases, _ = reviewed
    for case in "ab":
        decide(case, "accept")
    decide("a", "set_aside", "liver")
    told: list[tuple[int, int, str]] = []
    for name in ("alone", "shared"):
        (run.parent / name).mkdir()
    alone = made_review(run.parent / "alone", str(run), cases, LABELS, progress=lambda *values: told.append(values))
    assert told[-1][:2] == (5, 5)
    assert made_review(run.parent / "shared", str(run), cases, LABELS, workers=2) == alone
    for case in "ab":
        first, second = (run.parent / name / REVIEWED_LABELS / f"{case}.nii.gz" for name in ("alone", "shared"))
        assert first.read_bytes() == second.read_bytes()
