"""Which engine predicts: the fastest of a short trial on this machine that passes the check, remembered."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from semiseg.errors import ConfigError, DataError
from semiseg.files import cache_folder, read_json, write_json
from semiseg.prediction.engines.base import Engine
from semiseg.prediction.engines.opening import is_installed, open_engine, precisions
from semiseg.prediction.inputs import Scan
from semiseg.prediction.memory import within_budget
from semiseg.prediction.model import Model
from semiseg.prediction.parity import SMALLEST_DICE, References
from semiseg.prediction.settings import PredictSettings
from semiseg.processes import processor_name, usable_cores
from semiseg.rows import read_predictions


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
    torch, in bfloat16 where the GPU has that. Those that are installed are timed on a tile, and the fastest is taken
    that passes the check on up to three of the scans (of those that `max_memory` allows). What was found is remembered
    for this model on this machine. say: told of what takes time, and of engines that are not used.

    Raises `ConfigError` where the engine that is asked for is not installed, has not the precision that is asked for,
    or fails the check.
    """
    choosing = _Choosing(model, scans, settings, say)
    begun = _begun_with(model, output)
    if begun and settings.engine == "auto":
        device_fits = settings.device in ("auto", "cpu") or begun.engine == "torch"
        if device_fits and settings.precision in ("auto", begun.precision):
            return choosing.first_that_passes([begun, REFERENCE])
    candidates = _candidates(settings)
    return choosing.first_that_passes(choosing.by_speed(candidates) if len(candidates) > 1 else candidates)


class _Choosing:
    """One choice: the engines that were opened for it, and what is known of them."""

    def __init__(
        self, model: Model, scans: Sequence[Scan], settings: PredictSettings, say: Callable[[str], None]
    ) -> None:
        self._model, self._scans, self._settings, self._say = model, scans, settings, say
        self._known = _Known(model, settings.device, say)
        self._references: References | None = None

    def by_speed(self, candidates: list[Choice]) -> list[Choice]:
        """Those that work on this machine, the fastest first."""
        return sorted(filter(self._works, candidates), key=lambda choice: self._known.seconds(choice) or 0)

    def first_that_passes(self, candidates: list[Choice]) -> Engine:
        """The first whose labels are torch's; raises `ConfigError` where it is none."""
        for choice in candidates:
            if choice == REFERENCE or self._known.worst_dice(choice) >= SMALLEST_DICE:
                return self._open(choice)
            if not self._known.was_refused(choice) and (engine := self._checked(choice)):
                return engine
        reason = "it could not be checked, since torch finds no organ in the scans that it may be checked on"
        if any(map(self._known.was_refused, candidates)):
            worst = max(self._known.worst_dice(choice) for choice in candidates)
            reason = f"the smallest Dice of a class was {worst:.4f}, and {SMALLEST_DICE} is asked for"
        raise ConfigError(
            f"{' and '.join(map(str, candidates))} cannot take the place of {REFERENCE}: {reason}. Use --engine torch "
            "--precision float32."
        )

    def _open(self, choice: Choice) -> Engine:
        settings = self._settings
        if choice.precision == "int8":
            self._make_int8()
        return open_engine(
            self._model,
            choice.engine,
            precision=choice.precision,
            device=settings.device,
            max_gpu_memory=settings.max_gpu_memory,
            compiled=settings.compile,
            say=self._say,
        )

    def _make_int8(self) -> None:
        """Make the int8 network, unless it is there."""
        if not is_installed("openvino"):
            return  # opening says what is missing
        from semiseg.prediction.engines.openvino_engine import int8_file

        if int8_file(self._model).is_file():
            return
        if self._settings.max_memory:
            raise ConfigError(
                "precision = 'int8': making the int8 network takes more memory than predicting, and no budget is kept "
                "then. Make it first, by predicting a scan without --max-memory."
            )
        from semiseg.prediction.int8 import make_int8

        self._known.forget(Choice("openvino", "int8"))
        make_int8(self._model, self._scans, say=self._say)

    def _works(self, choice: Choice) -> bool:
        """Whether a candidate computes a tile on this machine; times it."""
        if self._known.seconds(choice) is not None:
            return True
        try:
            seconds = _trial(self._open(choice), self._model)
        except (ImportError, RuntimeError) as error:
            if choice == REFERENCE:
                raise
            self._say(f"{choice} is not used: {str(error).strip().splitlines()[0]}")
            return False
        self._known.remember(choice, seconds_per_tile=seconds)
        return True

    def _checked(self, choice: Choice) -> Engine | None:
        """The engine if it passes its check."""
        self._say(f"checking {choice} against {REFERENCE}, once for this model on this machine")
        engine, settings = self._open(choice), self._settings
        if self._references is None:
            reference = self._open(REFERENCE)
            scans = within_budget(self._scans, self._model, [engine, reference], settings)
            self._references = References(self._model, reference, scans, settings)
        dice = self._references.check(engine)
        worst = min((value for scan in dice.values() for value in scan.values()), default=0.0)
        passed = worst >= SMALLEST_DICE
        if dice:
            self._known.remember(choice, worst_dice=round(worst, 6), passed=passed)
        return engine if passed else None


