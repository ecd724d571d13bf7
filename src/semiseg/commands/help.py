"""How flags are shown by `--help`: what is asked for most comes first, and a default only where it says something.

And how numbers are read, so that a wrong one ends as all errors do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Annotated, Any, get_args, get_origin

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from semiseg.commands.arguments import WorksOnCases
from semiseg.errors import ConfigError

_LAST = ("quiet", *(field.name for field in fields(WorksOnCases)))
"""Flags that are shown below all others."""
_SAY_NOTHING = ("", "None", "False", "0", "0.0", "''")
"""Defaults of flags that do nothing until they are given, or whose text says what happens."""


def plain_help(commands: Iterable[type]) -> ConstructorRegistry:
    """What tyro is told about the flags of these dataclasses."""
    registry, known, asked = ConstructorRegistry(), set(commands), set[Any]()

    @registry.struct_rule
    def plain(info: StructTypeInfo) -> StructConstructorSpec | None:
        if info.type not in known or info.type in asked:
            return None
        asked.add(info.type)  # tyro's own rule is to answer
        try:
            found = ConstructorRegistry.get_struct_spec(info)
        finally:
            asked.remove(info.type)
        assert isinstance(found, StructConstructorSpec)
        shown = sorted(found.fields, key=lambda field: _LAST.index(field.name) if field.name in _LAST else -1)
        return replace(found, fields=tuple(map(_shown, shown)))

    return registry


def _shown(field: StructFieldSpec) -> StructFieldSpec:
    text = field.helptext
    kind: Any = Annotated[field.type, tyro.conf.arg(metavar=_place(field), help_behavior_hint=_default)]
    bare, *metadata = get_args(field.type) if get_origin(field.type) is Annotated else (field.type,)
    for number, what in ((float, "a number"), (int, "a whole number")):
        if bare in (number, number | None):
            renamed = next((name for each in metadata if (name := getattr(each, "name", None))), field.name)
            kind = Annotated[kind, _numbers(number, what, f"--{renamed.replace('_', '-')}")]
    return replace(field, type=kind, helptext=lambda: _in_one_line(text() if callable(text) else text))


def _numbers(kind: type[float], what: str, flag: str) -> PrimitiveConstructorSpec[Any]:
    """How tyro reads a flag's number; kind: float or int."""

    def read(given: list[str]) -> float:
        try:
            return kind(given[0])
        except ValueError:
            raise ConfigError(f"{flag} {given[0]}: not {what}. Correct it.") from None

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=read,
        is_instance=lambda value: value is None or isinstance(value, int | float),
        str_from_instance=lambda value: [str(value)],
    )


def _place(field: StructFieldSpec) -> str | None:
    """What a thing that has no flag is called: RUN, SCANS ..., [LABELS]."""
    kind: Any = field.type
    if tyro.conf.Positional not in getattr(kind, "__metadata__", ()):
        return None
    several = " ..." if get_origin(kind.__origin__) is tuple else ""
    name = f"{field.name.upper()}{several}"
    return name if field.default is tyro.MISSING_NONPROP else f"[{name}]"


def _in_one_line(text: str | None) -> str | None:
    """Lines are broken for the terminal, not where the source has them."""
    return text and " ".join(text.split())


def _default(value: str) -> str:
    return "" if value in _SAY_NOTHING else f"(default: {value})"
