"""Cases handed to a program for drawing, and corrected label maps taken back."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semiseg.data.labels import count_values
from semiseg.decisions import label_sha256
from semiseg.errors import DataError
from semiseg.files import atomic_file, write_json, write_text
from semiseg.io.scans import read_grid, read_label, write_label
from semiseg.reporting.figures import organ_colours
from semiseg.view.pictures import rgb
from semiseg.view.source import Source, ViewCase, label_file

EXPORT = "export"
CORRECTIONS = "corrections"
_AXES = {0: "Z", 1: "Y", 2: "X"}


def export(source: Source, cases: Sequence[ViewCase]) -> Path:
    """Write scan and label of each case, and tables of the organs for ITK-SNAP and 3D Slicer, into `export/`; a label
    that lies there, perhaps half corrected, is left as it is. Returns the folder."""
    folder = source.home / EXPORT
    organs = source.contents().organs
    colours = {value: rgb(organ_colours(organs.values())[name]) for value, name in organs.items()}
    write_text(folder / "labels_itksnap.txt", itksnap_labels(organs, colours))
    write_text(folder / "labels_slicer.ctbl", slicer_colours(organs, colours))
    for case in cases:
        for index, image in enumerate(case.images):
            suffix = f"_{index}" if len(case.images) > 1 else ""
            target = (
                folder
                / f"{case.id}_scan{suffix}{''.join(image.suffixes[-2:]) if image.suffix == '.gz' else image.suffix}"
            )
            if not target.exists():
                with atomic_file(target) as temporary:
                    shutil.copyfile(image, temporary)
        label = source.correction(case) or source.measured(case)
        target = label_file(folder, case.id)
        if not target.exists():
            if label is not None:
                write_label(target, *read_label(label), like=label)
            elif case.images:
                grid = read_grid(case.images[0])
                write_label(target, _empty(grid.shape_zyx), grid, like=case.images[0])
    return folder


def _empty(shape: tuple[int, int, int]) -> Any:
    import numpy as np

    return np.zeros(shape, dtype=np.uint8)


def itksnap_labels(organs: Mapping[int, str], colours: Mapping[int, tuple[int, int, int]]) -> str:
    """ITK-SNAP's label descriptions: index, red, green, blue, opacity, visible, in 3D, name."""
    lines = ["# ITK-SNAP label descriptions: index, r, g, b, a, visible, mesh, name", '0 0 0 0 0 0 0 "Clear Label"']
    for value, name in organs.items():
        red, green, blue = colours[value]
        plain = name.replace('"', "'")
        lines.append(f'{value} {red} {green} {blue} 1 1 1 "{plain}"')
    return "\n".join(lines) + "\n"


def slicer_colours(organs: Mapping[int, str], colours: Mapping[int, tuple[int, int, int]]) -> str:
    """3D Slicer's colour table: value, name without spaces, red, green, blue, opacity."""
    lines = ["# Color table file: value name r g b a", "0 background 0 0 0 0"]
    for value, name in organs.items():
        lines.append(" ".join(map(str, (value, "_".join(name.split()), *colours[value], 255))))
    return "\n".join(lines) + "\n"


def import_correction(
    source: Source, case: ViewCase, given: Path, *, axis: int | None, indices: Sequence[int] | None
) -> dict[str, Any]:
    """Take a corrected label map as the case's: `corrections/ID.nii.gz`. axis, indices: the slices (of the canonical
    grid) that were corrected, where it were some alone.

    Raises `DataError` for another grid than the scan's, and for values that no organ has.
    """
    like = case.images[0] if case.images else source.measured(case)
    if like is None:
        raise DataError(f"{case.id}: has neither scan nor label, on whose grid a correction could lie.")
    expected, found = read_grid(like), read_grid(given)  # the header first: it bounds what is read
    if misfit := found.misfit(expected, "Save it on the scan's grid."):
        raise DataError(f"{case.id}: the corrected label is not on the grid of its scan: {misfit}")
    label, grid = read_label(given)
    voxels = count_values(label)
    scheme = source.contents().scheme
    known = {0, *(source.contents().organs), *([scheme.ignore] if scheme and scheme.ignore is not None else [])}
    if strange := sorted(set(voxels) - known):
        have = f"{voxels[strange[0]]} voxels have value {strange[0]}"
        raise DataError(f"{case.id}: in the corrected label {have}, which is no organ's. Renumber it.")
    slices = None
    if axis is not None or indices is not None:
        if axis not in _AXES or not indices:
            raise DataError(f"{case.id}: give both axis (0, 1 or 2) and the indices of the slices.")
        count = grid.shape_zyx[axis]
        if wrong := [index for index in indices if not 0 <= index < count]:
            raise DataError(f"{case.id}: slice {wrong[0]} is not among the {count} along {_AXES[axis]}.")
        slices = {"axis": axis, "indices": sorted(set(indices))}
    folder = source.home / CORRECTIONS
    judged = source.measured(case)
    write_json(
        folder / f"{case.id}.json",
        {"slices": slices, "source_sha256": label_sha256(judged) if judged else None},
    )
    write_label(label_file(folder, case.id), label, expected, like=like)
    names = source.contents().organs
    return {
        "case": case.id,
        "slices": slices,
        "voxels": {name: voxels.get(value, 0) for value, name in names.items()},
    }
