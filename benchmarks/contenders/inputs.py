"""What the contenders are given: generated scans and a real one, and networks trained for a while.

Trained, since labels of a network with random weights are noise, and noise is neither what export meets nor what an
engine can be checked on. It would be hours until the paper's network is sure of 13 organs in grey scans, so it learns
four of them alone (its other classes stay empty), and these are made bright in all scans: then minutes suffice.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

from semiseg import predict_run, prepare_run, train_run
from semiseg.data.plan import Plan
from semiseg.data.planner import PlanSettings
from semiseg.data.roles import DataSettings
from semiseg.data.scan_rows import ScanRows
from semiseg.demo.phantom import phantom_case
from semiseg.errors import ConfigError
from semiseg.files import atomic_file, write_json
from semiseg.io.flare22_labels import FLARE22_LABELS
from semiseg.io.scans import RawChannel, read_label, read_scan
from semiseg.methods.settings import SupervisedSettings
from semiseg.ops.resample import resample_label
from semiseg.prediction.engines.torch_engine import load_network
from semiseg.prediction.model import Model, load_model, save_model
from semiseg.prediction.settings import PredictSettings
from semiseg.randomness import Draw
from semiseg.settings import RunSettings
from semiseg.training.settings import TrainSettings
from semiseg.types import AnyArray, LabelArray, Shape, Spacing

PAPER_PATCH = (64, 160, 160)
PAPER_SPACING_MM = (2.5, 1.0, 1.0)
CT_SPACING_MM = (2.5, 0.8, 0.8)
_TRAINING_PATCH, _TRAINING_STEPS = (32, 64, 64), 300
MODELS: dict[str, tuple[int, Spacing]] = {
    "model-32": (32, PAPER_SPACING_MM),
    "model-16": (16, PAPER_SPACING_MM),
    "model-16-coarse": (16, (2.5, 2.0, 2.0)),
}
"""Features of the finest level and spacing: the paper's network, one with half of its features, and a compact student
on a coarser grid."""
KNOWN_HU = {1: 250, 2: 500, 3: 750, 13: 1000}
"""Liver, right kidney, spleen, left kidney: the organs that the networks learn, and the mean that they are given."""


def trained_model(folder: Path, name: str = "model-32") -> Model:
    """A network for 13 organs, patch 64 x 160 x 160, trained on two phantoms.

    When it is not there yet: 5 minutes of 2 cores that have bfloat16, 15 of others.
    """
    target = folder / name
    if not target.is_dir():
        base_features, spacing_mm = MODELS[name]
        data = _training_scans(folder / "training", folder)
        settings = RunSettings(
            data=DataSettings(root=str(data)),
            plan=PlanSettings(
                device="cpu", spacing_mm=spacing_mm, patch=_TRAINING_PATCH, batch=2, base_features=base_features
            ),
            method=SupervisedSettings(),
            train=TrainSettings(steps=_TRAINING_STEPS, validation_every=0),
        )
        run = folder / name.replace("model", "run")
        prepare_run.prepare(run, settings)
        train_run.train(run)
        trained = load_model(run)
        plan: Plan = replace(trained.plan, patch=PAPER_PATCH)
        save_model(target, load_network(trained), plan, role="student", card={"mirror_axes": []})
    return load_model(target)


def _training_scans(folder: Path, shared: Path) -> Path:
    """Two phantoms with labels, as a data set."""
    for number in (1, 2):
        if not (folder / "labelsTr" / f"phantom{number}.nii.gz").is_file():
            image, label = phantom(shared, (100, 410, 410), PAPER_SPACING_MM, seed=number)
            label = np.where(np.isin(label, list(KNOWN_HU)), label, 0).astype(np.uint8)
            _write(folder / "imagesTr" / f"phantom{number}_0000.nii.gz", image, PAPER_SPACING_MM)
            _write(folder / "labelsTr" / f"phantom{number}.nii.gz", label, PAPER_SPACING_MM)
    names = {name: value for value, name in FLARE22_LABELS.names.items()}
    description = {"channel_names": {"0": "CT"}, "labels": names, "numTraining": 2, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", description)
    return folder


def window_inputs(folder: Path, shared: Path, _data: Path) -> None:
    """64 x 256 x 256 voxels of a phantom as the network sees them, the model, and the scans for its engine's check."""
    _link_models(folder, shared, names=("model-32",))
    model = trained_model(shared)
    if not (folder / "window.npy").is_file():
        image, _ = phantom(shared, (64, 256, 256), PAPER_SPACING_MM)
        scan = ScanRows([RawChannel(image)], PAPER_SPACING_MM, model.plan)
        np.save(folder / "window.npy", scan.rows(0, 64))


