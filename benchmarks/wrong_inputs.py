"""What semiseg says of wrong inputs: makes them, small and synthetic, gives them to the commands, prints a table.

    python benchmarks/wrong_inputs.py                      # what is said now
    python benchmarks/wrong_inputs.py --before CLONE/src   # beside what another version says (docs/lab/wrong_inputs.md)

A minute or two for each version, on one core. FOLDER in the table is the folder that the inputs lie in.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

SHAPE = (20, 22, 24)
AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])
_MOST_CHARACTERS = 420
_TINY = {
    "plan.patch": "[16, 16, 16]",
    "plan.batch": 2,
    "plan.base_features": 4,
    "plan.max_levels": 2,
    "train.steps": 2,
    "train.threads": 1,
    "train.device": "cpu",
    "train.precision": "float32",
    "predict.device": "cpu",
}
TINY = tuple(part for key, value in _TINY.items() for part in ("--set", f"{key}={value}"))

Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]


def ct(seed: int) -> Array:
    """Air around a body, in Hounsfield units."""
    rng = np.random.default_rng(seed)
    array = rng.integers(-1020, -980, SHAPE)
    array[4:16, 4:18, 3:21] = rng.integers(-80, 120, (12, 14, 18))
    return array.astype(np.int16)


def mr(seed: int) -> Array:
    """No values below 0."""
    return np.random.default_rng(seed).gamma(2.0, 150.0, SHAPE).astype(np.float32)


def label(value: float = 1) -> Array:
    """A box of one class."""
    array = np.zeros(SHAPE, np.float32 if value % 1 else np.uint8)
    array[6:12, 7:14, 8:16] = value
    return array


def save(file: Path, array: Array, affine: Array = AFFINE) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    kind: Any = nib.Nifti1Image  # has no annotations
    nib.save(kind(array, affine), file)
    return file


def dicom(folder: Path, count: int = 20) -> None:
    """Files without an ending that say DICM at byte 128."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"IM{number:04d}").write_bytes(bytes(128) + b"DICM" + bytes(200))


def nnunet(root: Path, image: Callable[[int], Array] = ct, *, channel: str = "CT", **entries: object) -> Path:
    """Two labelled, two unlabelled and one test case."""
    for seed, name in enumerate(("imagesTr/a", "imagesTr/b", "imagesUn/c", "imagesUn/d", "imagesTs/e")):
        save(root / f"{name}_0000.nii.gz", image(seed))
    for name in ("labelsTr/a", "labelsTr/b", "labelsTs/e"):
        save(root / f"{name}.nii.gz", label())
    described = {"name": "Made up", "channel_names": {"0": channel}, "labels": {"background": 0, "liver": 1}}
    (root / "dataset.json").write_text(json.dumps(described | entries))
    return root


def plain(root: Path, image: Callable[[int], Array] = mr) -> Path:
    """Two labelled cases and an unlabelled one, without a dataset.json."""
    for seed, name in enumerate("abc"):
        save(root / "images" / f"{name}.nii.gz", image(seed))
    for name in "ab":
        save(root / "labels" / f"{name}.nii.gz", label())
    return root


@dataclass(frozen=True)
class Row:
    """One wrong input. make: fills the folder `data`. Of several commands, given one after the other, what the last one
    says counts. A command that begins with `python:` is Python. listing: a folder or file whose state is shown, too."""

    what: str
    commands: tuple[tuple[str, ...], ...]
    make: Callable[[Path], object]
    listing: str = ""


def check(what: str, make: Callable[[Path], object], *flags: str) -> Row:
    return Row(what, (("check", "data", *flags),), make)


def rows() -> Iterator[Row]:
    """All inputs, in the order of the table. Models of CT and of MR lie in the folders `ct` and `mr`."""
    yield from _files()
    yield from _modality()
    yield from _labels()
    yield from _sizes()
    yield from _settings()
    yield from _prediction()


