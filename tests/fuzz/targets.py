"""What reads files: each with the files that it reads, and what it makes of them when they are whole."""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK

from semiseg import workflows
from semiseg.cli import main
from semiseg.data.roles import read_run_cases
from semiseg.geometry import Box
from semiseg.io.layouts import read_dataset
from semiseg.io.scans import read_label, read_some, read_volume
from semiseg.io.store import check_files, open_case
from semiseg.prediction.engines.torch_engine import load_network
from semiseg.prediction.inputs import find_scans
from semiseg.prediction.model import load_model
from semiseg.prediction.postprocessing import read_steps
from semiseg.reporting.closing import closing_lines
from semiseg.run_folder import budget, prepared_settings
from semiseg.training.checkpoint import load_latest
from semiseg.training.settled import read_settled

sys.path.insert(0, str(Path(__file__).parents[1]))
from made_series import write_series


@dataclass(frozen=True)
class Target:
    """files: those that are damaged, below the folder. call: reads them; equal results have equal values. proven: a
    checksum tells damage, so that another result without an error is wrong."""

    name: str
    folder: Path
    files: tuple[str, ...]
    call: Callable[[Path], Any]
    proven: bool = False


def _arrays(folder: Path) -> bytes:
    volume = read_volume([folder / "scan.nii.gz"])
    return volume.array.tobytes() + volume.grid.affine.tobytes()


def _label(folder: Path) -> bytes:
    label, grid = read_label(folder / "label.nii.gz")
    return label.tobytes() + grid.affine.tobytes()


def _uncompressed(folder: Path) -> bytes:
    return read_volume([folder / "scan.nii"]).array.tobytes()


def _reader(name: str) -> Callable[[Path], bytes]:
    def read(folder: Path) -> bytes:
        some, _ = read_some(folder / name, 0, 1000)
        volume = read_volume([folder / name])
        return volume.array.tobytes() + volume.grid.affine.tobytes() + some.tobytes()

    return read


def _series(name: str) -> Callable[[Path], bytes]:
    """Reads DICOM as a scan of its own, and as what lies in a folder of scans to predict."""

    def read(folder: Path) -> bytes:
        found = find_scans([folder / name])
        volume = read_volume(found[0].images)
        some, _ = read_some(found[0].images[0], 0, 1000)
        return volume.array.tobytes() + volume.grid.affine.tobytes() + some.tobytes()

    return read


