"""What a person sees of long work on cases: a bar at a terminal, and nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def bar(title: str, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar at a terminal, nothing elsewhere; yields what is called with (done, total, id)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=quiet or not Console().is_terminal) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total, name: progress.update(task, completed=done, total=total)
