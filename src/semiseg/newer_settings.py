"""Settings that are newer than some runs and studies, and what they have to be for all to be as it was before them."""

from __future__ import annotations

from typing import Any

AS_BEFORE = {
    "augment.elastic_probability": 0.0,
    "method.cutmix_ways": "both",
    "method.label_scope": "patch",
}
"""By `section.key`, where that is not the default: settings that are not here came with one that changes nothing."""
_BEFORE_OPEN = {"method.rounds": 3}
"""What settings were that may be left open since (None), and still are where nothing settles them otherwise."""


def as_they_come_to(flat: dict[str, Any]) -> dict[str, Any]:
    """Settings by `section.key`, open ones as what they come to where that would not be told otherwise from runs and
    studies that older versions began: `auto` was patch for rounds."""
    told: dict[str, Any] = {key: value for key, value in _BEFORE_OPEN.items() if flat.get(key, value) is None}
    if (flat.get("method.name"), flat.get("method.label_scope")) == ("pseudo_rounds", "auto"):
        told["method.label_scope"] = "scan"
    return flat | told
