"""What a file is by its name and first bytes: a scan that is read, one of a format that is not, or no scan at all. And
the names of the files that are written."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal

from semiseg.words import counted

FormatName = Literal["NIfTI", "NRRD", "MetaImage"]
_ENDINGS: dict[str, FormatName] = {
    ".nii.gz": "NIfTI", ".nii": "NIfTI", ".nrrd": "NRRD", ".nhdr": "NRRD", ".mha": "MetaImage", ".mhd": "MetaImage",
}  # fmt: skip
"""Of files that are read, in any letter case. Of two files of one name the ending that stands first here counts."""
_DETACHED = (".nhdr", ".mhd")
"""Headers whose voxels are in a file beside them."""
ENDINGS_TEXT = ".nii.gz, .nii, .nrrd, .nhdr, .mha or .mhd"
FLAT_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_OTHER_VOLUMES = (
    ".hdr", ".img", ".img.gz", ".mgz", ".mgh", ".mnc", ".gipl", ".vtk", ".npy", ".npz", ".h5", ".hdf5", ".mat",
)  # fmt: skip
_BESIDE_HEADERS = (".raw", ".zraw", ".raw.gz", ".raw.bz2")
"""Voxels that belong to the `.mhd` or `.nhdr` beside them, which is named."""
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar", ".gz")
_FIRST_ELEMENTS = tuple(
    bytes((group, 0, element, 0)) for group, element in ((2, 0), (2, 16), (8, 0), (8, 1), (8, 5), (8, 8), (8, 22))
)
"""Of files without a preamble, little endian: (0008,0005), say, for the character set."""
_NO_SCANS = (
    ".txt", ".json", ".jsonl", ".csv", ".tsv", ".xlsx", ".xls", ".md", ".toml", ".yaml", ".yml", ".xml", ".html",
    ".pdf", ".docx", ".log", ".py", ".sh", ".bval", ".bvec", ".ini", ".db", ".license", *_BESIDE_HEADERS,
)  # fmt: skip
"""Files that nobody takes for a scan."""

Kind = Literal["scan", "dicom", "volume", "archive", "picture", "other", "none"]
TO_NIFTI = "Convert it to NIfTI first, with 3D Slicer or nibabel for example."


def ending(path: str | Path) -> str:
    """How the name of a file that is read ends, in small letters, such as `.nii.gz`; empty for other files."""
    name = str(path).lower()
    return next((ending for ending in _ENDINGS if name.endswith(ending)), "")


def format_of(path: str | Path) -> FormatName | None:
    """The format of a file that is read, by its name."""
    return _ENDINGS.get(ending(path))


def is_scan(path: str | Path) -> bool:
    """Whether a file of this name is read."""
    return format_of(path) is not None


def is_written(path: str | Path) -> bool:
    """Whether a file of this name can be written: all that are read, but for headers whose voxels are elsewhere."""
    return is_scan(path) and ending(path) not in _DETACHED


def stem(path: Path) -> str:
    """The file's name without the ending of its format, in any letter case; the name itself where it has another.
    Letters with accents are one sign each, as Linux writes them: a Mac writes two, and the name is the same."""
    return unicodedata.normalize("NFC", path.name[: len(path.name) - len(ending(path))])


def label_map(folder: Path, case: str) -> Path:
    """The file that a case's label map is written into."""
    return folder / f"{case}.nii.gz"


def probability_map(label: Path) -> Path:
    """Where class probabilities go, beside a label map: a file of the same format."""
    return label.with_name(f"{stem(label)}{PROBABILITIES}{'.nii.gz' if ending(label) == '.nii' else ending(label)}")


PROBABILITIES = "_probabilities"


def kind_of(path: Path) -> Kind:
    """What a file is; `none` for text, tables and the like, which are passed over everywhere."""
    name = path.name.lower()
    if is_scan(name):
        return "scan"
    if name.endswith(_OTHER_VOLUMES):
        return "volume"
    if is_dicom_name(path) or has_dicom_mark(path):
        return "dicom"
    if name.endswith(_NO_SCANS) or name in ("readme", "license", "dicomdir", "version"):
        return "none"
    if name.endswith(_ARCHIVES):
        return "archive"
    return "picture" if name.endswith(FLAT_ENDINGS) else "other"


