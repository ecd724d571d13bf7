"""Sizes of memory as people write them."""

from __future__ import annotations

import re
from math import ceil

from semiseg.errors import ConfigError

_UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(text: str, setting: str = "max_memory") -> int:
    """`4GB`, `3500MB`, `4GiB` in bytes; raises `ConfigError` that names the setting for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MG]i?B)\s*", text, re.IGNORECASE)
    if not match:
        raise ConfigError(f"{setting} = {text!r}: give a number with its unit, such as 4GB, 3500MB or 4GiB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def show_bytes(count: int) -> str:
    """A size in GB, rounded up to what `parse_bytes` reads."""
    return f"{ceil(count / 10**7) / 100:.2f}GB"
