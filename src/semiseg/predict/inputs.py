"""Which scans to predict: files and folders grouped into cases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from semiseg.errors import DataError
from semiseg.io.nifti import NIFTI_ENDINGS

_CHANNEL = re.compile(r"(?P<id>.+)_(?P<channel>\d{4})$")


@dataclass(frozen=True)
class Scan:
    """One scan to predict: its id names the output; one image per channel (or one 4D image)."""

    id: str
    images: tuple[Path, ...]


def find_scans(inputs: Sequence[Path]) -> list[Scan]:
    """Group `ID_0000.nii.gz`, `ID_0001.nii.gz` (channels) or `ID.nii.gz` into scans, sorted by id.

    Numbers that do not run from 0000 on without a gap belong to the names: they are no channels.
    Raises `DataError` for no or a missing input, a folder without scans, or two files that claim one channel of one id.
    """
    if not inputs:
        raise DataError("no scans: name files, or folders of scans.")
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            found = sorted(f for f in path.iterdir() if f.name.endswith(NIFTI_ENDINGS) and not f.name.startswith("."))
            if not found:
                raise DataError(f"{path}: no .nii or .nii.gz file in this folder. Name the folder of the scans.")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path}: there is no such file or folder.")
    grouped: dict[str, dict[int, Path]] = {}
    for file in files:
        stem = _stem(file)
        match = _CHANNEL.match(stem)
        scan, channel = (match["id"], int(match["channel"])) if match else (stem, 0)
        taken = grouped.setdefault(scan, {})
        if channel in taken:
            raise DataError(
                f"{file}: {taken[channel]} is channel {channel} of {scan} too. Rename or remove one of them."
            )
        taken[channel] = file
    scans: list[Scan] = []
    for name, channels in grouped.items():
        if sorted(channels) == list(range(len(channels))):
            scans.append(Scan(name, tuple(channels[c] for c in sorted(channels))))
        else:
            scans += [Scan(_stem(file), (file,)) for file in channels.values()]
    by_id: dict[str, Scan] = {}
    for scan in scans:
        if scan.id in by_id:
            raise DataError(f"{scan.images[0]}: {by_id[scan.id].images[0]} has the id {scan.id} too. Rename one.")
        by_id[scan.id] = scan
    return [by_id[key] for key in sorted(by_id)]


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".nii")
