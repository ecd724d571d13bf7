"""The command line: help at once, exit codes, and errors as one message without a traceback."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from semiseg.errors import ConfigError
from semiseg.prepare_run import prepare
from semiseg.processes import asked_ranks
from semiseg.settings import read_settings

Command = Callable[..., Any]
COMMANDS = ("check", "prepare", "train", "predict", "evaluate", "compare", "study", "report", "run", "demo")
pytestmark = pytest.mark.usefixtures("one_core")


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, one_core: None, semiseg_command: Command, phantoms: Path, tiny: list[str]
) -> Path:
    """A supervised run that was trained and nothing else; tests leave it as it is."""
    run = tmp_path_factory.mktemp("cli") / "trained"
    assert semiseg_command("prepare", run, "--data", phantoms, "--method", "supervised", *tiny, "--quiet").code == 0
    assert semiseg_command("train", run, "--quiet").code == 0
    return run


def refused(answer: Any, *parts: str) -> None:
    """The answer is one message on stderr that has all the parts, with exit code 2."""
    assert answer.code == 2, answer
    assert answer.err.startswith("semiseg: error: ")
    assert "Traceback" not in answer.err
    for part in parts:
        assert part in answer.err


def test_help_needs_no_torch() -> None:
    code = """
import sys
from semiseg.cli import main
try:
    main(["--help"])
