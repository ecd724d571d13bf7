"""int8: made once from the scans at hand, checked like any other engine."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import openvino
import pytest
import torch

from semiseg.errors import ConfigError
from semiseg.prediction.engine_choice import choose_engine
from semiseg.prediction.engines.opening import open_engine
from semiseg.prediction.engines.openvino_engine import int8_file
from semiseg.prediction.engines.torch_engine import load_network
from semiseg.prediction.inputs import Scan, find_scans
from semiseg.prediction.int8 import calibration_tiles
from semiseg.prediction.model import Model, load_model, save_model
from semiseg.prediction.settings import PredictSettings

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # NNCF and what it imports, over which the project has no say
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
INT8 = PredictSettings(device="cpu", engine="openvino", precision="int8", tile_step=1.0, mirror=False)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def scans(tmp_path: Path) -> list[Scan]:
    """Four scans; the last and largest grows by 10 from slice to slice."""
    (tmp_path / "in").mkdir()
    for index, size in enumerate((22, 23, 24)):
        array = np.random.default_rng(index).normal(0, 3, (size, size, size))
        array[: size // 2] += 200
        nib.save(nib.Nifti1Image(array.astype(np.int16), np.eye(4)), tmp_path / "in" / f"{'abc'[index]}.nii")
    ramp = np.broadcast_to(10 * np.arange(30), (30, 35, 30)).astype(np.int16)
    nib.save(nib.Nifti1Image(ramp, np.eye(4)), tmp_path / "in" / "d.nii")
    return find_scans([tmp_path / "in"])


@pytest.fixture
def fitted(model: Model, scans: list[Scan], tmp_path: Path) -> Model:
    """A network whose last layer is fitted to find what is bright: unlike a random one it is sure of its labels."""
    network = load_network(model)
    tiles = torch.from_numpy(np.concatenate(calibration_tiles(model, scans[:3])))
    features: list[torch.Tensor] = []
    network.head.register_forward_hook(lambda _module, given, _made: features.append(given[0]))
    with torch.no_grad():
        network(tiles)
        known = features[0].movedim(1, -1).flatten(0, -2)
        bright = tiles.flatten() > tiles.mean()
        weights = torch.linalg.lstsq(torch.cat([known, torch.ones_like(known[:, :1])], 1), 20.0 * bright - 10.0)
        network.head.weight[:] = 0
        network.head.bias[:] = -20
        network.head.bias[0] = 0
        network.head.weight[1] = weights.solution[:-1, None, None, None]
        network.head.bias[1] = weights.solution[-1]
    save_model(tmp_path / "fitted", network, model.plan, role="student", card={})
    return load_model(tmp_path / "fitted")


def test_made_once_checked_and_kept_to(
    fitted: Model, scans: list[Scan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Features that were never trained leave many voxels in doubt: in int8 the labels differ in more than is allowed.
    monkeypatch.setattr("semiseg.prediction.engine_choice.SMALLEST_DICE", 0.98)
    said: list[str] = []
    engine = choose_engine(fitted, scans[:3], tmp_path / "out", INT8, say=said.append)  # so it passed the check
    assert (engine.name, engine.precision) == ("openvino", "int8")
    assert sum("making an int8 network" in text for text in said) == 1
    assert b"FakeQuantize" in int8_file(fitted).read_bytes()
    network = openvino.Core().read_model(int8_file(fitted))
    convolutions = [op for op in network.get_ordered_ops() if op.get_type_name() == "Convolution"]
    quantised = [op.input_value(0).get_node().get_type_name() == "FakeQuantize" for op in convolutions]
    assert (quantised[0], any(quantised), quantised[-1]) == (False, True, False)
    tile = calibration_tiles(fitted, scans[:1])[0]
    assert not np.array_equal(engine.run(tile), open_engine(fitted, "openvino").run(tile))
    stamp, again = int8_file(fitted).stat().st_mtime_ns, list[str]()
    choose_engine(fitted, scans[:3], tmp_path / "out", INT8, say=again.append)
    assert again == []
    assert int8_file(fitted).stat().st_mtime_ns == stamp


def test_tiles_are_of_scans_that_the_check_leaves_and_lie_as_the_network_expects(
    model: Model, scans: list[Scan]
) -> None:
    tiles = calibration_tiles(model, scans)
    assert len(tiles) == 8
    for tile in tiles:
        assert tile.shape == (1, len(model.plan.channels), *model.plan.patch)
        steps = np.diff(tile[0, 0], axis=0)  # slices of the ramp, the largest scan: the first axis is Z
        assert steps.max() > 0
        assert np.ptp(tile[0, 0], axis=(1, 2)).max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (PredictSettings(engine="openvino", precision="int8", max_memory="8GB"), "without --max-memory"),
        (PredictSettings(engine="torch", precision="int8", device="cpu"), "engine torch does not compute in it"),
        (PredictSettings(engine="onnx", precision="int8", device="cpu"), "engine onnx does not compute in it"),
    ],
)
def test_refused(model: Model, scans: list[Scan], tmp_path: Path, settings: PredictSettings, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        choose_engine(model, scans, tmp_path / "out", settings, say=print)


def test_nncf_is_asked_for_by_name(
    model: Model, scans: list[Scan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[int8\]'"):
        choose_engine(model, scans, tmp_path / "out", INT8, say=print)


def test_opened_before_it_is_made(model: Model) -> None:
    with pytest.raises(ConfigError, match="has no int8 network on this machine yet"):
        open_engine(model, "openvino", precision="int8")
