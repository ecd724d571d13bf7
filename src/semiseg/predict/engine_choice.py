"""Which engine predicts: the fastest of a short trial on this machine that passes the check, remembered."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from semiseg.errors import ConfigError, DataError
from semiseg.files import read_json, read_jsonl, write_json
from semiseg.predict.engines.base import Engine
from semiseg.predict.engines.opening import is_installed, open_engine, precisions
from semiseg.predict.inputs import Scan
from semiseg.predict.model import Model
from semiseg.predict.parity import SMALLEST_DICE, References
from semiseg.predict.settings import PredictSettings
from semiseg.processes import usable_cores


class Choice(NamedTuple):
    """An engine and the precision that it computes in."""

    engine: str
    precision: str

    def __str__(self) -> str:
        return f"{self.engine} in {self.precision}"


REFERENCE = Choice("torch", "float32")
"""What the others are held against; needs no check."""


def choose_engine(
    model: Model, scans: Sequence[Scan], output: Path, settings: PredictSettings, *, say: Callable[[str], None]
) -> Engine:
    """The engine to predict `scans` into `output` with.

    An engine that is asked for by name is taken; a folder that was begun by this model keeps its engine; on a GPU it is
    torch. Otherwise those that are installed are timed on a tile, and the fastest is taken that passes the check on up
    to three of the scans. What was found is remembered for this model on this machine. say: told of what takes time.

    Raises `ConfigError` where the engine that is asked for is not installed, or fails the check.
    """

    def opened(choice: Choice) -> Engine:
        return open_engine(model, choice.engine, precision=choice.precision, device=settings.device, say=say)

    candidates = _candidates(model, output, settings)
    if candidates == [REFERENCE]:
        return opened(REFERENCE)
    known = _Known(model)
    if len(candidates) > 1:
        for choice in candidates:
            if known.seconds(choice) is None:
                known.remember(choice, seconds_per_tile=_trial(opened(choice), model))
        candidates.sort(key=lambda choice: known.seconds(choice) or 0)
    references: References | None = None
    checked = False
    for choice in candidates:
        if choice == REFERENCE or known.worst_dice(choice) >= SMALLEST_DICE:
            return opened(choice)
        if known.was_refused(choice):
            continue
        say(f"checking {choice} against {REFERENCE}, once for this model on this machine")
        references = references or References(model, opened(REFERENCE), scans, settings)
        engine = opened(choice)
        parity = references.check(engine)
        if parity.dice:
            checked = True
            known.remember(choice, **parity.as_row())
        if parity.passed:
            return engine
    worst = max(known.worst_dice(choice) for choice in candidates)
    reason = f"the smallest Dice of a class was {worst:.4f}, and {SMALLEST_DICE} is asked for"
    if not checked and not any(map(known.was_refused, candidates)):
        reason = "it could not be checked, since torch finds no organ in any of the scans"
    raise ConfigError(
        f"engine = {settings.engine!r} is not used in place of {REFERENCE}: {reason}. Use --engine torch."
    )


def _candidates(model: Model, output: Path, settings: PredictSettings) -> list[Choice]:
    """What may be used, before any trial."""
    if settings.engine == "auto" and (begun := _begun_with(model, output)):
        return [begun]
    names = [settings.engine]
    if settings.engine == "auto":
        names = [name for name in ("openvino", "onnx") if is_installed(name)]
    if not names or (settings.engine == "auto" and not _on_cpu(settings.device)):
        return [REFERENCE]
    wanted = settings.precision
    found = [Choice(n, p) for n in names for p in (precisions(n) if wanted == "auto" else [wanted])]
    return [*found, REFERENCE] if settings.engine == "auto" else found


def _begun_with(model: Model, output: Path) -> Choice | None:
    """What the folder's labels of this model were made with, if there are any and the engine is still there."""
    for row in reversed(read_jsonl(output / "predictions.jsonl")):
        if row.get("model") == model.hash and "key" in row and is_installed(row["engine"]):
            return Choice(row["engine"], row["precision"])
    return None


def _on_cpu(device: str) -> bool:
    if device != "auto":
        return device == "cpu"
    from semiseg.predict.device import choose_device

    return choose_device("auto").type == "cpu"


def _trial(engine: Engine, model: Model) -> float:
    """Seconds for a tile: the better of two, after one to warm up."""
    generator = np.random.default_rng(0)
    tile = generator.standard_normal((1, len(model.plan.channels), *model.plan.patch), dtype=np.float32)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        engine.run(tile)
        times.append(time.perf_counter() - start)
    return min(times[1:])


class _Known:
    """What is remembered of engines, for one model on one machine with its libraries."""

    def __init__(self, model: Model) -> None:
        libraries = {name: version(name) for name in ("torch", "openvino", "onnxruntime") if _has(name)}
        self._machine = {"host": platform.node(), "cpu": platform.machine(), "cores": usable_cores()} | libraries
        key = hashlib.sha256(f"{model.hash} {sorted(self._machine.items())}".encode()).hexdigest()[:16]
        self._file = cache_folder() / "engines" / f"{key}.json"
        self._rows: dict[str, dict[str, Any]] = {}
        with suppress(DataError, KeyError, TypeError, AttributeError):  # damaged or not there: found anew
            self._rows = {name: dict(row.items()) for name, row in read_json(self._file)["engines"].items()}

    def seconds(self, choice: Choice) -> float | None:
        """Of a tile; None if it was not timed."""
        return self._rows.get(str(choice), {}).get("seconds_per_tile")

    def worst_dice(self, choice: Choice) -> float:
        """The smallest Dice of the check, 0 if there was none."""
        return float(self._rows.get(str(choice), {}).get("worst_dice", 0.0))

    def was_refused(self, choice: Choice) -> bool:
        """Whether it failed its check."""
        return "worst_dice" in self._rows.get(str(choice), {}) and self.worst_dice(choice) < SMALLEST_DICE

    def remember(self, choice: Choice, **facts: Any) -> None:
        """Add to what is known of an engine."""
        self._rows[str(choice)] = self._rows.get(str(choice), {}) | facts
        write_json(self._file, {"machine": self._machine, "engines": self._rows})


def _has(library: str) -> bool:
    try:
        version(library)
    except ImportError:  # PackageNotFoundError
        return False
    return True


def cache_folder() -> Path:
    """Where semiseg remembers what it measured on this machine: `$XDG_CACHE_HOME/semiseg`, or `~/.cache/semiseg`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "semiseg"