except SystemExit as ended:
    heavy = {"torch", "scipy", "matplotlib", "nibabel", "pydantic"} & set(sys.modules)
    sys.exit(f"imported {heavy}" if heavy else ended.code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(semiseg_command: Command, name: str) -> None:
    answer = semiseg_command(name, "--help")
    assert answer.code == 0
    assert f"usage: semiseg {name}" in answer.out
    for noise in ("None", "(default: )", "(default: False)", "(default: 0)", "(default: 0.0)"):
        assert noise not in answer.out


def test_help_shows_first_what_is_asked_for_most(semiseg_command: Command) -> None:
    shown = semiseg_command("run", "--help").out
    flags = re.findall(r"^\W+--(\w+)", shown, re.MULTILINE)
    assert flags[:3] == ["data", "minutes", "labelled"]
    assert flags[-4:] == ["quiet", "threads", "workers", "scheduler"]
    assert "usage: semiseg predict [-h] [PREDICT OPTIONS] MODEL [SCANS ...]" in semiseg_command("predict", "--help").out
    # A line is broken for the terminal, not where the source has it.
    assert not re.search(r"^\W+overrides\W+$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    "arguments", [(), ("unknown",), ("train",), ("train", "a", "--wat"), ("run", "a", "--labelled", "x")]
)
def test_a_command_line_that_cannot_be_is_2(semiseg_command: Command, arguments: tuple[str, ...]) -> None:
    answer = semiseg_command(*arguments)
    assert answer.code == 2
    assert "Traceback" not in answer.err


def test_the_process_speaks_the_same(tmp_path: Path) -> None:
    """The one test of errors in a real process: `python -m semiseg` and its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "semiseg", "check", str(tmp_path / "none")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"semiseg: error: {tmp_path}/none: there is no such folder.\n"


def test_who_reads_may_stop_before_the_end() -> None:
    """`semiseg ... | head`, whose head has gone before a line is written."""
    code = "import sys; from semiseg.cli import run_command; sys.exit(run_command(lambda: print('a table') or 0))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        said = process.stderr.read()
    assert (said, process.returncode) == (b"", 1)


def test_check_answers_0_or_1(semiseg_command: Command, phantoms: Path, tmp_path: Path) -> None:
    assert semiseg_command("check", phantoms).code == 0
    broken = shutil.copytree(phantoms, tmp_path / "broken")
    (broken / "imagesTr" / "phantom_000_0000.nii.gz").write_bytes(b"not a scan")
    answer = semiseg_command("check", broken)
    assert answer.code == 1
    assert "phantom_000" in answer.out


def test_settings_that_cannot_be(semiseg_command: Command, phantoms: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    answer = semiseg_command("run", run, "--data", phantoms, "--set", "train.stepz=1")
    refused(answer, "unknown key train.stepz")
    answer = semiseg_command("run", run, "--data", phantoms, "--set", "train.steps", "1")
    refused(answer, "--set train.steps 1: write it as one word, --set train.steps=1.")
    refused(semiseg_command("run", run), "data.root", "--data")
    refused(semiseg_command("run", run, "--recipe", tmp_path / "no.toml"), "no.toml: there is no such file")
    refused(semiseg_command("run", run, "--data", phantoms, "--labelled", 9), "data.labelled = 9")


def test_a_slip_does_not_spoil_the_run_folder(
    semiseg_command: Command, phantoms: Path, tmp_path: Path, tiny: list[str]
) -> None:
    """A wrong folder or a patch that cannot be, and the right call afterwards."""
    run = tmp_path / "run"
    refused(semiseg_command("prepare", run, "--data", tmp_path / "none", *tiny), "there is no such folder")
    assert not run.exists()
    answer = semiseg_command("prepare", run, "--data", phantoms, *tiny, "--set", "plan.patch=[7, 7, 7]")
    refused(answer, "plan.patch")
    assert semiseg_command("prepare", run, "--data", phantoms, *tiny, "--quiet").code == 0


@pytest.mark.parametrize("command", ["train", "evaluate", "compare", "report", "predict"])
def test_a_run_that_is_not_there(semiseg_command: Command, phantoms: Path, tmp_path: Path, command: str) -> None:
    missing = tmp_path / "no-run"
    more = {"predict": [phantoms / "imagesTs", "--output", tmp_path / "out"], "compare": [missing]}
    refused(semiseg_command(command, missing, *more.get(command, [])), str(missing))
    assert not missing.exists()


def test_another_setting_for_an_existing_run(
    semiseg_command: Command, trained: Path, phantoms: Path, tmp_path: Path
) -> None:
    before = (trained / "run.toml").read_bytes()
    answer = semiseg_command("prepare", trained, "--set", "train.seed=1")
    refused(answer, "run.toml", "train.seed = 0 in the run, 1 now", "another run folder")
    refused(semiseg_command("prepare", trained, "--set", "train.threads=2"), "train.threads")
    refused(semiseg_command("prepare", trained, "--method", "mpl"), "method.name = 'supervised'")
    refused(semiseg_command("prepare", trained, "--data", tmp_path), "data.root")
    assert (trained / "run.toml").read_bytes() == before
    # How it predicts and is scored can be changed, and nothing else need be repeated for it.
    run = shutil.copytree(trained, tmp_path / "copy")
    assert semiseg_command("prepare", run, "--set", "evaluate.tolerance_mm=2", "--quiet").code == 0
    assert read_settings(run / "run.toml").evaluate.tolerance_mm == 2
    assert read_settings(run / "run.toml").train == read_settings(trained / "run.toml").train


def test_until_it_is_trained_a_run_may_still_change(
    semiseg_command: Command, phantoms: Path, tmp_path: Path, tiny: list[str]
) -> None:
    """How it is trained, and which cases are left out: what is prepared stays."""
    data, run = shutil.copytree(phantoms, tmp_path / "data"), tmp_path / "run"
    damaged = data / "imagesUn" / "phantom_003_0000.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    advised = f"data.exclude={run / 'damaged.txt'}"
    refused(semiseg_command("prepare", run, "--data", data, *tiny), "phantom_003", "others are kept", advised)
    stored = (run / "store" / "phantom_002" / "image.b2nd").stat().st_mtime_ns
    exclude = ["--set", advised, "--set", "train.seed=4", "--method", "supervised"]
    assert semiseg_command("prepare", run, *exclude, "--quiet").code == 0
    assert (run / "store" / "phantom_002" / "image.b2nd").stat().st_mtime_ns == stored
    refused(
        semiseg_command("prepare", run, "--set", "plan.batch=4"),
        "plan.batch = 2 in the run, 4 now",
    )
    answer = semiseg_command("prepare", run, "--set", "train.minutes=5")  # the plan is made for them
    refused(answer, "train.minutes", "delete", f"{run}/plan.toml")
    for steps in (9, 6):  # it is the same for any number of them
        assert semiseg_command("prepare", run, "--set", f"train.steps={steps}", "--quiet").code == 0
        assert read_settings(run / "run.toml").train.steps == steps
    assert semiseg_command("train", run, "--quiet").code == 0
    refused(semiseg_command("prepare", run, "--set", "train.seed=5"), "train.seed = 4 in the run")
    refused(semiseg_command("train", run, "--minutes", 5), "training has begun")
    settings = (run / "run.toml").read_text()
    (run / "run.toml").write_text(settings.replace("\nsteps = 6\n", "\nsteps = 5\n"))
    refused(semiseg_command("train", run), "checkpoints", "train.steps = 6 then, 5 now")


def test_minutes_threads_and_steps_on_the_command_line(
    semiseg_command: Command, phantoms: Path, tmp_path: Path, tiny: list[str]
) -> None:
    run = tmp_path / "run"
    flags = ["--data", phantoms, "--method", "supervised", *tiny, "--quiet"]
    assert semiseg_command("prepare", run, *flags, "--set", "train.seed=3").code == 0
    assert read_settings(run / "run.toml").train.steps == 6
    # Before training has begun, other minutes with the plan as it is: they take the place of steps.
    assert semiseg_command("train", run, "--minutes", 0.02, "--quiet").code == 0
    train = read_settings(run / "run.toml").train
    assert (train.minutes, train.steps, train.seed) == (0.02, None, 3)
    refused(semiseg_command("check", phantoms, "--threads", -1), "--threads -1: give 1 or more")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["run", "new", "--minutes", "abc"], "--minutes abc: not a number. Correct it."),
        (["run", "new", "--labelled", "1.5"], "--labelled 1.5: not a whole number. Correct it."),
        (["run", "new", "--continue", "x"], "--continue x: not a number. Correct it."),
        (["evaluate", "--tolerance-mm", "3,5"], "--tolerance-mm 3,5: not a number. Correct it."),
    ],
)
def test_a_wrong_number_is_one_message_that_names_the_flag(
    semiseg_command: Command, given: list[str], said: str
) -> None:
    answer = semiseg_command(*given)
    assert (answer.code, answer.err) == (2, f"semiseg: error: {said}\n")


def test_minutes_take_the_place_of_a_recipes_steps(
    semiseg_command: Command, phantoms: Path, tmp_path: Path, tiny: list[str]
) -> None:
    (tmp_path / "recipe.toml").write_text("[train]\nsteps = 250000\n")
    without = [
        flag for pair in zip(tiny[::2], tiny[1::2], strict=True) if "train.steps" not in pair[1] for flag in pair
    ]
    flags = ["--data", phantoms, "--recipe", tmp_path / "recipe.toml", *without, "--quiet"]
    assert semiseg_command("prepare", tmp_path / "a", *flags, "--minutes", 5).code == 0
    train = read_settings(tmp_path / "a" / "run.toml").train
    assert (train.minutes, train.steps) == (5.0, None)
    both = ["--minutes", 5, "--set", "train.steps=7"]
    answer = semiseg_command("prepare", tmp_path / "b", *flags, *both)
    refused(answer, "--minutes and --set train.steps=7 both say how long training is")


def test_check_says_which_plan_the_minutes_would_get(semiseg_command: Command, phantoms: Path) -> None:
    answer = semiseg_command("check", phantoms, "--minutes", 2, "--threads", 1)
    assert answer.code == 0, answer
    said = answer.out.split("The plan for 2 minutes on this machine:")[1]
    assert all(word in said for word in ("Time: about", "Grid: ", "Patch: ", "Network: ", "Mirroring: "))


def test_a_damaged_labelled_case_may_be_left_out(
    semiseg_command: Command, phantoms: Path, tmp_path: Path, tiny: list[str]
) -> None:
    """What the message advises helps."""
    data, run = shutil.copytree(phantoms, tmp_path / "data"), tmp_path / "run"
    damaged = data / "labelsTr" / "phantom_001.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:200])
    checked = semiseg_command("check", data, "--minutes", 2)
    assert (checked.code, "The plan for 2 minutes is made once there are no errors." in checked.out) == (1, True)
    (tmp_path / "bad.txt").write_text("phantom_003\n")
    exclude = ["--set", f"data.exclude={tmp_path / 'bad.txt'}"]
    advised = f"data.exclude={run / 'damaged.txt'}"
    refused(semiseg_command("prepare", run, "--data", data, *tiny, *exclude), "phantom_001", advised)
    assert (run / "damaged.txt").read_text().splitlines()[1:] == ["phantom_003", "phantom_001"], "those before, too"
    answer = semiseg_command("prepare", run, "--data", data, *tiny, "--set", advised)
    assert answer.code == 0
    assert "phantom_001" not in (run / "cases.jsonl").read_text()


def test_prepare_says_what_check_says(
    semiseg_command: Command, phantoms: Path, tmp_path: Path, tiny: list[str]
) -> None:
    """Of headers, values and labels, without reading every voxel a second time."""
    data = shutil.copytree(phantoms, tmp_path / "data")
    (data / "dataset.json").write_text((data / "dataset.json").read_text().replace('"CT"', '"T1"'))
    shutil.copytree(data / "imagesUn", data / "more")
    scan = nib.load(data / "imagesUn" / "phantom_002_0000.nii.gz")
    turned = np.diag([1.0, 1.0, 4.0, 1.0])
    changed = nib.Nifti1Image(np.asarray(scan.dataobj), scan.affine)
    changed.set_sform(scan.affine, 1)
    changed.set_qform(turned, 1)
    nib.save(changed, data / "imagesUn" / "phantom_002_0000.nii.gz")
    other = data / "imagesUn" / "phantom_003_0000.nii.gz"
    scan = nib.load(other)
    nib.save(nib.Nifti1Image(np.asarray(scan.dataobj), scan.affine * 0.1), other)
    shutil.copy(data / "imagesTr" / "phantom_000_0000.nii.gz", data / "imagesTs" / "phantom_004_0000.nii.gz")
    label = nib.load(data / "labelsTr" / "phantom_001.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), data / "labelsTr" / "phantom_001.nii.gz")
    answer = semiseg_command("prepare", tmp_path / "run", "--data", data, *tiny)
    assert answer.code == 0
    for words in (
        "look like Hounsfield units. If it is CT, call it CT in dataset.json",
        "more: not read, though it holds 2 NIfTI files",
        "phantom_002_0000.nii.gz: sform and qform disagree",
        "phantom_001.nii.gz: the label is empty",
        "phantom_003_0000.nii.gz: the scan measures",
        "phantom_004_0000.nii.gz: the same file as labelled case phantom_000: a test scan is trained on",
    ):
        assert words in answer.err
    assert semiseg_command("prepare", tmp_path / "other", "--data", data, *tiny, "--modality", "ct").code == 0
    assert 'scheme = "ct"' in (tmp_path / "other" / "plan.toml").read_text()
    assert 'scheme = "zscore"' in (tmp_path / "run" / "plan.toml").read_text()
    quiet = semiseg_command("prepare", tmp_path / "third", "--data", data, *tiny, "--quiet")
    assert (quiet.code, quiet.err) == (0, "")


def test_a_teacher_of_unlabelled_scans_needs_a_method_of_labels(
    semiseg_command: Command, phantoms: Path, tmp_path: Path, tiny: list[str]
) -> None:
    teacher = ["--set", f"data.teacher={tmp_path}"]
    answer = semiseg_command("prepare", tmp_path / "run", "--data", phantoms, *tiny, *teacher)
    refused(answer, "labels every unlabelled scan", "Add --method supervised")


def test_folders_of_labels_that_are_not_there(semiseg_command: Command, phantoms: Path, tmp_path: Path) -> None:
    labels = phantoms / "labelsTr"
    answer = semiseg_command("evaluate", "--predictions", labels, "--references", tmp_path / "nope")
    refused(answer, "nope: there is no such folder. Name the folder of the reference label maps.")
    answer = semiseg_command("evaluate", "--predictions", tmp_path / "nope", "--references", labels)
    refused(answer, "nope: there is no such folder. Name the folder of the predicted label maps.")


def test_a_misspelt_list_is_not_kept(semiseg_command: Command, phantoms: Path, tmp_path: Path, tiny: list[str]) -> None:
    run = tmp_path / "run"
    wrong = ["--set", f"data.exclude={tmp_path / 'nofile.txt'}"]
    refused(semiseg_command("prepare", run, "--data", phantoms, *tiny, *wrong), "nofile.txt")
    assert semiseg_command("prepare", run, "--data", phantoms, *tiny, "--quiet").code == 0


def test_what_cannot_be_scored_is_said_before_training(
    semiseg_command: Command, phantoms: Path, tmp_path: Path, tiny: list[str]
) -> None:
    wrong = ["--set", "evaluate.organ_tolerance_mm={livr=2.0}"]
    answer = semiseg_command("prepare", tmp_path / "run", "--data", phantoms, *tiny, *wrong)
    refused(answer, "organ_tolerance_mm names livr")


def test_a_smaller_student_is_refused_where_there_is_no_teacher_beside_it(
    semiseg_command: Command, phantoms: Path, tmp_path: Path, tiny: list[str]
) -> None:
    """It would be trained alone."""
    arguments = ["prepare", tmp_path / "run", "--data", phantoms, *tiny, "--set", "plan.student_base_features=2"]
    refused(semiseg_command(*arguments), "pseudo_rounds has no teacher of another size")
    for method in ("pseudo_label", "supervised"):
        assert semiseg_command(*arguments, "--method", method, "--quiet").code == 0


def test_a_dataset_is_no_run_folder(semiseg_command: Command, phantoms: Path, tiny: list[str]) -> None:
    for run in (phantoms, phantoms / "runs" / "first"):
        refused(semiseg_command("prepare", run, "--data", phantoms, *tiny), "lies in the dataset")
    refused(semiseg_command("report", phantoms), "no prepared run here")
    assert not (phantoms / "report.html").exists()


def test_what_is_set_aside_is_named(semiseg_command: Command, phantoms: Path, tmp_path: Path, tiny: list[str]) -> None:
    data = shutil.copytree(phantoms, tmp_path / "data")
    (data / "imagesUn" / "gone_0000.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    (data / "imagesUn" / "other.mgz").touch()
    answer = semiseg_command("prepare", tmp_path / "run", "--data", data, *tiny)
    assert answer.code == 0
    for name in ("gone_0000.nii.gz: a link to", "other.mgz: .mgz is not read yet"):
        assert name in answer.err
    answer = semiseg_command("check", data)
    assert answer.code == 0  # as of prepare
    assert answer.out.count("Set aside: ") == 2


def test_a_path_that_cannot_be_written_is_one_sentence(
    semiseg_command: Command, trained: Path, phantoms: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    scans = ["predict", trained, phantoms / "imagesTs", "--device", "cpu", "--output"]
    refused(semiseg_command(*scans, file), f"{file}: ", "permissions")
    refused(semiseg_command("prepare", file, "--data", phantoms), f"{file}: is a file")
    refused(semiseg_command("predict", trained, "--output", tmp_path / "out"), "no scans: name files")


def test_the_version(semiseg_command: Command) -> None:
    assert semiseg_command("--version").out.startswith("semiseg 0.")


def test_a_data_folder_of_any_name(semiseg_command: Command, phantoms: Path, tmp_path: Path, tiny: list[str]) -> None:
    odd = shutil.copytree(phantoms, tmp_path / 'my "scans" \\ é')
    run = tmp_path / "run"
    assert semiseg_command("prepare", run, "--data", odd, *tiny, "--quiet").code == 0
    assert read_settings(run / "run.toml").data.root == str(odd.resolve())


def test_a_relative_data_folder_is_kept_whole(
    semiseg_command: Command, phantoms: Path, tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same run goes on from another working folder, whichever way the data were named."""
    monkeypatch.chdir(phantoms.parent)
    flags = ["--set", f"data.root={phantoms.name}", *tiny, "--quiet"]
    assert semiseg_command("prepare", tmp_path / "run", *flags).code == 0
    monkeypatch.chdir(tmp_path)
    assert semiseg_command("prepare", "run", "--quiet").code == 0
    assert read_settings(tmp_path / "run" / "run.toml").data.root == str(phantoms.resolve())


def test_no_labels_and_no_unlabelled_scans(
    semiseg_command: Command, phantoms: Path, tmp_path: Path, tiny: list[str]
) -> None:
    bare = shutil.copytree(phantoms, tmp_path / "bare")
    shutil.rmtree(bare / "imagesUn")
    run = tmp_path / "run"
    needs = ["--method", "pseudo_label"]
    refused(semiseg_command("run", run, "--data", bare, *tiny, *needs, "--quiet"), "no unlabelled case", "supervised")
    alone = semiseg_command("run", tmp_path / "alone", "--data", bare, *tiny)
    assert alone.code == 0, alone
    assert "There are no unlabelled scans: it learns from labels alone." in alone.out
    shutil.rmtree(bare / "labelsTr")
    other = tmp_path / "other"
    refused(semiseg_command("run", other, "--data", bare, *tiny, "--quiet"), "no training case has a label")


def test_one_file_is_named_for_one_scan(
    semiseg_command: Command, trained: Path, phantoms: Path, tmp_path: Path
) -> None:
    (scan,) = (phantoms / "imagesTs").iterdir()
    answer = semiseg_command("predict", trained, scan, "--output", tmp_path / "seg.nii.gz", "--engine", "torch")
    assert answer.code == 0
    assert [file.name for file in tmp_path.iterdir()] == ["seg.nii.gz"]
    assert nib.load(tmp_path / "seg.nii.gz").shape == nib.load(scan).shape
    again = semiseg_command("predict", trained, scan, "--output", tmp_path / "seg.nii.gz", "--engine", "torch")
    refused(again, "is there already, and a file that is named is never overwritten")
    several = semiseg_command("predict", trained, phantoms / "imagesTr", "--output", tmp_path / "several.nii.gz")
    refused(several, "names one file, but there are 2 scans to predict. Name a folder.")


def test_prediction_goes_on_past_a_bad_scan(
    semiseg_command: Command, trained: Path, phantoms: Path, tmp_path: Path
) -> None:
    scans = shutil.copytree(phantoms / "imagesTs", tmp_path / "scans")
    (scans / "bad_0000.nii.gz").write_bytes(b"\x1f\x8b not gzip")
    (scans / "awful_0000.nii").write_bytes(bytes(400))
    out = tmp_path / "out"
    answer = semiseg_command("predict", trained, scans, "--output", out, "--device", "cpu")
    assert answer.code == 1
    assert answer.err.count("failed: ") == 2
    assert "bad_0000.nii.gz" in answer.err
    assert "1 scan in" in answer.out
    assert sorted(p.name for p in out.glob("*.nii.gz")) == ["phantom_004.nii.gz"]
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert {row["id"]: "error" in row for row in rows} == {"awful": True, "bad": True, "phantom_004": False}


def test_prediction_without_scans(semiseg_command: Command, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = ["--output", tmp_path / "out"]
    refused(semiseg_command("predict", trained, tmp_path / "none", *out), "none: there is no such file or folder")
    refused(
        semiseg_command("predict", trained, tmp_path / "empty", *out),
        "no .nii.gz, .nii, .nrrd, .nhdr, .mha or .mhd file",
    )


def test_a_device_that_is_not_there(semiseg_command: Command, trained: Path, phantoms: Path, tmp_path: Path) -> None:
    answer = semiseg_command("predict", trained, phantoms / "imagesTs", "--output", tmp_path, "--device", "cuda:99")
    refused(answer, "cuda:99")


def test_a_damaged_model(semiseg_command: Command, trained: Path, phantoms: Path, tmp_path: Path) -> None:
    def predict(model: Path) -> Any:
        return semiseg_command("predict", model, phantoms / "imagesTs", "--output", tmp_path / "out", "--device", "cpu")

    refused(predict(tmp_path), "no model here")
    for damaged in ("weights.safetensors", "card.json", "plan.toml"):
        model = shutil.copytree(trained / "model", tmp_path / f"without {damaged}")
        (model / damaged).unlink()
        refused(predict(model), str(model))
        (model / damaged).write_bytes(b"\x00\x01 rubbish \xff")
        refused(predict(model), damaged)
    assert not list(tmp_path.glob("out/*.nii.gz"))


def test_evaluate_names_the_missing_prediction(
    semiseg_command: Command, trained: Path, phantoms: Path, tmp_path: Path
) -> None:
    refused(semiseg_command("evaluate", trained), "phantom_004")
    (tmp_path / "predictions").mkdir()
    folders = ["--predictions", tmp_path / "predictions", "--references", phantoms / "labelsTs"]
    refused(semiseg_command("evaluate", *folders), "phantom_004")
    refused(semiseg_command("evaluate", "--references", tmp_path), "--predictions")
    refused(semiseg_command("evaluate", trained, "--tolerance-mm", 3), "run.toml")


def started_by_torchrun(monkeypatch: pytest.MonkeyPatch, ranks: int | str) -> None:
    for name, value in {"WORLD_SIZE": str(ranks), "RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)


def test_ranks_are_refused_by_commands_that_share_no_work(
    semiseg_command: Command, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # by something else
    assert asked_ranks() == 1
    started_by_torchrun(monkeypatch, "")
    assert asked_ranks() == 1
    started_by_torchrun(monkeypatch, 2)
    for arguments in (["check", phantoms], ["predict", tmp_path, phantoms, "--output", tmp_path / "out"]):
        refused(semiseg_command(*arguments), "torchrun starts 2 processes", "only train and run")
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_ranks_cannot_share_is_refused_before_scans_are_prepared(
    phantoms: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = read_settings(trained / "run.toml")
    assert settings.plan.batch == 2
    started_by_torchrun(monkeypatch, 3)
    with pytest.raises(ConfigError, match="A batch of 2 cannot be divided among 3 ranks: start 1 or 2"):
        prepare(tmp_path / "run", settings, quiet=True)
    assert not list((tmp_path / "run").glob("store/phantom_*"))


def test_evaluate_scores_two_folders(semiseg_command: Command, phantoms: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folders = ["--predictions", phantoms / "labelsTs", "--references", phantoms / "labelsTs", "--output", out]
    assert semiseg_command("evaluate", *folders, "--labels", phantoms / "dataset.json").code == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rules"] == "standard"
    assert summary["mean"]["dice"]["mean"] == 1.0
    assert set(summary["tolerance_mm"].values()) == {1.0}
    assert semiseg_command("evaluate", *folders, "--rules", "flare22").code == 0
    assert json.loads((out / "summary.json").read_text())["rules"] == "flare22"
    refused(semiseg_command("evaluate", *folders, "--patients", "("), "no regular expression")
    of_training = ["--predictions", phantoms / "labelsTr", "--references", phantoms / "labelsTr", "--output", out]
    answer = semiseg_command("evaluate", *of_training, "--patients", "phantom")
    assert answer.code == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["patients"] == "phantom"
    assert f"{len(summary['cases'])} cases of 1 patient" in answer.out


def test_compare_needs_two_evaluated_runs(semiseg_command: Command, trained: Path) -> None:
    refused(semiseg_command("compare", trained, trained), "summary.json")


def test_an_empty_scan_is_named(semiseg_command: Command, trained: Path, tmp_path: Path) -> None:
    """NaN voxels: an error of that scan, not a map of anything."""
    voxels = np.full((8, 8, 8), np.nan, dtype=np.float32)
    image_type: Any = nib.Nifti1Image
    nib.save(image_type(voxels, np.eye(4)), tmp_path / "nan_0000.nii.gz")
    answer = semiseg_command("predict", trained, tmp_path, "--output", tmp_path / "out", "--device", "cpu")
    assert answer.code == 1
    assert "nan_0000.nii.gz" in answer.err
    assert not (tmp_path / "out" / "nan.nii.gz").exists()
