"""`semiseg run` on a phantom set: what it leaves, that it does nothing twice, and that hidden labels stay hidden."""

from __future__ import annotations

import doctest
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from filelock import FileLock

import semiseg
from semiseg.data.case_hashes import hashed_ids
from semiseg.data.plan import read_plan
from semiseg.demo.dataset import write_phantom_dataset
from semiseg.errors import ConfigError, DataError
from semiseg.files import hash_files, read_json, read_jsonl, read_toml, write_json, write_jsonl, write_toml
from semiseg.io.scans import read_label, read_volume
from semiseg.io.store import read_case_meta
from semiseg.notices import read_notices
from semiseg.scoring import read_summary
from semiseg.settings import RunSettings, read_settings
from semiseg.training import inputs, precision, trial
from semiseg.training.settled import read_settled

Command = Callable[..., Any]
TEST_CASE = "phantom_004"
FINETUNE = ["--set", "method.phases.finetune=0.2"]
IN_EVERY_STEP = ["--set", "method.teacher_every=1", *FINETUNE]
METHODS = {
    "supervised": ["--method", "supervised"],
    "default": FINETUNE,
    "pseudo-label": ["--method", "pseudo_label", "--set", "method.label_scope=patch", *FINETUNE],
    "mpl-scalar": ["--method", "mpl", "--set", "method.feedback=scalar", *IN_EVERY_STEP],
    "mpl-dense": ["--method", "mpl", "--set", "method.feedback=dense", *IN_EVERY_STEP],
}
SCALARS = {
    "supervised": set(),
    "default": {"pseudo_loss", "counted"},
    "pseudo-label": {"pseudo_loss", "confidence"},
    "mpl-scalar": {"pseudo_loss", "confidence", "feedback", "feedback_ratio"},
    "mpl-dense": {"pseudo_loss", "confidence", "feedback", "feedback_ratio"},
}
"""What training steps log besides the loss on labels."""
TRUSTED = "unlabelled scans are learnt from: a test says so."


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, semiseg_command: Command, phantoms: Path, tiny: list[str]
) -> dict[str, Path]:
    """One finished run of each method; tests leave them as they are."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        # Networks of six steps agree on nothing and have seen little; labels are to be learnt from all the same.
        patch.setattr(inputs, "verdict", lambda found: (True, TRUSTED))
        patch.setattr(inputs, "LABELLED_SHARE", 1000.0)
        for name, flags in METHODS.items():
            answer = semiseg_command("run", folder / name, "--data", phantoms, *tiny, *flags)
            assert answer.code == 0, answer
            assert f"Page:    {folder / name}/report.html" in answer.out
            assert f"Next:    semiseg predict {folder / name} SCANS" in answer.out
    return {name: folder / name for name in METHODS}


def weights(run: Path) -> str:
    return hash_files([run / "model" / "weights.safetensors"])


def cases(run: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in read_jsonl(run / "cases.jsonl")}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("name", METHODS)
def test_a_run_folder_is_complete(runs: dict[str, Path], name: str, phantoms: Path) -> None:
    run = runs[name]
    files = {
        "run.toml",
        "settled.toml",
        "notices.jsonl",
        "fingerprint.json",
        "plan.toml",
        "cases.jsonl",
        "store",
        "checkpoints",
        "metrics.jsonl",
    }
    files |= {"model", "ids.key", "predictions", "summary.json", "summary.csv", "report.html"}
    files |= {"mpl-dense": {"feedback"}, "default": {"scan_labels", "rounds.jsonl"}}.get(name, set())
    assert set(names(run)) == files
    assert read_settings(run / "run.toml").data.root == str(phantoms.resolve())
    assert read_plan(run / "plan.toml").patch == (16, 16, 16)
    assert names(run / "checkpoints") == ["step-000003", "step-000006"]
    assert names(run / "model") == ["card.json", "network.onnx", "plan.toml", "weights.safetensors"]
    assert names(run / "predictions") == [f"{TEST_CASE}.nii.gz", "predictions.jsonl"]
    assert names(run / "store") == ["cases.index", *(f"phantom_{i:03}" for i in range(4)), "recipe.json", "seen.jsonl"]
    labelled = read_json(run / "model" / "card.json")["labelled_cases"]
    assert labelled == hashed_ids(run, ["phantom_000", "phantom_001"])
    assert "<html" in (run / "report.html").read_text(encoding="utf-8")


def test_rounds_are_told(runs: dict[str, Path]) -> None:
    """The training phase of the steps 2 to 4 is three rounds of all of the scans, which are fewer than 24."""
    rows = read_jsonl(runs["default"] / "rounds.jsonl")
    assert [(row["round"], row["step"], row["scans"], row["trusted"], row["why"]) for row in rows] == [
        (1, 2, 2, True, TRUSTED),
        (2, 3, 2, True, TRUSTED),
        (3, 4, 2, True, TRUSTED),
    ]
    organs = set(read_plan(runs["default"] / "plan.toml").labels.organs.values())
    assert all(0 <= row["agreement"] <= 1 and set(row["found"]) == organs for row in rows)
    labelled = sorted(runs["default"].glob("scan_labels/*/*.b2nd"))
    assert {file.name for file in labelled} == {"phantom_002.b2nd", "phantom_003.b2nd"}


@pytest.mark.parametrize(("labelled_share", "rounds"), [(1000.0, 3), (inputs.LABELLED_SHARE, 1)])
def test_labels_that_are_not_to_be_trusted_are_not_learnt_from(
    phantoms: Path,
    tiny: list[str],
    semiseg_command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    labelled_share: float,
    rounds: int,
) -> None:
    """What is left is training on labels alone, and the person is told; so where there is no time to label any."""
    monkeypatch.setattr(inputs, "LABELLED_SHARE", labelled_share)
    answer = semiseg_command("run", tmp_path / "run", "--data", phantoms, *tiny)
    assert answer.code == 0, answer
    rows = read_jsonl(tmp_path / "run" / "rounds.jsonl")
    assert [(row["trusted"], row["scans"]) for row in rows] == [(False, 0)] * rounds
    assert not any("pseudo_loss" in row for row in read_jsonl(tmp_path / "run" / "metrics.jsonl"))
    told = next(text for text in read_notices(tmp_path / "run") if text.startswith("Nothing was learnt from"))
    said = " ".join(answer.out.split())  # lines are broken at the width of the console
    assert f"Note: {told}" in said
    assert f"Round 1: {rows[0]['why']}" in said
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Nothing was learnt from the unlabelled scans" in page


def test_a_round_learns_from_the_scans_that_are_drawn_for_it(
    phantoms: Path, tiny: list[str], semiseg_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "verdict", lambda found: (True, TRUSTED))
    monkeypatch.setattr(inputs, "LABELLED_SHARE", 1000.0)
    answer = semiseg_command("run", tmp_path / "run", "--data", phantoms, *tiny, "--set", "method.label_scans=1")
    assert answer.code == 0, answer
    assert [row["scans"] for row in read_jsonl(tmp_path / "run" / "rounds.jsonl")] == [1, 1, 1]
    folders = list((tmp_path / "run").glob("scan_labels/*"))
    assert len(folders) == 2, "of the last round's two networks"
    # The one that is held against the other has labelled the round before's, too.
    assert min(len(list(folder.glob("*.b2nd"))) for folder in folders) == 1


def test_a_tolerance_of_many_voxels_is_noticed_and_what_is_advised_helps(
    runs: dict[str, Path], semiseg_command: Command, tmp_path: Path
) -> None:
    run = shutil.copytree(runs["supervised"], tmp_path / "run")
    answer = semiseg_command("run", run, "--set", "evaluate.tolerance_mm=500")
    assert answer.code == 0, answer
    (told,) = (text for text in read_notices(run) if text.startswith("NSD forgives 500 mm"))
    assert f"Note: {told}" in answer.out
    advised = re.search(r"`semiseg (run .*) --set (\S+)`", told)
    assert advised
    answer = semiseg_command(*advised[1].split(), "--set", advised[2])
    assert answer.code == 0, answer
    assert not any("NSD forgives" in text for text in read_notices(run))


def test_training_leaves_what_was_asked_as_it_was(runs: dict[str, Path]) -> None:
    """What this machine made of it is in another file, and says how many steps there were."""
    for run in runs.values():
        asked, settled = read_settings(run / "run.toml"), read_settled(run)
        assert (asked.plan.device, asked.train.precision, asked.train.threads) == ("auto", "float32", 1)
        assert (settled.device, settled.threads, settled.precision) == ("cpu", 1, "float32")
        assert settled.finished
        timeline = settled.laid_down()
        assert timeline is not None
        assert timeline.total == 6


@pytest.mark.parametrize("name", METHODS)
def test_cases_and_metrics_have_their_schemas(runs: dict[str, Path], name: str) -> None:
    found = cases(runs[name])
    assert {case: row["role"] for case, row in found.items()} == {
        "phantom_000": "labelled",
        "phantom_001": "labelled",
        "phantom_002": "unlabelled",
        "phantom_003": "unlabelled",
        TEST_CASE: "test",
    }
    for case, row in found.items():
        assert set(row) == {"id", "images", "label", "split", "role", "hash"}
        assert (row["label"] is None) == (row["role"] == "unlabelled")
        assert all(Path(image).is_absolute() for image in row["images"])
        stored = None if row["role"] == "test" else read_case_meta(runs[name] / "store" / case).hash
        assert row["hash"] == stored

    rows = read_jsonl(runs[name] / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    warmup = {"supervised": 0, "default": 2}.get(name, 3)
    phases = ["warmup"] * warmup + ["train"] * (5 - warmup) + ["finetune"]
    assert [row["phase"] for row in rows] == (["train"] * 6 if name == "supervised" else phases)
    for row in rows:
        assert {"seconds", "learning_rate"} < set(row)
        assert {"labelled_loss", "student_labelled_loss", "pseudo_loss"} & set(row)
        assert SCALARS[name] <= set(row) or row["phase"] != "train"
    assert all(a["seconds"] <= b["seconds"] for a, b in pairwise(rows))


def test_feedback_maps_have_their_schema(runs: dict[str, Path]) -> None:
    folder = runs["mpl-dense"] / "feedback"
    assert names(folder) == ["phantom_002.npz", "phantom_003.npz"]
    with np.load(folder / "phantom_002.npz", allow_pickle=False) as found:
        assert {name: (found[name].dtype.name, found[name].shape) for name in found} == {
            "image": ("float32", (16, 16, 16)),
            "pseudo_label": ("uint8", (16, 16, 16)),
            "feedback": ("float32", (16, 16, 16)),
            "spacing_mm": ("float64", (3,)),
        }
        assert np.isfinite(found["feedback"]).all()
        assert found["feedback"].any()


def test_predictions_lie_on_the_scan_and_are_scored(runs: dict[str, Path], phantoms: Path) -> None:
    run = runs["mpl-dense"]
    scan: Any = nib.load(phantoms / "imagesTs" / f"{TEST_CASE}_0000.nii.gz")
    found: Any = nib.load(run / "predictions" / f"{TEST_CASE}.nii.gz")
    assert found.shape == scan.shape
    np.testing.assert_array_equal(found.affine, scan.affine)
    summary = read_summary(run / "summary.json")
    assert [case["id"] for case in summary["cases"]] == [TEST_CASE]
    assert len(summary["organs"]) == 13
    rows = read_jsonl(run / "predictions" / "predictions.jsonl")
    assert [row["id"] for row in rows] == [TEST_CASE]
    assert {"output", "engine", "precision", "key", "seconds"} < set(rows[0])


def test_the_model_predicts_a_file(
    runs: dict[str, Path], semiseg_command: Command, phantoms: Path, tmp_path: Path
) -> None:
    """The model folder is all that it takes, and a scan in memory gets the same labels as its file."""
    model = shutil.copytree(runs["mpl-dense"] / "model", tmp_path / "model")
    scan = phantoms / "imagesTs" / f"{TEST_CASE}_0000.nii.gz"
    options = ["--device", "cpu", "--engine", "torch"]  # by which `predict_array` computes; others may round a tie
    answer = semiseg_command("predict", model, scan, "--output", tmp_path / "out", *options)
    assert answer.code == 0
    written, _ = read_label(tmp_path / "out" / f"{TEST_CASE}.nii.gz")
    volume = read_volume([scan])
    loaded = semiseg.load_model(model)
    array = semiseg.predict_array(volume.array[0], volume.grid.spacing_mm, loaded)
    np.testing.assert_array_equal(array, written)
    again = semiseg_command("predict", model, scan, "--output", tmp_path / "out", "--device", "cpu")
    assert "1 scan in" in again.out
    assert "(1 of them from before)" in again.out


def test_a_second_call_does_nothing_again(
    runs: dict[str, Path], semiseg_command: Command, phantoms: Path, tiny: list[str], tmp_path: Path
) -> None:
    run = runs["mpl-scalar"]
    kept = [*run.glob("store/*/*"), *run.glob("predictions/*"), *run.glob("checkpoints/*/*"), run / "plan.toml"]
    before = {path: path.stat().st_mtime_ns for path in kept}
    text, model = (run / "metrics.jsonl").read_text(), weights(run)
    same = [*METHODS["mpl-scalar"], *tiny]
    for flags in (["--data", phantoms, *same], []):  # the same flags, or none: the run knows its own
        assert semiseg_command("run", run, *flags).code == 0
        assert {path: path.stat().st_mtime_ns for path in kept} == before
        assert (run / "metrics.jsonl").read_text() == text
        assert weights(run) == model


def test_stages_one_by_one_are_the_whole_way(
    runs: dict[str, Path], semiseg_command: Command, phantoms: Path, tiny: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert (
        "Next: semiseg train" in semiseg_command("prepare", run, "--data", phantoms, *tiny, *METHODS["mpl-dense"]).out
    )
    assert "Next: semiseg predict" in semiseg_command("train", run).out
    assert weights(run) == weights(runs["mpl-dense"])
    out = ["--output", run / "predictions"]
    assert semiseg_command("predict", run, phantoms / "imagesTs", *out, "--device", "cpu", "--quiet").code == 0
    assert semiseg_command("evaluate", run).code == 0
    assert semiseg_command("report", run).out.strip() == f"{run}/report.html"


def test_compare_names_runs_and_budgets(runs: dict[str, Path], semiseg_command: Command) -> None:
    pair = [runs["supervised"], runs["mpl-dense"]]
    answer = semiseg_command("compare", *pair, "--names", "Baseline", "Baseline + MPL")
    assert answer.code == 0, answer
    assert "Baseline + MPL" in answer.out
    assert "2 labelled cases, 6 steps, seed 0" in " ".join(answer.out.split())
    assert semiseg_command("compare", *pair, "--names", "only one").code == 2
    assert semiseg_command("compare", pair[0]).code == 2


def test_compare_leaves_a_page_and_takes_scores_alone(
    runs: dict[str, Path], semiseg_command: Command, tmp_path: Path
) -> None:
    """Scores of another program's labels have no settings beside them."""
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(runs["mpl-dense"] / "summary.json", other)
    page = tmp_path / "pages" / "compare.html"
    answer = semiseg_command("compare", runs["supervised"], other, "--page", page)
    assert answer.code == 0, answer
    assert str(page) in answer.out
    assert "other" in page.read_text(encoding="utf-8")


