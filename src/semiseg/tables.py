"""Nested tables that people edit: what a key must be is said by a dataclass."""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import ValidationError

from semiseg.errors import ConfigError


def refuse_unknown_keys(
    value: dict[str, Any], kind: type, source: str, prefix: str = "", *, whole: type | None = None
) -> None:
    """Raise `ConfigError` for a key that the dataclass `kind` does not have, at any depth, and for a number that is
    not finite.

    source: names the file in the error. prefix: of the keys of this table. whole: the dataclass of the whole file, in
    whose other tables a key that is unknown here may belong.
    """
    whole = whole or kind
    known = [field.name for field in fields(kind)]
    hints = typing.get_type_hints(kind)
    for key, inner in value.items():
        if key not in known:
            raise ConfigError(f"{source}: unknown key {prefix}{key}.{_meant(key, kind, whole, prefix)}")
        hint, entries = hints[key], [(f"{prefix}{key}", inner)]
        if isinstance(hint, types.UnionType):  # a table that may be left out
            hint = next((kind for kind in typing.get_args(hint) if is_dataclass(kind)), hint)
        if typing.get_origin(hint) is tuple and isinstance(inner, list):
            hint, entries = typing.get_args(hint)[0], [(f"{prefix}{key}.{i}", part) for i, part in enumerate(inner)]
        if is_dataclass(hint):
            for name, table in entries:
                if not isinstance(table, dict):
                    raise ConfigError(f"{source}: {name} must be a table with keys, like [{name}].")
                refuse_unknown_keys(table, typing.cast(type, hint), source, f"{name}.", whole=whole)
        elif not all(math.isfinite(number) for number in _floats(inner)):
            raise ConfigError(f"{source}: {prefix}{key} = {inner}: give a finite number.")


def _meant(key: str, kind: type, whole: type, prefix: str) -> str:
    """Which known key an unknown one may be meant for: one of the same table by its letters or words, one of the same
    name in another table, or one of those by its letters; otherwise all that there are here."""
    here = [field.name for field in fields(kind)]
    by_name: dict[str, list[str]] = {}  # in other tables
    for path in _paths(whole):
        table, dot, name = path.rpartition(".")
        if dot and f"{table}." != prefix:
            by_name.setdefault(name, []).append(path)
    found = [f"{prefix}{name}" for name in difflib.get_close_matches(key, here, n=2, cutoff=0.75)]
    found = found or [f"{prefix}{name}" for name in here if set(_parts(name)) <= set(_parts(key))]
    found = found or by_name.get(key, [])[:3]
    if not found:
        similar = difflib.get_close_matches(key, by_name, n=1, cutoff=0.8)
        found = [path for name in similar for path in by_name[name]][:3]
    return f" Did you mean {' or '.join(found)}?" if found else f" Known here: {', '.join(here)}."


def _parts(name: str) -> list[str]:
    """The words of a key, singular."""
    return [word.removesuffix("s") for word in name.split("_")]


def _paths(kind: type, prefix: str = "") -> Iterator[str]:
    """All keys of a dataclass and its tables, as `section.key`."""
    hints = typing.get_type_hints(kind)
    for field in fields(kind):
        yield f"{prefix}{field.name}"
        if is_dataclass(hints[field.name]):
            yield from _paths(hints[field.name], f"{prefix}{field.name}.")


def flattened(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested tables by dotted key."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        path = f"{prefix}{key}"
        found |= flattened(value, f"{path}.") if isinstance(value, dict) and value else {path: value}
    return found


_NUMBERS = {2: "two", 3: "three"}
_EXAMPLES: dict[tuple[object, int], str] = {
    (int, 3): "[32, 64, 64]",
    (float, 3): "[2.5, 0.8, 0.8]",
    (int, 2): "[1, 2]",
    (float, 2): "[0.7, 1.4]",
}


def _numbers_wanted(key: str, kind: type | None, given: object) -> str | None:
    """Where a key of a dataclass takes two or three numbers: how to write it. given: what was written."""
    hint: object = kind
    for part in key.split("."):
        if not (isinstance(hint, type) and is_dataclass(hint)):
            break
        hint = typing.get_type_hints(hint).get(part)
        if isinstance(hint, types.UnionType):
            hint = next((kind for kind in typing.get_args(hint) if kind is not type(None)), hint)
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is not tuple or len(set(parts)) != 1 or (parts[0], len(parts)) not in _EXAMPLES:
        return None
    as_meant = f"[{given}]" if isinstance(given, str) and given.count(",") == len(parts) - 1 else None
    example = as_meant or _EXAMPLES[parts[0], len(parts)]
    return f"give {_NUMBERS[len(parts)]} {'whole ' if parts[0] is int else ''}numbers, for example {key}={example}."


def first_problem(error: ValidationError, kind: type | None = None) -> str:
    """What is wrong with tables that were refused, with its key. kind: the dataclass that they were read for."""
    first = error.errors()[0]
    key, given = ".".join(str(part) for part in first["loc"]), first["input"]
    table_key = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
    numbers = _numbers_wanted(table_key, kind, given)
    of_an_entry = len(first["loc"]) > table_key.count(".") + 1
    if numbers and (of_an_entry or first["type"] in ("tuple_type", "too_long")):
        return f"{table_key}{'' if of_an_entry else f' = {given!r}'}: {numbers}"
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