def export_100(folder: Path, shared: Path, _data: Path) -> None:
    """Logits of 14 classes, 100 x 410 x 410."""
    _logits(folder, shared, 100)


def export_250(folder: Path, shared: Path, _data: Path) -> None:
    """Logits of 14 classes, 250 x 410 x 410."""
    _logits(folder, shared, 250)


def _logits(folder: Path, shared: Path, rows: int) -> None:
    """Of the organs of a phantom, smooth and with some noise, as a network gives them."""
    if (folder / "logits.npy").is_file():
        return
    label = _repeated(phantom(shared, (100, 410, 410), PAPER_SPACING_MM)[1], rows)
    generator = np.random.default_rng(0)
    logits = np.empty((14, *label.shape), dtype=np.float32)
    for value in range(14):
        noise = gaussian_filter(generator.standard_normal(label.shape, dtype=np.float32), 2)
        logits[value] = 10 * gaussian_filter((label == value).astype(np.float32), 1) - 5 + 5 * noise
    np.save(folder / "logits.npy", logits)


def preparation_inputs(folder: Path, shared: Path, _data: Path) -> None:
    """A CT of 250 x 512 x 512 voxels with its labels."""
    image, label = phantom(shared, (100, 512, 512), CT_SPACING_MM)
    _save_scan(folder, _repeated(image, 250), _repeated(label, 250))
    _link(folder / "model-32", trained_model(shared).folder)


def preparation_ircad17(folder: Path, shared: Path, data: Path) -> None:
    """A real CT of 119 x 512 x 512 voxels with its labels; taken as if its spacing were the phantom's."""
    _save_scan(folder, *_ircad17(data))
    _link(folder / "model-32", trained_model(shared).folder)


def _save_scan(folder: Path, image: AnyArray, label: LabelArray) -> None:
    np.save(folder / "scan.npy", image)
    np.save(folder / "scan-label.npy", label)


def scores_inputs(folder: Path, shared: Path, _data: Path) -> None:
    """The organs of a phantom, 100 x 512 x 512 voxels, and a copy with wrong borders."""
    _save_labels(folder, phantom(shared, (100, 512, 512), (2.5, 0.8, 0.8))[1])


def scores_ircad17(folder: Path, _shared: Path, data: Path) -> None:
    """The labels of a real CT, and a copy with wrong borders."""
    label = _ircad17(data)[1]
    _save_labels(folder, np.where(label <= 13, label, 0).astype(np.uint8))


