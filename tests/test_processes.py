"""Worker processes: spawned, one compute thread each, and gone when their parent is. Work of other programs is seen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from threadpoolctl import threadpool_info

from semiseg.cases import map_cases
from semiseg.errors import DataError
from semiseg.processes import gpu_names, warn_of_other_programs, worker_pool

PARENT = """
import os, sys, time
from semiseg.processes import worker_pool
if __name__ == "__main__":
    with worker_pool(2) as pool:
        print(*{pool.submit(os.getpid).result() for _ in range(20)}, flush=True)
        pool.submit(time.sleep, 600).result()
"""


def threads() -> set[int]:
    import numpy as np

    np.ones((4, 4)) @ np.ones((4, 4))
    return {library["num_threads"] for library in threadpool_info()}


def test_a_worker_computes_on_one_thread() -> None:
    with worker_pool(1) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()
        assert pool.submit(threads).result() == {1}


def seen_gpus(folder: Path) -> tuple[int, str | None]:
    """Once two processes look."""
    (folder / str(os.getpid())).touch()
    for _ in range(300):
        if len(list(folder.iterdir())) > 1:
            break
        time.sleep(0.1)
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(("gpus", "seen"), [(["3", "GPU-a"], {"3", "GPU-a"}), ([], {"7"})])
def test_each_process_sees_one_gpu_in_turn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: list[str], seen: set[str]
) -> None:
    """Without any, what this process sees; which is as before in both cases."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with worker_pool(2, gpus=gpus) as pool:
        found = dict(one.result() for one in [pool.submit(seen_gpus, tmp_path) for _ in range(2)])
    assert len(found) == 2
    assert set(found.values()) == seen
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"


@pytest.mark.parametrize(
    ("visible", "names"), [(None, ["0", "1"]), ("2,5", ["2", "5"]), ("GPU-a, GPU-b,GPU-c", ["GPU-a", "GPU-b"])]
)
def test_gpus_have_the_names_that_are_visible(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, names: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_names(2) == names


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to see which processes live")
def test_workers_of_a_killed_process_end() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert workers
        assert all(map(_lives, workers))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 60  # far longer than a thread needs to wake up on a busy machine
    while any(map(_lives, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_lives, workers))


STOPPED = """
import signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()  # as torch has: it takes signals, too
from semiseg.cases import map_cases
def killed(case):
    raise AssertionError
try:
    map_cases(time.sleep, [0.01, 1, 1, 600], workers=2, lost=killed, progress=lambda *_: print("one", flush=True))
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.mark.parametrize("early", [False, True])
def test_ctrl_c_is_not_heard_by_workers(early: bool) -> None:
    """It reaches the whole group of processes, those too that are starting; what waits is not begun."""
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        if early:
            while not psutil.Process(parent.pid).children():
                time.sleep(0.01)
        else:
            assert parent.stdout.readline() == "one\n"
        os.killpg(parent.pid, signal.SIGINT)
        out, err = parent.communicate(timeout=120)
    # The first takes 0.01 s, so that it may be done when the signal comes.
    assert (out.removeprefix("one\n") if early else out, err) == ("stopped\n", "")


def _power(case: int, folder: Path) -> tuple[int, int]:
    """Its square and by which process; the last two wait for each other."""
    if case == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if case >= 8:
        (folder / str(case)).touch()
        deadline = time.monotonic() + 60
        while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
    return case**2, os.getpid()


@pytest.mark.parametrize("workers", [2, 3])
def test_a_case_that_kills_its_process_stops_no_other(workers: int, tmp_path: Path) -> None:
    """Nor are those that come later done by one process."""
    seen: list[int] = []
    found = map_cases(
        partial(_power, folder=tmp_path),
        range(10),
        workers=workers,
        lost=lambda case: (-case, 0),
        progress=lambda done, total, case: seen.append(case),
    )
    assert [power for power, _ in found] == [0, 1, 4, -3, 16, 25, 36, 49, 64, 81]
    assert sorted(seen) == list(range(10))
    assert found[8][1] != found[9][1]


class Unloadable:
    """A function that a process cannot load: of a library that it has not, say."""

    def __call__(self, case: int) -> int:
        return case

    def __reduce__(self) -> tuple[Any, ...]:
        return _fail, ()


def _fail() -> None:
    raise DataError("there is no such library.")


def test_what_a_process_cannot_load_is_raised_and_kills_nothing() -> None:
    with pytest.raises(DataError, match="no such library"):
        map_cases(Unloadable(), range(3), workers=2, lost=lambda case: -case)


def _lives(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not (its state is Z)."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_script_without_a_main_guard_works(tmp_path: Path) -> None:
    """What multiprocessing would run again in every process, and fail."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, operator\n"
        "from semiseg.processes import worker_pool\n"
        "print('begun', flush=True)\n"
        "with worker_pool(2) as pool:\n"
        "    print(list(pool.map(operator.neg, range(4))), __file__ is not None and __spec__ is None)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "begun\n[0, -1, -2, -3] True\n"


@pytest.mark.parametrize(
    ("shares", "own", "threads", "said"),
    [
        ([100.0, 3.0, 2.0, 1.0], {0, 1}, 2, "use 1.0 of 2 cores"),
        ([100.0, 3.0, 2.0, 1.0], {1, 2}, 2, None),  # another's core
        ([100.0, 3.0, 2.0, 1.0], {0, 1, 2, 3}, 2, None),  # enough are free
        ([100.0, 3.0, 2.0, 1.0], {0, 1, 2, 3}, 4, "use 1.1 of 4 cores"),
        ([1.0, 3.0], {0, 1}, 8, None),  # more threads than cores
        ([90.0, 80.0], {12, 13}, 2, "use 1.7 of 2 cores"),  # a container with numbers of its own
    ],
)
def test_other_programs_on_the_cores_that_train_are_said(
    shares: list[float], own: set[int], threads: int, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semiseg.processes.psutil.cpu_percent", lambda **_: shares)
    monkeypatch.setattr("semiseg.processes._own_cores", lambda: own)
    texts: list[str] = []
    warn_of_other_programs(texts.append, threads=threads)
    assert len(texts) == (said is not None)
    assert all(said in text for text in texts if said)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs a core to hold a process on")
def test_a_program_at_work_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    core = min(os.sched_getaffinity(0))
    monkeypatch.setattr("semiseg.processes._own_cores", lambda: {core})
    burn = f"import os; os.sched_setaffinity(0, [{core}])\nprint(flush=True)\nwhile True: pass"
    texts: list[str] = []
    with subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        warn_of_other_programs(texts.append, threads=1)
        other.kill()
    assert len(texts) == 1
    busy = float(texts[0].split()[3])
    assert busy >= 0.5  # all of one core, and half of it at least where the clock that counts is coarse
