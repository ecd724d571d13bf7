"""By what a study knows its runs again: a hash of the settings that a run's scores depend on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from semiseg.data.patients import BIDS
from semiseg.data.roles import VALIDATED, depend_on_patients, read_ids
from semiseg.settings import RunSettings
from semiseg.tables import flattened

_OF_THE_MACHINE = (
    "data.root",
    "data.store",
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


def run_key(method: str, settings: RunSettings) -> str:
    """Of a run. method: its name in the study. Raises `ConfigError` where a list of cases cannot be read."""
    parts = flattened(asdict(settings))
    for name in _LISTS:
        if file := parts.get(f"data.{name}"):
            parts[f"data.{name}"] = read_ids(file, name)
    validates = bool(settings.train.validation_every) and settings.train.validation_fraction != 0
    if not settings.train.validation_every:  # then it does not count, and runs that were known stay known
        parts["train.validation_fraction"] = VALIDATED
    # Otherwise scores do not depend on them, only their intervals; and the default is as before there was the setting.
    if settings.data.patients == BIDS or not depend_on_patients(settings.data, validates=validates):
        parts.pop("data.patients")
    for name in _OF_THE_MACHINE:
        parts.pop(name, None)
    parts["folder"] = Path(settings.data.root).name
    return hashlib.sha256(json.dumps([method, parts], sort_keys=True, default=str).encode()).hexdigest()[:16]
