"""A label that a client sends: held against the scan, its segments put back in our order, kept as a correction."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from semiseg.corrections import take_back
from semiseg.data.labels import count_values
from semiseg.data.partial import ignore_value
from semiseg.data.reviews import CORRECTIONS
from semiseg.errors import DataError
from semiseg.files import atomic_file
from semiseg.io.dataset import LabelScheme
from semiseg.io.file_kinds import label_map
from semiseg.io.grid import Grid
from semiseg.io.label_scheme import IGNORE
from semiseg.io.scans import read_grid, read_label, write_label
from semiseg.serve.work import Work
from semiseg.types import LabelArray
from semiseg.view.contents import ViewCase
from semiseg.words import counted, shortened

EARLIER = "earlier"
"""Folder of corrections that another took the place of."""
_NO_ORGANS = ("background", "foreground_scribbles", "background_scribbles")
"""Segments of Slicer that are not sent, so that they have no position."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What became of a label. corrected: it was kept. accepted: else the label that was handed out, where it came back
    as it was. changed_voxels: against that label, or against nothing. absent: organs of which it holds nothing."""

    corrected: bool
    accepted: Path | None
    changed_voxels: int
    absent: tuple[str, ...]


def most_bytes(grid: Grid) -> int:
    """Of a label map of a scan, in 64-bit numbers and uncompressed, with room for a header."""
    z, y, x = grid.shape_zyx
    return 8 * z * y * x + (1 << 20)


def save(work: Work, case: ViewCase, file: Path, segments: Sequence[str]) -> Saved:
    """Keep what a client sent. segments: the names of the values 1, 2, ...; none where the values are the data's.

    Raises `DataError` for a label on another grid than the scan's, with a name that is no organ's, or a value without a
    name.
    """
    image, scheme = case.images[0], work.scheme
    grid = read_grid(image)
    try:
        # The header first: it bounds what is read, however much a small file would become.
        if misfit := read_grid(file).misfit(grid, "Save it on the scan's grid; nothing is resampled here."):
            raise DataError(f"{file}: not on the grid of its scan: {misfit}")
        label, _ = read_label(file)
        label = in_our_order(label, segments, scheme) if segments else label
        corrections = work.folder / CORRECTIONS
        before = work.original(case)
        with TemporaryDirectory(prefix="semiseg-") as folder:
            renumbered = Path(folder) / "label.nii"
            write_label(renumbered, label, grid)
            _keep_earlier(corrections, case.id, label)
            taken = take_back(corrections, case.id, image, scheme, renumbered, before=before)
    except DataError as error:
        # The names of files are ours or the scan's, and say nothing to who sent the label.
        said = str(error).replace(str(file), "The label").replace(str(image), "its scan")
        raise DataError(said) from None
    there = count_values(label)
    absent = tuple(name for value, name in scheme.organs.items() if value not in there)
    return Saved(
        corrected=taken is not None,
        accepted=None if taken or work.source.correction(case) else before,
        changed_voxels=0 if taken is None else taken.changed_voxels if before else int(np.count_nonzero(label)),
        absent=absent,
    )


def segment_names(params: Any) -> list[str]:
    """The names in `label_info`, by position; none where nothing is said. Raises `DataError` where it is no list of
    names."""
    info = params.get("label_info") or []
    if not isinstance(info, list) or not all(
        isinstance(one, dict) and isinstance(one.get("name"), str) for one in info
    ):
        raise DataError("label_info: give a list of objects with a name, one for each value from 1 on.")
    return [one["name"] for one in info if one["name"] not in _NO_ORGANS]


def in_our_order(label: LabelArray, segments: Sequence[str], scheme: LabelScheme) -> LabelArray:
    """The label map with our values. segments: the names of its values 1, 2, ... Slicer numbers segments by their order
    when it saves them, whatever they were."""
    ours = {name: value for value, name in scheme.organs.items()} | {IGNORE: ignore_value(scheme)}
    if unknown := [name for name in segments if name not in ours]:
        raise DataError(
            f"{counted(len(unknown), 'segment')} of a name that is not known here: {shortened(unknown)}. Known are "
            f"{', '.join(ours)}. Rename or remove the segment, and save again."
        )
    if twice := sorted({name for name in segments if segments.count(name) > 1}):
        raise DataError(f"Two segments of one name: {shortened(twice)}. Join them, and save again.")
    highest = int(label.max(initial=0))
    if highest > len(segments):
        raise DataError(f"The label has value {highest}, but {counted(len(segments), 'segment')} with a name.")
    table = np.zeros(highest + 1, dtype=np.uint16)
    for position, name in enumerate(segments[:highest], start=1):
        table[position] = ours[name]
    renumbered: LabelArray = table[label]
    return renumbered


def _keep_earlier(corrections: Path, case: str, label: LabelArray) -> None:
    """Two may have mended one scan: a correction that another takes the place of is left beside it."""
    there = label_map(corrections, case)
    if not there.is_file() or np.array_equal(read_label(there)[0], label):
        return
    folder = corrections / EARLIER
    folder.mkdir(exist_ok=True)
    number = 1
    while (copy := label_map(folder, f"{case}-{number}")).exists():
        number += 1
    with atomic_file(copy) as temporary:
        shutil.copyfile(there, temporary)
