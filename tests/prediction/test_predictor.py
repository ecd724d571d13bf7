"""Scans in, label maps in the scans' own grids out; a bad scan stops nothing, a finished one is not done again."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from engines import Constant

from semiseg.data.plan import ChannelNormalisation
from semiseg.errors import ConfigError, DataError
from semiseg.files import read_jsonl
from semiseg.io.scans import RawChannel, read_volume
from semiseg.prediction.attempt import Outcome
from semiseg.prediction.device import choose_device
from semiseg.prediction.engines.torch_blend import DeviceBlend
from semiseg.prediction.engines.torch_engine import TorchEngine, load_network, torch_engine
from semiseg.prediction.foreign import foreign_text, is_foreign
from semiseg.prediction.inputs import Scan, find_scans
from semiseg.prediction.model import Model
from semiseg.prediction.predictor import predict_array
from semiseg.prediction.scans import predict_scan_to, predict_scans
from semiseg.prediction.settings import PredictSettings
from semiseg.prediction.window import Window
from semiseg.types import FloatArray, Shape

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SETTINGS = PredictSettings(tile_step=1.0, device="cpu", mirror=False)
OBLIQUE = np.array([[-1.3, 0.1, 0.0, 40.0], [0.1, -1.2, 0.2, -7.0], [0.0, 0.2, 2.5, 3.0], [0.0, 0.0, 0.0, 1.0]])
PERMUTED = np.array([[0.0, 0.0, 1.1, -4.0], [2.2, 0.0, 0.0, 5.0], [0.0, -1.3, 0.0, 6.0], [0.0, 0.0, 0.0, 1.0]])


def save(
    path: Path,
    affine: np.ndarray = OBLIQUE,
    codes: tuple[int, int] = (1, 2),
    seed: int = 0,
    kind: type[nib.Nifti1Image] = nib.Nifti1Image,
) -> Path:
    """Noise with a bright half, so that labels vary; sform and qform codes as given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).normal(30, 80, (11, 13, 9))
    array[:6] += 100
    image = kind(array.astype(np.int16), affine)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"from a scanner"
    nib.save(image, path)
    return path


def predict(
    model: Model, inputs: Path, output: Path, settings: PredictSettings = SETTINGS, engine: TorchEngine | None = None
) -> list[Outcome]:
    engine = engine or torch_engine(model, CPU)
    return predict_scans(find_scans([inputs]), model, engine, output, settings)


@pytest.mark.parametrize(
    "affine", [OBLIQUE, PERMUTED, np.diag([1.0, 1.5, 2.0, 1.0])], ids=["oblique", "permuted", "ras"]
)
@pytest.mark.parametrize("codes", [(1, 2), (0, 1), (4, 0)])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_the_geometry_is_kept_exactly(
    model: Model, tmp_path: Path, affine: np.ndarray, codes: tuple[int, int], ending: str
) -> None:
    source = nib.load(save(tmp_path / "in" / f"a{ending}", affine, codes))
    (outcome,) = predict(model, tmp_path / "in", tmp_path / "out")
    assert outcome.error is None
    result = nib.load(outcome.output)
    assert result.shape == source.shape
    assert np.array_equal(result.affine, source.affine)
    for form in ("get_sform", "get_qform"):
        mine, theirs = (getattr(image, form)(coded=True) for image in (result, source))
        assert mine[1] == theirs[1]
        assert mine[0] is theirs[0] is None or np.array_equal(mine[0], theirs[0])
    for field in ("pixdim", "sform_code", "qform_code", "quatern_b", "qoffset_x", "srow_x", "xyzt_units"):
        assert np.array_equal(result.header[field], source.header[field]), field
    assert result.header["descrip"] == b""  # which may name the patient
    values = np.asarray(result.dataobj)
    assert values.dtype == np.uint8
    assert len(np.unique(values)) > 1


