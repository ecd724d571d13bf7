"""What others get of a model: a README that a hub understands, and nothing that names a case or a place."""

from __future__ import annotations

import json
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest_names import CASES

from semiseg.data.case_hashes import KEY_FILE, hashed_ids
from semiseg.errors import DataError
from semiseg.prediction.exchange import card_for_others
from semiseg.prediction.model import load_model
from semiseg.sharing.folder import SHARED, export_folder, scores_of
from semiseg.sharing.readme import for_repository, is_as_made, readme, signed

Command = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("one_thread")
PACKAGE = Path(__file__).resolve().parents[2]


def texts(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file, and every file within those that are archives."""
    for file in folder.rglob("*"):
        if file.is_file():
            yield str(file.relative_to(folder)), file.read_bytes()
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    yield from ((f"{file.name}/{name}", archive.read(name)) for name in archive.namelist())


def test_the_readme_has_the_head_that_a_hub_reads(run: Path, semiseg_command: Command, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    out = tmp_path / "out"
    said = semiseg_command("export", run, "--to", "model", "--output", out).out
    assert said.startswith(f"{out}: the model, for others: ")
    assert f"semiseg push {out} OWNER/NAME" in said
    card = hub.ModelCard((out / "README.md").read_text())
    assert card.data.to_dict() == {
        "library_name": "semiseg",
        "pipeline_tag": "image-segmentation",
        "tags": ["semiseg", "medical", "3d", "ct"],
    }
    again = ["export", run, "--to", "model", "--output", out, "--license", "cc-by-4.0"]
    assert semiseg_command(*again).code == 0
    assert hub.ModelCard((out / "README.md").read_text()).data.license == "cc-by-4.0"
    answer = semiseg_command(*again[:-1], "mine\nx: y")
    assert (answer.code, "give the hub's name of a license" in answer.err) == (2, True)


def test_the_readme_says_what_how_well_and_how(run: Path) -> None:
    text = readme(load_model(run), scores_of(load_model(run)))
    assert "semiseg pull OWNER/NAME\nsemiseg predict NAME SCANS --output LABELS\n" in text
    assert "| 1 | left \\| x |" in text
    assert "| a | 0.750 (0.750 to 0.750) | 0.500 (0.500 to 0.500) | 1 | 2 |" in text
    assert "On 2 test cases" in text
    assert "1.5 × 1 × 2 mm" in text
    assert "- channel `CT`: CT in Hounsfield units\n- channel `T1`: normalised scan by scan" in text
    assert "`made up`: 2 labelled. 7 steps." in text  # labels alone
    assert "None is stated" in text


def test_scores_are_those_of_this_model_or_none(run: Path) -> None:
    assert scores_of(load_model(run)) is not None
    rows = run / "predictions" / "predictions.jsonl"
    first, _ = rows.read_text().splitlines()
    rows.write_text(first + "\n" + json.dumps({"id": CASES[1], "model": "another"}) + "\n")
    assert scores_of(load_model(run)) is None
    assert "No scores are known" in readme(load_model(run), None)
    rows.unlink()
    assert scores_of(load_model(run)) is None


def test_it_is_seen_whether_a_person_changed_the_readme(run: Path) -> None:
    text = readme(load_model(run), None)
    assert is_as_made(text)
    named = for_repository(text, "clinic/organs")
    assert is_as_made(named)
    assert "semiseg pull clinic/organs\nsemiseg predict organs SCANS" in named
    for changed in (text.replace("## Use", "## How"), text + "More.\n", text.rpartition("<!--")[0], "", "a\n"):
        assert not is_as_made(changed)
    assert for_repository("Ours is OWNER/NAME.", "a/b") == "Ours is a/b."
    assert is_as_made(signed("a\n"))


def test_what_a_person_wrote_into_an_export_stays(run: Path, semiseg_command: Command, tmp_path: Path) -> None:
    command = ("export", run, "--to", "model", "--output", tmp_path / "out")
    assert semiseg_command(*command).code == 0
    (tmp_path / "out" / "README.md").write_text("Our own words.")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert semiseg_command(*command).code == 0
    assert (tmp_path / "out" / "README.md").read_text() == "Our own words."
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("form", ["model", "monai", "onnx"])
def test_nothing_else_is_replaced(form: str, run: Path, semiseg_command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "card.json").write_text("[]")
    others = "onnx" if form == "model" else "model"
    assert semiseg_command("export", run, "--to", others, "--output", tmp_path / "other").code == 0
    for place in (tmp_path / "mine", tmp_path / "other", run, run / "model"):
        answer = semiseg_command("export", run, "--to", form, "--output", place)
        assert (answer.code, "is there already" in answer.err) == (2, True), (place, answer)


@pytest.mark.parametrize("form", ["model", "monai", "onnx", "openvino", "torch"])
def test_an_export_names_no_case_and_no_place(form: str, run: Path, semiseg_command: Command, tmp_path: Path) -> None:
    assert semiseg_command("export", run, "--to", form, "--output", tmp_path / "out").code == 0
    private = [*CASES, *(part for case in CASES for part in case.split("^")), str(run), str(PACKAGE), str(Path.home())]
    private += [(run / KEY_FILE).read_text().strip()]
    found = [(name, word) for name, text in texts(tmp_path / "out") for word in private if word.encode() in text]
    assert found == []
    if form != "monai":
        card = json.loads((tmp_path / "out" / "card.json").read_text())
        assert card["labelled_cases"] == hashed_ids(run, CASES)
        assert "begun_from" not in card
    if form == "model":
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(SHARED)


def test_what_prediction_reads_of_a_card_goes_along(run: Path) -> None:
    model = load_model(run)
    poses = [{"axes": [0, 2, 1], "flipped": []}]
    shared = card_for_others(replace(model, card=model.card | {"poses": poses}))
    assert {key: shared[key] for key in ("role", "mirror_axes", "poses")} == {
        "role": "student",
        "mirror_axes": [0, 2],
        "poses": poses,
    }


def test_ids_that_are_no_hashes_stay_here(run: Path, tmp_path: Path) -> None:
    """Cards and choices of an earlier version, or of somebody's own making."""
    for name, key in (("card.json", "labelled_cases"), ("postprocessing.json", "cases")):
        file = run / "model" / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: [*CASES, "0123456789abcdef"]}))
    out = export_folder(load_model(run), tmp_path / "out")
    assert json.loads((out / "card.json").read_text())["labelled_cases"] == ["0123456789abcdef"]
    assert json.loads((out / "postprocessing.json").read_text())["cases"] == ["0123456789abcdef"]


def test_hashes_of_ids_need_the_runs_key(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    hashes = hashed_ids(one, CASES)
    assert hashes == hashed_ids(one, CASES[::-1])  # the order of names is not told either
    assert not set(hashes) & set(hashed_ids(other, CASES))
    assert stat.S_IMODE((one / KEY_FILE).stat().st_mode) == 0o600
    (one / KEY_FILE).write_text("short")
    with pytest.raises(DataError, match=r"ids\.key: not the key"):
        hashed_ids(one, CASES)