def _save_labels(folder: Path, label: LabelArray) -> None:
    """What a coarse grid leaves of the labels, moved by some voxels, is the prediction."""
    z, y, x = label.shape
    coarse = resample_label(label, (z // 2, y // 4, x // 4))
    np.save(folder / "reference.npy", label)
    np.save(folder / "prediction.npy", np.roll(resample_label(coarse, (z, y, x)), (0, 1, 2), (0, 1, 2)))


def prediction_inputs(folder: Path, shared: Path, _data: Path) -> None:
    """A phantom CT of 512 x 512 x 100 voxels of 0.8 x 0.8 x 2.5 mm as a file, and both models."""
    image, _ = phantom(shared, (100, 512, 512), CT_SPACING_MM)
    _write(folder / "scan" / "scan_0000.nii.gz", image, CT_SPACING_MM)
    _link_models(folder, shared)


def prediction_gpu_inputs(folder: Path, shared: Path, _data: Path) -> None:
    """The same CT; the engine's check is made on the GPU."""
    image, _ = phantom(shared, (100, 512, 512), CT_SPACING_MM)
    _write(folder / "scan" / "scan_0000.nii.gz", image, CT_SPACING_MM)
    model = trained_model(shared)
    _link(folder / "model-32", model.folder)
    settings = PredictSettings(device="cuda")
    predict_run.predict(model.folder, [check_scans(shared)], shared / "checked-gpu", settings=settings)


def prediction_ircad17(folder: Path, shared: Path, data: Path) -> None:
    """A real CT, and both models. Written in canonical orientation: nnU-Net takes scans as they are stored, and the
    network would see its body mirrored."""
    spacing_mm = read_scan([data / "ct_whole" / "ircad17_0000.nii.gz"]).grid.spacing_mm
    _write(folder / "scan" / "scan_0000.nii.gz", brighter(*_ircad17(data)), spacing_mm)
    _link_models(folder, shared)


def _link_models(folder: Path, shared: Path, names: Sequence[str] = ("model-32", "model-16-coarse")) -> None:
    """The models, with their engines checked against torch: that is done once for a model on a machine, and is not what
    is measured."""
    scans = check_scans(shared)
    _link(folder / "scans-to-check", scans)
    for name in names:
        model = trained_model(shared, name)
        _link(folder / name, model.folder)
        precisions: tuple[Literal["auto", "int8"], ...] = ("auto", "int8") if name == "model-32" else ("auto",)
        for precision in precisions:
            settings = PredictSettings(engine="openvino", precision=precision)
            with suppress(ConfigError):  # int8 may fail its check, and the contender says so
                predict_run.predict(model.folder, [scans], shared / f"checked-{name}-{precision}", settings=settings)


def check_scans(shared: Path) -> Path:
    """The folder of the scans that engines are checked on: 64 slices of the phantom of the tasks, and of two others."""
    folder = shared / "scans-to-check"
    for seed in (7, 8, 9):
        if not (file := folder / f"phantom{seed}_0000.nii.gz").is_file():
            image, _ = phantom(shared, (100, 512, 512), CT_SPACING_MM, seed=seed)
            _write(file, image[18:82], CT_SPACING_MM)
    return folder


def _link(link: Path, target: Path) -> None:
    if not link.is_symlink():
        link.symlink_to(target.resolve())


def _ircad17(data: Path) -> tuple[AnyArray, LabelArray]:
    image = read_scan([data / "ct_whole" / "ircad17_0000.nii.gz"])
    label, _ = read_label(data / "ct_whole" / "ircad17_label.nii.gz")
    return np.ascontiguousarray(image.channels[0].stored), label


def phantom(folder: Path, shape: Shape, spacing_mm: Spacing, seed: int = 7) -> tuple[AnyArray, LabelArray]:
    """A phantom CT as int16, its `KNOWN_HU` made bright, and its organs; kept in `folder`."""
    file = folder / f"phantom-{'x'.join(map(str, shape))}-{seed}.npz"
    if not file.is_file():
        image, label = phantom_case(Draw(seed=seed), shape_zyx=shape, spacing_mm=spacing_mm)
        with atomic_file(file) as temporary, temporary.open("wb") as opened:
            np.savez(opened, image=brighter(image, label), label=label)
    with np.load(file) as arrays:
        return arrays["image"], arrays["label"]


def brighter(image: AnyArray, label: LabelArray) -> AnyArray:
    """A CT in which the organs that the networks know are told apart by their mean; texture and noise stay."""
    found = image.astype(np.int16)
    for organ, mean_hu in KNOWN_HU.items():
        inside = label == organ
        if inside.any():
            found[inside] += np.int16(mean_hu - round(float(found[inside].mean())))
    return found


def write_long_ct(file: Path, shared: Path, slices: int) -> Path:
    """A CT of 512 x 512 voxels a slice of 0.8 x 0.8 x 2.5 mm."""
    if not file.is_file():
        image, _ = phantom(shared, (100, 512, 512), CT_SPACING_MM)
        _write(file, _repeated(image, slices), CT_SPACING_MM)
    return file


def _repeated(array: AnyArray, rows: int) -> AnyArray:
    """A longer scan: the same slices there and back again, until there are enough."""
    there_and_back = np.concatenate([array, array[::-1]])
    return np.concatenate([there_and_back] * (rows // len(there_and_back) + 1))[:rows]


def _write(file: Path, array: AnyArray, spacing_mm: Spacing) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image_type: Any = nib.Nifti1Image  # has no type annotations
    volume = image_type(array.transpose(2, 1, 0), np.diag([*spacing_mm[::-1], 1.0]))
    with atomic_file(file) as temporary:
        nib.save(volume, temporary)