def _candidates(settings: PredictSettings) -> list[Choice]:
    """What may be used, before any trial."""
    automatic, wanted = settings.engine == "auto", settings.precision
    on_gpu = automatic and not _on_cpu(settings.device)
    names: list[str] = [settings.engine]
    if automatic:
        names = [name for name in ("openvino", "onnx") if is_installed(name) and not on_gpu]
    found = [Choice(name, p) for name in names for p in precisions(name) if wanted in ("auto", p)]
    if on_gpu and wanted == "auto" and _gpu_has_bfloat16(settings.device):
        found = [Choice("torch", "bfloat16")]
    if wanted == "bfloat16" and (settings.engine == "torch" or on_gpu):
        found = [Choice("torch", "bfloat16")]
    if wanted == "int8" and "openvino" in names:
        found = [Choice("openvino", "int8")]
    if automatic and wanted in ("auto", "float32"):
        found.append(REFERENCE)
    if not found:
        raise ConfigError(
            f"precision = {wanted!r}: engine {settings.engine} does not compute in it on this machine. Use auto"
            + (", or --engine openvino." if wanted == "int8" else ".")
        )
    return found


def _begun_with(model: Model, output: Path) -> Choice | None:
    """What the folder's labels of this model were made with, if there are any and the engine is still there."""
    for row in reversed(read_predictions(output)):
        choice = Choice(row.get("engine", ""), row.get("precision", ""))
        if row.get("model") == model.hash and "key" in row and is_installed(choice.engine):
            return choice
    return None


def _device_name(device: str) -> str:
    """The CPU, or the GPU by its maker's name."""
    if device == "cpu":
        return device
    import torch

    from semiseg.prediction.device import choose_device

    chosen = choose_device(device)
    return torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else chosen.type


def _gpu_has_bfloat16(device: str) -> bool:
    from semiseg.prediction.device import choose_device, has_bfloat16

    return has_bfloat16(choose_device(device))


def _on_cpu(device: str) -> bool:
    if device != "auto":
        return device == "cpu"
    from semiseg.prediction.device import choose_device

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


class _Row(TypedDict, total=False):
    """What is remembered of an engine: its time, and what `parity` found; nothing of the scans."""

    seconds_per_tile: float
    worst_dice: float
    passed: bool


_ROWS: TypeAdapter[dict[str, _Row]] = TypeAdapter(dict[str, _Row])


class _Known:
    """What is remembered of engines, for one model on one machine with its libraries."""

    def __init__(self, model: Model, device: str, say: Callable[[str], None]) -> None:
        self._say = say
        self._device = device
        self._machine: dict[str, Any] = {"host": platform.node(), "cpu": processor_name(), "cores": usable_cores()}
        for library in ("semiseg", "torch", "openvino", "onnxruntime", "onnx"):
            with suppress(PackageNotFoundError):
                self._machine[library] = version(library)
        key = hashlib.sha256(f"{model.hash} {sorted(self._machine.items())}".encode()).hexdigest()[:16]
        self._file = cache_folder() / "engines" / f"{key}.json"
        self._rows: dict[str, _Row] = {}
        with suppress(DataError, OSError, KeyError, TypeError, ValidationError):  # damaged or not there: found anew
            self._rows = _ROWS.validate_python(read_json(self._file)["engines"])

    def seconds(self, choice: Choice) -> float | None:
        """Of a tile; None if it was not timed."""
        return self._row(choice).get("seconds_per_tile")

    def worst_dice(self, choice: Choice) -> float:
        """The smallest Dice of the check, 0 if there was none."""
        return float(self._row(choice).get("worst_dice", 0.0))

    def was_refused(self, choice: Choice) -> bool:
        """Whether it failed its check."""
        return "worst_dice" in self._row(choice) and self.worst_dice(choice) < SMALLEST_DICE

    def forget(self, choice: Choice) -> None:
        """All that is known of an engine."""
        self._rows.pop(self._name(choice), None)

    def _row(self, choice: Choice) -> _Row:
        return self._rows.get(self._name(choice), {})

    def _name(self, choice: Choice) -> str:
        """What is found on one device says nothing of torch on another; the other engines are on the CPU anyway."""
        return f"{choice} on {_device_name(self._device)}" if choice.engine == "torch" else str(choice)

    def remember(self, choice: Choice, **facts: Any) -> None:
        """Add to what is known of an engine."""
        self._rows[self._name(choice)] = cast(_Row, {**self._row(choice), **facts})
        try:
            write_json(self._file, {"machine": self._machine, "engines": self._rows})
        except OSError as error:
            self._say(f"{self._file}: cannot be written ({error.strerror}); engines will be tried again next time")
