"""By what a study knows its runs again: a hash of the settings that a run's scores depend on.

A study is made in several sittings, and semiseg may gain a setting between two of them. A setting that is newer than
the study counts only where it is not at the value under which everything is as before, which is mostly its default.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from semiseg.data.roles import DataSettings, read_ids
from semiseg.newer_settings import AS_BEFORE, as_they_come_to
from semiseg.settings import RunSettings

_OF_THE_MACHINE = (
    "data.root",
    "train.threads",
    "predict.device",
    "predict.max_memory",
    "predict.max_gpu_memory",
    "predict.compile",
    "predict.tile_batch",
)
"""Settings that scores do not depend on."""
_LISTS = ("label_list", "exclude")
"""Of section `[data]`: files whose ids count."""


def setting_names() -> list[str]:
    """All settings that there are, as `section.key`."""
    return sorted(_flat(RunSettings()))


def run_key(method: str, settings: RunSettings, known: Collection[str]) -> str:
    """Of a run. method: its name in the study. known: `setting_names` when the study began.

    Raises `ConfigError` where a list of cases cannot be read.
    """
    parts, before = _flat(settings), _flat(RunSettings()) | AS_BEFORE
    parts = {name: value for name, value in parts.items() if name in known or value != before[name]}
    for name in _LISTS:
        if file := parts.get(f"data.{name}"):
            parts[f"data.{name}"] = read_ids(file, name)
    for name in _OF_THE_MACHINE:
        parts.pop(name, None)
    parts["folder"] = Path(settings.data.root).name
    return hashlib.sha256(json.dumps([method, parts], sort_keys=True, default=str).encode()).hexdigest()[:16]


def steps_key(settings: RunSettings, known: Collection[str]) -> str:
    """Of what a number of steps depends on: settings and minutes, but not labels, seed or the method's name."""
    return run_key("", replace(settings, data=DataSettings(), train=replace(settings.train, seed=0)), known)


def _flat(settings: RunSettings) -> dict[str, Any]:
    tables = asdict(settings).items()
    return as_they_come_to({f"{section}.{k}": value for section, table in tables for k, value in table.items()})
