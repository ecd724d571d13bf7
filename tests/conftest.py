"""Fixtures that every room of the tests shares."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

from semiseg.cli import main
from semiseg.demo.dataset import write_phantom_dataset

sys.path.insert(0, str(Path(__file__).parent))  # for `plans.py`
hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is slow, and nothing is wrong
hypothesis.settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--real-data",
        default=str(Path(__file__).resolve().parents[2] / "shared" / "data"),
        help="Folder of real volumes, beside the project by default; tests that need it skip where it is absent.",
    )
    parser.addoption("--device", default="cpu", help="Where the runs that tests make are trained and predicted: cuda?")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests find out about engines is not remembered for the user's models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def real_data(request: pytest.FixtureRequest) -> Path:
    """The folder of real volumes; skips the test where it is absent."""
    folder = Path(request.config.getoption("--real-data"))
    if not folder.is_dir():
        pytest.skip(f"no real volumes at {folder} (choose the folder with --real-data)")
    return folder


@dataclass(frozen=True)
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def semiseg_command() -> Callable[..., Answer]:
    """`semiseg ARGUMENTS` in this process: the command line as it is, without the seconds of a process's start."""

    def call(*arguments: object) -> Answer:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return Answer(int(ended.value.code or 0), out.getvalue(), err.getvalue())

    return call


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom set of 2 labelled, 2 unlabelled and 1 test scan, to be left as it is."""
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    return write_phantom_dataset(folder, seed=0, labelled=2, unlabelled=2, test=1, shape_zyx=(24, 32, 32))


@pytest.fixture(scope="session")
def tiny(request: pytest.FixtureRequest) -> list[str]:
    """Flags that make a run a matter of a second or two."""
    device = request.config.getoption("--device")
    settings = {
        "plan.patch": "[16, 16, 16]",
        "plan.batch": 2,
        "plan.base_features": 4,
        "plan.max_levels": 2,
        "train.steps": 6,
        "train.threads": 1,
        "train.device": device,
        "train.precision": "float32",
        "train.log_every": 1,
        "train.checkpoint_every": 3,
        "predict.device": device,
        "predict.tile_step": 1,
    }
    return [flag for key, value in settings.items() for flag in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def one_core() -> Iterator[None]:
    """One core for this process and those that it starts (so no pools are), and torch as it was afterwards. Processes
    of pytest that run side by side have one each."""
    torch = pytest.importorskip("torch")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if cores:
        os.sched_setaffinity(0, {cores[number % len(cores)]})
    torch.set_num_threads(1)
    yield
    if cores:
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(exact)
    torch.backends.cudnn.benchmark = benchmark


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for torch: tiny networks only wait for the others."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
