"""Work on cases: one after another in this process, side by side in worker processes, or by a cluster. One rule for
what goes wrong.

An error that a function raises ends the work: what a case may survive it returns as its result. A case whose process is
killed, most likely for want of memory, is lost alone, with that reason.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeVar

from semiseg.processes import ask_for_workers, usable_cores, worker_pool

T = TypeVar("T")
R = TypeVar("R")
WAS_KILLED = "the process that worked on it was killed, most likely for want of memory"


def map_cases(
    function: Callable[[T], R],
    cases: Sequence[T],
    *,
    workers: int,
    lost: Callable[[T], R],
    progress: Callable[[int, int, T], None] | None = None,
    whole: bool = False,
) -> list[R]:
    """What `each_case` gives, in the order of the cases. progress: called with (done, of how many, the case), as they
    come."""
    results: dict[int, R] = {}
    for index, result in each_case(function, cases, workers=workers, lost=lost, whole=whole):
        results[index] = result
        if progress:
            progress(len(results), len(cases), cases[index])
    return [results[index] for index in range(len(cases))]


def each_case(
    function: Callable[[T], R],
    cases: Sequence[T],
    *,
    workers: int,
    lost: Callable[[T], R],
    whole: bool = False,
    gpus: Sequence[str] = (),
    late: Callable[[int, R], object] | None = None,
) -> Generator[tuple[int, R]]:
    """`function` of each case with the case's index, as they are done: by `workers` processes, or in this one where one
    is enough. Each process gets the function once, and so what it holds, a network say.

    lost: given a case whose process was killed, and again when it did this case alone; what it returns takes the
    result's place. The others go on side by side, by half as many processes where no case was at fault alone. whole:
    the processes share all cores, in the place of one thread each. gpus: each process sees one of them. late: where the
    work ends before its end, as by Ctrl-C, given the index and result of each case that a process was working on.
    """
    if _clusters and workers > 1 and cases:
        yield from _clusters[0].each(function, cases, lost=lost)
        return
    if workers <= 1 or len(cases) <= 1:
        for index, case in enumerate(cases):
            yield index, function(case)
        return
    left, suspects, lost_some = list(range(len(cases))), list[int](), False
    while left:
        # Those that were worked on when a process was killed one by one, so that the one at fault is known.
        count = 1 if suspects else min(workers, len(left))
        threads = max(1, usable_cores() // count) if whole else 1
        # Unpickled with the first case, not before: what goes wrong then is raised, and is no killed process.
        pool = worker_pool(count, threads=threads, begin=partial(_keep, pickle.dumps(function)), gpus=gpus)
        waiting = iter(suspects or left)
        running: dict[Future[R], int] = {}
        done, broken = set[int](), list[int]()
        try:
            while True:
                # Not all at once: a pool begins cases before it is asked for them, and Ctrl-C would wait for these.
                for index in islice(waiting, 0 if broken else count - len(running)):
                    try:
                        running[pool.submit(_call, cases[index])] = index
                    except BrokenProcessPool:
                        broken.append(index)
                        break
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    index = running.pop(future)
                    try:
                        result = future.result()
                    except BrokenProcessPool:
                        broken.append(index)
                    else:
                        done.add(index)
                        yield index, result
        except BaseException:
            pool.shutdown(cancel_futures=True)
            for future, index in running.items():
                if late and not future.cancelled() and not future.exception():
                    late(index, future.result())
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        left = [index for index in left if index not in done]
        if not suspects:
            suspects, lost_some = sorted(broken), False
            continue
        suspects = [index for index in suspects if index not in done]
        if suspects:  # one process takes them in order: it was killed by the first that is left
            at_fault, lost_some = suspects.pop(0), True
            left.remove(at_fault)
            yield at_fault, lost(cases[at_fault])
        if not suspects and not lost_some:  # each can be done, and not all of them at once
            workers = max(1, workers // 2)


class _Cluster(Protocol):
    """As `semiseg.cluster.Cluster`."""

    threads: int

    def each(
        self, function: Callable[[T], R], cases: Sequence[T], *, lost: Callable[[T], R]
    ) -> Iterator[tuple[int, R]]: ...


_clusters: list[_Cluster] = []


def use_cluster(cluster: _Cluster) -> None:
    """From now on what would be done by several processes is done by a cluster."""
    _clusters[:] = [cluster]
    ask_for_workers(max(2, cluster.threads))


def by_cluster() -> bool:
    """Whether it is."""
    return bool(_clusters)


_kept: list[Any] = []


def _keep(packed: bytes) -> None:
    _kept[:] = [packed]


def _call(case: Any) -> Any:
    if isinstance(_kept[0], bytes):
        _kept[0] = pickle.loads(_kept[0])  # of this program's own parent
    return _kept[0](case)
