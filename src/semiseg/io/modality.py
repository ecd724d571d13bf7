"""Whether scans hold Hounsfield units, by their values: what nobody named may be CT, and names may be wrong.

MR has no values below 0 in practice; a CT has air near -1000 (or padding there, where only the body was kept) and soft
tissue between -200 and 300, and little between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from semiseg.errors import DataError
from semiseg.io.dataset import Case, Remark
from semiseg.io.scans import read_some
from semiseg.types import AnyArray
from semiseg.words import counted, shortened

Modality = Literal["auto", "ct", "mr"]
UNKNOWN_CHANNEL = "image"
"""Channel name where nobody told the modality."""

_SCANS = 8
"""So many are looked at, evenly over the set."""
_SCAN_BYTES, _ALL_BYTES = 32 << 20, 128 << 20
"""Of voxels that are read of one scan and of all: about a second, where they are compressed."""
_VALUES = 100_000
_HIGHEST_AIR_HU, _LOWEST_AIR_HU = -850.0, -1100.0
_LOWEST_TISSUE_HU, _HIGHEST_TISSUE_HU = -200.0, 300.0
_LEAST_AIR, _LEAST_TISSUE = 0.01, 0.02
_HIGHEST_HU = 32767.0


@dataclass(frozen=True)
class Values:
    """What the values of some voxels of a scan tell. hounsfield: they look like Hounsfield units."""

    minimum: float
    maximum: float
    hounsfield: bool


def judge(values: AnyArray) -> Values:
    """Judge some voxels of one channel in the scan's own units; those that are not finite do not count."""
    known = np.asarray(values, dtype=np.float32).ravel()
    known = known[np.isfinite(known)]
    if not known.size:
        return Values(0.0, 0.0, hounsfield=False)
    low, high = float(known.min()), float(known.max())
    if low > -900 or high > _HIGHEST_HU:
        return Values(low, high, hounsfield=False)
    air = float(np.mean((known <= _HIGHEST_AIR_HU) & (known >= _LOWEST_AIR_HU)))
    padding = float(np.mean(known < _LOWEST_AIR_HU))
    tissue = float(np.mean((known >= _LOWEST_TISSUE_HU) & (known <= _HIGHEST_TISSUE_HU)))
    return Values(low, high, hounsfield=air + padding >= _LEAST_AIR and tissue >= _LEAST_TISSUE)


def looked_at(cases: Sequence[Case], channel: int) -> dict[str, Values]:
    """By case id: what some voxels of one channel of up to eight cases tell; the unreadable ones are left out.

    Of a large scan the first slices in the order of the file are read, and of a large set fewer scans.
    """
    chosen = [cases[i] for i in sorted({round(i) for i in np.linspace(0, len(cases) - 1, min(_SCANS, len(cases)))})]
    left, found = _ALL_BYTES, dict[str, Values]()
    for case in chosen:
        if left <= 0:
            break
        try:
            values, size = read_some(case.images[channel if len(case.images) > 1 else 0], channel, _SCAN_BYTES)
        except DataError:
            continue  # the check names it
        left -= size
        found[case.id] = judge(values[:: max(1, values.size // _VALUES)])
    return found


def name_channels(
    channels: tuple[str, ...], cases: Sequence[Case], root: Path, modality: Modality
) -> tuple[tuple[str, ...], list[Remark]]:
    """The channels with those called CT that hold Hounsfield units and have no name, and what is to be said of them.

    modality: `ct` and `mr` are taken as they are; `auto` looks at the values of the cases.
    """
    if modality == "ct":
        return tuple("CT" if _is_unknown(name) or len(channels) == 1 else name for name in channels), []
    if modality == "mr":
        return tuple("MR" if _is_unknown(name) or is_ct(name) else name for name in channels), []
    named, remarks = [], list[Remark]()
    for index, name in enumerate(channels):
        values = looked_at(cases, index)
        hounsfield = [case for case, value in values.items() if value.hounsfield]
        share = len(hounsfield) / len(values) if values else 0.0
        looked = f"{len(hounsfield)} of {counted(len(values), 'scan')} looked at"
        if _is_unknown(name) and share > 0.5:
            hold = "holds" if len(hounsfield) == 1 else "hold"
            lowest = min(values[case].minimum for case in hounsfield)
            highest = max(values[case].maximum for case in hounsfield)
            text = (
                f"CT by its values: {looked} {hold} Hounsfield units ({lowest:g} "
                f"to {highest:g}). The channel is called CT and normalised as such; --modality mr says otherwise."
            )
            remarks.append(("note", root, text))
            name = "CT"
            odd = [case for case in values if case not in hounsfield]
            if odd:
                text = f"no Hounsfield units in {shortened(odd)}, unlike the other scans looked at."
                remarks.append(("warning", root, f"{text} Do not mix CT with other scans in one channel."))
        elif is_ct(name) and values and all(value.minimum >= 0 for value in values.values()):
            text = (
                f"the channel is called CT, but {counted(len(values), 'scan')} looked at "
                f"{'has' if len(values) == 1 else 'have'} no value below 0: no Hounsfield units? Apply the rescale "
                "intercept, or say --modality mr if it is no CT."
            )
            remarks.append(("warning", root, text))
        elif not is_ct(name) and share > 0.5:
            also = ", or say --modality ct" if len(channels) == 1 else ""
            text = (
                f"the channel is called {name}, but {looked} {'looks' if len(hounsfield) == 1 else 'look'} like "
                f"Hounsfield units. If it is CT, call it CT in dataset.json{also}: then it is normalised as CT."
            )
            remarks.append(("warning", root, text))
        elif not is_ct(name) and share > 0:
            text = f"Hounsfield units by the values in {shortened(hounsfield)}, unlike the other scans looked at."
            remarks.append(("warning", root, f"{text} Do not mix CT with other scans in one channel."))
        named.append(name)
    return tuple(named), remarks


def is_ct(name: str) -> bool:
    """Whether a channel of this name is normalised as CT."""
    return name.strip().casefold() == "ct"


def _is_unknown(name: str) -> bool:
    return name == UNKNOWN_CHANNEL or name.startswith(f"{UNKNOWN_CHANNEL}_")
