"""From a recipe file and `--set` flags to the settings of a run."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semiseg.errors import ConfigError
from semiseg.files import read_toml
from semiseg.settings import RunSettings, settings_from


def load_settings(
    recipe: str | Path | None, overrides: Sequence[str] = (), *, another_method: bool = False
) -> RunSettings:
    """The recipe (or the defaults) with `section.key=value` overrides applied in order.

    another_method: leave out the recipe's section `[method]`, which is that of a method that the run is not to have.

    A relative path of section `[data]` of a recipe starts from the recipe's folder, one given by an override from
    the working folder. Raises `ConfigError` for anything unknown.
    """
    recipe = Path(recipe) if recipe else None
    tables = read_toml(recipe) if recipe else {}
    if another_method:
        tables.pop("method", None)
    if recipe:
        _resolve_paths(tables, PATHS, recipe.parent)
    for override in overrides:
        tables = _with_override(tables, override)
        section, _, key = override.partition("=")[0].strip().partition(".")
        _resolve_paths(tables, {section: [one for one in PATHS.get(section, ()) if one == key]}, Path())
    source = f"{recipe}, with settings on top" if recipe and overrides else str(recipe or "settings")
    return settings_from(tables, source=source)


PATHS = {
    "data": ("root", "teacher", "teacher_labels", "teacher_names", "label_list", "exclude", "decisions", "store"),
    "train": ("weights",),
}
"""Keys that name a file or folder, by section."""


def _resolve_paths(tables: dict[str, Any], keys: Mapping[str, Sequence[str]], start: Path) -> None:
    for section, names in keys.items():
        table = tables.get(section)
        for name in names:
            if isinstance(table, dict) and isinstance(table.get(name), str) and table[name]:
                table[name] = str((start / table[name]).resolve())


def _with_override(tables: dict[str, Any], override: str) -> dict[str, Any]:
    path, equals, text = override.partition("=")
    parts = path.strip().split(".")
    if not equals or len(parts) < 2 or not all(parts):
        raise ConfigError(f"--set {override}: write it as section.key=value, for example train.steps=100.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word such as mpl is meant as text
    tables = copy.deepcopy(tables)
    table = tables
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override}: {part} is not a section.")
    table[parts[-1]] = value
    return tables