def test_a_nifti_2_file_stays_one(model: Model, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.nii.gz", kind=nib.Nifti2Image)
    (outcome,) = predict(model, tmp_path / "in", tmp_path / "out")
    assert isinstance(nib.load(outcome.output), nib.Nifti2Image)


def test_labels_do_not_depend_on_how_the_file_stores_its_axes(model: Model, tmp_path: Path) -> None:
    """The same anatomy stored in another order and direction of axes gets the same labels, voxel by voxel."""
    ras = nib.load(save(tmp_path / "in" / "a.nii.gz", np.diag([1.0, 1.5, 2.0, 1.0])))
    turned = ras.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nib.save(turned, tmp_path / "in" / "b.nii.gz")
    a, b = (nib.as_closest_canonical(nib.load(o.output)) for o in predict(model, tmp_path / "in", tmp_path / "out"))
    assert nib.aff2axcodes(turned.affine) != nib.aff2axcodes(ras.affine)
    assert np.array_equal(np.asarray(a.dataobj), np.asarray(b.dataobj))


def break_it(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:200])
    return path


def test_a_bad_scan_is_named_and_stops_nothing(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    save(folder / "a.nii.gz")
    break_it(save(folder / "b.nii.gz"))
    (folder / "c.nii.gz").write_text("no image")
    for channel in range(2):
        save(folder / f"d_{channel:04d}.nii.gz", seed=channel)
    nan = nib.Nifti1Image(np.full((4, 4, 4), np.nan, np.float32), np.eye(4))
    nib.save(nan, folder / "e.nii.gz")
    save(folder / "f.nii.gz")
    outcomes = {outcome.id: outcome for outcome in predict(model, folder, tmp_path / "out")}
    assert [key for key, outcome in outcomes.items() if outcome.error is None] == ["a", "f"]
    for key, text in (
        ("b", "b.nii.gz"),
        ("c", "not a readable NIfTI"),
        ("d", "count as channels of one scan"),
        ("e", "64 voxels are"),
    ):
        error = outcomes[key].error
        assert error is not None
        assert text in error
        assert str(folder) in error
        assert not outcomes[key].output.exists()
    rows = {row["id"]: row for row in read_jsonl(tmp_path / "out" / "predictions.jsonl")}
    assert {key for key, row in rows.items() if "error" in row} == set("bcde")
    assert rows["b"]["error"] == outcomes["b"].error
    assert rows["a"]["key"]


def test_a_folder_whose_name_is_no_utf8_stops_nothing(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    save(folder / "a.nii.gz")
    break_it(save(folder / "b.nii.gz"))
    for reused in (False, True):  # the log can be read again
        good, bad = predict(model, folder, tmp_path / "out")
        assert (good.error, good.reused) == (None, reused)
        assert bad.error is not None
        assert bad.error.startswith(f"{tmp_path}/caf\\udce9/b.nii.gz: ")
    assert read_jsonl(tmp_path / "out" / "predictions.jsonl")[-1]["error"] == bad.error


def test_scans_that_are_numbered_as_channels_are_told_so(model: Model, tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "in" / f"IMG_{number:04d}.nii.gz", OBLIQUE + np.diag([0, 0, 0.1 * number, 0]), seed=number)
    (outcome,) = predict(model, tmp_path / "in", tmp_path / "out")
    assert outcome.error is not None
    assert "3 files count as channels of one scan" in outcome.error
    assert outcome.error.endswith("number scans of their own otherwise, as IMG-0000.")


def test_one_channel_of_several_is_told_to_name_them_all(model: Model, tmp_path: Path) -> None:
    of_two = replace(model.plan, channels=("T1", "T2"), normalisation=(ChannelNormalisation(scheme="zscore"),) * 2)
    save(tmp_path / "in" / "IMG_0000.nii.gz")
    engine = torch_engine(model, CPU)  # whose network is not asked
    (outcome,) = predict(
        replace(model, plan=of_two), tmp_path / "in" / "IMG_0000.nii.gz", tmp_path / "out", engine=engine
    )
    assert outcome.error is not None
    assert "1 channel, but the model expects 2 (T1, T2). Name the files of all channels, IMG_0000 to" in outcome.error


def test_one_file_of_several_channels_may_have_a_number(model: Model, tmp_path: Path) -> None:
    of_two = replace(model.plan, channels=("T1", "T2"), normalisation=(ChannelNormalisation(scheme="zscore"),) * 2)
    (tmp_path / "in").mkdir()
    array = np.random.default_rng(0).normal(30, 80, (11, 13, 9, 2)).astype(np.int16)
    nib.save(nib.Nifti1Image(array, OBLIQUE), tmp_path / "in" / "IMG_0000.nii.gz")
    scans = find_scans([tmp_path / "in"])
    (outcome,) = predict_scans(scans, replace(model, plan=of_two), Constant(), tmp_path / "out", SETTINGS)
    assert (outcome.error, outcome.output.name) == (None, "IMG.nii.gz")
    assert nib.load(outcome.output).shape == (11, 13, 9)


def test_a_missing_file_is_named(model: Model, tmp_path: Path) -> None:
    scan = Scan("gone", (tmp_path / "gone.nii.gz",))
    (outcome,) = predict_scans([scan], model, torch_engine(model, CPU), tmp_path / "out", SETTINGS)
    assert outcome.error is not None
    assert "gone.nii.gz: No such file" in outcome.error


class Counting(TorchEngine):
    runs = 0

    def run(self, tiles: np.ndarray) -> np.ndarray:
        self.runs += 1
        return super().run(tiles)


def counting(model: Model) -> Counting:
    return Counting(torch_engine(model, CPU).network, CPU)


def test_finished_scans_are_not_done_again(model: Model, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.nii.gz")
    (first,) = predict(model, tmp_path / "in", tmp_path / "out")
    before = first.output.read_bytes()
    engine = counting(model)
    (second,) = predict(model, tmp_path / "in", tmp_path / "out", engine=engine)
    assert (first.reused, second.reused) == (False, True)
    assert engine.runs == 0
    assert first.output.read_bytes() == before
    assert len(read_jsonl(tmp_path / "out" / "predictions.jsonl")) == 1


CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "another scan": lambda scan, output: save(scan, seed=5),
    "output gone": lambda scan, output: output.unlink(),
    "scan was bad": lambda scan, output: None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_done_again(model: Model, tmp_path: Path, change: str) -> None:
    scan = save(tmp_path / "in" / "a.nii.gz")
    if change == "scan was bad":
        break_it(scan)
    (first,) = predict(model, tmp_path / "in", tmp_path / "out")
    if change == "scan was bad":
        assert first.error is not None
        save(scan)
    CHANGES[change](scan, first.output)
    (second,) = predict(model, tmp_path / "in", tmp_path / "out")
    assert second.error is None
    assert not second.reused
    (third,) = predict(model, tmp_path / "in", tmp_path / "out")
    assert third.reused


def test_probabilities_that_are_gone_are_done_again(model: Model, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.nii.gz")
    settings = replace(SETTINGS, probabilities=True)
    predict(model, tmp_path / "in", tmp_path / "out", settings)
    maps = tmp_path / "out" / "a_probabilities.nii.gz"
    maps.unlink()
    (again,) = predict(model, tmp_path / "in", tmp_path / "out", settings)
    assert not again.reused
    assert maps.is_file()


def test_a_scan_that_went_bad_leaves_no_old_output(model: Model, tmp_path: Path) -> None:
    scan = save(tmp_path / "in" / "a.nii.gz")
    (first,) = predict(model, tmp_path / "in", tmp_path / "out")
    assert first.output.is_file()
    break_it(scan)
    (second,) = predict(model, tmp_path / "in", tmp_path / "out")
    assert second.error is not None
    assert not first.output.exists()


def test_other_weights_and_other_settings_are_done_again(model: Model, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.nii.gz")
    predict(model, tmp_path / "in", tmp_path / "out")
    (finer,) = predict(model, tmp_path / "in", tmp_path / "out", replace(SETTINGS, tile_step=0.5))
    assert not finer.reused
    other = replace(model, hash="0" * 64)
    (again,) = predict(other, tmp_path / "in", tmp_path / "out", replace(SETTINGS, tile_step=0.5))
    assert not again.reused


@pytest.mark.parametrize("mirror", [False, True])
def test_probabilities_sum_to_one_and_agree_with_the_labels(model: Model, tmp_path: Path, mirror: bool) -> None:
    scan = save(tmp_path / "in" / "a.nii.gz")
    (outcome,) = predict(model, tmp_path / "in", tmp_path / "out", replace(SETTINGS, probabilities=True, mirror=mirror))
    maps = nib.load(tmp_path / "out" / "a_probabilities.nii.gz")
    assert np.array_equal(maps.affine, nib.load(scan).affine)
    values = np.asarray(maps.dataobj)
    assert values.shape == (11, 13, 9, 3)
    assert values.dtype == np.float32
    assert np.allclose(values.sum(axis=3), 1, atol=1e-6)  # float32 rounding of three numbers
    assert np.array_equal(values.argmax(axis=3), np.asarray(nib.load(outcome.output).dataobj))


def test_mirroring_is_another_answer(model: Model, tmp_path: Path) -> None:
    scan = save(tmp_path / "in" / "a.nii.gz")
    volume = read_volume([scan])
    plain, mirrored = (
        predict_array(volume.array, volume.grid.spacing_mm, model, settings=replace(SETTINGS, mirror=mirror))
        for mirror in (False, True)
    )
    assert not np.array_equal(plain, mirrored)


def test_mirroring_goes_along_the_axes_that_training_mirrored(model: Model, tmp_path: Path) -> None:
    """Four views of each tile for two axes; a model that never saw mirrored scans is not asked about them."""
    save(tmp_path / "in" / "a.nii.gz")
    settings, engine = replace(SETTINGS, mirror=True), counting(model)
    predict(model, tmp_path / "in", tmp_path / "plain", engine=engine)
    tiles = engine.runs
    predict(model, tmp_path / "in", tmp_path / "mirrored", settings, engine=engine)
    assert engine.runs == tiles + 4 * tiles
    without = replace(model, card=model.card | {"mirror_axes": []})
    predict(without, tmp_path / "in", tmp_path / "never mirrored", settings, engine=engine)
    assert engine.runs == tiles + 4 * tiles + tiles


class Exhausted(TorchEngine):
    def run(self, tiles: np.ndarray) -> np.ndarray:
        raise MemoryError


def test_a_scan_too_large_for_the_memory_is_named(model: Model, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.nii.gz")
    engine = Exhausted(torch_engine(model, CPU).network, CPU)
    (outcome,) = predict(model, tmp_path / "in", tmp_path / "out", engine=engine)
    assert outcome.error is not None
    assert re.search(
        r"a\.nii\.gz: not enough memory for \d+ x \d+ x \d+ voxels of .* mm at .*mend the header", outcome.error
    )


class ShortOfRoom(TorchEngine):
    """Blends on its device, until there is no room."""

    tried = 0

    def blend(self, window: Window, size: Shape) -> DeviceBlend | None:
        if not self._blends:
            return None
        self.tried += 1

        def run(tiles: torch.Tensor) -> torch.Tensor:
            if self._blends:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return torch.from_numpy(self.run(tiles.numpy()))

        return DeviceBlend(run, CPU, 3, window, size, short=lambda: setattr(self, "_blends", False))


def test_without_room_to_blend_on_the_device_main_memory_is_used(model: Model, tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / "in" / f"{name}.nii.gz")
    engine = ShortOfRoom(torch_engine(model, CPU).network, CPU)
    outcomes = predict(model, tmp_path / "in", tmp_path / "out", engine=engine)
    expected = predict(model, tmp_path / "in", tmp_path / "expected")
    assert engine.tried == 1  # and not again
    for mine, theirs in zip(outcomes, expected, strict=True):
        assert mine.error is None
        assert np.array_equal(read_volume([mine.output]).array, read_volume([theirs.output]).array)


def test_an_array_is_predicted_as_its_file(model: Model, tmp_path: Path) -> None:
    scan = save(tmp_path / "in" / "a.nii.gz", PERMUTED)
    (outcome,) = predict(model, tmp_path / "in", tmp_path / "out")
    volume = read_volume([scan])
    label = predict_array(volume.array, volume.grid.spacing_mm, model, settings=SETTINGS)
    assert label.shape == volume.grid.shape_zyx
    assert len(np.unique(label)) == 3
    stored = read_volume([outcome.output]).array[0]
    assert np.array_equal(label, stored)
    assert np.array_equal(predict_array(volume.array[0], volume.grid.spacing_mm, model, settings=SETTINGS), label)
    whole = predict_array(volume.array[0].astype(np.int16), volume.grid.spacing_mm, model, settings=SETTINGS)
    assert np.array_equal(whole, label)


@pytest.mark.parametrize(
    ("shape", "spacing", "message"),
    [
        ((4, 4), (1.0, 1.0, 1.0), r"array of shape \(4, 4\)"),
        ((2, 4, 4, 4), (1.0, 1.0, 1.0), "has 2 channels, but the plan expects 1"),
        ((4, 4, 4), (1.0, 0.0, 1.0), r"spacing_mm = .*three positive numbers"),
        ((4, 4, 4), (1.0, float("nan"), 1.0), r"spacing_mm = .*three positive numbers"),
        ((4, 4, 4), (1.0, float("inf"), 1.0), r"spacing_mm = .*three positive numbers"),
        ((4, 4, 4), (1.0, 1.0), r"spacing_mm = .*three positive numbers"),
    ],
)
def test_arrays_that_are_refused(
    model: Model, shape: tuple[int, ...], spacing: tuple[float, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        predict_array(np.zeros(shape, np.float32), spacing, model)  # type: ignore[arg-type]


def test_an_array_with_nan_is_refused(model: Model) -> None:
    array = np.zeros((4, 4, 4), np.float32)
    array[1, 2, 3] = np.nan
    with pytest.raises(DataError, match="NaN or infinite"):
        predict_array(array, (1.0, 1.0, 1.0), model)


def test_progress_names_each_scan(model: Model, tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / "in" / f"{name}.nii.gz")
    calls: list[tuple[int, int, str]] = []
    predict_scans(
        find_scans([tmp_path / "in"]),
        model,
        Constant(),
        tmp_path / "out",
        SETTINGS,
        progress=lambda done, total, case: calls.append((done, total, case)),
    )
    assert calls == [(1, 2, "a"), (2, 2, "b")]
    labels = np.asarray(nib.load(tmp_path / "out" / "a.nii.gz").dataobj)
    assert (labels == 2).all()  # the largest of the constant logits


def test_the_engine_leaves_the_network_in_its_mode(model: Model) -> None:
    network = load_network(model)
    engine = TorchEngine(network, CPU)
    tiles = np.zeros((2, 1, 8, 8, 8), np.float32)
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    for training in (True, False):
        network.train(training)
        assert engine.run(tiles).shape == (2, 3, 8, 8, 8)
        assert network.training is training
    assert all(torch.equal(value, buffers[name]) for name, value in network.named_buffers())
    network.train()
    with pytest.raises(RuntimeError):
        engine.run(np.zeros((1, 4, 8, 8, 8), np.float32))
    assert network.training
    network.eval()
    assert TorchEngine(network, CPU, torch.bfloat16).precision == "bfloat16"


@pytest.mark.parametrize("changes", [{"tile_step": 0.0}, {"tile_step": 1.1}, {"tile_batch": 0}])
def test_bad_settings_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"predict.{next(iter(changes))} = "):
        PredictSettings(**changes)  # type: ignore[arg-type]


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ConfigError, match="device = 'toaster'"):
        choose_device("toaster")
    with pytest.raises(ConfigError, match="device = 'cuda:99'"):
        choose_device("cuda:99")


def test_no_scan_is_overwritten(model: Model, tmp_path: Path) -> None:
    scan = save(tmp_path / "in" / "a.nii.gz")
    before = scan.read_bytes()
    with pytest.raises(ConfigError, match=r"a\.nii\.gz: is a scan, and would be overwritten"):
        predict(model, tmp_path / "in", tmp_path / "in")
    assert scan.read_bytes() == before
    save(tmp_path / "channels" / "b_0000.nii.gz")  # would become b.nii.gz, beside it: a scan for whoever comes next
    with pytest.raises(ConfigError, match="channels: is the scans' own folder"):
        predict(model, tmp_path / "channels", tmp_path / "channels")


def test_no_file_is_overwritten_that_was_not_predicted_here(model: Model, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.nii.gz")
    drawn = save(tmp_path / "labelsTs" / "a.nii.gz")
    before = drawn.read_bytes()
    with pytest.raises(ConfigError, match=r"labelsTs/a\.nii\.gz: was not predicted here .*predictions\.jsonl"):
        predict(model, tmp_path / "in", tmp_path / "labelsTs")
    assert drawn.read_bytes() == before
    (first,) = predict(model, tmp_path / "in", tmp_path / "out")
    (again,) = predict(model, tmp_path / "in", tmp_path / "out")
    assert (first.error, again.reused) == (None, True)


def test_one_scan_goes_into_the_file_that_is_named(model: Model, tmp_path: Path) -> None:
    scan = Scan("a", (save(tmp_path / "in" / "a.nii.gz"),))
    engine = torch_engine(model, CPU)
    (in_folder,) = predict(model, tmp_path / "in", tmp_path / "out")
    for name in ("seg.nii.gz", "seg.nii"):
        outcome = predict_scan_to(scan, model, engine, tmp_path / "new" / name, SETTINGS)
        assert (outcome.output, outcome.error) == (tmp_path / "new" / name, None)
        found, expected = (np.asarray(nib.load(file).dataobj) for file in (outcome.output, in_folder.output))
        assert np.array_equal(found, expected)
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["seg.nii", "seg.nii.gz"]
    before = (tmp_path / "new" / "seg.nii").read_bytes()
    with pytest.raises(ConfigError, match=r"seg\.nii: is there already, and a file that is named is never overwritten"):
        predict_scan_to(scan, model, engine, tmp_path / "new" / "seg.nii", SETTINGS)
    assert (tmp_path / "new" / "seg.nii").read_bytes() == before
    with pytest.raises(ConfigError, match="in small letters"):
        predict_scan_to(scan, model, engine, tmp_path / "new" / "seg.NII", SETTINGS)


def test_a_scan_of_another_modality_is_told(model: Model, tmp_path: Path) -> None:
    """The model learnt CT: noise below 0 may be one, a scan without a value below 0 is none."""
    save(tmp_path / "in" / "ct.nii.gz")
    mr = nib.load(tmp_path / "in" / "ct.nii.gz")
    values = np.abs(np.asarray(mr.dataobj))
    nib.save(nib.Nifti1Image(values, mr.affine), tmp_path / "in" / "mr.nii.gz")
    outcomes = predict(model, tmp_path / "in", tmp_path / "out")
    assert [(outcome.id, outcome.foreign, outcome.error) for outcome in outcomes] == [
        ("ct", False, None),
        ("mr", True, None),
    ]
    assert foreign_text(["mr"], model.plan) == (
        "warning: mr has no value below 0, as MR has and no CT in Hounsfield units, but the model was trained on CT "
        "(made up): do not trust its labels unseen."
    )
    of_mr = replace(model.plan, channels=("T1",), normalisation=(ChannelNormalisation(scheme="zscore"),))
    air = np.full((12, 12, 12), -1000, np.int16)
    air[3:9, 3:9, 3:9] = 40
    assert is_foreign([RawChannel(air)], of_mr)
    assert not is_foreign([RawChannel(np.abs(air))], of_mr)
    assert "a, b look like CT in Hounsfield units, but the model was trained on T1" in foreign_text(["a", "b"], of_mr)


def test_what_is_doubtful_of_a_header_is_told(model: Model, tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    save(tmp_path / "in" / "good.nii.gz", affine)
    save(tmp_path / "in" / "guess.nii.gz", affine, codes=(0, 0))
    save(tmp_path / "in" / "metres.nii.gz", affine * np.array([[1e-3], [1e-3], [1e-3], [1]]))
    for name, slices in (("slab", 2), ("slice", 1)):  # thin, not small
        image = nib.Nifti1Image(np.zeros((60, 60, slices), np.int16), affine)
        nib.save(image, tmp_path / "in" / f"{name}.nii.gz")
    doubts = {outcome.id: outcome.doubts for outcome in predict(model, tmp_path / "in", tmp_path / "out")}
    assert (doubts["good"], doubts["slab"]) == ((), ())
    assert doubts["slice"] == ("the scan is one slice, and the model learnt volumes: do not trust its labels unseen.",)
    assert "left and right are a guess" in doubts["guess"][0]
    assert "Look whether the voxels of (0.002, 0.0015, 0.001) mm" in doubts["metres"][0]


class Upright:
    """Finds class 1 where a tile is bright, and is surer of it where the front of the tile is brighter."""

    name, precision = "upright", "float32"

    def run(self, tiles: FloatArray) -> FloatArray:
        half = tiles.shape[3] // 2
        upright = tiles[:, :, :, half:].mean((1, 2, 3, 4)) > tiles[:, :, :, :half].mean((1, 2, 3, 4))
        bright = (tiles > 0.5) * np.where(upright, 4, 1).reshape(-1, 1, 1, 1, 1)
        return np.concatenate([1 - bright, bright, np.zeros_like(bright)], axis=1).astype(np.float32)


def test_a_scan_is_predicted_in_the_pose_that_training_found(model: Model, tmp_path: Path) -> None:
    """Its labels are as the file lies, and the log and the person are told of it, by a second call, too."""
    poses = [{"axes": [0, 2, 1], "flipped": []}, {"axes": [0, 1, 2], "flipped": [1]}]
    model = replace(model, card=model.card | {"poses": poses})
    upside_down = np.zeros((5, 6, 7), dtype=np.float32)
    upside_down[1:4, :3, 2:5] = 100
    found = predict_array(upside_down, (2.0, 1.0, 1.0), model, engine=Upright(), settings=SETTINGS)
    assert torch.from_numpy(found).any()  # no view with a negative stride, which torch takes none of
    array = np.zeros((9, 13, 11), dtype=np.int16)  # x, y, z: bright in front
    array[2:7, 8:12, 3:8] = 100
    files = {}
    for name, stored in (("upright", array), ("exchanged", array.transpose(1, 0, 2))):
        files[name] = tmp_path / "in" / f"{name}.nii.gz"
        files[name].parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(stored, np.diag([1.0, 1.0, 1.0, 1.0])), files[name])
    outcomes = {
        one.id: one
        for one in predict_scans(
            find_scans([tmp_path / "in"]), model, Upright(), tmp_path / "out", replace(SETTINGS, probabilities=True)
        )
    }
    labels = {name: np.asarray(nib.load(one.output).dataobj) for name, one in outcomes.items()}
    assert labels["upright"].any()
    assert np.array_equal(labels["exchanged"], labels["upright"].transpose(1, 0, 2))
    maps = {name: np.asarray(nib.load(tmp_path / "out" / f"{name}_probabilities.nii.gz").dataobj) for name in files}
    assert np.array_equal(maps["exchanged"], maps["upright"].transpose(1, 0, 2, 3))
    assert (outcomes["upright"].pose, outcomes["exchanged"].pose) == ("", "Y and X exchanged")
    again = predict_scans(
        find_scans([tmp_path / "in"]), model, Upright(), tmp_path / "out", replace(SETTINGS, probabilities=True)
    )
    assert {one.id: (one.reused, one.pose) for one in again} == {
        "upright": (True, ""),
        "exchanged": (True, "Y and X exchanged"),
    }
    rows = {row["id"]: row.get("pose") for row in read_jsonl(tmp_path / "out" / "predictions.jsonl")}
    assert rows == {"upright": None, "exchanged": "Y and X exchanged"}
