"""Nested tables that people edit: what a key must be is said by a dataclass."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import ValidationError

from semiseg.errors import ConfigError


def refuse_unknown_keys(value: dict[str, Any], kind: type, source: str, prefix: str = "") -> None:
    """Raise `ConfigError` for a key that the dataclass `kind` does not have, at any depth, and for a number that is
    not finite.

    source: names the file in the error. prefix: of the keys of this table.
    """
    known = [field.name for field in fields(kind)]
    hints = typing.get_type_hints(kind)
    for key, inner in value.items():
        if key not in known:
            raise ConfigError(f"{source}: unknown key {prefix}{key}. Known here: {', '.join(known)}.")
        hint, entries = hints[key], [(f"{prefix}{key}", inner)]
        if isinstance(hint, types.UnionType):  # a table that may be left out
            hint = next((kind for kind in typing.get_args(hint) if is_dataclass(kind)), hint)
        if typing.get_origin(hint) is tuple and isinstance(inner, list):
            hint, entries = typing.get_args(hint)[0], [(f"{prefix}{key}.{i}", part) for i, part in enumerate(inner)]
        if is_dataclass(hint):
            for name, table in entries:
                if not isinstance(table, dict):
                    raise ConfigError(f"{source}: {name} must be a table with keys, like [{name}].")
                refuse_unknown_keys(table, typing.cast(type, hint), source, f"{name}.")
        elif not all(math.isfinite(number) for number in _floats(inner)):
            raise ConfigError(f"{source}: {prefix}{key} = {inner}: give a finite number.")


def first_problem(error: ValidationError) -> str:
    """What is wrong with tables that were refused, with its key."""
    first = error.errors()[0]
    key, given = ".".join(str(part) for part in first["loc"]), first["input"]
    if first["type"] == "missing":
        return f"{key} is missing: add it."
    brackets = f" Write {key} = [{given}]." if first["type"] == "tuple_type" and isinstance(given, str | int) else ""
    return f"{key} = {given!r}: {first['msg']}.{brackets}"


def _floats(value: object) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _floats(part)
