"""`settled.toml`: what this machine made of what was asked.

With `run.toml` beside it the run is the same everywhere: threads, precision and plan are taken from it, and a timeline
that is whole is followed step by step.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from semiseg.errors import ConfigError
from semiseg.files import read_toml, write_toml
from semiseg.methods.timeline import Stretch, Timeline
from semiseg.tables import first_problem, refuse_unknown_keys
from semiseg.types import Shape, Spacing

FILE = "settled.toml"


@dataclass(frozen=True, kw_only=True)
class PlanSize:
    """How large the plan was made, and why. voxel_seconds: what a voxel of a patch costs in a training step."""

    spacing_mm: Spacing
    patch: Shape
    base_features: int
    batch: int
    voxel_seconds: float | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What was found out on the machine, as far as it has been needed.

    compiled: whether training passes are compiled. timeline: rows of `Stretch`, of so many minutes. finished: the last
    one was followed to its end. lengthened: minutes, or steps, that the run was first asked for, and again before each
    `--continue`; such a run is not made once more by its files. weights: hash of the model that it began with.
    """

    device: str | None = None
    processor: str | None = None
    threads: int | None = None
    precision: Literal["float32", "bfloat16"] | None = None
    compiled: bool | None = None
    torch: str | None = None
    plan: PlanSize | None = None
    minutes: float | None = None
    timeline: tuple[tuple[int, float, float, int], ...] = field(default=())
    finished: bool = False
    lengthened: tuple[float, ...] = ()
    weights: str | None = None

    def laid_down(self) -> Timeline | None:
        """The timeline as far as it goes."""
        return Timeline(tuple(Stretch(*row) for row in self.timeline)) if self.timeline else None


_ADAPTER: TypeAdapter[Settled] = TypeAdapter(Settled)


def read_settled(run: Path) -> Settled:
    """What is settled of a run so far; raises `ConfigError` that names file and key."""
    path = run / FILE
    if not path.exists():
        return Settled()
    tables = read_toml(path)
    refuse_unknown_keys(tables, Settled, str(path))
    try:
        return _ADAPTER.validate_python(tables)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error)} Mend it, or delete the file before training.") from None


def write_settled(run: Path, settled: Settled) -> None:
    """Write what is settled; what is not is left out."""
    tables: dict[str, Any] = {key: value for key, value in asdict(settled).items() if value is not None}
    if settled.plan:
        tables["plan"] = {key: value for key, value in tables["plan"].items() if value is not None}
    write_toml(run / FILE, tables)


def rows(timeline: Timeline) -> tuple[tuple[int, float, float, int], ...]:
    """As the file has it."""
    return tuple((one.step, one.done, one.each, one.threads) for one in timeline.stretches)
