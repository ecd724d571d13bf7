"""Names and colours of organs, as ITK-SNAP and 3D Slicer read them."""

from __future__ import annotations

import re

from semiseg.data.partial import ignore_value
from semiseg.io.colours import organ_colours
from semiseg.io.dataset import LabelScheme

ITK_SNAP_FILE, SLICER_FILE = "labels_itksnap.txt", "labels_slicer.ctbl"
_IGNORED_RGB = (128, 128, 128)


def itk_snap_labels(labels: LabelScheme) -> str:
    """ITK-SNAP's label description file: index, red, green, blue, opacity, visibility, visibility in 3D, name."""
    rgb = _colours(labels)
    rows = [f'{0:5} {0:5} {0:4} {0:4} {0:8} {0:2} {0:2}    "Clear Label"']
    for value, name in _names(labels).items():
        red, green, blue = rgb[value]
        rows.append(f'{value:5} {red:5} {green:4} {blue:4} {1:8} {1:2} {1:2}    "{name.replace(chr(34), chr(39))}"')
    head = ["#" * 48, "# ITK-SnAP Label Description File", "#" * 48]
    return "\n".join([*head, *rows]) + "\n"


def slicer_colours(labels: LabelScheme) -> str:
    """3D Slicer's colour table: value, name, red, green, blue, opacity; a name has no space there."""
    rgb = _colours(labels)
    rows = ["# Color table file", f"# {len(_names(labels)) + 1} values", "0 background 0 0 0 0"]
    for value, name in _names(labels).items():
        rows.append(" ".join(map(str, (value, re.sub(r"\s+", "_", name), *rgb[value], 255))))
    return "\n".join(rows) + "\n"


def _colours(labels: LabelScheme) -> dict[int, tuple[int, int, int]]:
    """A colour for each organ, the same for the same list; grey for the ignore value."""
    found = organ_colours(list(labels.organs.values()))
    rgb = {value: _rgb(found[name]) for value, name in labels.organs.items()}
    return rgb | {ignore_value(labels): _IGNORED_RGB}


def _rgb(colour: str) -> tuple[int, int, int]:
    digits = colour.lstrip("#")
    red, green, blue = (int(digits[i : i + 2], 16) for i in (0, 2, 4))
    return red, green, blue


def _names(labels: LabelScheme) -> dict[int, str]:
    return labels.organs | {ignore_value(labels): "ignore"}
