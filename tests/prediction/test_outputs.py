"""What is written beside label maps in NIfTI: other formats, statistics, pictures."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from semiseg.data.plan import ChannelNormalisation, Plan
from semiseg.errors import ConfigError
from semiseg.files import read_jsonl
from semiseg.geometry import from_canonical
from semiseg.io.scans import RawChannel, read_label
from semiseg.prediction.attempt import Outcome
from semiseg.prediction.engines.torch_engine import TorchEngine, torch_engine
from semiseg.prediction.inputs import find_scans
from semiseg.prediction.model import Model
from semiseg.prediction.outputs import Outputs
from semiseg.prediction.scans import predict_scan_to, predict_scans
from semiseg.prediction.settings import PredictSettings
from semiseg.prediction.statistics import fullest_slices, mean_names, organ_rows, take_census
from semiseg.reporting.preview import preview_png, volume_text

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SETTINGS = PredictSettings(tile_step=1.0, device="cpu", mirror=False)
SLANTED = np.array([[0.0, -1.2, 0.2, 40.0], [-1.3, 0.1, 0.0, -7.0], [0.0, 0.2, 2.5, 3.0], [0.0, 0.0, 0.0, 1.0]])


def save(path: Path, seed: int = 0) -> Path:
    """Noise with a bright half, so that labels vary, stored in another order of axes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).normal(30, 80, (11, 13, 9))
    array[:6] += 100
    nib.save(nib.Nifti1Image(array.astype(np.int16), SLANTED), path)
    return path


class Counting(TorchEngine):
    runs = 0

    def run(self, tiles: np.ndarray) -> np.ndarray:
        self.runs += 1
        return super().run(tiles)


def counting(model: Model) -> Counting:
    return Counting(torch_engine(model, CPU).network, CPU)


