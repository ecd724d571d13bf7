"""What of a scan is shown as grey: a channel, in a window."""

from __future__ import annotations

from typing import NamedTuple

from semiseg.view.contents import Contents

WINDOWS = (
    ("soft tissue", -160, 240),
    ("liver", -30, 150),
    ("mediastinum", -125, 275),
    ("lung", -1350, 150),
    ("bone", -450, 1050),
    ("brain", 0, 80),
    ("everything", -1024, 3071),
)
"""Of CT, in HU; the first is where a case opens."""
OWN_WINDOWS = ("as it opens", "bright", "everything")
"""Of other channels, by each scan's own values: percentiles 1 to 99.5, 99 to the maximum, minimum to maximum. What is
brightest may be what is looked for: lesions that are one white blot as the scan opens."""


class Look(NamedTuple):
    """A channel by its number, in a window, or in one of `OWN_WINDOWS` by its number."""

    name: str
    channel: int
    window: tuple[float, float] | int


def looks_of(contents: Contents) -> list[Look]:
    """The ways to look at the scans of a source, one after another: each channel in each window. The first is the usual
    one."""
    several = len(contents.channels) > 1
    looks = []
    for channel, name in enumerate(contents.channels):
        of = f"{name}, " if several else ""
        if contents.is_ct(channel):
            looks += [Look(f"{of}{window}", channel, (low, high)) for window, low, high in WINDOWS]
        else:
            looks += [Look(f"{of}{window}", channel, number) for number, window in enumerate(OWN_WINDOWS)]
    return looks or [Look("", 0, 0)]