def _with(make: Callable[[Path], Path], then: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda root: then(make(root))


def _files() -> Iterator[Row]:
    def decathlon(root: Path) -> Path:
        listed = [{"image": f"imagesTr/{n}_0000.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in "ab"]
        nnunet(root, training=listed)
        shutil.rmtree(root / "labelsTs")
        return root

    def new(folder: str, image: Callable[[int], Array] = ct) -> Callable[[Path], object]:
        return lambda root: save(root / folder / "new_0000.nii.gz", image(9))

    yield check("unlabelled scans in `imagesUL/` (nnU-Net)", _with(nnunet, new("imagesUL")))
    yield check("unlabelled scans in `imagesUnlabeled/` (MSD)", _with(decathlon, new("imagesUnlabeled")))
    yield check("unlabelled scans in `Unlabelled/` (plain)", _with(plain, new("Unlabelled", mr)))
    yield check("scans in `imagesVal/`", _with(nnunet, new("imagesVal")))
    yield check("a scan beside the folders", _with(plain, new(".", mr)))
    yield check("a DICOM folder in `images/`", _with(plain, lambda root: dicom(root / "images" / "patient7")))

    def only_dicom(root: Path) -> None:
        dicom(root / "images" / "patient7")
        save(root / "labels" / "patient7.nii.gz", label())

    yield check("nothing but DICOM in `images/`", only_dicom)

    def capitals(root: Path) -> None:
        for file in sorted((nnunet(root) / "imagesUn").iterdir()):
            file.rename(file.with_name(file.name.replace(".nii.gz", ".NII.GZ")))

    yield check("`.NII.GZ`", capitals)
    others = [f"{name}.mgz" for name in "xyz"]
    yield check("`.mgz` among scans", _with(plain, lambda root: _touch(root / "images", *others)))
    yield check("pictures among scans", _with(plain, lambda root: _touch(root / "images", "x.png")))
    fewer = partial(nnunet, numTraining=3)
    more = "imagesTr/x_0000.nii.gz"
    yield check("fewer labels than `numTraining`", _with(fewer, lambda root: save(root / more, ct(8))))

    def lost(root: Path) -> None:
        nnunet(root)
        for number in range(40):
            save(root / "labelsTr" / f"lost{number}.nii.gz", label())

    yield check("40 labels without an image", lost)


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


def _modality() -> Iterator[Row]:
    yield check("CT in a plain folder", lambda root: plain(root, ct))
    yield check("the same, said to be MR", lambda root: plain(root, ct), "--modality", "mr")
    yield check("MR in a plain folder", plain)
    yield check("a channel called MRI that holds CT", lambda root: nnunet(root, channel="MRI"))
    prepare = ("prepare", "run", "--data", "data", *TINY)
    yield Row("the same, prepared", (prepare,), lambda root: nnunet(root, channel="MRI"))
    yield Row("a channel called CT that holds MR, prepared", (prepare,), lambda root: nnunet(root, mr))
    yield Row(
        "a folder that is not read, prepared",
        (prepare,),
        _with(nnunet, lambda root: save(root / "imagesVal" / "v_0000.nii.gz", ct(9))),
    )


def _labels() -> Iterator[Row]:
    def scans_as_labels(make: Callable[[Path], Path], folder: str) -> Callable[[Path], object]:
        return _with(make, lambda root: [save(root / folder / f"{n}.nii.gz", np.abs(ct(3))) for n in "ab"])

    yield check("images in `labels/` (plain)", scans_as_labels(plain, "labels"))
    yield check("images in `labelsTr/` (nnU-Net)", scans_as_labels(nnunet, "labelsTr"))

    def every_label(value: Array, affine: Array = AFFINE) -> Callable[[Path], object]:
        return _with(nnunet, lambda root: [save(root / "labelsTr" / f"{n}.nii.gz", value, affine) for n in "ab"])

    yield check("all labels are empty", every_label(label(0)))
    yield check("label values of 0.9999", every_label(label(0.9999)))
    yield check("label values of 0.5", every_label(label(0.5)))
    yield check("labels mirrored against their images", every_label(label(), AFFINE * np.array([-1, 1, 1, 1])))

    def damaged(root: Path) -> None:
        file = nnunet(root) / "labelsTr" / "b.nii.gz"
        file.write_bytes(file.read_bytes()[:60])
        (root.parent / "bad.txt").write_text("b\n")

    prepare = ("prepare", "run", "--data", "data", *TINY)
    yield Row("a damaged labelled case, prepared", (prepare,), damaged)
    yield Row("what was advised for it", (prepare, (*prepare, "--set", "data.exclude=bad.txt")), damaged)


def _sizes() -> Iterator[Row]:
    def flat(root: Path) -> None:
        for file in nnunet(root).rglob("*.nii.gz"):
            image: Any = nib.load(file)
            save(file, np.asarray(image.dataobj)[7:10, 8:11])

    yield check("scans of 3 x 3 voxels and 24 slices", flat)
    metres = np.diag([1000.0, 1500.0, 2000.0, 1.0])
    yield check(
        "a spacing in metres", _with(nnunet, lambda root: save(root / "imagesUn" / "c_0000.nii.gz", ct(2), metres))
    )
    yield check("no unlabelled scans", _with(nnunet, lambda root: shutil.rmtree(root / "imagesUn")))


def _settings() -> Iterator[Row]:
    for setting in ("train.budget_minute=5", "method.steps=5", "plan.patch=64", "plan.spacing_mm=1.5"):
        yield Row(f"`--set {setting}`", (("prepare", "run", "--data", "data", "--set", setting),), nnunet)
    teacher = ("run", "run", "--data", "data", *TINY, "--set", "data.teacher=ct")
    yield Row("`data.teacher` with the default method", (teacher,), nnunet)
    yield Row("references that are not there", (("evaluate", "--predictions", "data", "--references", "nope"),), nnunet)
    evaluate = ("evaluate", "--predictions", "nope", "--references", "data/labelsTs")
    yield Row("predictions that are not there", (evaluate,), nnunet)
    yield Row("`postprocess` of a run with two labels", (("postprocess", "ct"),), nnunet)


def _prediction() -> Iterator[Row]:
    to_folder = ("--output", "out", "--engine", "torch")
    to_file = ("--output", "seg.nii.gz", "--engine", "torch")
    one = ("predict", "ct", "data/imagesTs/e_0000.nii.gz", *to_file)
    yield Row("one scan into `seg.nii.gz`", (one,), nnunet, "seg.nii.gz")
    yield Row("two scans into `seg.nii.gz`", (("predict", "ct", "data/imagesTr", *to_file),), nnunet)
    yield Row("a file that is there already", (one,), _with(nnunet, lambda root: save(root / "../seg.nii.gz", label())))

    def patients(root: Path) -> None:
        for number, name in enumerate(("ann", "bob")):
            save(root / name / "scan.nii.gz", ct(number))

    into = ("predict", "ct", "data", *to_folder)
    yield Row("scans of one name in sub-folders", (into,), patients, "out")
    yield Row("a `.mgz` to predict", (("predict", "ct", "data/x.mgz", *to_folder),), mgz)
    yield Row("a `.mgz` beside scans to predict", (into,), _with(mgz, lambda root: save(root / "a.nii.gz", ct(1))))
    yield Row("a DICOM folder to predict", (into,), dicom)
    yield Row("MR for a model of CT", (into,), lambda root: save(root / "a.nii.gz", mr(1)))
    yield Row(
        "CT for a model of MR", (("predict", "mr", "data", *to_folder),), lambda root: save(root / "a.nii.gz", ct(1))
    )
    in_memory = "python:import semiseg; print(semiseg.predict_array(np.zeros((20, 22, 24)), (2, 1.5, 1), 'ct').shape)"
    yield Row("`predict_array` with the model's folder", ((in_memory,),), nnunet)
    steps = "python:import semiseg; semiseg.prepare('run', 'recipe.toml')"
    yield Row("`prepare` in Python with a recipe's name", ((steps,),), nnunet)


def mgz(root: Path) -> Path:
    """A folder with the beginning of a file of a format that is not read."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "x.mgz").write_bytes(b"\x1f\x8b")
    return root


def answers(folder: Path) -> list[dict[str, str]]:
    """What the version of semiseg that is imported says of each input, which are made below `folder`."""
    models = folder / "models"
    for name, image, channel in (("ct", ct, "CT"), ("mr", mr, "MRI")):
        nnunet(models / f"data_{name}", image, channel=channel)
        run = ("--data", str(models / f"data_{name}"), "--method", "supervised", "--quiet", *TINY)
        code, said = _said(models, ("run", name, *run))
        if code:
            raise SystemExit(f"the model of {name} could not be made: {said}")
    found = []
    for number, row in enumerate(rows()):
        place = folder / f"{number:02d}"
        for name in ("ct", "mr"):
            shutil.copytree(models / name, place / name, ignore=shutil.ignore_patterns("store", "checkpoints"))
        row.make(place / "data")
        code, said = 0, ""
        for command in row.commands:
            code, said = _said(place, command)
        if row.listing:
            said += f" ({row.listing}: {_state(place / row.listing)})"
        found.append({"what": row.what, "command": _shown(row.commands[-1]), "code": str(code), "said": said})
    return found


def _state(path: Path) -> str:
    """What is at a path."""
    if path.is_dir():
        return f"a folder of {', '.join(sorted(file.name for file in path.iterdir()))}"
    return "a file" if path.exists() else "not there"


def _shown(command: tuple[str, ...]) -> str:
    """The command without what makes it quick."""
    if command[0].startswith("python:"):
        return command[0].removeprefix("python:")
    parts = list(command)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == "--set" and parts[i + 1] in TINY:
            del parts[i : i + 2]
    return "semiseg " + " ".join(parts)


def _said(place: Path, command: tuple[str, ...]) -> tuple[int, str]:
    """The exit code, and what matters of what was printed in the folder."""
    from semiseg.cli import main

    out, err = io.StringIO(), io.StringIO()
    code = 0
    with chdir(place), redirect_stdout(out), redirect_stderr(err):
        try:
            if command[0].startswith("python:"):
                exec(command[0].removeprefix("python:"), {"Path": Path, "np": np})
            else:
                main(command)
        except SystemExit as ended:
            code = int(ended.code) if isinstance(ended.code, int) else 1
        except Exception:  # noqa: BLE001 - a traceback is an answer, too
            code = 1
            err.write("Traceback: " + traceback.format_exc().strip().splitlines()[-1])
    printed = out.getvalue()
    if command[0] == "check":
        begin = re.search(r"^(error|warning|note|Ready|Not ready)", printed, re.MULTILINE)
        channel = re.search(r"^channels\s+(.*)$", printed, re.MULTILINE)
        cases = re.search(r"^cases\s+(.*)$", printed, re.MULTILINE)
        facts = [f"{m.group(1).strip()};" for m in (cases, channel) if m]
        printed = " ".join([*facts, printed[begin.start() :] if begin else printed])
    text = " ".join((err.getvalue() + " " + printed).split())
    text = text.replace(str(place.resolve()), "FOLDER").replace(str(place), "FOLDER")
    text = re.sub(r"\S*/(site-packages|tmp)/\S*", "...", text)
    return code, text


def _cell(answer: dict[str, str]) -> str:
    said = answer["said"]
    if len(said) > _MOST_CHARACTERS:  # the end is the verdict
        said = said[: _MOST_CHARACTERS - 120].rsplit(" ", 1)[0] + " ... " + said[-120:].partition(" ")[2]
    return f"{answer['code']}: " + said.replace("|", "\\|").replace("<", "&lt;")


def _in_another_process(source: Path) -> list[dict[str, str]]:
    """The answers of the version whose `src` folder is named."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "answers.json"
        environment = os.environ | {"PYTHONPATH": str(source.resolve()), "XDG_CACHE_HOME": scratch, "COLUMNS": "400"}
        command = [sys.executable, __file__, "--answers", str(file)]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        found: list[dict[str, str]] = json.loads(file.read_text())
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="src folder of another version, to be asked too")
    parser.add_argument("--answers", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.answers:
        with tempfile.TemporaryDirectory() as folder:
            given.answers.write_text(json.dumps(answers(Path(folder))))
        return
    now = _in_another_process(Path(__file__).resolve().parents[1] / "src")
    before = _in_another_process(given.before) if given.before else None
    heads = ["", "input", "command", *(["said before"] if before else []), "said now" if before else "said"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for number, answer in enumerate(now):
        cells = [str(number + 1), answer["what"], f"`{answer['command']}`"]
        cells += [_cell(before[number])] if before else []
        print("| " + " | ".join([*cells, _cell(answer)]) + " |")


if __name__ == "__main__":
    main()