def _made_series(scratch: Path) -> list[Target]:
    voxels = np.random.default_rng(1).integers(-1000, 1000, (5, 12, 13)).astype(np.int16)
    write_series(scratch / "series" / "files", voxels)
    write_series(scratch / "series" / "enhanced", voxels, enhanced=True)
    files = sorted((scratch / "series" / "files").iterdir())
    with zipfile.ZipFile(scratch / "series" / "files.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        for file in files:
            zipped.write(file, f"study/{file.name}")
    here = scratch / "series"
    return [
        Target("DICOM files", here, tuple(f"files/{file.name}" for file in files), _series("files")),
        Target("enhanced DICOM", here, ("enhanced/enhanced.dcm",), _series("enhanced")),
        Target("zip of DICOM", here, ("files.zip",), _series("files.zip")),
    ]


def _model(folder: Path) -> str:
    model = load_model(folder)
    weights = {name: value.sum().item() for name, value in load_network(model).state_dict().items()}
    return f"{weights} {model.plan} {model.mirror_axes} {read_steps(folder, model.plan.labels.organs)}"


def _stored(folder: Path) -> bytes:
    check_files(folder)
    case = open_case(folder)
    whole = Box((0, 0, 0), case.meta.shape_zyx)
    return case.read_image(whole).tobytes() + case.read_label(whole).tobytes() + repr(case.meta).encode()


def _checkpoint(folder: Path) -> str:
    checkpoint = load_latest(folder)
    return "" if checkpoint is None else f"{checkpoint.step} {sorted(checkpoint.tensors)} {checkpoint.numbers}"


def _run(folder: Path) -> str:
    prepared_settings(folder)
    read_run_cases(folder / "cases.jsonl")
    read_settled(folder)
    closing_lines(folder)
    return budget(folder)


def _report(folder: Path) -> bool:
    return workflows.report(folder).is_file()


def _dataset(folder: Path) -> str:
    dataset = read_dataset(folder)
    return f"{dataset.labels} {dataset.channels} {dataset.train_order}"


def _predictions(folder: Path) -> int:
    try:
        main(["predict", str(folder / "model"), str(folder / "scans"), "--output", str(folder / "out"), "--quiet",
              "--engine", "torch", "--device", "cpu"])  # fmt: skip
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def targets(run: Path, data: Path, scratch: Path) -> list[Target]:
    """All of them, with their whole files in folders of `scratch`. run: a finished one, of the dataset `data`."""
    scans = scratch / "scans"
    scans.mkdir(parents=True)
    generator = np.random.default_rng(0)
    scan = nib.Nifti1Image(generator.integers(-1000, 1000, (12, 13, 14), dtype=np.int16), np.diag([0.8, 0.8, 2.5, 1]))
    label = nib.Nifti1Image(generator.integers(0, 3, (12, 13, 14), dtype=np.uint8), np.eye(4))
    for name in ("scan.nii.gz", "scan.nii"):
        nib.save(scan, scans / name)
    nib.save(label, scans / "label.nii.gz")
    image = SimpleITK.GetImageFromArray(np.asarray(scan.dataobj))
    others = ("packed.nrrd", "packed.mha", "plain.nrrd", "plain.mha", "apart.nhdr", "apart.mhd")
    for name in others:
        SimpleITK.WriteImage(image, str(scans / name), not name.startswith("plain"))
    beside = {"apart.nhdr": ("apart.nhdr", "apart.raw.gz"), "apart.mhd": ("apart.mhd", "apart.zraw")}
    case = next(path for path in sorted((run / "store").iterdir()) if (path / "label.b2nd").exists())
    shutil.copytree(case, scratch / "case" / case.name)
    shutil.copytree(run / "checkpoints", scratch / "checkpoints")
    shutil.copytree(run / "model", scratch / "model")
    shutil.copytree(data, scratch / "data")
    shutil.copytree(run, scratch / "run")
    shutil.copytree(run / "model", scratch / "predicting" / "model")
    shutil.copytree(data / "imagesTs", scratch / "predicting" / "scans")
    _predictions(scratch / "predicting")
    step = sorted((scratch / "checkpoints").iterdir())[-1].name
    run_files = ("run.toml", "settled.toml", "plan.toml", "cases.jsonl", "metrics.jsonl", "rounds.jsonl")
    report_files = (*run_files, "notices.jsonl", "summary.json", "predictions/predictions.jsonl")
    there = tuple(name for name in report_files if (run / name).is_file())
    return [
        Target("scan", scans, ("scan.nii.gz",), _arrays, proven=True),
        Target("label map", scans, ("label.nii.gz",), _label, proven=True),
        Target("uncompressed scan", scans, ("scan.nii",), _uncompressed),
        *(Target(name, scans, beside.get(name, (name,)), _reader(name)) for name in others),
        *_made_series(scratch),
        Target("model", scratch / "model", ("card.json", "plan.toml", "weights.safetensors"), _model),
        Target("stored case", scratch / "case" / case.name, ("case.json", "image.b2nd", "label.b2nd"), _stored,
               proven=True),
        Target("checkpoint", scratch / "checkpoints", (f"{step}/card.json", f"{step}/state.safetensors"), _checkpoint),
        Target("run", scratch / "run", tuple(name for name in run_files if name in there), _run),
        Target("report", scratch / "run", there, _report),
        Target("dataset", scratch / "data", ("dataset.json",), _dataset),
        Target("predictions", scratch / "predicting", ("out/predictions.jsonl", "model/card.json"), _predictions),
    ]  # fmt: skip
