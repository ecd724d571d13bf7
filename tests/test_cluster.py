"""Work on cases by a real Dask cluster of processes: the same results, and the same rule for what goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from semiseg import cases
from semiseg.cases import map_cases
from semiseg.cluster import Cluster
from semiseg.errors import ConfigError, DataError

distributed = pytest.importorskip("distributed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of sockets that Dask closes when it is collected
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
HERE = str(Path(__file__).parent)
PATIENCE_SECONDS = 120.0
"""Longer than any part of Dask takes to start on a busy machine."""


def dask(*arguments: object) -> subprocess.Popen[bytes]:
    """`dask ARGUMENTS` in a process group of its own; it can import this file."""
    code = "import sys; from dask.__main__ import main; sys.argv[0] = 'dask'; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": HERE + os.pathsep + os.environ.get("PYTHONPATH", ""), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    for one in (*psutil.Process(process.pid).children(recursive=True), process):
        if one.is_running() if isinstance(one, psutil.Process) else one.poll() is None:
            one.kill()
    process.wait()


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Started:
    """A scheduler with its file, and two workers of one thread."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "scheduler.json"
        self.scheduler = dask(
            "scheduler", "--scheduler-file", self.file, "--port", "0", "--no-dashboard", "--host", "127.0.0.1"
        )
        wait_until(self.file.exists)
        options = ("--scheduler-file", self.file, "--nthreads", "1", "--nworkers", "2", "--no-dashboard")
        self.worker = dask("worker", *options, "--local-directory", folder, "--death-timeout", "60")

    def open(self) -> Cluster:
        def ready() -> bool:
            try:
                return Cluster(str(self.file)).threads == 2
            except ConfigError:
                return False

        wait_until(ready)
        return Cluster(str(self.file))

    def stop(self) -> None:
        stop(self.worker)
        if self.scheduler.poll() is None:
            stop(self.scheduler)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    found = Started(tmp_path_factory.mktemp("cluster"))
    yield found
    for client in list(distributed.Client._instances):
        client.close()  # its thread would call for the scheduler for ever, in the tests that follow
    found.stop()


@pytest.fixture
def cluster(started: Started, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr("semiseg.processes._workers_asked", [])
    monkeypatch.setattr(cases, "_clusters", [])
    opened = started.open()
    cases.use_cluster(opened)
    return opened


def power(case: int) -> tuple[int, int]:
    if case == 3:
        os._exit(1)
    return case**2, os.getpid()


def broken(case: int) -> int:
    if case == 2:
        raise DataError("two: is damaged. Leave it out.")
    return case


def test_results_are_those_of_one_process_and_a_deadly_case_is_lost_alone(cluster: Cluster) -> None:
    sys.modules["test_cluster"] = sys.modules[__name__]  # by which the workers import it
    function = power
    function.__module__ = "test_cluster"
    told: list[int] = []
    found = map_cases(
        function, range(8), workers=2, lost=lambda case: (-case, 0), progress=lambda done, *_: told.append(done)
    )
    assert [value for value, _ in found] == [0, 1, 4, -3, 16, 25, 36, 49]
    assert os.getpid() not in {process for _, process in found}
    assert told == list(range(1, 9))


def with_ballast(case: int, ballast: bytes) -> int:
    if case == 3:
        os._exit(1)
    return case + len(ballast)


def test_a_deadly_case_is_lost_alone_where_the_function_is_a_network(cluster: Cluster) -> None:
    """One that travels to the workers once: those that held it are gone with the case."""
    with_ballast.__module__ = "test_cluster"
    sys.modules["test_cluster"] = sys.modules[__name__]
    large = 3 << 20
    found = map_cases(partial(with_ballast, ballast=bytes(large)), range(6), workers=2, lost=lambda case: -case)
    assert found == [large, large + 1, large + 2, -3, large + 4, large + 5]


def test_an_error_of_a_case_is_raised_here(cluster: Cluster) -> None:
    function = broken
    function.__module__ = "test_cluster"
    with pytest.raises(DataError, match="two: is damaged"):
        map_cases(function, range(4), workers=2, lost=lambda case: -1)


def test_the_chain_gives_the_same_bytes(
    cluster: Cluster,
    semiseg_command: Any,
    phantoms: Path,
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Check, prepare, predict, evaluate and rank, by one process and by the cluster."""
    trained = tmp_path / "runs" / "trained"
    assert semiseg_command("run", trained, "--data", phantoms, *tiny, "--method", "mpl", "--quiet").code == 0
    made: dict[str, list[bytes]] = {}
    for name in ("alone", "cluster"):
        if name == "alone":
            monkeypatch.setattr(cases, "_clusters", [])
            monkeypatch.setattr("semiseg.processes._workers_asked", [1])
        else:
            cases.use_cluster(cluster)
        run, labels = tmp_path / name / "run", tmp_path / name / "labels"
        checked = semiseg_command("check", phantoms)
        assert semiseg_command("prepare", run, "--data", phantoms, *tiny, "--quiet").code == 0
        scans = phantoms / "imagesTs"
        predicted = semiseg_command(
            "predict",
            trained,
            scans,
            "--output",
            labels,
            "--device",
            "cpu",
            "--engine",
            "torch",
            "--precision",
            "float32",
            "--quiet",
        )
        assert predicted.code == 0, predicted.err
        scored = ("--predictions", labels, "--references", phantoms / "labelsTs", "--labels", phantoms / "dataset.json")
        assert semiseg_command("evaluate", *scored, "--quiet").code == 0
        assert semiseg_command("rank", trained, "--quiet").code == 0
        files = [*sorted(run.glob("store/*/*.b2nd")), run / "plan.toml", *sorted(labels.glob("*.nii.gz"))]
        made[name] = [
            checked.out.encode(),
            (trained / "ranking.csv").read_bytes(),
            (labels / "summary.csv").read_bytes(),
        ]
        made[name] += [file.read_bytes() for file in files]
        assert len(files) > 4
    assert made["alone"] == made["cluster"]


def test_who_is_not_there_is_named(tmp_path: Path, semiseg_command: Any, phantoms: Path) -> None:
    said = semiseg_command("check", phantoms, "--scheduler", "tcp://127.0.0.1:9")
    assert said.code == 2
    assert "no Dask scheduler answers there" in said.err
    both = semiseg_command("check", phantoms, "--scheduler", "tcp://127.0.0.1:9", "--workers", 2)
    assert both.code == 2
    assert "both say who works" in both.err


def slow(case: int) -> int:
    time.sleep(0.5)
    return case


def test_a_scheduler_that_goes_away_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(tmp_path)
    try:
        opened = started.open()
        function = slow
        function.__module__ = "test_cluster"
        sys.modules["test_cluster"] = sys.modules[__name__]
        results = opened.each(function, range(100), lost=lambda case: -1)
        next(results)
        stop(started.scheduler)
        with pytest.raises(DataError, match=r"does not answer any more .* Start it again"):
            list(results)
    finally:
        started.stop()