def predict(
    model: Model,
    folder: Path,
    outputs: Outputs,
    engine: TorchEngine | None = None,
    settings: PredictSettings = SETTINGS,
) -> list[Outcome]:
    engine = engine or torch_engine(model, CPU)
    found = predict_scans(find_scans([folder / "in"]), model, engine, folder / "out", settings, outputs=outputs)
    assert not any(outcome.error for outcome in found)
    return found


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_formats_hold_the_same_labels_on_the_same_grid(model: Model, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.nii.gz")
    (outcome,) = predict(model, tmp_path, Outputs(formats=("nrrd", "nifti", "mha")))
    assert names(tmp_path / "out") == ["a.mha", "a.nii.gz", "a.nrrd", "predictions.jsonl"]
    assert outcome.output.name == "a.nrrd"  # the first
    label, grid = read_label(tmp_path / "out" / "a.nii.gz")
    assert len(np.unique(label)) > 1
    for name in ("a.nrrd", "a.mha"):
        other, its_grid = read_label(tmp_path / "out" / name)
        assert np.array_equal(label, other)
        assert grid.difference(its_grid) is None


def test_a_format_that_is_asked_for_later_is_made_of_what_is_there(model: Model, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.nii.gz")
    predict(model, tmp_path, Outputs(statistics=True))
    engine = counting(model)
    (again,) = predict(model, tmp_path, Outputs(formats=("nifti", "nrrd"), picture=preview_png), engine)
    assert not again.reused
    assert engine.runs == 0
    both = [read_label(tmp_path / "out" / name)[0] for name in ("a.nii.gz", "a.nrrd")]
    assert np.array_equal(*both)
    assert "a_preview.png" in names(tmp_path / "out")
    assert read_jsonl(tmp_path / "out" / "predictions.jsonl")[-1]["statistics"]  # of before
    (third,) = predict(
        model, tmp_path, Outputs(formats=("nifti", "nrrd"), statistics=True, picture=preview_png), engine
    )
    assert third.reused
    assert engine.runs == 0


def test_statistics_that_are_asked_for_later_are_counted_on_what_is_there(model: Model, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.nii.gz")
    predict(model, tmp_path, Outputs())
    engine = counting(model)
    predict(model, tmp_path, Outputs(statistics=True), engine)
    assert engine.runs == 0
    assert json.loads((tmp_path / "out" / "statistics.json").read_text())[0]["organs"][0]["voxels"] > 0


@pytest.mark.parametrize("wrong", ["values", "grid"])
def test_another_file_in_the_place_of_the_label_map_is_named(model: Model, tmp_path: Path, wrong: str) -> None:
    save(tmp_path / "in" / "a.nii.gz")
    predict(model, tmp_path, Outputs())
    file = tmp_path / "out" / "a.nii.gz"
    label, _ = read_label(file)
    other = np.where(label == 2, 9, label) if wrong == "values" else label[:, :, 1:]
    affine = nib.load(file).affine
    nib.save(nib.Nifti1Image(from_canonical(other.astype(np.uint8), affine), affine), file)
    outputs = Outputs(formats=("nifti", "nrrd"))
    (outcome,) = predict_scans(
        find_scans([tmp_path / "in"]), model, torch_engine(model, CPU), tmp_path / "out", SETTINGS, outputs=outputs
    )
    assert outcome.error is not None
    scan = tmp_path / "in" / "a.nii.gz"
    what = "voxels have value 9, but" if wrong == "values" else f"not on the grid of {scan}: "
    assert outcome.error.startswith(f"{file}: ")
    assert what in outcome.error
    assert np.array_equal(np.unique(read_label(file)[0]), np.unique(other))  # nobody wrote over it


def test_nothing_of_another_scan_is_left(model: Model, tmp_path: Path) -> None:
    """A scan that changed: a format that is not asked for any more would show the old one's labels."""
    save(tmp_path / "in" / "a.nii.gz")
    predict(model, tmp_path, Outputs(formats=("nifti", "nrrd"), picture=preview_png))
    save(tmp_path / "in" / "a.nii.gz", seed=1)
    predict(model, tmp_path, Outputs(formats=("mha",)))
    assert names(tmp_path / "out") == ["a.mha", "predictions.jsonl"]


def test_probabilities_lie_beside_the_first_format_that_has_voxels(model: Model, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.nii.gz")
    settings = replace(SETTINGS, probabilities=True)
    predict(model, tmp_path, Outputs(formats=("nrrd",)), settings=settings)
    assert names(tmp_path / "out") == ["a.nrrd", "a_probabilities.nrrd", "predictions.jsonl"]


def test_dicom_is_refused_for_other_scans(model: Model, tmp_path: Path) -> None:
    file = save(tmp_path / "in" / "a.nii.gz")
    for outputs in (Outputs(formats=("nifti", "dicom-seg")), Outputs(formats=("rtstruct",))):
        with pytest.raises(ConfigError, match=rf"{file}: no DICOM series, which --format {outputs.of_dicom[0]} would"):
            predict(model, tmp_path, outputs)
    assert not (tmp_path / "out").exists()
    (scan,) = find_scans([file])
    with pytest.raises(ConfigError, match="no DICOM series"):
        predict_scan_to(scan, model, torch_engine(model, CPU), tmp_path / "a.dcm", SETTINGS)


def test_one_file_has_one_format(model: Model, tmp_path: Path) -> None:
    (scan,) = find_scans([save(tmp_path / "in" / "a.nii.gz")])
    engine = torch_engine(model, CPU)
    for formats in (("nrrd",), ("nifti", "nrrd"), ("dicom-seg",)):
        with pytest.raises(ConfigError, match=r"seg\.nii\.gz: is one file, and --format .* does not fit its name"):
            predict_scan_to(scan, model, engine, tmp_path / "seg.nii.gz", SETTINGS, Outputs(formats=formats))
    outputs = Outputs(formats=("nrrd",), statistics=True, picture=preview_png)
    predict_scan_to(scan, model, engine, tmp_path / "new" / "seg.nrrd", SETTINGS, outputs)
    assert names(tmp_path / "new") == ["seg.nrrd", "seg_preview.png", "seg_statistics.csv", "seg_statistics.json"]
    (tmp_path / "new" / "seg.nrrd").unlink()
    with pytest.raises(ConfigError, match=r"seg_preview\.png: is there already"):
        predict_scan_to(scan, model, engine, tmp_path / "new" / "seg.nrrd", SETTINGS, outputs)


def test_statistics_are_right(model: Model, tmp_path: Path) -> None:
    """Against the plain sums of double precision over the files."""
    for name in "ba":
        save(tmp_path / "in" / f"{name}.nii.gz", seed=ord(name))
    predict(model, tmp_path, Outputs(statistics=True))
    cases = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert [case["id"] for case in cases] == ["a", "b"]
    table = list(csv.DictReader((tmp_path / "out" / "statistics.csv").read_text().splitlines()))
    assert len(table) == 4
    for case in cases:
        scan = np.asarray(nib.load(tmp_path / "in" / f"{case['id']}.nii.gz").dataobj, dtype=float)
        label = np.asarray(nib.load(tmp_path / "out" / f"{case['id']}.nii.gz").dataobj)
        one_ml = abs(np.linalg.det(SLANTED[:3, :3])) / 1000
        for value, row in enumerate(case["organs"], start=1):
            mask = label == value
            assert row["voxels"] == mask.sum() > 0
            assert row["ml"] == pytest.approx(mask.sum() * one_ml, rel=0.02)  # sheared: voxels are no boxes
            assert row["mean_hu"] == pytest.approx(scan[mask].mean(), abs=1e-3)
            inside = mask[1:-1, 1:-1, 1:-1].sum()
            assert row["touches_border"] == bool(inside < mask.sum())
            (cells,) = (cells for cells in table if (cells["id"], cells["organ"]) == (case["id"], row["organ"]))
            assert float(cells["mean_hu"]) == row["mean_hu"]
            assert cells["touches_border"] == ("yes" if row["touches_border"] else "no")


def test_volumes_of_tiny_voxels_are_kept(plan: Plan) -> None:
    labels = np.zeros((4, 4, 4), dtype=np.uint8)
    labels[1, 1, :3] = 1
    census = take_census(labels, [RawChannel(labels)], 3)
    rows = organ_rows(census, (0.02, 0.02, 0.02), plan)
    assert [row["ml"] for row in rows] == [2.4e-8, 0.0]


def test_means_of_small_intensities_are_kept(plan: Plan) -> None:
    """Diffusion in mm²/s is some 0.001."""
    labels, scan = np.ones((2, 2, 2), dtype=np.uint8), RawChannel(np.full((2, 2, 2), 0.00123456, dtype=np.float32))
    (name,) = mean_names(plan)
    assert organ_rows(take_census(labels, [scan], 3), (1.0, 1.0, 1.0), plan)[0][name] == 0.00123456


def test_the_font_of_previews_has_all_that_is_written() -> None:
    font = ImageFont.load_default(14)
    missing = bytes(font.getmask("\ue123"))
    assert all(bytes(font.getmask(letter)) != missing for letter in volume_text(6e-6) + volume_text(5.0))
    assert [volume_text(ml) for ml in (6.65e-6, 0.5, 12.34, 1234.5)] == ["0.00665 mm3", "0.5 ml", "12.3 ml", "1234 ml"]


@pytest.mark.parametrize("seed", range(6))
def test_a_census_counts_any_layout_in_memory(plan: Plan, seed: int) -> None:
    draw = np.random.default_rng(seed)
    order = tuple(draw.permutation(3))
    labels = draw.integers(0, 3, (4, 5, 6)).astype(np.uint8).transpose(order)
    stored = draw.integers(-1000, 1000, (6, 4, 5)).astype(np.int16).transpose(draw.permutation(3))
    stored = np.resize(stored, labels.shape)
    channel = RawChannel(stored, slope=0.5, inter=-3.0)
    census = take_census(labels, [channel], 3)
    for value in (1, 2):
        mask = labels == value
        assert census.voxels[value] == mask.sum()
        assert census.sums[0, value] == pytest.approx((stored[mask] * 0.5 - 3.0).sum())
        for axis in range(3):
            others = tuple(other for other in range(3) if other != axis)
            assert np.array_equal(census.areas[axis][:, value], mask.sum(axis=others))
    assert census.voxels[0] == 0
    shares = census.areas[0][:, 1:] / census.areas[0][:, 1:].max(axis=0)
    assert fullest_slices(census)[0] == shares.sum(axis=1).argmax()


def test_the_border_is_that_of_the_scan(plan: Plan) -> None:
    channel = RawChannel(np.zeros((5, 5, 5), np.int16))
    for place, touches in (
        ((2, 2, 2), False),
        ((0, 2, 2), True),
        ((2, 4, 2), True),
        ((2, 2, 0), True),
        ((3, 3, 3), False),
    ):
        labels = np.zeros((5, 5, 5), np.uint8)
        labels[place] = 2
        first, second = organ_rows(take_census(labels, [channel], 3), (1.0, 2.0, 3.0), plan)
        assert second["touches_border"] is touches
        assert (second["voxels"], second["ml"], second["mean_hu"]) == (1, 0.006, 0.0)
        assert (first["voxels"], first["ml"], first["mean_hu"], first["touches_border"]) == (0, 0.0, None, False)


def test_means_are_called_by_what_was_scanned(plan: Plan) -> None:
    labels, channel = np.ones((2, 2, 2), np.uint8), RawChannel(np.full((2, 2, 2), 7, np.int16))
    other = ChannelNormalisation(scheme="zscore")
    mr = replace(plan, channels=("T1",), normalisation=(other,))
    both = replace(plan, channels=("CT", "T2"), normalisation=(plan.normalisation[0], other))
    assert organ_rows(take_census(labels, [channel], 3), (1.0, 1.0, 1.0), mr)[0]["mean_intensity"] == 7
    row = organ_rows(take_census(labels, [channel, channel], 3), (1.0, 1.0, 1.0), both)[0]
    assert {name for name in row if name.startswith("mean")} == {"mean_hu_CT", "mean_intensity_T2"}


def test_a_preview_shows_outlines_where_organs_are(plan: Plan) -> None:
    """The right side of the body is on the left; colours are those of the organs."""
    values = np.full((20, 40, 60), -1000, np.int16)
    values[:, 5:35, 5:55] = 40
    labels = np.zeros(values.shape, np.uint8)
    labels[5:15, 10:20, 40:50] = 1  # X grows to the patient's right: on the picture's left
    census = take_census(labels, [RawChannel(values)], 3)
    data = preview_png(RawChannel(values), labels, (3.0, 2.0, 2.0), census, plan)
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    blue = np.abs(picture - (0x56, 0xB4, 0xE9)).sum(axis=2) < 40
    scale = 560 / 120  # axial: 120 mm wide, 80 high, in the middle beside the sagittal panel of 420 pixels
    top = 42 + (420 - round(80 * scale)) // 2
    panel = blue[top : top + round(80 * scale), 16:576]
    rows, columns = np.nonzero(panel)
    assert columns.min() == pytest.approx((60 - 50) * 2 * scale, abs=3)
    assert columns.max() == pytest.approx((60 - 40) * 2 * scale, abs=3)
    assert rows.min() == pytest.approx((40 - 20) * 2 * scale, abs=3)
    assert rows.max() == pytest.approx((40 - 10) * 2 * scale, abs=3)
    grey = picture[top + 187, 16 + 280]
    assert grey.tolist() == [round((40 + 160) / 400 * 255)] * 3
    empty = take_census(np.zeros_like(labels), [RawChannel(values)], 3)
    assert preview_png(RawChannel(values), np.zeros_like(labels), (3.0, 2.0, 2.0), empty, plan)  # nothing found