def is_dicom_name(path: Path) -> bool:
    """Whether the name is that of a DICOM file; most have no ending at all."""
    return path.name.lower().endswith((".dcm", ".ima"))


def has_dicom_mark(path: Path) -> bool:
    """Whether a file begins as one of DICOM, which often has no ending."""
    if not path.is_file():  # which a pipe would be waited for, for ever
        return False
    try:
        with path.open("rb") as file:
            return starts_as_dicom(file.read(132))
    except OSError:
        return False


def starts_as_dicom(start: bytes) -> bool:
    """Whether the first 132 bytes are those of a DICOM file: `DICM` at their end, or in old ones a first element."""
    return start[128:] == b"DICM" or start[:4] in _FIRST_ELEMENTS


def holds_dicom(folder: Path) -> bool:
    """Whether a file in a folder, at any depth, is a zip, or DICOM by its name or mark; of a zip, whether it is called
    so."""
    if folder.is_file():
        return folder.name.lower().endswith(".zip")
    return any(file.suffix.lower() == ".zip" or kind_of(file) == "dicom" for file in visible(folder, deep=True))


def why_unread(path: Path) -> str | None:
    """Why a file is not read as a scan and what to do, as the rest of a sentence; None where it is read, or is no scan.

    The file must be there.
    """
    reasons: dict[Kind, str] = {
        "dicom": "DICOM is not read here: scans belong into the folder of images, label maps are .nii.gz or .nrrd.",
        "volume": f"{path.suffix} is not read yet. Convert it to .nii.gz.",
        "archive": "an archive is not read here (scans may be zips of DICOM). Unpack it.",
        "picture": "a 2D picture is not read: scans are 3D (.nii.gz, for example).",
        "other": f"not read: scans are {ENDINGS_TEXT}. Convert it if it is a scan.",
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
    """Files that are read, in order of their names, none without a folder."""
    return [file for file in visible(folder, deep=deep) if is_scan(file.name) and file.is_file()]


def scans_by_stem(folder: Path) -> dict[str, Path]:
    """The same by their names without endings, in order of names. Where there are several of one name, NIfTI counts
    before NRRD, and that before MetaImage."""
    order, found = list(_ENDINGS), dict[str, Path]()
    for file in sorted(scan_files(folder), key=lambda file: (stem(file), order.index(ending(file)))):
        found.setdefault(stem(file), file)
    return found


def scan_named(folder: Path, name: str) -> Path | None:
    """The file that is read of this name without its ending; of several as `scans_by_stem`, but those in small letters
    come first, for which the folder need not be listed. For the others it is listed once, until it changes."""
    exact = (folder / f"{name}{ending}" for ending in _ENDINGS)
    if found := next(filter(Path.is_file, exact), None):
        return found
    try:
        now = folder.stat()
        others = _in_other_letters(folder, (now.st_dev, now.st_ino, now.st_mtime_ns)).get(name, [])
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    return next(filter(Path.is_file, (folder / other for other in others)), None)


@lru_cache(maxsize=8)
def _in_other_letters(folder: Path, state: tuple[int, int, int]) -> dict[str, list[str]]:
    """Of a folder the names of files that are read whose endings are not in small letters, by names without endings.
    state: what tells the folder's states apart."""
    order, found = list(_ENDINGS), dict[str, list[str]]()
    files = [file for file in folder.iterdir() if is_scan(file.name) and not file.name.endswith(ending(file.name))]
    for file in sorted(files, key=lambda file: (order.index(ending(file)), file.name)):
        found.setdefault(stem(file), []).append(file.name)
    return found


def what_it_holds(folder: Path) -> str:
    """What of scans lies in a folder and its sub-folders: `3 NIfTI files, 1 .mgz file`; empty for nothing of them."""
    found: dict[str, int] = {}
    for file in visible(folder, deep=True):
        kind = kind_of(file)
        name = format_of(file) or {"dicom": "DICOM", "volume": file.suffix}.get(kind)
        if name:
            found[name] = found.get(name, 0) + 1
    return ", ".join(counted(count, f"{name} file") for name, count in found.items())


def is_read(holds: str) -> bool:
    """Whether a folder of which `what_it_holds` says this has scans that are read."""
    return any(name in holds for name in _ENDINGS.values())
