"""The engines against torch: the same logits, and no torch where none is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from shutil import which

import nibabel as nib
import numpy as np
import pytest
import torch

from semiseg.data.plan import NetworkPlan, Plan
from semiseg.errors import ConfigError, ModelError, TrainingError
from semiseg.files import hash_files
from semiseg.models.build import build_network
from semiseg.prediction.engines import opening
from semiseg.prediction.engines.onnx_file import onnx_bytes
from semiseg.prediction.engines.opening import open_engine
from semiseg.prediction.engines.torch_blend import DeviceBlend
from semiseg.prediction.engines.torch_engine import TorchEngine, load_network, torch_engine
from semiseg.prediction.model import GRAPH_FILE, Model, load_model, save_model
from semiseg.prediction.sliding import sliding_window
from semiseg.prediction.window import Window

pytestmark = pytest.mark.usefixtures("one_thread")
OTHERS = ["openvino", "onnx"]
ANISOTROPIC = NetworkPlan(
    features=(4, 6, 8), kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)), strides=((1, 1, 1), (1, 2, 2), (2, 2, 2))
)


@pytest.fixture(scope="module", params=["isotropic", "anisotropic, two channels"])
def some_model(request: pytest.FixtureRequest, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    if request.param == "isotropic":
        return model
    plan = replace(model.plan, channels=("CT", "PET"), normalisation=model.plan.normalisation * 2, student=ANISOTROPIC)
    network = build_network(ANISOTROPIC, channels=2, classes=3, seed=3).train()
    with torch.no_grad():
        for _ in range(5):  # running statistics that are not those of the start
            network(torch.randn((2, 2, *plan.patch), generator=torch.Generator().manual_seed(0)) * 3 + 1)
    folder = tmp_path_factory.mktemp("other") / "model"
    save_model(folder, network, plan, role="student", card={})
    return load_model(folder)


def tiles(model: Model, count: int = 3) -> np.ndarray:
    shape = (count, len(model.plan.channels), *model.plan.patch)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", OTHERS)
def test_logits_are_torchs(some_model: Model, name: str) -> None:
    expected = open_engine(some_model, "torch", device="cpu").run(tiles(some_model))
    engine = open_engine(some_model, name)
    assert (engine.name, engine.precision) == (name, "float32")
    found = engine.run(tiles(some_model))
    assert found.dtype == np.float32
    assert expected.std() > 0.1
    # Folding batch norm and summing in another order: a few float32 roundings of sums of 27 x 16 products.
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert np.array_equal(engine.run(tiles(some_model))[1], found[1])  # nothing is kept between runs


def test_openvino_in_bfloat16_is_near(model: Model) -> None:
    """On a CPU without bfloat16 OpenVINO computes in float32: then it is nearer still."""
    expected = open_engine(model, "torch", device="cpu").run(tiles(model))
    engine = open_engine(model, "openvino", precision="bfloat16")
    assert engine.precision == "bfloat16"
    # Seven layers, each rounding to 8 bits (0.4 %).
    np.testing.assert_allclose(engine.run(tiles(model)), expected, atol=0.1 * np.abs(expected).max())


def test_engines_that_are_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="choose torch, openvino, onnx"):
        open_engine(model, "tensorrt")
    with pytest.raises(ConfigError, match="onnx computes in float32 here"):
        open_engine(model, "onnx", precision="bfloat16")
    with pytest.raises(ConfigError, match="torch computes in float32 or bfloat16 here"):
        open_engine(model, "torch", precision="int8")
    with pytest.raises(ConfigError, match="max_gpu_memory = '2GB', but prediction is on cpu: leave it out"):
        open_engine(model, "torch", device="cpu", max_gpu_memory="2GB")
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"openvino and onnx cannot be imported: pip install '\.\[openvino\]'"):
        open_engine(model, "openvino")


def test_weights_that_do_not_fit_are_named(plan: Plan, tmp_path: Path) -> None:
    network = build_network(plan.teacher, channels=1, classes=3, seed=0)
    save_model(tmp_path / "m", network, replace(plan, student=ANISOTROPIC), role="student", card={})
    (tmp_path / "m" / GRAPH_FILE).unlink()
    with pytest.raises(ModelError, match=r"weights\.safetensors: does not fit plan\.toml"):
        onnx_bytes(load_model(tmp_path / "m"))


def copied(model: Model, folder: Path) -> Model:
    shutil.copytree(model.folder, folder)
    return load_model(folder)


def test_a_graph_is_made_of_the_weights_where_it_is_missing(model: Model, tmp_path: Path) -> None:
    model = copied(model, tmp_path / "m")
    exported = onnx_bytes(model)
    (model.folder / GRAPH_FILE).unlink()
    assert onnx_bytes(model) == exported


def test_a_graph_of_somebody_else_is_refused(model: Model, tmp_path: Path) -> None:
    import onnx

    model = copied(model, tmp_path / "m")
    file = model.folder / GRAPH_FILE
    exported = file.read_bytes()
    proto = onnx.load_from_string(exported)
    weights = proto.graph.initializer[0]
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="../../../etc/passwd")
    file.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"network\.onnx: not the file that card\.json describes"):
        onnx_bytes(model)
    described = replace(model, card=model.card | {"graph_sha256": hash_files([file])})
    with pytest.raises(ModelError, match=r"network\.onnx: takes weights from other files"):
        onnx_bytes(described)
    proto = onnx.load_from_string(exported)
    inner = onnx.helper.make_tensor("x", onnx.TensorProto.FLOAT, [1], [0.0])
    inner.data_location = onnx.TensorProto.EXTERNAL
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["unused"], value=inner))
    file.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"network\.onnx: takes weights from other files"):
        onnx_bytes(replace(model, card=model.card | {"graph_sha256": hash_files([file])}))
    file.write_bytes(b"no graph")
    with pytest.raises(ModelError, match=r"network\.onnx: no ONNX graph"):
        onnx_bytes(replace(model, card=model.card | {"graph_sha256": hash_files([file])}))


@pytest.mark.parametrize("name", [OTHERS[0], pytest.param(OTHERS[1], marks=pytest.mark.thorough)])
def test_prediction_does_not_import_torch(model_folder: Path, tmp_path: Path, name: str) -> None:
    """On the command line, as soon as the engine has passed its check."""
    noise = np.random.default_rng(0).integers(-100, 200, (9, 9, 9), np.int16)
    nib.save(nib.Nifti1Image(noise, np.eye(4)), tmp_path / "a.nii")
    script = f"""
