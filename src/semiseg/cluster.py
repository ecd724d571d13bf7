"""Work on cases by a Dask cluster, on many machines that see the same files by the same paths.

A worker of the cluster gets the function once, and so what it holds: a network is opened once a process. The rule for
what goes wrong is that of `semiseg.cases`: a case that kills its worker is lost alone.
"""

from __future__ import annotations

import logging
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from semiseg.errors import ConfigError, DataError

T = TypeVar("T")
R = TypeVar("R")
_SECONDS = 10.0
"""For which a scheduler is waited for."""
_SCATTERED = 1 << 20
"""Bytes of a function from which on it travels to each worker once, and not with each case."""
_MUST_AGREE = ("semiseg", "torch", "numpy")


class Cluster:
    """A Dask scheduler and its workers, as they are when it is opened."""

    def __init__(self, where: str) -> None:
        """where: the scheduler's address (`tcp://host:8786`), or its scheduler file.

        Raises `ConfigError` where Dask is not installed, no scheduler answers, it has no workers, or these have other
        versions than this process.
        """
        try:
            import distributed
        except ImportError:
            raise ConfigError("--scheduler needs Dask: pip install '.[cluster]'.") from None
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is said here
        self._dask: Any = distributed
        self._where = where
        given = {"scheduler_file": where} if Path(where).is_file() else {"address": where}
        try:
            self._client: Any = self._dask.Client(**given, timeout=_SECONDS, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"--scheduler {where}: no Dask scheduler answers there ({said}). Start one with `dask scheduler "
                "--scheduler-file FILE`, and name its address or that file."
            ) from None
        self.threads = sum(self._client.nthreads().values())
        if not self.threads:
            raise ConfigError(
                f"--scheduler {where}: has no workers. Start some with `dask worker --scheduler-file FILE`, and give "
                "the same command again."
            )
        own = _versions()
        for worker, theirs in self._client.run(_versions).items():
            if different := [name for name in own if theirs.get(name) != own[name]]:
                name = different[0]
                raise ConfigError(
                    f"--scheduler {where}: its worker {worker} has {name} {theirs.get(name)}, and this process "
                    f"{own[name]}. Install the same on all machines."
                )

    def each(
        self, function: Callable[[T], R], cases: Sequence[T], *, lost: Callable[[T], R]
    ) -> Iterator[tuple[int, R]]:
        """As `semiseg.cases.each_case`. Raises `DataError` where the scheduler goes away."""
        packed = pickle.dumps(function)
        left = list(range(len(cases)))
        together = True
        while left:
            # Dask blames every case of a worker that dies: those are done again one by one, to know which it was.
            killed = []
            for index, result, failed in self._round(packed, cases, left, 2 * self.threads if together else 1):
                if failed:
                    killed.append(index)
                else:
                    yield index, result
            if not together:
                yield from ((index, lost(cases[index])) for index in killed)
                return
            left, together = killed, False

    def _round(
        self, packed: bytes, cases: Sequence[T], left: Sequence[int], window: int
    ) -> Iterator[tuple[int, Any, bool]]:
        """Each case's index, its result, and whether its worker was killed instead. window: cases that are given to the
        cluster at once, so that few are to be blamed."""
        waiting, running = iter(left), dict[Any, int]()
        try:
            held: Any = packed
            while True:
                for index in islice(waiting, window - len(running)):
                    if len(packed) > _SCATTERED and (held is packed or window == 1):
                        held = self._client.scatter(packed, broadcast=True, hash=False)
                    running[self._client.submit(_call, held, cases[index], pure=False)] = index
                if not running:
                    return
                try:
                    with self._client.as_current():
                        done = self._dask.wait(list(running), return_when="FIRST_COMPLETED").done
                    results = [(running[future], *self._outcome(future)) for future in done]
                except self._dask.CancelledError:
                    if self._client.status != "running":
                        raise
                    # The workers that held the function are gone, and so is what they were given.
                    done, held = list(running), packed
                    results = [(running[future], None, True) for future in done]
                for future in done:
                    del running[future]
                yield from results
        except (self._dask.CancelledError, self._dask.comm.core.CommClosedError, TimeoutError) as error:
            raise DataError(
                f"--scheduler {self._where}: the scheduler does not answer any more ({type(error).__name__}). Start it "
                "again with its workers, and give the same command, which goes on; what was done is kept."
            ) from None
        finally:
            if running and self._client.status == "running":
                self._client.cancel(list(running))

    def _outcome(self, future: Any) -> tuple[Any, bool]:
        """A result, and whether the worker was killed instead; raises what the function raised."""
        error = future.exception()  # waits where a worker died after it had finished, and another does it again
        if error is None:
            return future.result(), False
        if isinstance(error, self._dask.KilledWorker):
            return None, True
        raise error


_one_at_a_time = Lock()


def _call(packed: bytes, case: Any) -> Any:
    with _one_at_a_time:  # threads of a worker share an engine, whose memory was planned for one scan
        return _unpacked(packed)(case)


@lru_cache(maxsize=1)
def _unpacked(packed: bytes) -> Callable[[Any], Any]:
    function: Callable[[Any], Any] = pickle.loads(packed)
    return function


def _versions() -> dict[str, str]:
    found = {"Python": ".".join(map(str, sys.version_info[:2]))}
    for name in _MUST_AGREE:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