# Hidden labels.


@pytest.fixture(scope="module")
def all_labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom set with labels of all four training scans, of which splits.json puts two first."""
    folder = tmp_path_factory.mktemp("hidden") / "data"
    return write_phantom_dataset(
        folder, seed=0, labelled=2, unlabelled=2, test=1, shape_zyx=(24, 32, 32), hidden_labels=True
    )


def test_a_label_budget_hides_labels(
    runs: dict[str, Path], semiseg_command: Command, all_labelled: Path, tiny: list[str], tmp_path: Path
) -> None:
    """Without, with garbage in the place of, and with the true hidden labels: all the same, bit for bit.

    And the same weights as the set that never had those labels.
    """
    flags = ["--labelled", 2, *tiny, *METHODS["mpl-dense"], "--quiet"]
    garbage = shutil.copytree(all_labelled, tmp_path / "garbage")
    deleted = shutil.copytree(all_labelled, tmp_path / "deleted")
    for case in ("phantom_002", "phantom_003"):
        (deleted / "labelsTr" / f"{case}.nii.gz").unlink()
        file = garbage / "labelsTr" / f"{case}.nii.gz"
        image: Any = nib.load(file)
        values = np.random.default_rng(0).integers(0, 14, image.shape).astype(np.uint8)
        nib.save(type(image)(values, image.affine), file)
    made = {}
    for name, data in {"true": all_labelled, "garbage": garbage, "deleted": deleted}.items():
        run = tmp_path / f"run-{name}"
        assert semiseg_command("prepare", run, "--data", data, *flags).code == 0
        assert semiseg_command("train", run, "--quiet").code == 0
        for case in ("phantom_002", "phantom_003"):
            row = cases(run)[case]
            assert (row["role"], row["label"]) == ("unlabelled", None)
            assert names(run / "store" / case) == ["case.json", "image.b2nd"]
        made[name] = [
            (run / "fingerprint.json").read_text(),
            (run / "plan.toml").read_text(),
            weights(run),
            {case: row["hash"] for case, row in cases(run).items()},
        ]
    assert made["garbage"] == made["true"]
    assert made["deleted"] == made["true"]
    assert made["true"][2] == weights(runs["mpl-dense"])


def test_hidden_labels_may_vanish_while_a_run_is_under_way(
    semiseg_command: Command, all_labelled: Path, tiny: list[str], tmp_path: Path
) -> None:
    data, run = shutil.copytree(all_labelled, tmp_path / "data"), tmp_path / "run"
    flags = ["--data", data, "--labelled", 3, *tiny, "--quiet"]
    assert semiseg_command("prepare", run, *flags).code == 0
    assert [row["role"] for row in cases(run).values()].count("labelled") == 3
    (data / "labelsTr" / "phantom_003.nii.gz").unlink()
    assert semiseg_command("run", run, *flags).code == 0
    assert (run / "summary.json").is_file()


# The ignore label.


def test_ignored_voxels_teach_nothing(
    semiseg_command: Command, phantoms: Path, tiny: list[str], tmp_path: Path
) -> None:
    """Partly annotated scans go the whole way, and what is under the ignore label does not matter."""
    data = shutil.copytree(phantoms, tmp_path / "data")
    description = read_json(data / "dataset.json")
    description["labels"]["ignore"] = 14
    write_json(data / "dataset.json", description)
    for file in sorted((data / "labelsTr").iterdir()):
        image: Any = nib.load(file)
        values = np.asarray(image.dataobj).copy()
        values[..., : values.shape[2] // 3] = 14
        nib.save(type(image)(values, image.affine), file)
    run = tmp_path / "run"
    answer = semiseg_command("run", run, "--data", data, *tiny, *METHODS["mpl-dense"])
    assert answer.code == 0, answer
    assert read_plan(run / "plan.toml").labels.ignore == 14
    found, _ = read_label(run / "predictions" / f"{TEST_CASE}.nii.gz")
    assert found.max() <= 13
    assert "ignore" not in read_summary(run / "summary.json")["organs"].values()
    assert all(np.isfinite(v) for row in read_jsonl(run / "metrics.jsonl") for k, v in row.items() if k != "phase")


# Where it must stop.


def test_a_loss_that_is_not_finite_stops_training(
    semiseg_command: Command, phantoms: Path, tiny: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    absurd = [
        "--set",
        "method.optimiser.learning_rate=1e9",
        "--set",
        "train.steps=200",
        "--set",
        "train.checkpoint_every=1",
    ]
    flags = ["--data", phantoms, "--method", "supervised", *tiny, *absurd, "--quiet"]
    answer = semiseg_command("run", run, *flags)
    assert answer.code == 2, answer
    assert "is not finite. Lower method.optimiser.learning_rate" in answer.err
    assert str(run / "checkpoints") in answer.err
    assert not (run / "model").exists()
    from safetensors.numpy import load_file

    kept = names(run / "checkpoints")
    for folder in kept:
        state = load_file(run / "checkpoints" / folder / "state.safetensors")
        assert all(np.isfinite(v).all() for v in state.values() if v.dtype.kind == "f")
    assert "is not finite" in semiseg_command("run", run, *flags).err
    assert names(run / "checkpoints") == kept


# Python.


def test_the_five_functions_are_the_commands(
    runs: dict[str, Path], phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    settings = read_settings(runs["mpl-dense"] / "run.toml")
    assert isinstance(settings, semiseg.RunSettings)
    plan = semiseg.prepare(run, settings, quiet=True)
    assert plan == read_plan(runs["mpl-dense"] / "plan.toml")
    model = semiseg.train(run, quiet=True)
    assert weights(run) == weights(runs["mpl-dense"])
    outcomes = semiseg.predict(
        model, [phantoms / "imagesTs"], run / "predictions", settings=settings.predict, quiet=True
    )
    assert [(o.id, o.error, o.reused) for o in outcomes] == [(TEST_CASE, None, False)]
    assert [o.reused for o in semiseg.predict_test_cases(run, quiet=True)] == [True]
    scored = semiseg.evaluate(
        run / "predictions",
        phantoms / "labelsTs",
        run / "plan.toml",
        quiet=True,
    )
    assert scored["mean"] == semiseg.evaluate_run(run, quiet=True)["mean"]
    assert scored["mean"] == read_summary(runs["mpl-dense"] / "summary.json")["mean"]
    assert semiseg.report(run) == run / "report.html"
    assert semiseg.compare([run, runs["mpl-dense"]], quiet=True).case_count == 1
    assert semiseg.check(phantoms, quiet=True).ok
    assert capsys.readouterr().out == ""


def copied(run: Path, to: Path) -> Path:
    return Path(shutil.copytree(run, to))


def test_an_edited_plan_needs_preparing_again_before_training(runs: dict[str, Path], tmp_path: Path) -> None:
    run = copied(runs["supervised"], tmp_path / "run")
    plan = read_toml(run / "plan.toml")
    write_toml(run / "plan.toml", plan | {"spacing_mm": [2 * mm for mm in plan["spacing_mm"]]})
    with pytest.raises(DataError, match=r"recipe\.json: .* another spacing_mm than plan\.toml has now.*prepare"):
        semiseg.train(run, quiet=True)


def test_a_run_does_not_go_on_with_other_cases(runs: dict[str, Path], tmp_path: Path) -> None:
    run = copied(runs["supervised"], tmp_path / "run")
    rows = read_jsonl(run / "cases.jsonl")
    write_jsonl(run / "cases.jsonl", [row | {"hash": "0" * 64} if row["role"] == "labelled" else row for row in rows])
    with pytest.raises(
        ConfigError, match=r"checkpoints: trained with another plan, other cases or other settings"
    ) as it:
        semiseg.train(run, quiet=True)
    assert "Undo the change in the data folder, use another run folder" in str(it.value)


def test_only_one_process_works_on_a_run(runs: dict[str, Path], tmp_path: Path) -> None:
    run = copied(runs["supervised"], tmp_path / "run")
    code = """
