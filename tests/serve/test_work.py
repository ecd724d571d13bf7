"""What is served of a run, of a model and a folder, and of a folder alone; in which order; and what training makes of
what comes back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from rest_server import TOKEN, Served, serving

from semiseg.data.reviews import made_review
from semiseg.data.roles import read_run_cases
from semiseg.decisions import DecisionLog, label_sha256
from semiseg.errors import ConfigError, DataError, SemisegError
from semiseg.io.scans import read_grid, read_label, write_label
from semiseg.serve.work import INFERRED, open_work
from semiseg.types import LabelArray
from semiseg.view.shared import Pages


@pytest.fixture(scope="session")
def prepared_run(
    phantoms: Path, tmp_path_factory: pytest.TempPathFactory, semiseg_command: Callable[..., object], tiny: list[str]
) -> Path:
    """A run that is prepared, to be left as it is; its two unlabelled scans have labels and doubts."""
    run = tmp_path_factory.mktemp("serve") / "run"
    semiseg_command("prepare", run, "--data", phantoms, "--quiet", *tiny)
    for scan in sorted((phantoms / "imagesUn").glob("*.nii.gz")):
        label = np.zeros(read_grid(scan).shape_zyx, dtype=np.uint8)
        label[8:16, 8:20, 8:20] = 1
        write_label(run / "pseudo_labels" / f"{_id(scan)}.nii.gz", label, read_grid(scan), like=scan)
    rows = ["id,entropy,disagreement,organs,organ_voxels", "phantom_002,0.1,0.2,1,100", "phantom_003,0.1,0.9,1,100"]
    (run / "ranking.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return run


def _id(scan: Path) -> str:
    return scan.name.removesuffix("_0000.nii.gz")


@pytest.fixture
def run(prepared_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared_run, tmp_path / "run"))


def next_id(served: Served, strategy: str = "doubt") -> str | None:
    id: str | None = served.client.post(f"activelearning/{strategy}", json={}).json().get("id")
    return id


def save(served: Served, id: str, label: LabelArray, folder: Path) -> dict[str, object]:
    """With the values of the data."""
    image = served.work.cases[id].images[0]
    write_label(folder / "sent.nii.gz", label, read_grid(image), image)
    with (folder / "sent.nii.gz").open("rb") as file:
        answer = served.client.put(f"datastore/label?image={id}", data={"params": "{}"}, files={"label": file})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_run_is_served_by_doubt_and_the_next_one_learns_from_it(run: Path, tmp_path: Path) -> None:
    with serving(open_work(run, None, None)) as served:
        info = served.client.get("info/").json()
        assert list(info["strategies"]) == ["doubt", "random"]
        assert info["models"] == {}
        assert info["datastore"] == {"total": 2, "completed": 0}  # neither labelled scans nor those of the test
        ids = [next_id(served), next_id(served), next_id(served)]
        assert ids == ["phantom_003", "phantom_002", "phantom_003"]  # what did not come back comes again
        original = served.client.get("datastore/label?label=phantom_003&tag=original")
        assert original.content == (run / "pseudo_labels" / "phantom_003.nii.gz").read_bytes()
        mended = read_label(run / "pseudo_labels" / "phantom_003.nii.gz")[0].copy()
        mended[8:12, 8:12, 8:12] = 2
        assert save(served, "phantom_003", mended, tmp_path)["became"] == "corrected"
        assert save(served, "phantom_003", mended, tmp_path)["became"] == "unchanged"
        assert not (run / "corrections" / "earlier").exists()
        as_it_was = read_label(run / "pseudo_labels" / "phantom_003.nii.gz")[0]
        assert save(served, "phantom_003", as_it_was, tmp_path)["became"] == "corrected"
        assert save(served, "phantom_003", mended, tmp_path)["became"] == "corrected"
        assert len(list((run / "corrections" / "earlier").glob("phantom_003-*.nii.gz"))) == 2
        judged = run / "pseudo_labels" / "phantom_002.nii.gz"
        assert save(served, "phantom_002", read_label(judged)[0], tmp_path)["became"] == "accepted as it was"
        assert next_id(served) is None
        assert served.client.get("info/").json()["datastore"] == {"total": 2, "completed": 2}
    cases = read_run_cases(run / "cases.jsonl")
    (tmp_path / "next").mkdir()
    labels = served.work.scheme
    review = made_review(tmp_path / "next", str(run), cases, labels)
    roles = {id: case.role for id, case in review.cases.items()}
    assert roles == {"phantom_002": "accepted", "phantom_003": "corrected"}
    learnt = read_label(tmp_path / "next" / "reviewed_labels" / "phantom_003.nii.gz")[0]
    np.testing.assert_array_equal(learnt, mended)


def test_scans_that_are_to_be_drawn_come_first_and_judged_ones_not(run: Path) -> None:
    log = DecisionLog(run / "decisions.jsonl")
    label = run / "pseudo_labels" / "phantom_002.nii.gz"
    with serving(open_work(run, None, None)) as served:
        log.add("phantom_002", "label", reviewer="ann", label_sha256=label_sha256(label))
        assert next_id(served) == "phantom_002"
        other = label.with_name("phantom_003.nii.gz")
        log.add("phantom_003", "set_aside", reviewer="ann", label_sha256=label_sha256(other))
        assert [next_id(served), next_id(served)] == ["phantom_002", "phantom_002"]
        log.add("phantom_002", "accept", reviewer="ann", label_sha256=label_sha256(label))
        assert next_id(served) is None
        shutil.copy(other, label)  # another label than the one that was judged
        log.add("phantom_002", "accept", reviewer="ann", label_sha256="of another")
        assert next_id(served) == "phantom_002"


def test_what_is_marked_in_the_pages_is_the_next_in_slicer(run: Path) -> None:
    """The pages are served by the same process, behind a guard of their own."""
    work = open_work(run, None, None)
    with serving(work, pages=Pages(work.source, reviewer="ann")) as served, httpx.Client() as browser:
        address = f"http://127.0.0.1:{served.port}"
        assert browser.get(f"{address}/api/cases").status_code == 403  # without its cookie
        assert browser.get(f"{address}/t/{TOKEN}/api/cases").status_code == 404
        assert browser.get(address, params={"token": TOKEN}).status_code == 303
        label = browser.get(f"{address}/api/cases/phantom_002").json()["label_sha256"]
        organ = next(iter(work.scheme.organs.values()))  # one organ's mark is enough
        marked = {"case": "phantom_002", "organ": organ, "decision": "label", "label_sha256": label}
        assert browser.post(f"{address}/api/decisions", json=marked).status_code == 200
        assert next_id(served) == "phantom_002"


def test_a_label_that_was_judged_is_not_replaced(run: Path) -> None:
    class Makes:
        hash = "another model"

        def __call__(self, scan: object, output: Path) -> Path:
            return output

    work = open_work(run, None, None)
    case = work.cases["phantom_002"]
    assert work.inferred(case, Makes()) == run / INFERRED
    (run / "pseudo_labels" / "phantom_002.nii.gz").unlink()
    assert work.inferred(case, Makes()) == run / "pseudo_labels"
    labelled = next(case for case in work.cases.values() if case.reference)
    assert work.inferred(labelled, Makes()) == run / INFERRED


def test_a_pseudo_label_on_another_grid_is_not_sent(run: Path) -> None:
    label, grid = read_label(run / "pseudo_labels" / "phantom_002.nii.gz")
    z, y, x = label.shape
    smaller = replace(grid, shape_zyx=(z - 1, y, x))
    write_label(run / "pseudo_labels" / "phantom_002.nii.gz", label[1:], smaller)
    with serving(open_work(run, None, None)) as served:
        answer = served.client.get("datastore/label?label=phantom_002&tag=original")
    assert answer.status_code == 422
    assert "not on the grid of its scan: the shapes differ" in answer.json()["error"]


def test_a_run_with_other_scans(run: Path, phantoms: Path, tmp_path: Path) -> None:
    assert set(open_work(run, phantoms, None).cases) == set(open_work(run, None, None).cases)
    more = tmp_path / "more"
    shutil.copytree(phantoms / "imagesUn", more)
    for file in more.iterdir():
        file.rename(more / f"new_{file.name}")
    work = open_work(run, more, None)
    assert sorted(work.cases) == ["new_phantom_002", "new_phantom_003"]
    assert work.folder == run
    shutil.copy(phantoms / "imagesUn" / "phantom_002_0000.nii.gz", more)
    with pytest.raises(ConfigError, match="phantom_002: the run has another scan of that name"):
        open_work(run, more, None)


def test_a_folder_is_reviewed_without_a_model(phantoms: Path, tmp_path: Path) -> None:
    """Its own labels are what is mended; scans of the test are not there."""
    folder = tmp_path / "review"
    with serving(open_work(None, phantoms, folder)) as served:
        assert served.client.get("info/").json()["strategies"].keys() == {"random"}
        ids = {next_id(served, "random") for _ in range(4)}
        assert ids == {"phantom_000", "phantom_001", "phantom_002", "phantom_003"}
        own = phantoms / "labelsTr" / "phantom_000.nii.gz"
        objects = served.client.get("datastore/?output=all").json()["objects"]
        assert {id for id, one in objects.items() if one["labels"]} == {"phantom_000", "phantom_001"}
        assert sorted(objects) == sorted(ids)
        assert served.client.get("datastore/image?image=phantom_004").status_code == 404
        assert served.client.get("datastore/label?label=phantom_000&tag=original").content == own.read_bytes()
        mended = np.maximum(read_label(own)[0], 1)
        assert save(served, "phantom_000", mended, tmp_path)["became"] == "corrected"
    assert json.loads((folder / "serve.json").read_text(encoding="utf-8"))["labels"]["liver"] == 1
    assert open_work(None, phantoms, folder).folder == folder  # which goes on


def test_what_cannot_be_served_is_said(phantoms: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    review = tmp_path / "review"
    open_work(None, phantoms, review)
    scans = phantoms / "imagesUn"
    cases: list[tuple[tuple[Path | None, Path | None, Path | None], type[SemisegError], str]] = [
        ((None, None, None), ConfigError, "--data FOLDER"),
        ((tmp_path / "empty", phantoms, tmp_path / "a"), DataError, "no model folder and no run"),
        ((tmp_path / "nothing", phantoms, tmp_path / "a"), DataError, "no such folder"),
        ((None, tmp_path / "nothing", None), DataError, "no such folder"),
        ((None, tmp_path / "empty", None), DataError, "Name the folder of the scans"),
        ((None, scans, tmp_path / "a"), ConfigError, r"labels\.json"),
        ((None, phantoms, scans / "review"), ConfigError, "lies among the scans"),
        ((None, phantoms, run), ConfigError, "not from here"),
        ((run, None, tmp_path / "a"), ConfigError, "kept in the run"),
    ]
    for given, kind, words in cases:
        with pytest.raises(kind, match=words):
            open_work(*given)
    other = tmp_path / "other"
    shutil.copytree(phantoms, other)
    with pytest.raises(ConfigError, match="begun for other scans"):
        open_work(None, other, review)
    value = json.loads((phantoms / "dataset.json").read_text(encoding="utf-8"))
    value["labels"]["a_new_organ"] = max(value["labels"].values()) + 1
    (other / "dataset.json").write_text(json.dumps(value), encoding="utf-8")
    open_work(None, other, tmp_path / "second")
    (other / "dataset.json").write_text(json.dumps(value).replace("a_new_organ", "renamed"), encoding="utf-8")
    with pytest.raises(ConfigError, match="begun for other organs"):
        open_work(None, other, tmp_path / "second")
    assert not (tmp_path / "a").exists()


def test_scans_alone_whose_organs_are_named_beside_them(phantoms: Path, tmp_path: Path) -> None:
    shutil.copytree(phantoms / "imagesUn", tmp_path / "scans")
    (tmp_path / "scans" / "labels.json").write_text('{"liver": 1}', encoding="utf-8")
    work = open_work(None, tmp_path / "scans", tmp_path / "review")
    assert sorted(work.cases) == ["phantom_002", "phantom_003"]
    assert work.scheme.organs == {1: "liver"}
