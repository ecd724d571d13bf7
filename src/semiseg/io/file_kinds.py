"""What a file is by its name and first bytes: a scan that is read, one of a format that is not, or no scan at all. And
the names of the files that are written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from semiseg.words import counted

NIFTI_ENDINGS = (".nii.gz", ".nii")
"""Of files that are read, in any letter case."""
FLAT_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_OTHER_VOLUMES = (
    ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".img", ".img.gz", ".mgz", ".mgh", ".mnc", ".gipl", ".vtk", ".npy",
    ".npz", ".h5", ".hdf5", ".mat",
)  # fmt: skip
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar", ".gz")
_NO_SCANS = (
    ".txt", ".json", ".jsonl", ".csv", ".tsv", ".xlsx", ".xls", ".md", ".toml", ".yaml", ".yml", ".xml", ".html",
    ".pdf", ".docx", ".log", ".py", ".sh", ".bval", ".bvec", ".raw", ".zraw", ".ini", ".db", ".license",
)  # fmt: skip
"""Files that nobody takes for a scan; `.raw` belongs to the `.mhd` beside it, which is named."""

Kind = Literal["nifti", "dicom", "volume", "archive", "picture", "other", "none"]
TO_NIFTI = "Convert it to NIfTI first, with dcm2niix for example."


def is_nifti(path: str | Path) -> bool:
    """Whether the name ends with `.nii` or `.nii.gz`, in any letter case."""
    return str(path).lower().endswith(NIFTI_ENDINGS)


def stem(path: Path) -> str:
    """The file's name without `.nii` or `.nii.gz` in any letter case; the name itself where it has another ending."""
    ending = next((ending for ending in NIFTI_ENDINGS if path.name.lower().endswith(ending)), "")
    return path.name[: len(path.name) - len(ending)]


def label_map(folder: Path, case: str) -> Path:
    """The file that a case's label map is written into."""
    return folder / f"{case}.nii.gz"


def probability_map(label: Path) -> Path:
    """Where class probabilities go, beside a label map."""
    return label.with_name(f"{stem(label)}{PROBABILITIES}.nii.gz")


PROBABILITIES = "_probabilities"


def kind_of(path: Path) -> Kind:
    """What a file is; `none` for text, tables and the like, which are passed over everywhere."""
    name = path.name.lower()
    if is_nifti(name):
        return "nifti"
    if name.endswith(_OTHER_VOLUMES):
        return "volume"
    if name.endswith((".dcm", ".ima")) or _has_dicom_mark(path):
        return "dicom"
    if name.endswith(_ARCHIVES):
        return "archive"
    if name.endswith(FLAT_ENDINGS):
        return "picture"
    return "none" if name.endswith(_NO_SCANS) or name in ("readme", "license", "dicomdir", "version") else "other"


def _has_dicom_mark(path: Path) -> bool:
    """Whether `DICM` stands at byte 128, as in DICOM files, which often have no ending."""
    if not path.is_file():  # which a pipe would be waited for, for ever
        return False
    try:
        with path.open("rb") as file:
            file.seek(128)
            return file.read(4) == b"DICM"
    except OSError:
        return False


def why_unread(path: Path) -> str | None:
    """Why a file is not read as a scan and what to do, as the rest of a sentence; None where it is read, or is no scan.

    The file must be there.
    """
    reasons: dict[Kind, str] = {
        "dicom": f"DICOM is not read yet. {TO_NIFTI}",
        "volume": f"{path.suffix} is not read yet. Convert it to .nii.gz.",
        "archive": "an archive is not read. Unpack it.",
        "picture": "a 2D picture is not read: scans are 3D .nii.gz or .nii.",
        "other": "not read: scans are .nii.gz or .nii. Convert it if it is a scan.",
    }
    return reasons.get(kind_of(path))


def visible(folder: Path, *, deep: bool = False) -> list[Path]:
    """What lies in a folder in order of names; deep: the files of all sub-folders, linked ones too, in order of paths.

    Hidden entries (`._x` of a Mac) are left out. Nothing where there is no folder.
    """
    if not deep:
        entries = (entry for entry in folder.glob("*") if not entry.name.startswith("."))
        return sorted(entries, key=lambda entry: entry.name)  # several times as fast as by paths
    return sorted(_walk(folder, {os.path.realpath(folder)}))


def _walk(folder: Path, seen: set[str]) -> Iterator[Path]:
    for entry in visible(folder):
        if not entry.is_dir():
            yield entry
        elif (real := os.path.realpath(entry)) not in seen:  # a link may lead back up
            seen.add(real)
            yield from _walk(entry, seen)


def scan_files(folder: Path, *, deep: bool = False) -> list[Path]:
    """NIfTI files in order of their names, none without a folder."""
    return [file for file in visible(folder, deep=deep) if is_nifti(file.name) and file.is_file()]


def what_it_holds(folder: Path) -> str:
    """What of scans lies in a folder and its sub-folders: `3 NIfTI files, 1 .nrrd file`; empty for nothing of them."""
    found: dict[str, int] = {}
    for file in visible(folder, deep=True):
        kind = kind_of(file)
        name = {"nifti": "NIfTI", "dicom": "DICOM", "volume": file.suffix}.get(kind)
        if name:
            found[name] = found.get(name, 0) + 1
    return ", ".join(counted(count, f"{name} file") for name, count in found.items())
