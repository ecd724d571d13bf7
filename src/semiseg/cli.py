"""The command line: parse, run one command, turn errors into messages and exit codes."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import tyro

from semiseg.cases import use_cluster
from semiseg.commands import models, runs, serve, sharing, stores, studies, view
from semiseg.commands.help import plain_help
from semiseg.errors import ConfigError, SemisegError
from semiseg.files import why_not_written
from semiseg.processes import ask_for_workers, asked_ranks, limit_threads, stop_with_starter
from semiseg.words import printable

_COMMANDS: dict[str, type] = {
    "demo": models.Demo,
    "check": runs.Check,
    "run": runs.Run,
    "predict": models.Predict,
    "view": view.View,
    "rank": runs.Rank,
    "correct": runs.Correct,
    "serve": serve.Serve,
    "evaluate": models.Evaluate,
    "compare": models.Compare,
    "study": studies.Study,
    "postprocess": runs.Postprocess,
    "export": models.Export,
    "push": sharing.Push,
    "pull": sharing.Pull,
    "prepare": runs.Prepare,
    "train": runs.Train,
    "report": runs.Report,
    "store": stores.Store,
    "measure": models.Measure,
}
"""In the order of `semiseg --help`: what a new user needs first, parts of `run` and what is rarely asked for last."""


def _print_error(kind: str, text: str) -> None:
    print(f"semiseg: {kind}: {printable(text)}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `semiseg`; exits with 0, 1 (problems found) or 2 (an error that the user can mend).

    arguments: instead of the process's own.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show ends nothing
    given = sys.argv[1:] if arguments is None else arguments
    if list(given) == ["--version"]:
        print(f"semiseg {version('semiseg')}")
        sys.exit(0)
    with _stopped_by_sigterm():
        stop_with_starter()
        code = run_command(partial(_execute, given))
    sys.exit(code)


def _execute(arguments: Sequence[str]) -> int:
    for flag, key, value in zip(arguments, arguments[1:], arguments[2:], strict=False):
        if flag == "--set" and "=" not in key and not value.startswith("-"):
            raise ConfigError(f"--set {key} {value}: write it as one word, --set {key}={value}.")
    command: Any = tyro.extras.subcommand_cli_from_dict(
        dict(_COMMANDS),
        prog="semiseg",
        args=arguments,
        description="A few labelled and very many unlabelled 3D scans in, a good segmenter out.",
        config=(tyro.conf.DisallowNone,),
        registry=plain_help(_COMMANDS.values()),
    )
    for flag, limit in (("threads", limit_threads), ("workers", ask_for_workers)):
        if count := getattr(command, flag, 0):
            if count < 0:
                raise ConfigError(f"--{flag} {count}: give 1 or more.")
            limit(count)
    if asked_ranks() > 1 and arguments[0] not in ("train", "run"):
        raise ConfigError(f"torchrun starts {asked_ranks()} processes, and only train and run share work among them.")
    if where := getattr(command, "scheduler", ""):
        if getattr(command, "workers", 0):
            raise ConfigError("--workers and --scheduler both say who works on scans. Leave one of them out.")
        from semiseg.cluster import Cluster

        use_cluster(Cluster(where))
        command = _with_absolute_paths(command)  # workers have folders of their own to start from
    return int(command.execute())


def _with_absolute_paths(command: Any) -> Any:
    def absolute(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(absolute, value))
        return value.absolute() if isinstance(value, Path) else value

    return replace(command, **{field.name: absolute(getattr(command, field.name)) for field in fields(command)})


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Within: SIGTERM, as batch systems send it, stops as Ctrl-C does."""

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_command(execute: Callable[[], int]) -> int:
    """Run a command; an error of the user's making, or a file that cannot be read or written, is one message on stderr
    and exit code 2. Who reads the output may stop before its end (`| head`): that is 1, as where rich prints."""
    try:
        code = execute()
        if sys.stdout is not None:  # closed by who started us
            sys.stdout.flush()
    except BrokenPipeError as error:
        if not _output_fails(error):
            raise
        return 1
    except SemisegError as error:
        _print_error("error", str(error))
        return 2
    except OSError as error:
        if error.filename is None:
            if not _output_fails(error):
                raise
            _print_error("error", f"the output cannot be written ({error.strerror}). What was made before is kept.")
            return 2
        _print_error("error", why_not_written(error))
        return 2
    except KeyboardInterrupt:
        print("semiseg: stopped. The same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return code


def _output_fails(error: OSError) -> bool:
    """Whether stdout is what an error is of, and no other file or pipe; then what is left in it goes nowhere, so that
    Python's end says nothing."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except OSError as own:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return own.errno == error.errno
    return False