import sys
import semiseg
semiseg.train(sys.argv[1], quiet=True)
assert "torch._dynamo" not in sys.modules, "torch's compiler is imported: a second of every start"
"""
    with FileLock(run / ".lock"):
        done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True)
    assert done.returncode != 0
    assert "another semiseg process works on this run" in done.stderr
    subprocess.run([sys.executable, "-c", code, str(run)], check=True)


def test_what_one_machine_settled_serves_on_another(
    runs: dict[str, Path], phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run.toml` and `settled.toml` are the run: nothing is tried again where both are there."""
    settings = read_settings(runs["supervised"] / "run.toml")
    asked = replace(settings, train=replace(settings.train, threads=0, precision="auto"))
    first, second = tmp_path / "first", tmp_path / "second"
    semiseg.prepare(first, asked, quiet=True)
    semiseg.train(first, quiet=True)
    second.mkdir()
    for name in ("run.toml", "settled.toml"):
        shutil.copy(first / name, second / name)

    def tried(*arguments: Any) -> Any:
        raise AssertionError("tried again")

    monkeypatch.setattr(trial, "fastest_threads", tried)
    monkeypatch.setattr(precision, "_trial", tried)
    semiseg.prepare(second, asked, quiet=True)
    semiseg.train(second, quiet=True)
    assert weights(second) == weights(first)
    assert read_settled(second) == read_settled(first)


def test_settings_in_python_need_not_be_absolute(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: dict[str, Path]
) -> None:
    monkeypatch.chdir(phantoms.parent)
    before = read_settings(runs["supervised"] / "run.toml")
    settings: RunSettings = replace(before, data=replace(before.data, root=phantoms.name))
    semiseg.prepare(tmp_path / "run", settings, quiet=True)
    monkeypatch.chdir(tmp_path)
    semiseg.prepare(tmp_path / "run", before, quiet=True)


def test_functions_and_packages_do_not_share_names() -> None:
    code = """
import semiseg
import semiseg.scoring.metrics as m
import semiseg.training.settings, semiseg.reporting, semiseg.prediction.settings
assert callable(m.score_case)
assert all(callable(getattr(semiseg, name)) for name in semiseg.__all__)
from semiseg import evaluate, predict, report, train
assert evaluate.__module__ == report.__module__ == "semiseg.workflows"
assert (predict.__module__, train.__module__) == ("semiseg.predict_run", "semiseg.train_run")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_docstring_of_the_package_is_true() -> None:
    assert doctest.testmod(semiseg).failed == 0
    assert doctest.testmod(semiseg).attempted > 0
    for name in semiseg.__all__:
        assert callable(getattr(semiseg, name))