import sys
from semiseg.cli import main

try:
    main(["predict", {str(model_folder)!r}, {str(tmp_path / "a.nii")!r}, "--output", "out", "--engine", {name!r}])
except SystemExit as end:
    assert not end.code
print("torch" in sys.modules)
"""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    answers = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stderr
        answers.append(done.stdout.split()[-1])
    assert answers == ["True", "False"]


class Scarce(torch.nn.Module):
    """A device that has memory for so many tiles."""

    def __init__(self, tiles: int) -> None:
        super().__init__()
        self.tiles, self.batches = tiles, list[int]()

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(batch))
        if len(batch) > self.tiles:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch * 2


def test_too_little_memory_for_a_batch_makes_it_smaller_and_says_so() -> None:
    said: list[str] = []
    network = Scarce(2)
    engine = TorchEngine(network, torch.device("cpu"), say=said.append)
    given = np.random.default_rng(0).standard_normal((7, 1, 2, 2, 2)).astype(np.float32)
    assert np.array_equal(engine.run(given), given * 2)
    assert network.batches == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert said == [
        "no memory on cpu for 7 tiles at once: computing 3",
        "no memory on cpu for 3 tiles at once: computing 1",
    ]
    engine.run(given[:3])
    assert network.batches[9:] == [1, 1, 1]  # it is remembered
    with pytest.raises(TrainingError, match=r"no memory left on cpu for a tile of \(2, 2, 2\): use --device cpu"):
        TorchEngine(Scarce(0), torch.device("cpu")).run(given)


def test_folding_batch_norm_changes_roundings_only(some_model: Model) -> None:
    given = tiles(some_model)
    folded = torch_engine(some_model, torch.device("cpu"))
    assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in folded.network.modules())
    expected = TorchEngine(load_network(some_model), torch.device("cpu")).run(given)
    # A few float32 roundings of sums of 27 x 16 products.
    np.testing.assert_allclose(folded.run(given), expected, atol=1e-4 * np.abs(expected).max())


def test_torch_in_bfloat16_is_near(model: Model) -> None:
    expected = open_engine(model, "torch", device="cpu").run(tiles(model))
    engine = open_engine(model, "torch", device="cpu", precision="bfloat16")
    assert engine.precision == "bfloat16"
    found = engine.run(tiles(model))
    assert not np.array_equal(found, expected)
    # Seven layers, each rounding to 8 bits (0.4 %).
    np.testing.assert_allclose(found, expected, atol=0.1 * np.abs(expected).max())


@pytest.mark.skipif(which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch itself deprecates
def test_a_compiled_network_computes_the_same(model: Model) -> None:
    given = tiles(model, 1)
    expected = open_engine(model, "torch", device="cpu").run(given)
    # The order of sums in fused loops: a few float32 roundings.
    np.testing.assert_allclose(
        open_engine(model, "torch", device="cpu", compiled=True).run(given),
        expected,
        atol=1e-4 * np.abs(expected).max(),
    )


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")


@needs_gpu
def test_a_gpu_blends_where_there_is_room_and_keeps_to_its_limit(model: Model) -> None:
    free, total = torch.cuda.mem_get_info()
    image = np.random.default_rng(0).standard_normal((1, 40, 40, 40), dtype=np.float32)
    window = Window(patch=model.plan.patch)
    expected = sliding_window(image, open_engine(model, "torch", device="cpu"), window)
    try:
        for spare in (2000, 0):
            most = (total - free) // 2**20 + 64 + spare
            engine = open_engine(model, "torch", device="cuda", max_gpu_memory=f"{most}MiB")
            assert isinstance(engine, TorchEngine)
            assert spare == 0 or isinstance(engine.blend(window, (40, 40, 40)), DeviceBlend)
            # TensorFloat-32 keeps 10 bits of a factor.
            np.testing.assert_allclose(
                sliding_window(image, engine, window), expected, atol=1e-2 * np.abs(expected).max()
            )
            assert torch.cuda.max_memory_reserved() <= most * 2**20
        with pytest.raises(ConfigError, match="are in use already"):
            open_engine(model, "torch", device="cuda", max_gpu_memory="1MB")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
