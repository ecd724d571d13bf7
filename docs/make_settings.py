"""Write `docs/settings.md` from the docstrings of the settings: `python docs/make_settings.py`."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from semiseg.methods.settings import DEFAULT, OptimiserSettings, PretrainedPhases, method_names, settings_kind
from semiseg.settings import RunSettings

PAGE = Path(__file__).parent / "settings.md"
HEAD = """# Settings

Minutes are the only setting that you need (`--minutes`). Here are all the others. Give one with `--set
section.key=value`, or write several into a recipe, a TOML file for `--recipe`:

```toml
[train]
minutes = 60.0
[method]
rounds = 3
```

A run keeps all its settings in its `run.toml`, which is a recipe, too. A key that is unknown, or that the run's method
does not use, is an error. What is not set follows from your scans, your machine and the minutes; `plan.toml` and
`settled.toml` say what that was.

This page is made from the docstrings (`python docs/make_settings.py`).
"""
OF_ALL_METHODS = ("optimiser.", "phases.")
"""Tables whose keys mean the same for each method; `phases` has other defaults for each, and supervised has none."""


def page() -> str:
    """The whole page as Markdown."""
    hints = get_type_hints(RunSettings)
    meanings = docstrings(RunSettings)
    parts = [HEAD]
    for section in fields(RunSettings):
        parts.append(f"## [{section.name}]\n\n{meanings[section.name]}\n")
        if section.name == "method":
            shared = [*keys(OptimiserSettings, "optimiser."), *keys(PretrainedPhases, "phases.")]
            parts.append(table((key, default if "opt" in key else "by method", text) for key, default, text in shared))
            for name in sorted(method_names(), key=lambda one: one != DEFAULT):
                kind = settings_kind(name)
                default = ", the default" if name == DEFAULT else ""
                parts.append(f'### name = "{name}"{default}\n\n{one_line(inspect.getdoc(kind) or "")}\n')
                own = [(k, d, "" if k.startswith("phases.") else text) for k, d, text in keys(kind)]
                if own := [row for row in own if not row[0].startswith("optimiser.")]:
                    parts.append(table(own))
        else:
            parts.append(table(keys(hints[section.name])))
    return "\n".join(parts)


def all_keys() -> dict[str, str]:
    """The meaning of every setting by its dotted key, those of each method included."""
    hints = get_type_hints(RunSettings)
    kinds = {name: [hints[name]] for name in hints if name != "method"}
    kinds["method"] = [settings_kind(name) for name in method_names()]
    return {"method.name": "which method"} | {
        f"{section}.{key}": meaning
        for section, found in kinds.items()
        for kind in found
        for key, _, meaning in keys(kind)
    }


def table(found: Iterable[tuple[str, str, str]]) -> str:
    """Key, default and meaning as rows."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    rows += [f"| `{key}` | {default} | {meaning} |" for key, default, meaning in found]
    return "\n".join(rows) + "\n"


def keys(kind: type, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Key, default and meaning of each setting, those of inner tables included."""
    hints, meanings = get_type_hints(kind), docstrings(kind)
    for one in fields(kind):
        if is_dataclass(hints[one.name]):
            yield from keys(hints[one.name], f"{prefix}{one.name}.")
        elif one.name != "name":
            choices = [f"`{value}`" for value in get_args(hints[one.name]) if isinstance(value, str)]
            told = f" One of {', '.join(choices)}." if choices else ""
            yield f"{prefix}{one.name}", shown(one), meanings[one.name] + told


def shown(one: Any) -> str:
    """A default as TOML has it."""
    value = one.default if one.default is not MISSING else one.default_factory()
    if value is None:
        return "not set"
    if isinstance(value, str):
        return f'`"{value}"`' if value else "none"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def docstrings(kind: type) -> dict[str, str]:
    """The text below each field of a dataclass, or of those that it is made from."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for before, after in zip(body.body, body.body[1:], strict=False):
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if documented and isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
                found[before.target.id] = one_line(str(after.value.value))
    return found


def one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
